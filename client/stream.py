"""An open file as generators: position, length, reads and writes. Both faces' files use it.

Writes go through a buffer (``writebuffer.py``); reads that follow one another are fetched ahead
(``readahead.py``), others fetch what they ask for. What is written is read back at once here, and
by others after flush, fsync or close, which settle the length.
"""

import io
from collections import deque
from typing import Any

from hillfire.client import memory, reading, writing
from hillfire.client.actions import Join, Operation, Spawn
from hillfire.client.core import Core
from hillfire.client.plan import Extent
from hillfire.client.readahead import ReadAhead
from hillfire.client.writebuffer import WriteBuffer
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2

SLICE_BYTES = 4 * 1024 * 1024
"""A longer read is fetched in slices, ``SLICES`` of them at once."""
SLICES = 4
PEEK_BYTES = 8192
DIRECT_BYTES = 64 * 1024
"""A read of as much into memory of a region lands there at once, past staging and read-ahead."""
MAX_READ = 1 << 28
"""Of one step of a read to the end."""
FRESH_S = 1.0
"""A length younger than this is believed at the end of a file; else the service is asked."""


class Stream:
    """One open file of one client."""

    def __init__(
        self, core: Core, inode: meta_pb2.Inode, *, read: bool, write: bool, append: bool
    ) -> None:
        """``inode`` as it was just received; its write session is the caller's affair."""
        self._core = core
        self.inode = inode
        self.readable = read
        self.writable = write
        self.append = append
        self.position = 0
        self.length = inode.length
        self.closed = False
        self._asked_at = core.clock()
        self._extent = core.extent(inode)
        self._unsettled = False
        self._epoch = 0
        """of the inode when ``_unsettled`` began"""
        self._buffer = WriteBuffer(core, self._extent, self._reserve if append else None)
        self._ahead = ReadAhead(core)

    @property
    def extent(self) -> Extent:
        """What chunk I/O must know of the file, as long as this client knows it to be."""
        if self._extent.length != self.length:
            self._extent = self._extent._replace(length=self.length)
        return self._extent

    @property
    def busy(self) -> bool:
        """Whether bytes are buffered or on their way."""
        return bool(self._buffer)

    # --- reading

    def reads_on(self, position: int) -> bool:
        """Tell whether a read there follows the last one: then bytes are fetched ahead."""
        return self._ahead.expect == position

    def read_at(self, offset: int, length: int, into: memoryview | None = None) -> Operation[Any]:
        """Return up to ``length`` bytes from ``offset``, or fill ``into`` and return the count."""
        if self.busy:
            yield from self._buffer.drain()
        if offset + length > self.length:
            yield from self._look_again()
        core, extent = self._core, self.extent
        if into is not None and length >= DIRECT_BYTES:
            part = memory.part_of(into[:length])
            if part is not None:
                return reading.only((yield from reading.read_batch(core, [(extent, offset, part)])))
        if min(length, extent.length - offset) <= SLICE_BYTES:
            return (yield from reading.fetch(core, extent, offset, length, into))
        length = min(length, extent.length - offset)
        if into is not None:
            yield from self._in_slices(offset, into[:length])
            return length
        whole = io.BytesIO(bytes(length))  # filled in place, and handed out without a copy
        with whole.getbuffer() as view:
            yield from self._in_slices(offset, view)
        return whole.getvalue()

    def _in_slices(self, offset: int, view: memoryview) -> Operation[None]:
        """Fill ``view`` by several fetches at once; none of them outlives this."""
        flying: deque[Any] = deque()
        failure: Error | None = None
        done = 0
        while flying or (done < len(view) and failure is None):
            if done < len(view) and failure is None and len(flying) < SLICES:
                part = view[done : done + SLICE_BYTES]
                fetch = reading.fetch(self._core, self.extent, offset + done, len(part), part)
                flying.append((yield Spawn(fetch)))
                done += len(part)
                continue
            try:
                yield Join(flying.popleft())
            except Error as exc:
                failure = failure or exc
        if failure is not None:
            raise failure

    def read(self, length: int) -> Operation[bytes]:
        """Return up to ``length`` bytes from the position on, and move it."""
        found: list[bytes] = []
        while length > 0:
            view = yield from self._next(length)
            if view is None:
                data = yield from self.read_at(self.position, length)
            else:
                data = bytes(view[:length])
            self.position += len(data)
            self._ahead.expect = self.position
            length -= len(data)
            found.append(data)
            if view is None or not data:
                break
        return found[0] if len(found) == 1 else b"".join(found)

    def read_all(self) -> Operation[bytes]:
        """Return everything from the position on, and move it to the end."""
        found: list[bytes] = []
        while True:
            left = min(max(self.length - self.position, 1), MAX_READ)
            data = yield from self.read(left)
            if not data:
                return found[0] if len(found) == 1 else b"".join(found)
            found.append(data)

    def read_into(self, into: memoryview) -> Operation[int]:
        """Fill ``into`` from the position on as far as there is, and move it."""
        done, total = 0, len(into)
        direct = total >= DIRECT_BYTES and not self._ahead and memory.part_of(into) is not None
        while done < total:
            view = None if direct else (yield from self._next(total - done))
            if view is None:
                count = int((yield from self.read_at(self.position, total - done, into[done:])))
            else:
                count = min(len(view), total - done)
                into[done : done + count] = view[:count]
            self.position += count
            self._ahead.expect = self.position
            done += count
            if view is None or not count:
                break
        return done

    def peek(self, limit: int = PEEK_BYTES) -> Operation[bytes]:
        """Return up to ``limit`` bytes from the position on without moving it."""
        view = yield from self._next(0)
        return bytes(view[:limit]) if view is not None else b""

    def read_some(self, limit: int) -> Operation[bytes]:
        """Return at least one and up to ``limit`` bytes, those at hand; b"" at the end."""
        data = yield from self.peek(limit)
        self.position += len(data)
        self._ahead.expect = self.position
        return data

    def _next(self, wanted: int) -> Operation[memoryview | None]:
        """Return bytes at the position that were fetched ahead, None to read them directly."""
        if self.busy:
            yield from self._buffer.drain()
        position = self.position
        if position + wanted >= self.length:
            yield from self._look_again()
        return (yield from self._ahead.at(position, wanted, self.extent))

    def _look_again(self) -> Operation[None]:
        """Ask for the length if what is known is old: another client may have written."""
        now = self._core.clock()
        if now - self._asked_at < FRESH_S:
            return
        inode = yield from self._core.meta("Stat", meta_pb2.StatRequest(inode=self.inode.id))
        self._take(inode)

    def _take(self, inode: meta_pb2.Inode) -> None:
        """Believe an inode that was just received, and what this client wrote since."""
        self._asked_at = self._core.clock()
        self.inode = inode
        self.length = max(inode.length, self._buffer.end if self._unsettled else 0)
        self._extent = self._core.extent(inode)._replace(length=self.length)
        self._buffer.extent = self._extent

    # --- writing

    def write(self, data: memoryview) -> Operation[int]:
        """Write from the position on (append mode: at the end), and move it."""
        if self._ahead:
            yield from self._ahead.forget()
        self._unsettle(bool(data))
        yield from self._buffer.add(self.position, data)
        if not self.append:
            self.position += len(data)
            self.length = max(self.length, self.position)
        return len(data)

    def _reserve(self, count: int) -> Operation[int]:
        """Take the next ``count`` bytes at the end of a file that others append to as well."""
        request = meta_pb2.ReserveAppendRequest(inode=self.inode.id, length=count)
        reply = yield from self._core.meta("ReserveAppend", request)
        self._take(reply.inode)
        self.length = max(self.length, reply.offset + count)
        self.position = reply.offset + count
        return int(reply.offset)

    def prepare_write(self) -> Operation[None]:
        """Get out of the way of a write past the buffer (batches)."""
        yield from self._ahead.forget()
        yield from self._buffer.drain()

    def wrote(self, start: int, end: int) -> None:
        """Note bytes that were written past the buffer (batches)."""
        self._buffer.sent(start, end)
        self._unsettle()
        self.length = max(self.length, end)

    def _unsettle(self, more: bool = True) -> None:
        """Note whether there is more to settle, and the epoch that its length speaks of."""
        if more and not self._unsettled:
            self._unsettled = True
            self._epoch = self.inode.epoch

    # --- what the name space must know

    def flush(self) -> Operation[None]:
        """Make what was written visible to every other client, its length included."""
        yield from self._buffer.drain()
        if self._unsettled:
            yield from self._settle()

    def sync(self) -> Operation[None]:
        """Make what was written survive the loss of power on all replicas."""
        buffer = self._buffer
        yield from buffer.drain()
        if buffer.dirty_start >= 0:
            start, end = buffer.dirty_start, buffer.dirty_end
            yield from writing.sync(self._core, self.extent, start, end)
        yield from self._settle(sync=True)
        buffer.synced()

    def _settle(self, sync: bool = False, close: bool = False) -> Operation[None]:
        request = meta_pb2.SettleRequest(
            inode=self.inode.id, epoch=self.inode.epoch, sync=sync, close=close
        )
        if self._unsettled:
            request.epoch = self._epoch
            request.length = self._buffer.dirty_end
            request.mtime_ns = self._core.wall_ns()
        inode = yield from self._core.meta("Settle", request)
        self._unsettled = False
        if inode.id:
            self._take(inode)

    def truncate(self, length: int) -> Operation[None]:
        """Cut or extend the file; the position stays."""
        yield from self.flush()
        yield from self._ahead.forget()
        request = meta_pb2.TruncateRequest(inode=self.inode.id, length=length)
        inode = yield from self._core.meta("Truncate", request)
        self._buffer.cut(length)
        self._take(inode)

    def refresh(self) -> Operation[None]:
        """Learn the length as the service knows it now (seek to the end, fstat)."""
        if self.writable:
            yield from self.flush()
        self._take((yield from self._core.meta("Stat", meta_pb2.StatRequest(inode=self.inode.id))))

    def close(self, handle: int) -> Operation[None]:
        """Write what is buffered, settle the length and end the session.

        Raises:
            Error: of a write that failed; the file is closed all the same.
        """
        if self.closed:
            return
        self.closed = True
        given_up = False
        try:
            yield from self._ahead.forget()
            yield from self._buffer.drain()
        except GeneratorExit:  # a cancelled task's: there is nobody left to say anything to
            given_up = True
            raise
        finally:
            self._core.handles.pop(handle, None)
            inode = self.inode.id
            nameless = inode in self._core.nameless and inode not in self._core.held()
            if nameless:
                self._core.nameless.discard(inode)
            sessions = 0 if given_up else self.writable + nameless
            for _ in range(sessions):  # the handle's, and the hold's
                try:
                    yield from self._settle(close=True)
                except Error as exc:
                    if exc.code is not Code.STALE:  # it was removed, and nobody kept it
                        raise

    def abandon(self) -> None:
        """Forget what is buffered: it belongs to the process that this one was forked from."""
        core, reserve = self._core, self._reserve if self.append else None
        self._buffer = WriteBuffer(core, self._extent, reserve)
        self._ahead = ReadAhead(core)
        self._unsettled = False
