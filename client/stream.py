"""An open file as generators: position, write buffer, read-ahead. Both faces' file objects use it.

Writes gather in a staging part and leave when it is full, several at once (pipelined): the caller
fills the next buffer while the chains replicate the last. Two updates of one chunk are never on
their way together. Reads that follow one another fetch ahead, others fetch what they ask for.
"""

import os
from collections import deque
from typing import Any, NamedTuple

from hillfire.client import reading, writing
from hillfire.client.actions import Join, Operation, Spawn
from hillfire.client.core import Core
from hillfire.client.namespace import Path, lookup, place_of, with_path
from hillfire.client.plan import Extent
from hillfire.client.readahead import ReadAhead
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2
from hillfire.proto.wire.base import Part

BUFFER_BYTES = 4 * 1024 * 1024
FIRST_BUFFER_BYTES = 128 * 1024
"""A small file does not take a whole buffer; the first one grows once."""
DEPTH = 3
"""Write buffers on their way at once."""
SLICE_BYTES = 4 * 1024 * 1024
"""A longer read is fetched in slices, ``SLICES`` of them at once."""
SLICES = 4
PEEK_BYTES = 8192
MAX_READ = 1 << 28
"""Of one step of a read to the end."""
FRESH_S = 1.0
"""A length younger than this is believed at the end of a file; else the service is asked."""


class Flying(NamedTuple):
    """A write buffer on its way."""

    handle: Any
    part: Part
    first: int
    """chunk index"""
    last: int


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
        self._settled_length = inode.length
        self._extent = core.extent(inode)
        self._part: Part | None = None
        self._start = 0
        self._fill = 0
        self._flying: deque[Flying] = deque()
        self._dirty_start = -1
        self._dirty_end = 0
        self._unsettled = False
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
        return self._part is not None or bool(self._flying)

    def prepare_write(self) -> Operation[None]:
        """Get out of the way of a write past the buffer."""
        yield from self._ahead.forget()
        yield from self.drain()

    def wrote(self, start: int, end: int) -> None:
        """Note bytes that were written past the buffer (batches)."""
        self._dirty_start = start if self._dirty_start < 0 else min(self._dirty_start, start)
        self._dirty_end = max(self._dirty_end, end)
        self._unsettled = True
        self.length = max(self.length, end)

    # --- reading

    def read_at(self, offset: int, length: int, into: memoryview | None = None) -> Operation[Any]:
        """Return up to ``length`` bytes from ``offset``, or fill ``into`` and return the count."""
        if self.busy:
            yield from self.drain()
        if offset + length > self.length:
            yield from self._look_again()
        core, extent = self._core, self.extent
        if min(length, extent.length - offset) <= SLICE_BYTES:
            return (yield from reading.fetch(core, extent, offset, length, into))
        length = min(length, extent.length - offset)
        view = memoryview(bytearray(length)) if into is None else into
        yield from self._in_slices(offset, view[:length])
        return length if into is not None else bytes(view)

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
        while done < total:
            view = yield from self._next(total - done)
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
            yield from self.drain()
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
        """Believe an inode that was just received."""
        self._asked_at = self._core.clock()
        self.inode = inode
        self._settled_length = inode.length
        own = max(self._dirty_end, self._start + self._fill if self._part is not None else 0)
        pending = self._part is not None or bool(self._flying) or self._unsettled
        self.length = max(inode.length, own) if pending else inode.length
        self._extent = self._core.extent(inode)._replace(length=self.length)

    # --- writing

    def write(self, data: memoryview) -> Operation[int]:
        """Write from the position on (append mode: at the end), and move it."""
        if self._ahead:
            yield from self._ahead.forget()
        done, total = 0, len(data)
        while done < total:
            if (
                not self.append
                and self._part is not None
                and self.position != self._start + self._fill
            ):
                yield from self._dispatch()
            if self._part is None:
                self._start, self._fill = self.position, 0
                left = total - done
                size = FIRST_BUFFER_BYTES if left <= FIRST_BUFFER_BYTES else self._room()
                self._part = self._core.stage(size)
            part = self._part
            count = min(total - done, part.length - self._fill)
            if not count:
                yield from self._grow_or_dispatch()
                continue
            begin = part.offset + self._fill
            part.region.view[begin : begin + count] = data[done : done + count]
            self._fill += count
            done += count
            self.position += count
            if not self.append and self.position > self.length:
                self.length = self.position
        if self._part is not None and self._fill == BUFFER_BYTES:
            yield from self._dispatch()
        return total

    def _room(self) -> int:
        """Return the size of a full buffer from the start on: it ends where a chunk ends."""
        chunk = self._extent.layout.chunk_bytes
        return max(1, BUFFER_BYTES - self._start % min(chunk, BUFFER_BYTES))

    def _grow_or_dispatch(self) -> Operation[None]:
        part, room = self._part, self._room()
        assert part is not None
        if part.length >= room:
            yield from self._dispatch()
            return
        larger = self._core.stage(room)
        old = part.region.view[part.offset : part.offset + self._fill]
        larger.region.view[larger.offset : larger.offset + self._fill] = old
        self._core.unstage(part)
        self._part = larger

    def _dispatch(self) -> Operation[None]:
        """Send the write buffer on its way."""
        part, count = self._part, self._fill
        self._part, self._fill = None, 0
        if part is None:
            return
        if not count:
            self._core.unstage(part)
            return
        start = self._start
        try:
            if self.append:
                start = yield from self._reserve(count)
            chunk = self._extent.layout.chunk_bytes
            first, last = start // chunk, (start + count - 1) // chunk
            while self._flying and (
                len(self._flying) >= DEPTH
                or any(f.first <= last and first <= f.last for f in self._flying)
            ):
                yield from self._land()
        except BaseException:
            self._core.unstage(part)
            raise
        self._dirty_start = start if self._dirty_start < 0 else min(self._dirty_start, start)
        self._dirty_end = max(self._dirty_end, start + count)
        self._unsettled = True
        source = Part(part.region, part.offset, count)
        handle = yield Spawn(writing.write_batch(self._core, [(self._extent, start, source)]))
        self._flying.append(Flying(handle, part, first, last))

    def _reserve(self, count: int) -> Operation[int]:
        """Take the next ``count`` bytes at the end of a file that others append to as well."""
        request = meta_pb2.ReserveAppendRequest(inode=self.inode.id, length=count)
        reply = yield from self._core.meta("ReserveAppend", request)
        self._take(reply.inode)
        self.length = max(self.length, reply.offset + count)
        self.position = reply.offset + count
        return int(reply.offset)

    def _land(self) -> Operation[None]:
        """Wait for the oldest buffer on its way."""
        flying = self._flying.popleft()
        try:
            results = yield Join(flying.handle)
        finally:
            self._core.unstage(flying.part)
        if isinstance(results[0], Error):
            raise results[0]

    def drain(self) -> Operation[None]:
        """Send what is buffered and wait until all of it is on every replica."""
        failure: Error | None = None
        try:
            yield from self._dispatch()
        except Error as exc:
            failure = exc
        while self._flying:
            try:
                yield from self._land()
            except Error as exc:
                failure = failure or exc
        if failure is not None:
            raise failure

    # --- what the name space must know

    def flush(self) -> Operation[None]:
        """Make what was written visible to every other client, its length included."""
        yield from self.drain()
        if self._unsettled:
            yield from self._settle()

    def sync(self) -> Operation[None]:
        """Make what was written survive the loss of power on all replicas."""
        yield from self.drain()
        if self._dirty_start >= 0:
            extent, start, end = self.extent, self._dirty_start, self._dirty_end
            yield from writing.sync(self._core, extent, start, end)
        yield from self._settle(sync=True)
        self._dirty_start, self._dirty_end = -1, 0

    def _settle(self, sync: bool = False, close: bool = False) -> Operation[None]:
        request = meta_pb2.SettleRequest(
            inode=self.inode.id, epoch=self.inode.epoch, sync=sync, close=close
        )
        if self._unsettled:
            request.length = self._dirty_end
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
        self._dirty_end = min(self._dirty_end, length)
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
        try:
            yield from self._ahead.forget()
            yield from self.drain()
        finally:
            self._core.handles.pop(handle, None)
            inode = self.inode.id
            nameless = inode in self._core.nameless and inode not in self._core.held()
            if nameless:
                self._core.nameless.discard(inode)
            for _ in range(self.writable + nameless):  # the handle's session, and the hold's
                try:
                    yield from self._settle(close=True)
                except Error as exc:
                    if exc.code is not Code.STALE:  # it was removed, and nobody kept it
                        raise

    def abandon(self) -> None:
        """Forget what is buffered: it belongs to the process that this one was forked from."""
        self._part, self._fill = None, 0
        self._flying.clear()
        self._unsettled = False
        self._ahead = ReadAhead(self._core)


def open_stream(core: Core, path: Path, mode: str) -> Operation[Stream]:
    """Open a path as ``open`` does: ``r w a x``, ``+``; "b" and "t" are the face's affair."""
    kind = mode.replace("b", "").replace("t", "").replace("+", "")
    if kind not in ("r", "w", "a", "x") or mode.count("+") > 1:
        raise ValueError(f"invalid mode: {mode!r}")
    plus = "+" in mode
    read, write = kind == "r" or plus, kind != "r" or plus
    if kind == "r":
        inode = yield from lookup(core, path)
        _check(core, inode, path, write)
        if write:
            inode = yield from with_path(_open(core, inode.id), path)
    else:
        request = meta_pb2.CreateRequest(
            caller=core.caller(),
            place=place_of(path),
            mode=0o666 & ~core.identity.umask,
            exclusive=kind == "x",
        )
        inode = yield from with_path(core.meta("Create", request), path)
        if inode.type != meta_pb2.REGULAR:
            raise Error(Code.INVALID, "not a regular file", path=os.fsdecode(path))
        if kind == "w" and inode.length:
            truncate = meta_pb2.TruncateRequest(caller=core.caller(), inode=inode.id)
            inode = yield from with_path(core.meta("Truncate", truncate), path)
    stream = Stream(core, inode, read=read, write=write, append=kind == "a")
    if kind == "a":
        stream.position = inode.length
    return stream


def _open(core: Core, inode: int) -> Operation[meta_pb2.Inode]:
    request = meta_pb2.OpenRequest(caller=core.caller(), inode=inode, write=True)
    opened: meta_pb2.Inode = yield from core.meta("Open", request)
    return opened


def _check(core: Core, inode: meta_pb2.Inode, path: Path, write: bool) -> None:
    """Refuse what cannot be opened; the mode bits of a read are checked here, at no trip."""
    name = os.fsdecode(path)
    if inode.type == meta_pb2.DIRECTORY:
        raise Error(Code.IS_DIRECTORY, "is a directory", path=name)
    if inode.type != meta_pb2.REGULAR:
        raise Error(Code.INVALID, "not a regular file", path=name)
    who = core.identity
    if who.uid == 0 or write:
        return
    shift = 6 if who.uid == inode.uid else 3 if inode.gid in (who.gid, *who.groups) else 0
    if not inode.mode >> shift & 4:
        raise Error(Code.ACCESS, "permission denied", path=name)
