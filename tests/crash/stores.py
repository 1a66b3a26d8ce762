"""The chunk store under a recorder: what it has to do, and what must be there afterwards."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from crc32c import crc32c

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store import allocator
from hillfire.storage.store.base import ChunkMeta, ChunkStore, Pending, Tag, Update
from hillfire.storage.store.engine import EngineStore, Options, open_store
from hillfire.storage.store.memory import MemoryStore
from hillfire.storage.store.system import System
from hillfire.types import ChunkId, InodeId, Version, chunk_id
from tests.crash.replay import Call, Cut, Recording, crashes, image, recording

CHUNK = 128 * 1024
NAMES = [chunk_id(InodeId(3), index) for index in range(5)]
SMALL = Options(segment_bytes=60_000, segment_records=16, spare_bytes=1024)
RESERVE_BYTES = 64 * 1024
CLONES = 0.1


class One(NamedTuple):
    """All that may be known of a chunk from outside."""

    meta: ChunkMeta | None
    content: bytes | None
    """None: it is refused as damaged"""
    pending: Pending | None


State = dict[ChunkId, One]


class Growing(System):
    """FUSE has no fallocate for its daemons in Python: a file grows by its length."""

    def fallocate(self, fd: int, at: int, n_bytes: int) -> None:
        """Grow the file."""
        self.truncate(fd, max(self.size(fd), at + n_bytes))

    def punch(self, fd: int, at: int, n_bytes: int) -> bool:
        """There are no holes."""
        return False


def opened(directory: Path, *, durable: bool, direct: bool) -> EngineStore:
    """Open a store with small logs and nobody beside it: its upkeep is a step of the test."""
    store = open_store(
        directory,
        direct=direct,
        durable=durable,
        options=SMALL,
        reserve_bytes=RESERVE_BYTES,
        system=Growing(),
    )
    keeper, store.keeper = store.keeper, None
    if keeper is not None:
        keeper.close()
    return store


def observe(store: ChunkStore) -> State:
    """Look at every chunk."""
    pending = dict(store.pending())
    return {name: One(store.get(name), _content(store, name), pending.get(name)) for name in NAMES}


def _content(store: ChunkStore, name: ChunkId) -> bytes | None:
    into = bytearray(CHUNK)
    try:
        count, _, _ = store.read(name, 0, memoryview(into))
    except Error as error:
        if error.code is Code.CORRUPT:
            return None
        raise
    return bytes(into[:count])


def work(made: Recording, seed: int, turns: int, *, durable: bool) -> list[State]:
    """Update and sync; return the state after each step, marked as it begins and ends."""
    rng = random.Random(seed)
    store = opened(made.directory / "store", durable=durable, direct=bool(seed % 2))
    model, states = MemoryStore(), list[State]()
    versions = dict.fromkeys(NAMES, 0)
    states.append(observe(model))
    made.mark("synced 0")

    def step(what: str, *args: object) -> None:
        made.mark(f"begun {len(states)}")
        found, right = getattr(store, what)(*args), getattr(model, what)(*args)
        assert found == right, (what, found, right)
        states.append(observe(model))
        word = "discarded" if what == "discard" else "done"  # which is never promised
        made.mark(f"{word} {len(states) - 1}")

    try:
        for _ in range(turns):
            chosen = rng.sample(NAMES, rng.randrange(1, 4))
            for name in chosen:
                versions[name] += 1
            step("prepare", [_update(rng, each, versions[each], model, chosen) for each in chosen])
            if rng.random() < 0.3:  # another update takes the place of one that is pending
                step("prepare", [_update(rng, chosen[0], versions[chosen[0]], model, chosen)])
            if rng.random() < 0.1:
                step("discard", chosen[0])
                versions[chosen[0]] -= 1
                chosen = chosen[1:]
            if chosen:
                step("commit", [(name, Version(versions[name]), 1) for name in chosen])
            if rng.random() < 0.15:
                store.sync()
                made.mark(f"synced {len(states) - 1}")
            if rng.random() < 0.3:
                store.maintain()
    finally:
        store.close()
    return states


def _update(
    rng: random.Random, name: ChunkId, version: int, model: MemoryStore, chosen: Sequence[ChunkId]
) -> Update:
    """Draw an update; what a clone copies is not changed meanwhile: its lock is held too."""
    kind = rng.choices([Kind.WRITE, Kind.TRUNCATE, Kind.REMOVE, Kind.REPLACE], [16, 3, 1, 1])[0]
    offset = rng.choice([0, 0, rng.randrange(CHUNK - 1), rng.randrange(5000), 70_000])
    offset = offset if kind == Kind.WRITE else 0
    length = rng.choice([rng.randrange(1, 9000), 4096, rng.randrange(1, CHUNK), CHUNK])
    length = min(length, CHUNK - offset)
    payload = rng.randbytes(length) if kind in (Kind.WRITE, Kind.REPLACE) else b""
    tag = Tag(1, name[-1], version)
    made = Update(
        name, Version(version), kind, offset, length, memoryview(payload), crc32c(payload), tag,
        0, 1, CHUNK,
    )  # fmt: skip
    sources = [
        (each, meta.version)
        for each in NAMES
        if each not in chosen and (meta := model.get(each)) is not None and not meta.removed
    ]
    if sources and rng.random() < CLONES:
        source, at = rng.choice(sources)
        empty = memoryview(b"")
        made = made._replace(
            kind=Kind.CLONE, offset=0, length=0, payload=empty, checksum=0, source=source,
            source_version=at,
        )  # fmt: skip
    return made


def record(
    scratch: Path, seed: int, turns: int, *, durable: bool
) -> tuple[list[Call], list[State]]:
    """Let a store work on a recorder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocator, "GROW_BYTES", 512 * 1024)
        with recording(scratch) as made:
            states = work(made, seed, turns, durable=durable)
    return made.calls, states


def check(
    calls: list[Call], states: list[State], seed: int, sample: int | None, *, durable: bool
) -> tuple[int, int]:
    """Open what each crash leaves; return how many there were, and how many chunks were refused."""
    count = damaged = 0
    for cut, files, marks in crashes(calls, random.Random(seed), sample):
        last = {"begun": 0, "done": 0, "discarded": 0, "synced": -1}
        for mark in marks:
            word, at = mark.split()
            last[word] = int(at)
        if last["synced"] < 0:
            continue  # the store was being created
        count += 1
        safe = last["synced"]
        if durable or cut.power is None:
            safe = max(last["done"], safe)
        if cut.power is None:
            safe = max(last["discarded"], safe)
        begun = max(last["begun"], safe)
        with image(files) as directory:
            try:
                store = opened(directory / "store", durable=durable, direct=False)
            except Error as error:
                raise AssertionError(f"{cut}: does not open: {error}") from error
            try:
                damaged += _check_one(store, states, safe, begun, cut)
                _go_on(store, cut)
            finally:
                store.close()
    return count, damaged


def _check_one(store: EngineStore, states: list[State], safe: int, begun: int, cut: Cut) -> int:
    """Find a state that the store may have gone back to; return how many chunks are damaged.

    After a loss of power what was committed since the last sync may be damaged, and what was
    prepared since then may be gone.
    """
    found = observe(store)

    def may_be(number: int) -> bool:
        for name in NAMES:
            is_, was, promised = found[name], states[number][name], states[safe][name]
            lossy = cut.power is not None
            dropped = lossy and is_.pending is None and was.pending != promised.pending
            if is_.meta != was.meta or not (is_.pending == was.pending or dropped):
                return False
            damaged = lossy and is_.content is None and was.meta != promised.meta
            if not (is_.content == was.content or damaged):
                return False
        return True

    assert any(may_be(number) for number in range(safe, begun + 1)), (
        cut,
        safe,
        begun,
        {name.hex()[-2:]: _nearest(found[name], name, states, begun) for name in NAMES},
    )
    return sum(one.content is None for one in found.values())


def _nearest(one: One, name: ChunkId, states: list[State], begun: int) -> str:
    """Tell, for whoever reads a failure, which states a chunk looks like."""
    like = [n for n in range(begun + 1) if states[n][name] == one]
    metas = [n for n in range(begun + 1) if states[n][name].meta == one.meta]
    pending = None if one.pending is None else one.pending.version
    corrupt = " damaged" if one.content is None else ""
    return f"as in {like[-3:]}, its record as in {metas[-3:]}, pending {pending}{corrupt}"


def _go_on(store: EngineStore, cut: Cut) -> None:
    """Everything that is pending can be committed whole, and more can be written."""
    for name, pending in list(store.pending()):
        store.commit([(name, pending.version, 1)])
        meta, data = store.get(name), _content(store, name)
        assert meta is not None, cut
        if data is not None:
            assert len(data) == meta.length == pending.length, (cut, name)
            assert meta.checksum == pending.checksum, (cut, name)
    version = max([0, *(meta.version for _, meta in store.scan())]) + 1
    name, payload = chunk_id(InodeId(4), 0), b"after the crash"
    made = Update(
        name, Version(version), Kind.WRITE, 0, len(payload), memoryview(payload), crc32c(payload),
        Tag(2, 1, 1), 0, 1, CHUNK,
    )  # fmt: skip
    (answer,) = store.prepare([made])
    assert not isinstance(answer, Error), (cut, answer)
    store.commit([(name, Version(version), 1)])
    assert _content(store, name) == payload, cut
