"""Takes a stream of bytes apart into frames.

Pure, as ``frame.py``: bytes in, frames out. Every length is checked against the limits of
``base.py`` before a byte is allocated for it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import MAX_BODY_BYTES, MAX_DATA_BYTES, MAX_PARTS, WIRE_VERSION
from hillfire.proto.wire.frame import (
    FILLED_BYTES,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    MAX_BUFFERS,
    MAX_CONTROL_BYTES,
    PART_BYTES,
    PREFIX,
    REQUEST,
    RESPONSE,
    Frame,
    Kind,
)

STAGING_BYTES = 64 * 1024
"""What a parser receives into while it does not know yet where bytes belong."""


def _make_frame(fields: tuple[Any, ...]) -> Frame:
    return tuple.__new__(Frame, fields)  # half the price of Frame(...)


def _check_prefix(prefix: bytes | bytearray | memoryview, start: int = 0) -> None:
    """Verify magic and version.

    Raises:
        Error: PROTOCOL, WRONG_PEER_VERSION.
    """
    magic, version = PREFIX.unpack_from(prefix, start)
    if magic != MAGIC:
        raise Error(Code.PROTOCOL, "the peer does not speak hillfire's wire protocol")
    if version != WIRE_VERSION:
        text = f"the peer speaks wire version {version}, this process {WIRE_VERSION}: update one"
        raise Error(Code.WRONG_PEER_VERSION, text)


def _head_bytes(kind: int, body: int, sources: int, destinations: int, data: int) -> int:
    """Return how long header, table and body are together.

    Raises:
        Error: PROTOCOL for an unknown kind, TOO_LARGE beyond a limit.
    """
    parts = sources + destinations
    if kind == REQUEST:
        table = parts * PART_BYTES
    elif kind == RESPONSE:
        table = parts * FILLED_BYTES
    elif not Kind.HELLO <= kind <= Kind.UNREGISTER:
        raise Error(Code.PROTOCOL, f"unknown kind of frame: {kind}")
    elif parts or data or body > MAX_CONTROL_BYTES:
        raise Error(Code.PROTOCOL, f"a {Kind(kind).name} frame with parts, data or a large body")
    else:
        table = 0
    if body > MAX_BODY_BYTES or parts > MAX_PARTS or data > MAX_DATA_BYTES:
        text = f"a frame with a body of {body} bytes, {parts} parts, {data} bytes of data"
        raise Error(Code.TOO_LARGE, text)
    return HEADER_BYTES + table + body


Fields = tuple[Any, ...]
"""Of a header."""
_NO_TABLE = memoryview(b"")


class Parser:
    """Takes a stream of bytes apart into frames, and lets data arrive in its place directly.

    The owner receives into ``wanted()``, reports with ``received(n)`` and takes frames from
    ``next()`` until it returns None. ``place`` is asked once for a frame that carries data: it
    returns where the data goes, as views that are together ``data_bytes`` long; the frame itself
    follows from ``next()`` when all of it is there. After an error a parser is of no more use.
    """

    def __init__(self, place: Callable[[Frame], Sequence[memoryview]]) -> None:
        """Begin at the start of a stream."""
        self._place = place
        self._staging = bytearray(STAGING_BYTES)
        self._view = memoryview(self._staging)
        self._start = 0
        self._end = 0
        self._large: memoryview | None = None  # a head longer than the staging buffer
        self._large_end = 0
        self._frame: Frame | None = None  # whose data is arriving
        self._landing: list[memoryview] = []  # where, the next view last
        self._fields: Fields = ()

    def wanted(self) -> list[memoryview]:
        """Return the views that the next bytes belong in, never empty."""
        if self._landing:
            return self._landing[: -MAX_BUFFERS - 1 : -1]
        if self._large is not None:
            return [self._large[self._large_end :]]
        if self._start:
            # What is left over begins a frame: move it to the front, so that the rest fits.
            left = self._end - self._start
            if left:
                self._staging[:left] = self._staging[self._start : self._end]
            self._start, self._end = 0, left
        return [self._view[self._end :] if self._end else self._view]

    def received(self, count: int) -> None:
        """Take note that ``count`` bytes have arrived in ``wanted()``."""
        if self._landing:
            landing = self._landing
            while count:
                view = landing.pop()
                if count < len(view):
                    landing.append(view[count:])
                    break
                count -= len(view)
        elif self._large is not None:
            self._large_end += count
        else:
            self._end += count

    def next(self) -> Frame | None:
        """Return the next frame that is complete.

        Raises:
            Error: PROTOCOL, TOO_LARGE or WRONG_PEER_VERSION; or what ``place`` raised.
        """
        if self._frame is not None:
            if self._landing:
                return None
            frame, self._frame = self._frame, None
            return frame
        if self._large is not None:
            if self._large_end < len(self._large):
                return None
            head, self._large = self._large, None
            return self._take(head, self._fields)
        start, available = self._start, self._end - self._start
        if available < HEADER_BYTES:
            if available >= PREFIX.size:
                _check_prefix(self._staging, start)
            return None
        fields = HEADER.unpack_from(self._staging, start)
        if fields[0] != MAGIC or fields[1] != WIRE_VERSION:
            _check_prefix(self._staging, start)
        size = _head_bytes(fields[2], fields[6], fields[7], fields[8], fields[9])
        if available < size:
            if size > STAGING_BYTES:
                large = memoryview(bytearray(size))
                large[:available] = self._view[start : self._end]
                self._large, self._large_end, self._fields = large, available, fields
                self._start = self._end = 0
            return None
        if available == size:
            self._start = self._end = 0
        else:
            self._start = start + size
        return self._take(memoryview(self._staging[start : start + size]), fields)

    def _take(self, view: memoryview, fields: Fields) -> Frame | None:
        """Make a frame of its head; if it carries data, wait for that."""
        _, _, kind, method, request, timeout_ms, size, sources, destinations, data_bytes = fields
        body = len(view) - size
        table = view[HEADER_BYTES:body] if sources or destinations else _NO_TABLE
        frame = _make_frame(
            (
                kind,
                method,
                request,
                timeout_ms,
                sources,
                destinations,
                table,
                view[body:],
                data_bytes,
            )
        )
        if data_bytes == 0:
            return frame
        landing = [view for view in self._place(frame) if len(view)]
        assert sum(map(len, landing)) == data_bytes
        landing.reverse()
        self._landing, self._frame = landing, frame
        while landing and self._start < self._end:
            view = landing.pop()
            count = min(len(view), self._end - self._start)
            view[:count] = self._view[self._start : self._start + count]
            self._start += count
            if count < len(view):
                landing.append(view[count:])
        if landing:
            return None
        self._frame = None
        return frame
