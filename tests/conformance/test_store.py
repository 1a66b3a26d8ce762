"""Every chunk store passes this suite (budget: 60 s on 2 cores)."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import ChunkStore, Image, Tag, Update
from hillfire.storage.store.checksum import digest, grains_of
from hillfire.storage.store.engine import Options, open_engine, open_store
from hillfire.storage.store.memory import MemoryStore
from hillfire.types import ChunkId, InodeId, Version, chunk_id
from tests.store_parts import SimulatedDisk

KIB = 1024
CHUNK = 256 * KIB
TAG = Tag(1, 1, 1)
Open = Callable[[], ChunkStore]


SMALL = Options(record_limit=8, segment_bytes=150_000, segment_records=5)
"""So that checkpoints come every few updates."""


def _engine(directory: Path, direct: bool, **options: bool) -> Open:
    small = SMALL._replace(**options)
    return lambda: open_store(directory, direct=direct, options=small)


@pytest.fixture(params=["memory", "engine", "direct", "durable", "simulated"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Open the store; again after a close. MemoryStore lives as long as its object."""
    if request.param == "memory":
        one = MemoryStore()
        return lambda: one
    if request.param == "simulated":
        disk = SimulatedDisk()
        return lambda: open_engine(disk.parts(), SMALL)
    return _engine(tmp_path, request.param == "direct", durable=request.param == "durable")


@pytest.fixture
def store(opener: Open) -> Iterator[ChunkStore]:
    opened = opener()
    yield opened
    opened.close()


def update(
    chunk: ChunkId,
    version: int,
    payload: bytes = b"",
    offset: int = 0,
    kind: Kind = Kind.WRITE,
    *,
    length: int | None = None,
    tag: Tag = TAG,
    epoch: int = 0,
    checksum: int | None = None,
    chunk_bytes: int = CHUNK,
    source: ChunkId | None = None,
    source_version: int = 0,
) -> Update:
    return Update(
        chunk,
        Version(version),
        kind,
        offset,
        len(payload) if length is None else length,
        memoryview(payload),
        crc32c(payload) if checksum is None else checksum,
        tag,
        epoch,
        1,
        chunk_bytes,
        source,
        Version(source_version),
    )


def prepare(store: ChunkStore, *updates: Update) -> list[Image]:
    images: list[Image] = []
    for answer in store.prepare(updates):
        if isinstance(answer, Exception):
            raise answer
        images.append(answer)
    return images


def apply(store: ChunkStore, *updates: Update, chain_version: int = 1) -> list[Image]:
    images = prepare(store, *updates)
    store.commit([(each.chunk, each.version, chain_version) for each in updates])
    return images


def content(store: ChunkStore, chunk: ChunkId, n_bytes: int = CHUNK) -> bytes:
    into = bytearray(n_bytes)
    count, checksum, _ = store.read(chunk, 0, memoryview(into))
    assert crc32c(into[:count]) == checksum
    return bytes(into[:count])


def whole(data: bytes) -> int:
    return digest(grains_of(data))


A, B, C = (chunk_id(InodeId(7), index) for index in range(3))
BYTES = random.Random(1).randbytes(CHUNK)


def test_absent_chunk(store: ChunkStore) -> None:
    assert store.get(A) is None
    assert store.read(A, 0, memoryview(bytearray(10))) == (0, 0, 0)
    assert store.read_cached(A, 5, memoryview(bytearray(10))) == (0, 0, 0)
    assert list(store.pending()) == [] and list(store.tags()) == [] and store.scan() == []
    store.discard(A)
    with pytest.raises(Error) as caught:
        store.read_pending(A, memoryview(bytearray(10)))
    assert caught.value.code == Code.INVALID


def test_pending_is_not_visible_and_commit_replaces_it_whole(store: ChunkStore) -> None:
    (image,) = prepare(store, update(A, 1, BYTES[:5000], tag=Tag(9, 2, 3), epoch=4))
    assert image == Image(5000, whole(BYTES[:5000]))
    assert store.get(A) is None and content(store, A) == b""
    ((chunk, pending),) = store.pending()
    assert (chunk, pending.version, pending.length, pending.tag) == (A, 1, 5000, Tag(9, 2, 3))
    assert (pending.kind, pending.offset, pending.payload_length) == (Kind.WRITE, 0, 5000)
    assert pending.payload_checksum == crc32c(BYTES[:5000]) and pending.epoch == 4
    store.commit([(A, Version(1), 77)])
    assert list(store.pending()) == []
    meta = store.get(A)
    assert meta == (1, 5000, whole(BYTES[:5000]), Tag(9, 2, 3), 77, 4, False)
    assert content(store, A) == BYTES[:5000]
    assert list(store.tags()) == [(Tag(9, 2, 3), A, 1)]


@pytest.mark.parametrize("n_bytes", [1, 4096, 65535, 65536, 65537, 100_000, CHUNK])
@pytest.mark.parametrize("offset", [0, 1, 4096, 65536, 70_000])
def test_reads_at_any_offset(store: ChunkStore, n_bytes: int, offset: int) -> None:
    apply(store, update(A, 3, BYTES[:200_001]))
    expected = BYTES[:200_001][offset : offset + n_bytes]
    for read in (store.read, store.read_cached):
        into = bytearray(b"\xee" * n_bytes)
        answer = read(A, offset, memoryview(into))
        if answer is None:  # not in the page cache
            assert read == store.read_cached
            continue
        assert answer == (len(expected), crc32c(expected), 3)
        assert into[: len(expected)] == expected
        assert into[len(expected) :] == b"\xee" * (n_bytes - len(expected))


def test_gaps_are_zeros_even_where_something_was_before(store: ChunkStore) -> None:
    apply(store, update(A, 1, b"x" * 100_000))
    apply(store, update(A, 2, kind=Kind.TRUNCATE, length=10))
    prepare(store, update(A, 3, b"y" * 1000, 5000))
    store.discard(A)
    apply(store, update(A, 3, b"z", 120_000))
    assert content(store, A) == b"x" * 10 + bytes(119_990) + b"z"
    apply(store, update(B, 1, b"z", 70_000))
    assert content(store, B) == bytes(70_000) + b"z"


def test_truncate_up_and_down(store: ChunkStore) -> None:
    apply(store, update(A, 1, BYTES))
    expected = BYTES
    for version, length in enumerate([200_000, 65536, 65537, 250_000, 3, CHUNK, 0, 8], 2):
        (image,) = apply(store, update(A, version, kind=Kind.TRUNCATE, length=length))
        expected = expected[:length].ljust(length, b"\0")
        assert image == Image(length, whole(expected)), length
        assert content(store, A) == expected, length


def test_remove_leaves_a_tombstone(store: ChunkStore) -> None:
    apply(store, update(A, 1, BYTES, epoch=5))
    apply(store, update(A, 2, kind=Kind.REMOVE, epoch=3, tag=Tag(1, 1, 2)))
    assert store.get(A) == (2, 0, 0, Tag(1, 1, 2), 1, 5, True)
    assert content(store, A) == b"" and store.scan_inode(InodeId(7)) == []
    assert [chunk for chunk, _ in store.scan()] == [A]
    apply(store, update(A, 3, b"again", 2))
    assert content(store, A) == b"\0\0again"


def test_replace_takes_any_version(store: ChunkStore) -> None:
    apply(store, update(A, 9, BYTES))
    apply(store, update(A, 4, b"short", 12, Kind.REPLACE, tag=Tag(5, 5, 5)))
    meta = store.get(A)
    assert meta is not None and (meta.version, meta.tag) == (4, Tag(5, 5, 5))
    assert content(store, A) == b"short"
    apply(store, update(A, 5, b"", kind=Kind.REPLACE))
    meta = store.get(A)
    assert meta is not None and not meta.removed and content(store, A) == b""


def test_one_bad_update_leaves_the_others(store: ChunkStore) -> None:
    answers = store.prepare(
        [
            update(A, 1, b"good"),
            update(B, 1, b"bad", checksum=7),
            update(C, 1, b"large", CHUNK - 1),
        ]
    )
    assert answers[0] == Image(4, whole(b"good"))
    assert isinstance(answers[1], Error) and answers[1].code == Code.CHECKSUM
    assert isinstance(answers[2], Error) and answers[2].code == Code.TOO_LARGE
    assert [chunk for chunk, _ in store.pending()] == [A]


@pytest.mark.parametrize("offset", [0, 3, 4000, 200_000])
def test_a_bad_checksum_is_refused_wherever_it_would_go(store: ChunkStore, offset: int) -> None:
    apply(store, update(A, 1, BYTES[:100_000]))
    for n_bytes in (10, 70_000 - offset % 7):
        if offset + n_bytes > CHUNK:
            continue
        (answer,) = store.prepare([update(A, 2, BYTES[:n_bytes], offset, checksum=1)])
        assert isinstance(answer, Error) and answer.code == Code.CHECKSUM
    assert list(store.pending()) == [] and content(store, A) == BYTES[:100_000]


def test_a_pending_update_is_replaced(store: ChunkStore) -> None:
    apply(store, update(A, 1, b"a" * 1000))
    prepare(store, update(A, 2, b"b" * 1000, 1000))
    prepare(store, update(A, 2, b"c" * 10, 1000))
    prepare(store, update(A, 2, b"d" * 10, 500))
    prepare(store, update(A, 2, b"e" * 10, 1500))
    into = bytearray(100)
    assert store.read_pending(A, memoryview(into)) == 10 and into[:10] == b"e" * 10
    store.commit([(A, Version(2), 1)])
    assert content(store, A) == b"a" * 1000 + bytes(500) + b"e" * 10


@pytest.mark.parametrize(("offset", "n_bytes"), [(0, CHUNK), (100, 50), (1000, 70_000), (50, 0)])
def test_payload_of_a_pending_update(store: ChunkStore, offset: int, n_bytes: int) -> None:
    apply(store, update(A, 1, BYTES[:100_000]))
    payload = BYTES[1 : n_bytes + 1].ljust(n_bytes, b"!")
    if offset + n_bytes <= CHUNK:
        prepare(store, update(A, 2, payload, offset))
        into = bytearray(CHUNK)
        assert store.read_pending(A, memoryview(into)) == n_bytes
        assert into[:n_bytes] == payload


def test_tags_keep_the_latest_of_each_channel(store: ChunkStore) -> None:
    apply(store, update(A, 1, b"1", tag=Tag(1, 1, 5)), update(B, 1, b"2", tag=Tag(1, 2, 1)))
    apply(store, update(C, 1, b"3", tag=Tag(2, 1, 9)))
    apply(store, update(C, 2, b"4", tag=Tag(1, 1, 4), kind=Kind.REPLACE))
    expected = {(Tag(1, 1, 5), A, 1), (Tag(1, 2, 1), B, 1), (Tag(2, 1, 9), C, 1)}
    assert set(store.tags()) == expected
    store.forget_clients([1, 3])
    assert list(store.tags()) == [(Tag(2, 1, 9), C, 1)]


def test_scans(store: ChunkStore) -> None:
    names = [chunk_id(InodeId(inode), index) for inode in (1, 2, 300) for index in range(5)]
    for name in reversed(names):
        apply(store, update(name, 1, b"x"))
    apply(store, update(names[6], 2, kind=Kind.REMOVE))
    assert [name for name, _ in store.scan()] == names
    assert [name for name, _ in store.scan(names[3], 4)] == names[4:8]
    assert [name for name, _ in store.scan_inode(InodeId(2))] == [names[5], *names[7:10]]


def test_everything_is_there_after_reopening(opener: Open) -> None:
    store = opener()
    apply(store, update(A, 1, BYTES, tag=Tag(1, 1, 1)))
    prepare(
        store,
        update(A, 2, b"patch", 70_000, tag=Tag(1, 1, 2)),
        update(B, 1, BYTES[:77], tag=Tag(1, 2, 1)),
    )
    before = dict(store.pending())
    store.sync()
    store.close()
    store = opener()
    assert dict(store.pending()) == before and content(store, A) == BYTES
    into = bytearray(CHUNK)
    assert store.read_pending(B, memoryview(into)) == 77 and into[:77] == BYTES[:77]
    store.commit([(A, Version(2), 1), (B, Version(1), 1)])
    assert set(store.tags()) == {(Tag(1, 1, 2), A, 2), (Tag(1, 2, 1), B, 1)}
    store.close()
    store = opener()
    assert content(store, A) == BYTES[:70_000] + b"patch" + BYTES[70_005:]
    assert content(store, B) == BYTES[:77] and list(store.pending()) == []
    store.close()


@pytest.mark.parametrize("step", [1000, 65536, 100_000])
def test_appends_grow_a_chunk(store: ChunkStore, step: int) -> None:
    for version, at in enumerate(range(0, CHUNK - step, step), 1):
        (image,) = apply(store, update(A, version, BYTES[at : at + step], at))
        assert image == Image(at + step, whole(BYTES[: at + step]))
    assert content(store, A) == BYTES[: at + step]


def refusal(store: ChunkStore, each: Update) -> Code:
    (answer,) = store.prepare([each])
    assert isinstance(answer, Error), answer
    return answer.code


def test_a_clone_is_the_source_and_goes_its_own_way(store: ChunkStore) -> None:
    apply(store, update(A, 1, BYTES[:200_000]))
    apply(store, update(A, 2, b"patch", 70_000))
    expected = BYTES[:70_000] + b"patch" + BYTES[70_005:200_000]
    (image,) = prepare(store, update(B, 7, kind=Kind.CLONE, source=A, tag=Tag(3, 1, 1), epoch=2))
    assert image == Image(200_000, whole(expected)) and content(store, B) == b""
    pending = dict(store.pending())[B]
    assert (pending.source, pending.source_version, pending.kind) == (A, 2, Kind.CLONE)
    assert store.read_pending(B, memoryview(bytearray(9))) == 0
    store.commit([(B, Version(7), 4)])
    assert store.get(B) == (7, 200_000, whole(expected), Tag(3, 1, 1), 4, 2, False)
    store.maintain()
    apply(store, update(C, 1, kind=Kind.CLONE, source=B, source_version=7))
    store.maintain()
    apply(store, update(A, 3, b"one", 100), update(B, 8, b"two", 100))
    apply(store, update(C, 2, b"three", 200_000))
    for name, head, tail in ((A, b"one", b""), (B, b"two", b""), (C, None, b"three")):
        data = expected if head is None else expected[:100] + head + expected[103:]
        assert content(store, name) == data + tail
    apply(store, update(A, 4, kind=Kind.REMOVE))
    apply(store, update(B, 9, kind=Kind.TRUNCATE, length=50_000))
    store.maintain()
    for index in range(10, 20):  # blocks that are free again are written over
        apply(store, update(chunk_id(InodeId(7), index), 1, BYTES))
    store.maintain()
    assert content(store, B) == (expected[:100] + b"two" + expected[103:])[:50_000]
    assert content(store, C) == expected + b"three"
    assert store.verify(C) == 200_005


def test_a_clone_of_itself_and_what_cannot_be_cloned(store: ChunkStore) -> None:
    apply(store, update(A, 1, BYTES))
    store.maintain()
    apply(store, update(A, 2, kind=Kind.CLONE, source=A))
    apply(store, update(A, 3, b"x", 5))
    store.maintain()
    apply(store, update(B, 1, BYTES), update(C, 1, BYTES))
    assert content(store, A) == BYTES[:5] + b"x" + BYTES[6:]
    missing = chunk_id(InodeId(9), 9)
    assert refusal(store, update(B, 2, kind=Kind.CLONE, source=missing)) == Code.NOT_FOUND
    clone = update(B, 2, kind=Kind.CLONE, source=A, source_version=2)
    assert refusal(store, clone) == Code.CONFLICT
    apply(store, update(A, 4, kind=Kind.REMOVE))
    assert refusal(store, update(B, 2, kind=Kind.CLONE, source=A)) == Code.NOT_FOUND
    apply(store, update(A, 5, kind=Kind.TRUNCATE, length=0))
    assert apply(store, update(B, 2, kind=Kind.CLONE, source=A)) == [Image(0, 0)]
    assert content(store, B) == b""


def test_a_pending_clone_keeps_what_it_shares(opener: Open) -> None:
    store = opener()
    apply(store, update(A, 1, BYTES))
    store.maintain()
    prepare(store, update(B, 1, kind=Kind.CLONE, source=A), update(C, 1, b"c"))
    store.close()
    store = opener()
    apply(store, update(A, 2, bytes(CHUNK)))
    store.maintain()
    for index in range(10, 14):
        apply(store, update(chunk_id(InodeId(7), index), 1, bytes(CHUNK)))
    store.commit([(B, Version(1), 1)])
    assert content(store, B) == BYTES and content(store, A) == bytes(CHUNK)
    store.close()
    store = opener()
    assert content(store, B) == BYTES
    store.close()


HEALS = {
    "whole": (b"n" * 100_001, 0, Kind.WRITE, None),
    "replaced": (b"new", 0, Kind.REPLACE, None),
    "cut": (b"", 0, Kind.TRUNCATE, 0),
    "removed": (b"", 0, Kind.REMOVE, None),
}


@pytest.mark.parametrize("how", HEALS)
def test_a_lost_chunk_says_so_until_it_is_written_whole(opener: Open, how: str) -> None:
    store = opener()
    apply(store, update(A, 1, BYTES))
    lost = update(A, 4, kind=Kind.LOST, length=100_000, checksum=77, tag=Tag(1, 1, 9))
    assert apply(store, lost) == [Image(100_000, 77)]
    store.close()
    store = opener()
    assert store.get(A) == (4, 100_000, 77, Tag(1, 1, 9), 1, 0, False)
    for read in (store.read, store.read_cached):
        with pytest.raises(Error) as caught:
            read(A, 10, memoryview(bytearray(10)))
        assert caught.value.code == Code.CORRUPT
    with pytest.raises(Error) as caught:
        store.verify(A)
    assert caught.value.code == Code.CORRUPT
    assert store.scrub(None, 1 << 30).damaged == [A]
    for each in (
        update(A, 5, b"part", 50),
        update(A, 5, b"after", 100_000),
        update(A, 5, b""),
        update(A, 5, kind=Kind.TRUNCATE, length=50_000),
        update(A, 5, kind=Kind.TRUNCATE, length=200_000),
        update(B, 1, kind=Kind.CLONE, source=A),
    ):
        assert refusal(store, each) == Code.CORRUPT, each
    payload, offset, kind, length = HEALS[how]
    apply(store, update(A, 5, payload, offset, kind, length=length))
    assert content(store, A) == payload and store.verify(A) == len(payload)
    store.close()


def test_a_scrub_walks_all_chunks_in_steps(store: ChunkStore) -> None:
    names = [chunk_id(InodeId(4), index) for index in range(7)]
    for name in names:
        apply(store, update(name, 1, BYTES[:100_000]))
    apply(store, update(names[3], 2, kind=Kind.REMOVE))
    apply(store, update(names[5], 2, b"patch", 5))
    after, steps, total = None, 0, 0
    while True:
        after, n_bytes, damaged = store.scrub(after, 250_000)
        steps, total = steps + 1, total + n_bytes
        assert damaged == []
        if after is None:
            break
    assert (steps, total) == (3, 600_000)


def test_many_small_writes_to_one_chunk(store: ChunkStore) -> None:
    """Pages in the log over pages in the log over pages in the block."""
    rng = random.Random(3)
    expected = bytearray(BYTES[:200_000])
    apply(store, update(A, 1, bytes(expected)))
    for version in range(2, 200):
        offset = rng.choice([rng.randrange(200_000), rng.randrange(48) * 4096])
        n_bytes = min(rng.choice([1, 100, 4096, 9000]), 220_000 - offset)
        payload = rng.randbytes(n_bytes)
        expected[offset : offset + n_bytes] = payload
        (image,) = apply(store, update(A, version, payload, offset))
        assert image == Image(len(expected), whole(bytes(expected)))
        at, length = rng.randrange(len(expected)), rng.choice([1, 4096, 5000, 40_000])
        into = bytearray(length)
        count, _, found = store.read(A, at, memoryview(into))
        assert (into[:count], found) == (expected[at : at + length], version)
        if version % 50 == 0:
            store.maintain()
            assert content(store, A) == expected
    assert store.verify(A) == len(expected)


def test_space_is_counted(store: ChunkStore) -> None:
    space = store.space()
    assert 0 <= space.used_bytes < space.capacity_bytes


@pytest.mark.parametrize("direct", [False, True])
def test_readers_beside_writers_see_whole_versions_that_never_go_back(
    tmp_path: Path, direct: bool
) -> None:
    store = open_store(tmp_path, direct=direct, options=SMALL._replace(record_limit=2))
    history: list[list[bytes]] = [[b""], [b""], [b""]]
    names, ended, failures = [A, B, C], threading.Event(), list[str]()
    reads = [0]

    def reader(seed: int) -> None:
        rng, into = random.Random(seed), bytearray(CHUNK)
        seen = [0, 0, 0]
        try:
            while not ended.is_set():
                which = rng.randrange(3)
                offset, length = rng.randrange(CHUNK), rng.choice([10, 70_000, CHUNK])
                if rng.random() < 0.3:
                    offset = 0
                view = memoryview(into)[:length]
                first = len(history[which]) - 1
                read = store.read_cached if rng.random() < 0.5 else store.read
                answer = read(names[which], offset, view)
                if answer is None:
                    continue
                count, checksum, version = answer
                assert version >= seen[which], f"version {version} after {seen[which]}"
                assert version >= first - 1, f"version {version}, {first - 1} was committed"
                seen[which] = version
                expected = history[which][version][offset : offset + length]
                assert view[:count] == expected, f"version {version} at {offset}"
                assert checksum == crc32c(expected)
                reads[0] += 1
        except Exception as exc:
            failures.append(repr(exc))

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        rng = random.Random(9)
        for version in range(1, 400):
            batch = []
            for which, name in enumerate(names):
                old = history[which][-1]
                offset = rng.choice([0, len(old), rng.randrange(CHUNK)])
                length = rng.choice([4096, rng.randrange(1, 9000), CHUNK])
                payload = rng.randbytes(min(length, CHUNK - offset))
                if rng.random() < 0.1 or not payload:
                    cut = rng.randrange(CHUNK)
                    batch.append(update(name, version, kind=Kind.TRUNCATE, length=cut))
                    new = old[:cut].ljust(cut, b"\0")
                else:
                    batch.append(update(name, version, payload, offset))
                    new = old[:offset].ljust(offset, b"\0") + payload
                    new += old[offset + len(payload) :]
                history[which].append(new)
            apply(store, *batch)
            if failures:
                break
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        store.close()
    assert not failures and reads[0] > 100, (failures, reads)


OFFSETS = st.one_of(
    st.integers(0, CHUNK), st.sampled_from([0, 1, 4096, 65535, 65536, 65537, 131072, CHUNK - 1])
)
LENGTHS = st.one_of(
    st.integers(0, 9000),
    st.integers(0, CHUNK),
    st.sampled_from([1, 4096, 65535, 65536, 65537, 131072]),
)
CHUNKS = st.integers(0, 3)


class Machine(RuleBasedStateMachine):
    """An engine beside a plain bytes model."""

    direct = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.open: Open = _engine(Path(self.directory.name), self.direct)
        self.store = self.open()
        self.chunks: dict[int, bytes | None] = {}
        self.waiting: dict[int, tuple[int, bytes | None, bytes]] = {}
        self.version = 0
        self.names = [chunk_id(InodeId(5), index) for index in range(4)]

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    def _prepare(self, which: int, each: Update, after: bytes | None, payload: bytes) -> None:
        (answer,) = self.store.prepare([each])
        if (each.offset if each.kind == Kind.WRITE else 0) + each.length > CHUNK:
            assert isinstance(answer, Error) and answer.code == Code.TOO_LARGE
            return
        assert answer == Image(len(after or b""), whole(after or b""))
        self.waiting[which] = each.version, after, payload
        self._compare(which)

    def _next(self) -> int:
        self.version += 1
        return self.version

    @rule(which=CHUNKS, offset=OFFSETS, length=LENGTHS, seed=st.integers(0, 255))
    def write(self, which: int, offset: int, length: int, seed: int) -> None:
        payload = random.Random(seed).randbytes(length)
        old = self.chunks.get(which) or b""
        after = old
        if payload:
            after = old[:offset].ljust(offset, b"\0") + payload + old[offset + length :]
        self._prepare(
            which, update(self.names[which], self._next(), payload, offset), after, payload
        )

    @rule(which=CHUNKS, length=LENGTHS)
    def append(self, which: int, length: int) -> None:
        old = self.chunks.get(which) or b""
        payload = os.urandom(min(length, CHUNK - len(old)))
        each = update(self.names[which], self._next(), payload, len(old))
        self._prepare(which, each, old + payload, payload)

    @rule(which=CHUNKS, length=st.one_of(OFFSETS, LENGTHS))
    def truncate(self, which: int, length: int) -> None:
        old = self.chunks.get(which) or b""
        each = update(self.names[which], self._next(), kind=Kind.TRUNCATE, length=length)
        self._prepare(which, each, old[:length].ljust(length, b"\0"), b"")

    @rule(which=CHUNKS)
    def remove(self, which: int) -> None:
        each = update(self.names[which], self._next(), kind=Kind.REMOVE)
        self._prepare(which, each, None, b"")

    @rule(which=CHUNKS, length=LENGTHS)
    def replace(self, which: int, length: int) -> None:
        payload = os.urandom(length)
        each = update(self.names[which], self._next(), payload, kind=Kind.REPLACE)
        self._prepare(which, each, payload, payload)

    @precondition(lambda self: self.waiting)
    @rule()
    def commit(self) -> None:
        todo = [(self.names[k], Version(each[0]), 1) for k, each in self.waiting.items()]
        self.store.commit(todo)
        for which, (_, after, _) in self.waiting.items():
            self.chunks[which] = after
        self.waiting.clear()
        self._compare_all()

    @rule(which=CHUNKS)
    def discard(self, which: int) -> None:
        self.store.discard(self.names[which])
        self.waiting.pop(which, None)
        self._compare(which)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.open()
        found = {chunk: pending.version for chunk, pending in self.store.pending()}
        assert found == {self.names[k]: each[0] for k, each in self.waiting.items()}
        self._compare_all()

    @rule(which=CHUNKS, offset=OFFSETS, length=LENGTHS)
    def read(self, which: int, offset: int, length: int) -> None:
        expected = (self.chunks.get(which) or b"")[offset : offset + length]
        into = bytearray(length)
        count, checksum, _ = self.store.read(self.names[which], offset, memoryview(into))
        assert into[:count] == expected and checksum == crc32c(expected)

    def _compare(self, which: int) -> None:
        assert content(self.store, self.names[which]) == (self.chunks.get(which) or b"")
        if which in self.waiting:
            into = bytearray(CHUNK)
            count = self.store.read_pending(self.names[which], memoryview(into))
            assert into[:count] == self.waiting[which][2]

    def _compare_all(self) -> None:
        for which in range(4):
            self._compare(which)
            meta = self.store.get(self.names[which])
            assert (meta is None) == (which not in self.chunks)
            if meta is not None:
                image = self.chunks[which]
                assert (meta.removed, meta.length) == (image is None, len(image or b""))
                assert meta.checksum == whole(image or b"")

    @rule(which=CHUNKS, source=CHUNKS)
    def clone(self, which: int, source: int) -> None:
        """The caller holds the locks of both: nothing is pending of the source."""
        if source == which or source in self.waiting or self.chunks.get(source) is None:
            return
        name = self.names[source]
        each = update(self.names[which], self._next(), kind=Kind.CLONE, source=name)
        self._prepare(which, each, self.chunks[source], b"")

    @rule()
    def maintain(self) -> None:
        self.store.maintain()
        self._compare_all()


class DirectMachine(Machine):
    """The same past the page cache."""

    direct = True


SETTINGS = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=bool(os.environ.get("CI")),
)
TestMachine = Machine.TestCase
TestMachine.settings = SETTINGS
TestDirectMachine = DirectMachine.TestCase
TestDirectMachine.settings = SETTINGS
