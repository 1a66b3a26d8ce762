"""The server's side of ``shm``: clients' memfds, checked before they are mapped.

A truncated mapping is SIGBUS for whoever touches it, so a region is accepted only if it is a
memfd sealed against shrinking, growing and further sealing, fully allocated, of the length that
the client said and within the connection's limit. Every descriptor that comes in is closed again
in every path: a mapping does not need it.
"""

import fcntl
import mmap
import os
import socket
import sys
from array import array
from collections import deque
from collections.abc import Sequence
from struct import Struct

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import MIN_VIEWS, PART, Answer, Views
from hillfire.proto.wire.frame import REGISTER, UNREGISTER, Frame, Kind, pack_filled
from hillfire.proto.wire.stream import Buffer, Opened
from hillfire.region import SEALS

MAX_DESCRIPTORS = 4
"""Received in one message, or waiting for the REGISTER that they belong to."""
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * array("i").itemsize)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)  # as plain numbers: flags cost a microsecond each
_TRUNCATED = int(socket.MSG_CTRUNC)
_CREDENTIALS = Struct("iII")


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Return pid and uid of the process at the other end of a UNIX socket."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


POPULATED_BYTES = 1 << 30
"""A region up to this long is mapped whole at once: a page costs 0.3 us then, and 1.3 more when a
read meets it first, which one restore into fresh memory does everywhere. A longer one would hold
up everybody else for too long."""


def map_region(fd: int, length: int) -> mmap.mmap:
    """Map a client's memfd after every check.

    Raises:
        Error: NOT_PERMITTED if it is not sealed, allocated and of the right length.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        status = os.fstat(fd)
        if seals & SEALS != SEALS:
            raise Error(Code.NOT_PERMITTED, f"a region's memfd lacks seals: it has {seals:#x}")
        if status.st_size != length:
            text = f"a region of {length} bytes in a memfd of {status.st_size}"
            raise Error(Code.NOT_PERMITTED, text)
        if status.st_blocks * 512 < length:
            text = f"a region of {length} bytes has only {status.st_blocks * 512} allocated"
            raise Error(Code.NOT_PERMITTED, text)
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if length <= POPULATED_BYTES else 0)
        if sys.version_info >= (3, 13):
            return mmap.mmap(fd, length, flags=flags, trackfd=False)
        return mmap.mmap(fd, length, flags=flags)  # keeps a descriptor of its own while mapped
    except Error:
        raise
    except (OSError, ValueError) as exc:
        raise Error(Code.NOT_PERMITTED, f"a region's descriptor is of no use: {exc}") from exc


class ShmSide:
    """What a server's connection does differently over a UNIX socket."""

    kind = "shm"

    def __init__(self, sock: socket.socket, max_regions: int, max_bytes: int) -> None:
        """Serve the client at the other end of ``sock``."""
        self._sock = sock
        self._max_regions = max_regions
        self._max_bytes = max_bytes
        self._bytes = 0
        self._descriptors: deque[int] = deque()
        self._regions: dict[int, memoryview | Error] = {}

    def receive(self, views: list[memoryview]) -> int:
        """Receive bytes and descriptors.

        Raises:
            OSError: as ``recvmsg``.
            Error: PROTOCOL for more descriptors than allowed.
        """
        count, ancillary, flags, _ = self._sock.recvmsg_into(
            views, _ANCILLARY_BYTES, _CLOSE_ON_EXEC
        )
        if ancillary:
            self._collect(ancillary)
        if flags & _TRUNCATED or len(self._descriptors) > MAX_DESCRIPTORS:
            raise Error(Code.PROTOCOL, "too many descriptors at once")
        return count

    def _collect(self, ancillary: Sequence[tuple[int, int, bytes]]) -> None:
        """Keep received descriptors until their REGISTER is read."""
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._descriptors.extend(fds)

    def place(self, frame: Frame) -> Sequence[memoryview]:
        """Refuse data behind a frame: over shm it lies in regions."""
        raise Error(Code.PROTOCOL, "data in a frame over shm")

    def control(self, frame: Frame) -> None:
        """Carry out REGISTER or UNREGISTER.

        Raises:
            Error: PROTOCOL if the frame is malformed; the connection then ends.
        """
        if frame.kind == Kind.REGISTER and len(frame.body) == REGISTER.size:
            if not self._descriptors:
                raise Error(Code.PROTOCOL, "a REGISTER without its descriptor")
            region, length = REGISTER.unpack(frame.body)
            self._register(region, length, self._descriptors.popleft())
        elif frame.kind == Kind.UNREGISTER and len(frame.body) == UNREGISTER.size:
            gone = self._regions.pop(UNREGISTER.unpack(frame.body)[0], None)
            if isinstance(gone, memoryview):
                self._bytes -= len(gone)  # unmapped with the last view of a request at work
        else:
            raise Error(Code.PROTOCOL, f"a malformed frame of kind {frame.kind}")

    def _register(self, region: int, length: int, fd: int) -> None:
        """Map a region, or remember why not: whoever uses it is told."""
        try:
            if region in self._regions:
                raise Error(Code.PROTOCOL, f"region {region} is registered already")
            if len(self._regions) >= self._max_regions:
                return  # its use is answered
            if length == 0 or self._bytes + length > self._max_bytes:
                text = f"regions of {self._bytes + length} bytes, {self._max_bytes} are allowed"
                self._regions[region] = Error(Code.TOO_LARGE, text)
                return
            try:
                self._regions[region] = memoryview(map_region(fd, length))
                self._bytes += length
            except Error as exc:
                self._regions[region] = exc
        finally:
            os.close(fd)

    def open(self, frame: Frame) -> Opened:
        """Return a request's sources and destinations, what to keep for ``reply``, its cost.

        Raises:
            Error: INVALID for a part outside its region, or why the region was refused.
        """
        table = frame.table
        if not table:
            return Opened((), (), None, 0)
        if frame.destinations >= MIN_VIEWS and not frame.sources:
            found = self._open_many(table)
            if found is not None:
                return Opened((), found, None, 0)
        views = []
        last, base = -1, memoryview(b"")
        for region, offset, length in PART.iter_unpack(table):
            if region != last:
                if length == 0:
                    views.append(memoryview(bytearray()))
                    continue
                base, last = self._region(region), region
            end = offset + length
            if end > len(base):
                text = f"[{offset}, {end}) is outside region {region} of {len(base)} bytes"
                raise Error(Code.INVALID, text)
            views.append(base[offset:end])
        return Opened(views[: frame.sources], views[frame.sources :], None, 0)

    def _open_many(self, table: memoryview) -> Views | None:
        """Return the destinations of a batch that all lie within one region, else None."""
        from hillfire.proto.wire import part_arrays

        region, end, n_bytes = part_arrays.survey(table)
        base = self._regions.get(region)
        if not isinstance(base, memoryview) or end > len(base):
            return None  # the thorough way finds out what is wrong
        return Views(base, table, n_bytes)

    def _region(self, region: int) -> memoryview:
        found = self._regions.get(region)
        if isinstance(found, memoryview):
            return found
        if found is None:
            if len(self._regions) >= self._max_regions:
                raise Error(Code.TOO_LARGE, f"more than {self._max_regions} regions")
            raise Error(Code.INVALID, f"region {region} is not registered")
        raise Error(found.code, found.strerror or "")

    def reply(
        self, kept: None, destinations: Sequence[memoryview], answer: Answer
    ) -> tuple[bytes, list[Buffer]]:
        """Return the table of a response and its data: over shm it is in place already.

        Raises:
            ValueError: the handler filled what there is not.
        """
        if len(answer.filled) != len(destinations):
            raise ValueError(f"{len(answer.filled)} of {len(destinations)} destinations filled")
        return pack_filled(answer.filled), []

    def give_back(self, kept: None) -> None:
        """Take back what ``open`` gave: nothing here."""

    def close(self) -> None:
        """Forget the regions and close descriptors that nobody claimed."""
        self._regions.clear()
        while self._descriptors:
            os.close(self._descriptors.popleft())
