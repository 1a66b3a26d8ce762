"""The server's side of ``tcp``: a request's data arrives in, and leaves from, pooled memory."""

import mmap
import socket
from collections.abc import Sequence

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import MAX_DATA_BYTES, MIN_VIEWS, PART, Answer, Views
from hillfire.proto.wire.frame import Frame, pack_filled
from hillfire.proto.wire.stream import Buffer, Opened

SOCKET_BUFFER_BYTES = 1024 * 1024
POOL_BYTES = 128 * 1024 * 1024
"""Of free memory that a server keeps for later requests; first touch of new memory is slow."""
Kept = tuple[memoryview, int] | None
"""A request's buffer and where its destinations begin."""
_SMALLEST = 12  # as a power of two: a page


def tune(sock: socket.socket) -> None:
    """Set up a tcp socket for small messages at once and bulk in few calls."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


class BufferPool:
    """Page-aligned buffers by powers of two, kept for reuse up to a limit."""

    def __init__(self, keep_bytes: int = POOL_BYTES) -> None:
        """Keep at most ``keep_bytes`` of free buffers."""
        self._free: dict[int, list[memoryview]] = {}
        self._kept = 0
        self._keep_bytes = keep_bytes

    def take(self, n_bytes: int) -> memoryview:
        """Return a buffer of at least ``n_bytes`` with anything in it."""
        power = max(_SMALLEST, (n_bytes - 1).bit_length())
        free = self._free.get(power)
        if free:
            self._kept -= 1 << power
            return free.pop()
        return memoryview(mmap.mmap(-1, 1 << power))

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back."""
        size = len(buffer)
        if self._kept + size <= self._keep_bytes:
            self._kept += size
            self._free.setdefault(size.bit_length() - 1, []).append(buffer)


class TcpSide:
    """What a server's connection does differently over tcp."""

    kind = "tcp"

    def __init__(self, sock: socket.socket, pool: BufferPool) -> None:
        """Serve the client at the other end of ``sock``."""
        self._sock = sock
        self._pool = pool
        self._arriving: memoryview | None = None

    def receive(self, views: list[memoryview]) -> int:
        """Receive bytes.

        Raises:
            OSError: as ``recv``.
        """
        if len(views) == 1:
            return self._sock.recv_into(views[0])
        return self._sock.recvmsg_into(views)[0]

    def place(self, frame: Frame) -> Sequence[memoryview]:
        """Take memory for a request's data: sources and destinations share one buffer.

        Raises:
            Error: PROTOCOL if the parts do not add up to the data.
        """
        _, total = self._measure(frame)
        self._arriving = self._pool.take(total)
        return [self._arriving[: frame.data_bytes]]

    def _measure(self, frame: Frame) -> tuple[list[int], int]:
        """Return the lengths of a request's parts and their sum.

        Raises:
            Error: PROTOCOL, TOO_LARGE.
        """
        if frame.sources + frame.destinations == 0 and frame.data_bytes:
            raise Error(Code.PROTOCOL, "data without parts")
        lengths = [length for _, _, length in PART.iter_unpack(frame.table)]
        total = sum(lengths)
        if sum(lengths[: frame.sources]) != frame.data_bytes:
            raise Error(Code.PROTOCOL, f"sources do not add up to {frame.data_bytes} bytes of data")
        if total > MAX_DATA_BYTES:
            raise Error(Code.TOO_LARGE, f"parts of {total} bytes")
        return lengths, total

    def control(self, frame: Frame) -> None:
        """Refuse regions: over tcp data travels behind the frame."""
        raise Error(Code.PROTOCOL, f"a frame of kind {frame.kind} over tcp")

    def open(self, frame: Frame) -> Opened:
        """Return a request's sources and destinations, what to keep for ``reply``, its cost.

        Raises:
            Error: PROTOCOL, TOO_LARGE for parts that cannot be.
        """
        buffer, self._arriving = self._arriving, None
        if not frame.table:
            return Opened((), (), None, 0)
        if not frame.sources:
            if frame.destinations == 1:
                length = PART.unpack(frame.table)[2]
                if length <= MAX_DATA_BYTES:
                    buffer = self._pool.take(length)
                    return Opened((), (buffer[:length],), (buffer, 0), length)
            elif frame.destinations >= MIN_VIEWS:
                return self._open_many(frame)
        lengths, total = self._measure(frame)
        if buffer is None:
            buffer = self._pool.take(total)
        views, start = [], 0
        for length in lengths:
            views.append(buffer[start : start + length])
            start += length
        kept = buffer, frame.data_bytes
        return Opened(views[: frame.sources], views[frame.sources :], kept, total)

    def _open_many(self, frame: Frame) -> Opened:
        """Return the destinations of a large batch, one after another in one buffer.

        Raises:
            Error: TOO_LARGE.
        """
        from hillfire.proto.wire import part_arrays

        table, total = part_arrays.rows(frame.table)
        if total > MAX_DATA_BYTES:
            raise Error(Code.TOO_LARGE, f"parts of {total} bytes")
        buffer = self._pool.take(total)
        return Opened((), Views(buffer, table, total), (buffer, 0), total)

    def reply(
        self, kept: Kept, destinations: Sequence[memoryview], answer: Answer
    ) -> tuple[bytes, list[Buffer]]:
        """Return the table of a response and its data, neighbours that are full as one.

        Raises:
            ValueError: the handler filled what there is not.
        """
        table = pack_filled(answer.filled)
        if kept is None:
            if answer.filled:
                raise ValueError("a destination filled that there is not")
            return table, []
        if len(destinations) == 1 == len(answer.filled):
            count = answer.filled[0]
            if count > len(destinations[0]):
                raise ValueError(f"{count} bytes filled in a destination of {len(destinations[0])}")
            return table, [destinations[0][:count]] if count else []
        buffer, position = kept  # destinations begin at ``position``, one after another
        if isinstance(destinations, Views):
            from hillfire.proto.wire import part_arrays

            if part_arrays.all_filled(destinations.table, table):
                return table, [buffer[: destinations.n_bytes]]
        data: list[Buffer] = []
        start = stop = position
        for view, filled in zip(destinations, answer.filled, strict=True):
            if position != stop:
                if stop > start:
                    data.append(buffer[start:stop])
                start = stop = position
            if filled > len(view):
                raise ValueError(f"{filled} bytes filled in a destination of {len(view)}")
            stop += filled
            position += len(view)
        if stop > start:
            data.append(buffer[start:stop])
        return table, data

    def give_back(self, kept: Kept) -> None:
        """Take back what ``open`` gave."""
        if kept is not None:
            self._pool.give(kept[0])

    def close(self) -> None:
        """Give back memory of a request that never arrived whole."""
        if self._arriving is not None:
            self._pool.give(self._arriving)
            self._arriving = None
