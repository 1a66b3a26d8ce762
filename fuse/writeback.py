"""Write-behind: a write is copied into a slot and answered; full pieces leave in the background.

The mount's own, never the kernel's writeback cache (which keeps a file's old size after another
mount has grown it). Which bytes are dirty and what may be sent is decided by ``extents.Dirty``;
this shell copies, sends and waits. A piece leaves when it is full, when somebody needs it stored
(fsync, close, truncate), when memory is short, or when its file was idle for a second.

An error belongs to the file: its next write, fsync or close raises it, once.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from hillfire.client.buffers import POLL_S, Buffers
from hillfire.errors import Code, Error
from hillfire.fuse.extents import Dirty, Piece
from hillfire.proto import meta_pb2 as pb
from hillfire.proto.wire.base import Part

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 16
"""Requests of write-behind on their way at once, of the whole mount."""
IDLE_S = 1.0
MAX_BYTES_IN_FLIGHT = 24 * 1024 * 1024
"""Of those requests: what becomes ready beyond it waits, and then leaves in larger batches."""
ROOM_WAIT_S = 60.0
"""A write waits no longer for memory that no send will free."""
MAX_BATCH = 32
"""Pieces of one file that leave in one request."""
MAX_BATCH_BYTES = 4 * 1024 * 1024
"""Of one such request."""

Send = Callable[["DirtyFile", list[tuple[int, Part]]], Awaitable[None]]
"""Stores spans, given as (file offset, memory), and raises ``Error`` if it cannot."""


class DirtyFile:
    """What this mount has written to a file, as long as anybody here has it open."""

    __slots__ = ("dirty", "epoch", "error", "inode", "length", "mtime_ns", "touched", "unsettled",
                 "waiters", "wanted")  # fmt: skip

    def __init__(self, inode: pb.Inode, piece_bytes: int) -> None:
        """Begin clean, with the inode as the metadata service knows it."""
        self.inode = inode
        self.dirty: Dirty[Part] = Dirty(piece_bytes)
        self.wanted: set[int] = set()
        self.error: Error | None = None
        self.length = inode.length
        self.mtime_ns = inode.mtime_ns
        self.unsettled = False
        """``length`` and ``mtime_ns`` are newer than what the metadata service was told"""
        self.epoch = inode.epoch
        """of the inode, as far as was known when ``unsettled`` began: ``length`` speaks of it"""
        self.touched = 0.0
        self.waiters: list[asyncio.Future[None]] = []

    def raise_error(self) -> None:
        """Report what befell earlier writes.

        Raises:
            Error: the first that was not reported yet.
        """
        error, self.error = self.error, None
        if error is not None:
            raise error


class WriteBehind:
    """All of a mount's unsent writes."""

    def __init__(
        self, send: Send, slots: Buffers, piece_bytes: int, *, through: bool = False
    ) -> None:
        """``slots`` is the memory; ``through`` sends every write at once and waits for it."""
        self.piece_bytes = piece_bytes
        self._send = send
        self._slots = slots
        self._through = through
        self._files: dict[int, DirtyFile] = {}
        """those with dirty bytes, the longest dirty first"""
        self._ready: deque[tuple[DirtyFile, int]] = deque()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._bytes_in_flight = 0
        self._room: list[asyncio.Future[None]] = []
        self.lost: set[int] = set()
        """inodes of which something was not stored, and nobody is left to be told"""

    def __repr__(self) -> str:
        """Tell how much waits and how much is on its way."""
        return (
            f"<WriteBehind {len(self._files)} files, {len(self._in_flight)} sends, {self._slots}>"
        )

    async def write(self, file: DirtyFile, offset: int, data: bytes | memoryview) -> None:
        """Take a write; returns once it is copied.

        Raises:
            Error: what befell an earlier write of the file; TOO_LARGE past the layout's end;
                TIMED_OUT when memory stays in quarantine.
        """
        file.raise_error()
        if not file.unsettled:
            file.epoch = file.inode.epoch
        end = offset + len(data)
        if end > file.inode.layout.chunk_bytes << 32:
            raise Error(Code.TOO_LARGE, f"no file of this layout reaches offset {end}")
        view, dirty = memoryview(data), file.dirty
        asked = 0.0
        for index, start, count, at in dirty.cuts(offset, len(view)):
            piece = dirty.open.get(index)
            while piece is None:
                slot = self._slots.try_acquire(self.piece_bytes)
                if slot is None:
                    asked = asked or time.monotonic()
                    if not self._in_flight and time.monotonic() - asked > ROOM_WAIT_S:
                        text = f"{self._slots} wait for storage nodes that do not answer"
                        raise Error(Code.TIMED_OUT, text)
                    await self._make_room()
                    piece = dirty.open.get(index)
                else:
                    piece = dirty.start(index, slot)
            # No await from here to `add`: the piece must not leave half copied.
            first = piece.slot.offset + start
            piece.slot.region.view[first : first + count] = view[at : at + count]
            piece.add(start, start + count)
            self._files.setdefault(file.inode.id, file)
            if dirty.is_full(piece):
                self._want(file, index)
        file.length = max(file.length, end)
        file.mtime_ns = time.time_ns()
        file.unsettled = True
        file.touched = time.monotonic()
        if self._through:
            await self.flush(file)
        elif self._ready:
            self._pump()

    async def flush(self, file: DirtyFile) -> None:
        """Store everything written before the call.

        Raises:
            Error: what befell it.
        """
        await self.settle(file)
        file.raise_error()

    async def settle(self, file: DirtyFile) -> None:
        """As ``flush``, but leave an error to whoever asks next."""
        dirty = file.dirty
        pieces = [*dirty.sending.values(), *dirty.open.values()]
        for index in dirty.open:
            self._want(file, index)
        self._pump()
        while not all(piece.done for piece in pieces):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            file.waiters.append(waiter)
            await waiter  # every send has a deadline of its own

    async def truncate(self, file: DirtyFile, length: int) -> None:
        """Forget bytes from ``length`` on and store the rest, before the file is cut there."""
        while file.dirty.sending:
            sending = list(file.dirty.sending.values())
            file.wanted.clear()
            while not all(piece.done for piece in sending):
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                file.waiters.append(waiter)
                await waiter
        for piece in file.dirty.truncate(length):
            self._release(piece)
        self._wake(file)  # whoever waits for a piece that is gone: no send will tell
        await self.settle(file)

    async def flush_all(self) -> None:
        """Store everything, as the mount ends; errors are logged and counted as ``lost``."""
        for file in list(self._files.values()):
            try:
                await self.flush(file)
            except Error as exc:
                self.lost.add(file.inode.id)
                log.error("lost inode=%d error=%s", file.inode.id, exc)

    def unsent(self) -> dict[int, int]:
        """Return how many bytes of each inode are not stored yet."""
        return {
            number: sum(
                self._size(piece)
                for piece in (*file.dirty.sending.values(), *file.dirty.open.values())
            )
            for number, file in self._files.items()
        }

    def flush_idle(self, older_than_s: float = IDLE_S) -> None:
        """Start sending what nobody has written to for a while; called by a timer."""
        before = time.monotonic() - older_than_s
        for file in list(self._files.values()):
            if file.touched < before:
                for index in file.dirty.open:
                    self._want(file, index)
        self._pump()

    def _want(self, file: DirtyFile, index: int) -> None:
        if index not in file.wanted:
            file.wanted.add(index)
            self._ready.append((file, index))

    def _pump(self) -> None:
        """Start sends, as many as may be under way."""
        while (
            self._ready
            and len(self._in_flight) < MAX_IN_FLIGHT
            and self._bytes_in_flight < MAX_BYTES_IN_FLIGHT
        ):
            file, index = self._ready.popleft()
            if index not in file.wanted or not file.dirty.may_send(index):
                continue  # sent already, or its predecessor is in flight and will ask again
            batch = [self._begin(file, index)]
            size = self._size(batch[0])
            while self._ready and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
                other, index = self._ready[0]
                if other is not file:
                    break
                self._ready.popleft()
                if index in file.wanted and file.dirty.may_send(index):
                    batch.append(self._begin(file, index))
                    size += self._size(batch[-1])
            self._bytes_in_flight += size
            task = asyncio.create_task(self._carry(file, batch, size))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    def _begin(self, file: DirtyFile, index: int) -> Piece[Part]:
        file.wanted.discard(index)
        return file.dirty.send(index)

    @staticmethod
    def _size(piece: Piece[Part]) -> int:
        return sum(high - low for low, high in piece.spans)

    async def _carry(self, file: DirtyFile, batch: list[Piece[Part]], n_bytes: int) -> None:
        """Send pieces, then let go of them whatever came of it."""
        size, spans = self.piece_bytes, []
        for piece in batch:
            region, place, _ = piece.slot
            base = piece.index * size
            spans += [(base + a, Part(region, place + a, b - a)) for a, b in piece.spans]
        try:
            await self._send(file, spans)
        except Error as exc:
            log.error("write failed inode=%d error=%s", file.inode.id, exc)
            file.error = file.error or exc
        except Exception as exc:  # a defect must not hang whoever waits for this file
            log.exception("write failed inode=%d", file.inode.id)
            file.error = file.error or Error(Code.INTERNAL, f"write-behind failed: {exc!r}")
        finally:
            self._in_flight.discard(asyncio.current_task())
            self._bytes_in_flight -= n_bytes
            for piece in batch:
                file.dirty.finish(piece)
                self._release(piece)
                if piece.index in file.wanted:
                    self._ready.append((file, piece.index))
            if not file.dirty:
                self._files.pop(file.inode.id, None)
            self._wake(file)
            self._pump()

    @staticmethod
    def _wake(file: DirtyFile) -> None:
        """Have those look again who wait for pieces of a file."""
        waiters, file.waiters = file.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _release(self, piece: Piece[Part]) -> None:
        """Give a piece's memory back unless a reader still copies from it."""
        if piece.pins == 0:
            self._slots.release(piece.slot)
            waiters, self._room = self._room, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def _make_room(self) -> None:
        """Send the longest dirty pieces and wait until a slot is free."""
        budget = MAX_BATCH
        for file in list(self._files.values()):
            for index in list(file.dirty.open)[:budget]:
                self._want(file, index)
                budget -= 1
            if budget <= 0:
                break
        self._pump()
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._room.append(waiter)
        # Nobody announces that a quarantine has ended, in which a send that failed left its slot.
        timer = loop.call_later(POLL_S, self._give_room, waiter)
        try:
            await waiter
        finally:
            timer.cancel()

    def _give_room(self, waiter: "asyncio.Future[None]") -> None:
        if waiter in self._room:
            self._room.remove(waiter)
        if not waiter.done():
            waiter.set_result(None)

    def unpin(self, piece: Piece[Part]) -> None:
        """Let go of a piece that a read has copied from."""
        piece.pins -= 1
        if piece.done:
            self._release(piece)


class Overlaid:
    """Unsent bytes that a read holds on to while storage answers.

    They are pinned before storage is asked: a piece that is stored meanwhile would otherwise be
    in neither place.
    """

    def __init__(self, behind: WriteBehind, file: DirtyFile, offset: int, length: int) -> None:
        """Pin what lies over the range."""
        self._behind = behind
        self._parts = file.dirty.overlays(offset, length)
        self.complete = file.dirty.covers(offset, length)
        """the range needs nothing from storage"""
        for overlay in self._parts:
            overlay.piece.pins += 1

    def apply(self, into: memoryview) -> None:
        """Lay the unsent bytes over the stored ones."""
        for piece, start, length, at in self._parts:
            first = piece.slot.offset + start
            into[at : at + length] = piece.slot.region.view[first : first + length]

    def close(self) -> None:
        """Let go of them."""
        parts, self._parts = self._parts, []
        for overlay in parts:
            self._behind.unpin(overlay.piece)
