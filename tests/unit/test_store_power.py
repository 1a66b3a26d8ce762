"""A store on a simulated disk that is killed or loses power at any step (budget: 40 s).

The model is MemoryStore. What was synced must be there; since then the store may have gone back to
how it was after any of its steps, as a whole, and may miss bytes written since, but must say so.
"""

import random
from collections.abc import Callable
from copy import copy
from typing import NamedTuple

import pytest
from crc32c import crc32c

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import ChunkMeta, ChunkStore, Image, Pending, Tag, Update
from hillfire.storage.store.engine import EngineStore, Options, open_engine
from hillfire.storage.store.memory import MemoryStore
from hillfire.types import ChunkId, InodeId, Version, chunk_id
from tests.store_parts import SimulatedDisk

KIB = 1024
CHUNK = 160 * KIB
NAMES = [chunk_id(InodeId(3), index) for index in range(5)]
SMALL = Options(
    reserve_bytes=1 << 20,
    spare_bytes=1 << 16,
    record_limit=3,
    segment_bytes=60_000,
    segment_records=4,
    segment_freed_bytes=1 << 20,
)
SEEDS = 80
STEPS = 60


class Death(BaseException):
    """The process dies here."""


class State(NamedTuple):
    """All that may be known of a store but the bytes."""

    metas: dict[ChunkId, ChunkMeta | None]
    pending: dict[ChunkId, Pending]
    tags: frozenset[tuple[Tag, ChunkId, Version]]


def state(store: ChunkStore) -> State:
    metas = {name: store.get(name) for name in NAMES}
    return State(metas, dict(store.pending()), frozenset(store.tags()))


def snapshot(model: MemoryStore) -> MemoryStore:
    other = copy(model)
    for field in ("_chunks", "_waiting", "_tags", "_lost"):
        setattr(other, field, copy(getattr(model, field)))
    return other


def content(store: ChunkStore, chunk: ChunkId) -> bytes:
    into = bytearray(CHUNK)
    count, crc, _ = store.read(chunk, 0, memoryview(into))
    assert crc32c(into[:count]) == crc
    return bytes(into[:count])


def payload_of(store: ChunkStore, chunk: ChunkId) -> bytes:
    into = bytearray(CHUNK)
    return bytes(into[: store.read_pending(chunk, memoryview(into))])


class Run:
    """One seed."""

    def __init__(self, seed: int, durable: bool) -> None:
        self.rng = random.Random(seed)
        self.disk = SimulatedDisk()
        self.options = SMALL._replace(durable=durable)
        self.store: EngineStore = open_engine(self.disk.parts(), self.options)
        self.model = MemoryStore()
        self.past = [snapshot(self.model)]
        """what the store may be found to be, oldest first; the first one was synced"""
        self.versions = dict.fromkeys(NAMES, 0)
        self.sequence = 0
        self.story: list[str] = []

    def update(self, chunk: ChunkId) -> Update:
        rng = self.rng
        kinds = [Kind.WRITE, Kind.TRUNCATE, Kind.REMOVE, Kind.REPLACE, Kind.CLONE]
        kind = rng.choices(kinds, [14, 3, 1, 1, 3])[0]
        length = rng.choice([rng.randrange(1, 9000), 4096, 4096, rng.randrange(CHUNK), CHUNK])
        offset = rng.choice([0, rng.randrange(CHUNK), 4096 * rng.randrange(CHUNK // 4096)])
        if kind != Kind.WRITE:
            offset = 0
        length = min(length, CHUNK - offset)
        payload = rng.randbytes(length) if kind in (Kind.WRITE, Kind.REPLACE) else b""
        self.versions[chunk] += 1
        self.sequence += 1
        source = None
        if kind == Kind.CLONE:
            length, source = 0, rng.choice([name for name in NAMES if name != chunk])
        return Update(
            chunk, Version(self.versions[chunk]), kind, offset, length, memoryview(payload),
            crc32c(payload), Tag(1, rng.randrange(3), self.sequence), rng.randrange(3), 1, CHUNK,
            source,
        )  # fmt: skip

    def do(self, what: str, step: Callable[[ChunkStore], object]) -> None:
        """Do a step on the model and then on the store, which may die in it."""
        self.story.append(what)
        expected = step(self.model)
        self.past.append(snapshot(self.model))
        found = step(self.store)
        if isinstance(expected, list):
            assert [_plain(each) for each in expected] == [_plain(each) for each in found], what  # type: ignore[attr-defined]
        images = expected if isinstance(expected, list) else []
        done = what.startswith("commit") or any(isinstance(each, Image) for each in images)
        if self.options.durable and done:
            self.past = self.past[-1:]

    def turn(self) -> None:
        rng = self.rng
        chosen = rng.sample(NAMES, rng.randrange(1, 4))
        updates = [self.update(chunk) for chunk in chosen]
        sources = {each.source for each in updates}
        updates = [each for each in updates if each.chunk not in sources]
        told = [
            (each.chunk[-1], Kind(each.kind).name, each.offset, each.length) for each in updates
        ]
        self.do(f"prepare {told}", lambda store: store.prepare(updates))
        pending = dict(self.model.pending())
        if rng.random() < 0.1:
            self.do("sync", lambda store: store.sync())
            self.past = self.past[-1:]
        if rng.random() < 0.1 and pending:
            gone = rng.choice(sorted(pending))
            self.do(f"discard {gone[-1]}", lambda store: store.discard(gone))
            pending.pop(gone)
        ready = [(name, each.version, 1) for name, each in pending.items() if rng.random() < 0.9]
        self.do(f"commit {[(name[-1], version) for name, version, _ in ready]}",
                lambda store: store.commit(ready))  # fmt: skip
        if rng.random() < 0.05:
            tag = Tag(rng.randrange(2, 4), 1, self.sequence)
            self.do("remember", lambda store: store.remember([(tag, NAMES[0], Version(1))]))
        if rng.random() < 0.05:
            self.do("forget", lambda store: store.forget_clients([2]))
        if rng.random() < 0.1:
            self.do("maintain", lambda store: store.maintain())
        if rng.random() < 0.3:
            self.compare(rng.choice(NAMES))

    def compare(self, chunk: ChunkId) -> None:
        assert state(self.store) == state(self.model)
        assert content(self.store, chunk) == content(self.model, chunk)
        offset, length = self.rng.randrange(CHUNK), self.rng.choice([1, 4096, 20_000])
        ours, theirs = bytearray(length), bytearray(length)
        answer = self.store.read_cached(chunk, offset, memoryview(ours))
        assert answer == self.model.read(chunk, offset, memoryview(theirs)) and ours == theirs
        assert self.store.verify(chunk) == self.model.verify(chunk)

    def reopen(self, power: bool) -> None:
        """Open again and find out how it is now."""
        self.story.append("power lost" if power else "killed")
        self.disk.hook = lambda step: None
        if power:
            self.disk.crash(self.rng, self.rng.choice([0.0, 0.2, 0.5, 0.9, 1.0]))
        later = self.rng.random() < 0.5
        self.store = open_engine(self.disk.parts(), self.options, later=later)
        now = state(self.store)
        allowed = self.past if power else self.past[-2:]
        synced = self.past[0]
        found = [model for model in reversed(allowed) if self.is_like(now, model, synced, power)]
        assert found, (now, [state(model) for model in allowed])
        self.model = found[0]
        for name in dict(self.model.pending()).keys() - now.pending.keys():
            self.model.discard(name)
        repairs = []
        for name in NAMES:
            try:
                assert content(self.store, name) == content(self.model, name), name[-1]
                assert self.store.verify(name) == self.model.verify(name)
            except Error as exc:
                assert exc.code == Code.CORRUPT and power, exc
                assert synced.get(name) != self.model.get(name), "what was synced is damaged"
                repairs.append(name)
            if name in now.pending:
                assert payload_of(self.store, name) == payload_of(self.model, name)
        for name in repairs:
            self.repair(name)
        for name, pending in now.pending.items():
            self.versions[name] = max(self.versions[name], pending.version)
            if name in repairs or self.rng.random() < 0.5:
                self.store.discard(name)
                self.model.discard(name)
        self.store.sync()
        self.past = [snapshot(self.model)]

    @staticmethod
    def is_like(now: State, model: MemoryStore, synced: MemoryStore, power: bool) -> bool:
        """Whether this is the model's state; pending updates may be missing if power was lost."""
        expected = state(model)
        if not power:
            return expected == now
        before = state(synced).pending
        for name, pending in expected.pending.items():
            if name not in now.pending and before.get(name) != pending:
                expected = expected._replace(
                    pending={k: v for k, v in expected.pending.items() if k != name}
                )
        return expected == now

    def repair(self, name: ChunkId) -> None:
        data, meta = content(self.model, name), self.model.get(name)
        assert meta is not None
        each = Update(
            name, meta.version, Kind.REPLACE, 0, len(data), memoryview(data), crc32c(data),
            meta.tag, meta.epoch, 1, CHUNK,
        )  # fmt: skip
        for store in (self.store, self.model):
            store.discard(name)
            assert store.prepare([each]) == [Image(meta.length, meta.checksum)]
            store.commit([(name, meta.version, 1)])


def _plain(answer: object) -> object:
    return answer.code if isinstance(answer, Error) else answer


def _run(seed: int, durable: bool) -> None:
    run = Run(seed, durable)
    rng = run.rng
    try:
        for _ in range(STEPS):
            if rng.random() < 0.12:
                left = rng.randrange(1, 60)

                def hook(step: str) -> None:
                    nonlocal left
                    left -= 1
                    if not left:
                        raise Death(step)

                run.disk.hook = hook
            try:
                run.turn()
            except Death as death:
                run.story.append(f"died at {death}")
                run.reopen(power=rng.random() < 0.7)
    except BaseException as exc:
        exc.add_note(f"seed {seed} durable {durable}: " + "\n".join(run.story[-12:]))
        raise


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("part", range(4))
def test_what_was_promised_is_there_after_death_at_any_step(durable: bool, part: int) -> None:
    for seed in range(part, SEEDS, 4):
        _run(seed, durable)
