"""The shell of write-behind: order, frozen memory, bounds, errors told once. Budget: 5 s."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from hillfire.client.buffers import Buffers
from hillfire.errors import Code, Error
from hillfire.fuse import writeback
from hillfire.fuse.writeback import DirtyFile, Overlaid, WriteBehind
from hillfire.layout import DEFAULT_CHUNK_BYTES
from hillfire.proto import meta_pb2 as pb
from hillfire.proto.wire.base import MAX_DATA_BYTES, MAX_PARTS, Part
from hillfire.types import ByteRange

PIECE = 4096
SLOTS = 4


class Storage:
    """Takes spans when it is let, and notices memory that changes meanwhile."""

    def __init__(self) -> None:
        self.bytes: dict[int, bytearray] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Error | None = None
        self.under_way: set[tuple[int, int]] = set()
        self.most = 0
        self.sizes: list[int] = []

    async def send(self, file: DirtyFile, spans: list[tuple[int, Part]]) -> None:
        before = [bytes(self._view(part)) for _, part in spans]
        keys = {(file.inode.id, offset // PIECE) for offset, _ in spans}
        assert not keys & self.under_way, "two updates of one piece under way"
        self.under_way |= keys
        self.most = max(self.most, len(self.under_way))
        self.sizes += [part.length for _, part in spans]
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            await asyncio.sleep(random.random() / 1000)
            if self.error is not None:
                raise self.error
            stored = self.bytes.setdefault(file.inode.id, bytearray(64 * PIECE))
            for (offset, part), was in zip(spans, before, strict=True):
                assert self._view(part) == was, "memory changed in flight"
                stored[offset : offset + part.length] = was
        finally:
            self.under_way -= keys

    @staticmethod
    def _view(part: Part) -> memoryview:
        return part.region.view[part.offset : part.offset + part.length]


def make(storage: Storage, *, through: bool = False) -> tuple[WriteBehind, DirtyFile]:
    behind = WriteBehind(storage.send, Buffers(SLOTS * PIECE), PIECE, through=through)
    inode = pb.Inode(id=7, type=pb.REGULAR, layout=pb.FileLayout(chunk_bytes=65536, chains=[1]))
    return behind, DirtyFile(inode, PIECE)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def test_many_writers_and_readers_see_one_file() -> None:
    async def work() -> None:
        rng, storage = random.Random(3), Storage()
        behind, file = make(storage)
        model = bytearray(64 * PIECE)

        async def read() -> None:
            offset = rng.randrange(60 * PIECE)
            over = Overlaid(behind, file, offset, 3 * PIECE)
            seen = bytearray(3 * PIECE)
            stored = storage.bytes.get(7, bytearray(64 * PIECE))
            seen[:] = stored[offset : offset + len(seen)]
            over.apply(memoryview(seen))
            assert seen == model[offset : offset + len(seen)]
            over.close()

        for number in range(600):
            offset = rng.randrange(60 * PIECE)
            data = rng.randbytes(rng.choice((1, 100, PIECE, 3 * PIECE)))
            await behind.write(file, offset, data)
            model[offset : offset + len(data)] = data
            if number % 3 == 0:
                await read()
            if number % 50 == 49:
                await behind.flush(file)
                assert storage.bytes[7] == model
            if number % 7 == 0:
                await asyncio.sleep(0)
        await behind.flush(file)
        assert storage.bytes[7] == model and not file.dirty
        assert storage.most > 1, "never more than one under way"

    run(work())


def test_a_read_keeps_what_is_stored_meanwhile() -> None:
    async def work() -> None:
        storage = Storage()
        behind, file = make(storage)
        await behind.write(file, 0, b"one")
        over, seen = Overlaid(behind, file, 0, 3), bytearray(3)
        await behind.flush(file)
        for number in range(SLOTS * 3):  # the pool goes round
            await behind.write(file, (1 + number) * PIECE, b"x" * PIECE)
        over.apply(memoryview(seen))
        over.close()
        assert seen == b"one"
        await behind.flush(file)

    run(work())


def test_memory_is_bounded_and_writers_wait_for_it() -> None:
    async def work() -> None:
        storage = Storage()
        storage.gate.clear()
        behind, file = make(storage)

        async def write() -> None:
            for number in range(SLOTS + 1):
                await behind.write(file, number * PIECE, b"y" * 10)

        writing = asyncio.create_task(write())
        done, _ = await asyncio.wait((writing,), timeout=0.05)
        assert not done, "more memory than there is"
        storage.gate.set()
        await writing
        await behind.flush(file)
        assert storage.bytes[7][:10] == b"y" * 10

    run(work())


def test_small_writes_leave_as_one() -> None:
    async def work() -> None:
        storage = Storage()
        behind, file = make(storage)
        for offset in range(0, 2 * PIECE, 64):
            await behind.write(file, offset, b"z" * 64)
        await behind.flush(file)
        assert storage.sizes == [PIECE, PIECE]

    run(work())


def test_an_error_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        storage = Storage()
        behind, file = make(storage)
        storage.error = Error(Code.NO_SPACE, "the disk is full")
        await behind.write(file, 0, b"x")
        with pytest.raises(Error) as caught:
            await behind.flush(file)
        assert caught.value.code is Code.NO_SPACE
        await behind.write(file, 0, b"x" * PIECE)  # full: leaves by itself, and fails
        await behind.settle(file)
        with pytest.raises(Error):
            await behind.write(file, PIECE, b"x")
        storage.error = None
        await behind.write(file, PIECE, b"x")
        await behind.flush(file)

    run(work())


def test_truncate_forgets_what_lies_beyond() -> None:
    async def work() -> None:
        storage = Storage()
        behind, file = make(storage)
        await behind.write(file, 0, b"x" * (3 * PIECE))
        await behind.write(file, 10 * PIECE, b"x" * 100)
        await behind.truncate(file, 100)
        assert not file.dirty
        assert 10 * PIECE not in storage.sizes and storage.bytes[7][10 * PIECE] == 0

    run(work())


def test_truncate_lets_those_go_who_wait_for_what_it_forgets() -> None:
    async def work() -> None:
        storage = Storage()
        behind, file = make(storage)
        storage.gate.clear()
        await behind.write(file, 0, b"x" * PIECE)  # full: on its way
        await behind.write(file, 10, b"y")  # waits for the first to arrive
        waiting = asyncio.create_task(behind.flush(file))
        await asyncio.sleep(0)
        cutting = asyncio.create_task(behind.truncate(file, 0))
        await asyncio.sleep(0)
        storage.gate.set()
        async with asyncio.timeout(2):
            await cutting
            await waiting

    run(work())


def test_a_writer_hears_when_a_quarantine_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        storage = Storage()
        behind, file = make(storage)
        region = behind._slots.region
        storage.error = Error(Code.TIMED_OUT, "no answer")
        await behind.write(file, 0, b"x" * (SLOTS * PIECE))
        held = region.quarantine(ByteRange(0, SLOTS * PIECE), False)
        await behind.settle(file)
        file.error = storage.error = None
        writing = asyncio.create_task(behind.write(file, 0, b"y"))
        done, _ = await asyncio.wait((writing,), timeout=0.02)
        assert not done, "memory in quarantine was used again"
        region.release(held)
        async with asyncio.timeout(2):
            await writing
        await behind.flush(file)

    run(work())


def test_a_writer_gives_up_on_a_quarantine_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work() -> None:
        monkeypatch.setattr(writeback, "ROOM_WAIT_S", 0.0)
        behind, file = make(Storage())
        parts = [behind._slots.try_acquire(PIECE) for _ in range(SLOTS)]
        with pytest.raises(Error) as caught:
            await behind.write(file, 0, b"y")
        assert caught.value.code is Code.TIMED_OUT and all(parts)

    run(work())


def test_idle_files_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        storage = Storage()
        behind, file = make(storage)
        await behind.write(file, 5, b"x")
        behind.flush_idle()
        assert not file.dirty.sending, "not idle yet"
        behind.flush_idle(older_than_s=-1.0)
        assert file.dirty.sending
        await behind.settle(file)
        assert storage.bytes[7][5] == ord("x")

    run(work())


def test_write_through() -> None:
    async def work() -> None:
        storage = Storage()
        behind, file = make(storage, through=True)
        await behind.write(file, 0, b"now")
        assert storage.bytes[7][:3] == b"now" and not file.dirty

    run(work())


def test_beyond_the_last_chunk() -> None:
    async def work() -> None:
        behind, file = make(Storage())
        with pytest.raises(Error) as caught:
            await behind.write(file, 65536 << 32, b"x")
        assert caught.value.code is Code.TOO_LARGE

    run(work())


def test_limits_fit_each_other() -> None:
    """A batch takes one piece more than its limit at most, and has to fit one request."""
    assert writeback.MAX_BATCH_BYTES + DEFAULT_CHUNK_BYTES <= MAX_DATA_BYTES
    assert writeback.MAX_BATCH_BYTES <= writeback.MAX_BYTES_IN_FLIGHT
    assert writeback.MAX_BATCH <= MAX_PARTS


def test_a_backlog_leaves_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What becomes ready while enough is under way travels together, and all of it arrives."""
    monkeypatch.setattr(writeback, "MAX_BYTES_IN_FLIGHT", PIECE)

    async def work() -> None:
        storage = Storage()
        behind, file = make(storage)
        batches: list[int] = []
        send = behind._send

        async def counted(file: DirtyFile, spans: list[tuple[int, Part]]) -> None:
            batches.append(len(spans))
            await send(file, spans)

        behind._send = counted
        storage.gate.clear()
        for piece in range(SLOTS):
            await behind.write(file, piece * PIECE, bytes([piece + 1]) * PIECE)
        await asyncio.sleep(0)
        assert batches == [1], "one piece is as much as may be under way"
        storage.gate.set()
        await behind.flush(file)
        assert batches == [1, SLOTS - 1]
        assert [storage.bytes[7][p * PIECE] for p in range(SLOTS)] == [1, 2, 3, 4]

    run(work())
