"""What a store asks of its disk, and what it does when that fails or is full (budget: 20 s)."""

import random
import threading
from collections import Counter

import pytest
from crc32c import crc32c

from hillfire import native
from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import ChunkStore, Image, Tag, Update
from hillfire.storage.store.engine import EngineStore, Options, open_engine
from hillfire.types import ChunkId, InodeId, Version, chunk_id
from tests.store_parts import SimulatedDisk

KIB, MIB = 1024, 1024 * 1024
DATA = random.Random(1).randbytes(MIB)
NAMES = [chunk_id(InodeId(3), index) for index in range(200)]


def update(
    chunk: ChunkId, version: int, payload: bytes, offset: int = 0, kind: Kind = Kind.WRITE
) -> Update:
    return Update(
        chunk, Version(version), kind, offset, len(payload), memoryview(payload), crc32c(payload),
        Tag(1, chunk[-1], version), 0, 1, MIB,
    )  # fmt: skip


def apply(store: ChunkStore, *updates: Update) -> None:
    for answer in store.prepare(updates):
        if isinstance(answer, Exception):
            raise answer
    store.commit([(each.chunk, each.version, 1) for each in updates])


def content(store: ChunkStore, chunk: ChunkId) -> bytes:
    into = bytearray(MIB)
    return bytes(into[: store.read(chunk, 0, memoryview(into))[0]])


def code_of(store: ChunkStore, each: Update) -> Code | None:
    (answer,) = store.prepare([each])
    return answer.code if isinstance(answer, Error) else None


class Steps:
    """Counts a disk's steps by name."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self.seen: Counter[str] = Counter()
        disk.hook = self._note

    def _note(self, step: str) -> None:
        self.seen[step] += 1

    def take(self) -> Counter[str]:
        seen, self.seen = self.seen, Counter()
        return seen


# ---------------------------------------------------------------------- how much is read


def test_opening_reads_every_record_once_and_no_bytes() -> None:
    work = {}
    for n_bytes in (4 * KIB, 512 * KIB):
        for n_chunks in (20, 40):
            disk = SimulatedDisk()
            store = open_engine(disk.parts())
            for name in NAMES[:n_chunks]:
                apply(store, update(name, 1, DATA[:n_bytes]))
            store.close()
            disk.read_records = disk.read_bytes = 0
            open_engine(disk.parts()).close()
            work[n_bytes, n_chunks] = disk.read_records
            assert disk.read_bytes == 0
    assert work[4 * KIB, 20] == work[512 * KIB, 20]
    assert work[4 * KIB, 40] - work[4 * KIB, 20] == 40  # a record and a tag each


def test_replaying_a_log_reads_no_bytes_of_committed_chunks() -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts())
    for name in NAMES[:20]:
        apply(store, update(name, 1, DATA))
        apply(store, update(name, 2, b"patch", 5000))
    disk.read_bytes = 0
    again = open_engine(disk.parts())  # the process died
    assert disk.read_bytes == 0
    assert content(again, NAMES[0]) == DATA[:5000] + b"patch" + DATA[5005:]


def test_a_small_read_reads_what_it_asks_for() -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts())
    apply(store, update(NAMES[0], 1, DATA))
    into = memoryview(bytearray(4 * KIB))

    def cost(offset: int, n_bytes: int) -> int:
        before = disk.read_bytes
        count, crc, _ = store.read(NAMES[0], offset, into[:n_bytes])
        assert into[:count] == DATA[offset : offset + n_bytes] and crc == crc32c(into[:count])
        return disk.read_bytes - before

    # Without the extension the pages of a large write become known at the first small read.
    assert cost(128 * KIB, 4 * KIB) == (4 if native.FAST else 64) * KIB
    assert cost(132 * KIB, 4 * KIB) == 4 * KIB
    assert cost(132 * KIB + 100, 4 * KIB) == 8 * KIB
    apply(store, update(NAMES[0], 2, DATA[140 * KIB :][: 4 * KIB], 140 * KIB))
    assert cost(140 * KIB, 4 * KIB) == 0  # as it is in the log
    store.maintain()
    assert cost(140 * KIB, 4 * KIB) == 4 * KIB
    store.close()
    store = open_engine(disk.parts())
    assert cost(144 * KIB, 4 * KIB) == 4 * KIB  # what is known is stored with an update
    apply(store, update(NAMES[1], 1, DATA[: 60 * KIB]))
    before = disk.read_bytes
    store.read(NAMES[1], 0, into)
    assert disk.read_bytes - before == 4 * KIB  # small chunks are known from the start


def test_a_small_overwrite_reads_nothing_and_writes_one_frame() -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts())
    apply(store, *[update(name, 1, DATA) for name in NAMES[:64]])
    for name in NAMES[:64]:
        store.read(name, 8 * KIB, memoryview(bytearray(4 * KIB)))
    steps = Steps(disk)
    before = disk.read_bytes
    updates = [update(name, 2, DATA[: 4 * KIB], 12 * KIB) for name in NAMES[:64]]
    store.prepare(updates)
    assert steps.take() == {"log.write": 1}
    store.commit([(each.chunk, each.version, 1) for each in updates])
    assert steps.take() == {"log.write": 1} and disk.read_bytes == before


# ---------------------------------------------------------------------- checkpoints


def test_the_log_is_bounded_and_checkpoints_come_of_themselves() -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts(), Options(segment_bytes=200_000))
    apply(store, *[update(name, 1, DATA) for name in NAMES[:8]])
    largest = 0

    def watch(step: str) -> None:
        nonlocal largest
        if step == "log.write":
            names = disk.names("log")
            largest = max(largest, sum(disk.seen(("log", name)).size for name in names))

    disk.hook = watch
    for version in range(2, 200):
        apply(store, update(NAMES[version % 8], version, DATA[: 4 * KIB], 4 * KIB * version))
    assert 200_000 <= largest < 2 * 200_000 + 100_000
    assert len(disk.names("log")) == 1


def test_neighbouring_pages_are_written_to_their_block_in_one_go() -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts())
    apply(store, update(NAMES[0], 1, DATA))
    for page in random.Random(2).sample(range(64), 64):
        apply(store, update(NAMES[0], page + 2, DATA[: 4 * KIB], page * 4 * KIB))
    steps = Steps(disk)
    store.maintain()
    assert steps.take()["blocks.write"] == 1
    assert content(store, NAMES[0]) == DATA[: 4 * KIB] * 64 + DATA[256 * KIB :]


def test_group_commit_shares_syncs() -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts(), Options(durable=True))
    apply(store, *[update(name, 1, DATA[: 64 * KIB]) for name in NAMES[:8]])
    inside, gate = threading.Semaphore(0), threading.Event()
    syncs = [0]

    def hook(step: str) -> None:
        if step == "log.sync":
            syncs[0] += 1
            inside.release()
            assert gate.wait(10)

    disk.hook = hook

    def prepare(name: ChunkId) -> None:
        (answer,) = store.prepare([update(name, 2, b"x", 100)])
        assert isinstance(answer, Image)

    threads = [threading.Thread(target=prepare, args=(name,)) for name in NAMES[:8]]
    threads[0].start()
    assert inside.acquire(timeout=10)  # the first is at the disk; all others come meanwhile
    for thread in threads[1:]:
        thread.start()
    deadline = 10_000
    while store.progress() < 8 + 2 and deadline:  # until every frame is written
        deadline -= 1
        threading.Event().wait(0.001)
    gate.set()
    for thread in threads:
        thread.join()
    assert 2 <= syncs[0] <= 3, syncs
    disk.hook = lambda step: None
    disk.crash(random.Random(1), 0.0)
    assert len(dict(open_engine(disk.parts()).pending())) == 8


# ---------------------------------------------------------------------- a log that is damaged


def _damaged(at: int, *, synced: int) -> SimulatedDisk:
    """A log of five updates, the fourth damaged at a byte; a sync came before one of them."""
    disk, begins = SimulatedDisk(), []
    store = open_engine(disk.parts())
    name = ("log", disk.names("log")[-1])
    for index in range(5):
        if index == synced:
            store.sync()
        begins.append(-(-disk.seen(name).size // 64) * 64)
        store.prepare([update(NAMES[index], 1, b"")])
    page, within = divmod(begins[3] + at, 4096)
    data = bytearray(disk.seen(name).pages[page])
    data[within] ^= 1
    disk.seen(name).pages[page] = bytes(data)
    return disk


@pytest.mark.parametrize("at", [0, 9, 20, 60, 100])
def test_a_frame_that_no_sync_covered_ends_the_log(at: int) -> None:
    found = dict(open_engine(_damaged(at, synced=9).parts()).pending())
    assert sorted(found) == NAMES[:3]


@pytest.mark.parametrize("at", [0, 9, 20, 60, 100])
def test_a_frame_that_was_on_the_disk_and_is_not_any_more_is_no_end(at: int) -> None:
    with pytest.raises(Error, match="was on the disk") as caught:
        open_engine(_damaged(at, synced=4).parts())
    assert caught.value.code == Code.CORRUPT


# ---------------------------------------------------------------------- a disk that fails


def failing(disk: SimulatedDisk, what: str, code: Code) -> None:
    """Have one step fail."""
    left = 1

    def hook(step: str) -> None:
        nonlocal left
        if step == what and left:
            left -= 1
            raise Error(code, f"{what} fails")

    disk.hook = hook


def test_a_failed_frame_never_happened() -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts())
    apply(store, update(NAMES[0], 1, b"one"))
    failing(disk, "log.write", Code.IO)
    assert code_of(store, update(NAMES[0], 2, b"two")) == Code.IO
    assert list(store.pending()) == []
    store.prepare([update(NAMES[0], 2, b"two")])
    failing(disk, "log.write", Code.IO)
    with pytest.raises(Error):
        store.commit([(NAMES[0], Version(2), 1)])
    assert content(store, NAMES[0]) == b"one"
    store.commit([(NAMES[0], Version(2), 1)])
    assert content(store, NAMES[0]) == content(open_engine(disk.parts()), NAMES[0]) == b"two"


@pytest.mark.parametrize("what", ["log.sync", "blocks.sync"])
def test_after_a_failed_sync_nothing_is_acknowledged_any_more(what: str) -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts())
    apply(store, update(NAMES[0], 1, DATA))
    failing(disk, what, Code.IO)
    with pytest.raises(Error) as caught:
        store.sync()
    assert caught.value.code == Code.IO
    with pytest.raises(Error):
        store.sync()
    assert code_of(store, update(NAMES[1], 1, b"x")) == Code.IO
    assert content(store, NAMES[0]) == DATA


STEPS = ["records.write", "records.sync", "log.create", "log.remove", "blocks.write", "blocks.sync"]


@pytest.mark.parametrize("what", STEPS)
def test_a_checkpoint_that_failed_is_done_again(what: str) -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts())
    apply(store, *[update(name, 1, DATA) for name in NAMES[:3]])
    apply(store, *[update(name, 2, b"patch", 5000) for name in NAMES[:3]])
    failing(disk, what, Code.IO)
    with pytest.raises(Error):
        store.maintain()
    apply(store, update(NAMES[0], 3, b"more", 9000))
    store.maintain()
    assert len(disk.names("log")) == 1
    patched = DATA[:5000] + b"patch" + DATA[5005:]
    for _ in range(2):
        assert content(store, NAMES[1]) == patched
        assert content(store, NAMES[0]) == patched[:9000] + b"more" + patched[9004:]
        store = open_engine(disk.parts())


# ---------------------------------------------------------------------- a disk that is full

TIGHT = Options(reserve_bytes=8 * MIB, spare_bytes=MIB, segment_bytes=MIB)


def full(capacity: int) -> tuple[SimulatedDisk, EngineStore, int]:
    """Fill a store with chunks of 1 MiB; return how many there are."""
    disk = SimulatedDisk(capacity)
    store = open_engine(disk.parts(), TIGHT)
    for count, name in enumerate(NAMES):
        if code_of(store, update(name, 1, DATA)) == Code.NO_SPACE:
            return disk, store, count
        store.commit([(name, Version(1), 1)])
    raise AssertionError("never full")


def settle(store: EngineStore) -> None:
    while store.maintain():
        pass


def test_first_no_new_chunks_then_no_writes_and_deleting_always() -> None:
    disk, store, count = full(64 * MIB)
    assert count > 40
    space = store.space()
    assert space.no_new_chunks and not space.no_writes
    apply(store, update(NAMES[0], 2, b"small", 100))  # in place: takes nothing
    disk.others_bytes = disk.available_bytes() - 3 * MIB
    space = store.space()
    assert space.no_new_chunks and space.no_writes
    assert code_of(store, update(NAMES[0], 3, b"small", 200)) == Code.NO_SPACE
    clone = update(NAMES[150], 1, b"", kind=Kind.CLONE)._replace(source=NAMES[0])
    assert code_of(store, clone) == Code.NO_SPACE
    for name in NAMES[1:count]:
        apply(store, update(name, 2, b"", kind=Kind.REMOVE))
    apply(store, update(NAMES[0], 3, b"", kind=Kind.TRUNCATE))
    settle(store)
    assert disk.block_bytes() <= 16 * MIB and not store.space().no_new_chunks
    apply(store, *[update(name, 3, DATA) for name in NAMES[1:20]])
    assert content(store, NAMES[5]) == DATA


def test_deleting_works_when_others_took_all_of_the_disk() -> None:
    disk, store, count = full(64 * MIB)
    disk.others_bytes += disk.available_bytes()
    assert disk.available_bytes() == 0
    for name in NAMES[:2]:  # to a smaller block, if there were one; and within its own
        cut = update(name, 2, b"", kind=Kind.TRUNCATE)._replace(length=100_000)
        apply(store, cut)
        assert content(store, name) == DATA[:100_000]
    for name in NAMES[2:count]:
        apply(store, update(name, 2, b"", kind=Kind.REMOVE))
    settle(store)
    assert disk.block_bytes() <= 18 * MIB
    store.close()
    store = open_engine(disk.parts(), TIGHT)
    assert [meta.removed for _, meta in store.scan()] == [False] * 2 + [True] * (count - 2)
    assert content(store, NAMES[0]) == DATA[:100_000]


def test_freed_blocks_serve_other_size_classes() -> None:
    _, store, count = full(64 * MIB)
    for name in NAMES[:count]:
        apply(store, update(name, 2, b"", kind=Kind.REMOVE))
    store.maintain()
    small = [chunk_id(InodeId(9), index) for index in range(400)]
    for name in small:
        apply(store, update(name, 1, DATA[: 64 * KIB]))
    assert store.verify(small[399]) == 64 * KIB
    for name in small:
        apply(store, update(name, 2, b"", kind=Kind.REMOVE))
    apply(store, *[update(name, 3, DATA) for name in NAMES[: count - 5]])
    assert content(store, NAMES[count - 6]) == DATA


def test_an_idle_store_gives_back_what_it_does_not_use() -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts())
    apply(store, *[update(name, 1, DATA) for name in NAMES[:100]])
    for name in NAMES[:100]:
        apply(store, update(name, 2, b"", kind=Kind.REMOVE))
    assert disk.block_bytes() >= 100 * MIB
    settle(store)
    assert disk.block_bytes() <= 16 * MIB
    apply(store, *[update(name, 3, DATA) for name in NAMES[:100]])
    assert content(store, NAMES[99]) == DATA


# ---------------------------------------------------------------------- rot


def test_a_flipped_bit_anywhere_is_found_by_scrub_and_never_read() -> None:
    found = 0
    for seed in range(30):
        rng = random.Random(seed)
        disk = SimulatedDisk()
        store = open_engine(disk.parts())
        for name in NAMES[:4]:
            apply(store, update(name, 1, DATA[: 150 * KIB]))
            store.read(name, 5000, memoryview(bytearray(100)))
        store.maintain()
        assert store.scrub(None, 1 << 30).damaged == []
        assert disk.flip(rng)
        damaged = store.scrub(None, 1 << 30).damaged
        for name in NAMES[:4]:
            wrong = 0
            for at in range(0, 150 * KIB, 4096):
                into = memoryview(bytearray(4096))
                try:
                    count, _, _ = store.read(name, at, into)
                    assert into[:count] == DATA[at : min(at + 4096, 150 * KIB)]
                except Error as exc:
                    assert exc.code == Code.CORRUPT
                    wrong += 1
            assert (wrong > 0) == (name in damaged)
        found += len(damaged)
    assert found == 30


def test_an_event_loop_prepares_what_needs_no_wait_and_leaves_the_rest() -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts())
    apply(store, *(update(name, 1, DATA[: 256 * KIB]) for name in NAMES[:3]))
    plain = update(NAMES[0], 2, DATA[:4096], 8192)
    within = update(NAMES[1], 2, b"some bytes", 100)  # needs the rest of its page
    cut = update(NAMES[2], 2, b"", kind=Kind.TRUNCATE)._replace(length=70_000)
    wrong = update(NAMES[3], 1, b"payload")._replace(checksum=1)
    disk.is_cached = lambda: False
    if not native.FAST:  # the pages of what was written are not known then
        store.read(NAMES[0], 0, memoryview(bytearray(4096)))
    first, second, third, fourth = store.prepare_cached([plain, within, cut, wrong])
    assert isinstance(first, Image)
    assert second is None and third is None
    assert isinstance(fourth, Error) and fourth.code is Code.CHECKSUM
    assert {chunk for chunk, _ in store.pending()} == {NAMES[0]}
    disk.is_cached = lambda: True
    answers = store.prepare_cached([within, cut])
    assert answers == store.prepare([within, cut])
    store.commit([(each.chunk, each.version, 1) for each in (plain, within, cut)])
    assert content(store, NAMES[0]) == DATA[:8192] + DATA[:4096] + DATA[12288 : 256 * KIB]
    assert content(store, NAMES[1]) == DATA[:100] + b"some bytes" + DATA[110 : 256 * KIB]
    assert content(store, NAMES[2]) == DATA[:70_000]
    store.close()


def test_a_store_that_syncs_each_frame_leaves_everything_to_threads() -> None:
    store = open_engine(SimulatedDisk().parts(), Options(durable=True))
    assert store.waits()
    assert store.prepare_cached([update(NAMES[0], 1, b"x")]) == [None]
    assert not list(store.pending())
    store.close()


def test_pages_of_a_checkpoint_go_to_their_places() -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts())
    model = {name: bytearray(DATA[: 256 * KIB]) for name in NAMES[:4]}
    apply(store, *(update(name, 1, bytes(data)) for name, data in model.items()))
    chance = random.Random(5)
    for version in range(2, 60):
        batch = []
        for name, data in model.items():
            at, n_bytes = chance.randrange(240) * 1024, chance.choice((512, 4096, 8192))
            piece = chance.randbytes(n_bytes)
            data[at : at + n_bytes] = piece
            batch.append(update(name, version, piece, at))
        apply(store, *batch)
    steps = Steps(disk)
    assert store.maintain()
    assert 4 < steps.take()["blocks.write"] < 4 * 64, "neighbours in one piece"
    for name, data in model.items():
        assert content(store, name) == data
        store.verify(name, cold=True)
    store.close()


def test_an_event_loop_does_not_wait_for_a_file_to_grow() -> None:
    disk = SimulatedDisk()
    store = open_engine(disk.parts())
    steps = Steps(disk)
    assert store.prepare_cached([update(NAMES[0], 1, b"x")]) == [None]
    assert not steps.take()["blocks.grow"]
    apply(store, update(NAMES[0], 1, b"x"))
    assert isinstance(store.prepare_cached([update(NAMES[1], 1, b"y")])[0], Image)
    store.close()
