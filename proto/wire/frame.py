"""Frames: what one message of the wire looks like, how it is made and taken apart again.

Pure: bytes in, frames out, no socket. Both sides and both transports share it. A frame is

    header (40 bytes) | part table | body | data (tcp only)

The first six bytes, magic and version, stay where they are in every version to come, so that a
peer of another version is refused by name. Every length is checked against the limits of
``base.py`` before a byte is allocated for it.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from struct import Struct, pack
from typing import Any, NamedTuple

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import (
    MAX_BODY_BYTES,
    MAX_DATA_BYTES,
    MAX_PARTS,
    WIRE_VERSION,
)
from hillfire.proto.wire.base import PART as PART  # of the format: here is where one looks for it

MAGIC = b"hlfr"

HEADER = Struct("<4sHBxIQIIIII")
"""magic, version, kind, method or code, request, timeout_ms, body, sources, destinations, data"""
_PREFIX = Struct("<4sH")

FILLED = Struct("<I")
"""A part of a RESPONSE: how many bytes of this destination were filled."""

_pack_header = HEADER.pack
_HEADER_BYTES = HEADER.size
_PART_BYTES = PART.size
_FILLED_BYTES = FILLED.size

HELLO = Struct("<BxxxI")
"""Body of a HELLO: role, pid."""
REGISTER = Struct("<QQ")
"""Body of a REGISTER, which a memfd accompanies: region, length."""
UNREGISTER = Struct("<Q")
"""Body of an UNREGISTER: region."""

MAX_TIMEOUT_MS = 0xFFFFFFFF
MAX_CONTROL_BYTES = 4096
"""Of the body of anything but a request or a response."""
MAX_BUFFERS = 512
"""Buffers given to one receive or send call; the kernel takes 1,024."""
STAGING_BYTES = 64 * 1024
"""What a parser receives into while it does not know yet where bytes belong."""


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    """First in each direction. Says who speaks."""
    REQUEST = 2
    RESPONSE = 3
    """Request 0 is none: an error that ends the connection."""
    REGISTER = 4
    """shm: a region, its descriptor alongside. Not answered: a refusal is answered at its use."""
    UNREGISTER = 5
    """shm: a region that the client will not use again. Not answered."""


class Role(IntEnum):
    """Who says HELLO."""

    CLIENT = 1
    SERVER = 2


class Frame(NamedTuple):
    """A received frame. ``method`` is the code in a response."""

    kind: int
    method: int
    request: int
    timeout_ms: int
    """of a request; in a response the microseconds that it took at the server"""
    sources: int
    destinations: int
    table: memoryview
    body: memoryview
    data_bytes: int


def pack_filled(filled: Sequence[int] | memoryview) -> bytes:
    """Return the table of a response."""
    if isinstance(filled, memoryview):
        if filled.format != "I":
            raise ValueError(f"filled bytes as a memoryview of {filled.format}")
        return bytes(filled)
    return pack(f"<{len(filled)}I", *filled)


def _make_frame(fields: tuple[Any, ...]) -> Frame:
    return tuple.__new__(Frame, fields)  # half the price of Frame(...)


def encode(
    kind: int,
    method: int = 0,
    request: int = 0,
    *,
    timeout_ms: int = 0,
    table: bytes = b"",
    body: bytes = b"",
    sources: int = 0,
    destinations: int = 0,
    data_bytes: int = 0,
) -> bytes:
    """Return a frame without its data."""
    header = HEADER.pack(
        MAGIC,
        WIRE_VERSION,
        kind,
        method,
        request,
        timeout_ms,
        len(body),
        sources,
        destinations,
        data_bytes,
    )
    return b"".join((header, table, body)) if table else header + body


def request(
    method: int,
    number: int,
    timeout_s: float,
    body: bytes,
    table: bytes = b"",
    sources: int = 0,
    destinations: int = 0,
    data_bytes: int = 0,
) -> bytes:
    """Return a REQUEST without its data. ``encode`` does the same at twice the price."""
    head = _pack_header(
        MAGIC,
        WIRE_VERSION,
        _REQUEST,
        method,
        number,
        milliseconds(timeout_s),
        len(body),
        sources,
        destinations,
        data_bytes,
    )
    return b"".join((head, table, body)) if table else head + body


def response(
    code: int, number: int, served_us: int, body: bytes, table: bytes = b"", data_bytes: int = 0
) -> bytes:
    """Return a RESPONSE without its data.

    ``served_us`` tells how long the request was at the server, from its arrival on: it travels
    where a REQUEST has its timeout, and what the client saw beyond it was spent on the way.
    """
    head = _pack_header(
        MAGIC,
        WIRE_VERSION,
        _RESPONSE,
        code,
        number,
        served_us if served_us < MAX_TIMEOUT_MS else MAX_TIMEOUT_MS,
        len(body),
        0,
        len(table) >> 2,
        data_bytes,
    )
    return b"".join((head, table, body)) if table else head + body


def hello(role: Role, pid: int) -> bytes:
    """Return the frame that opens a connection."""
    return encode(Kind.HELLO, body=HELLO.pack(role, pid))


def check_hello(frame: Frame, role: Role) -> int:
    """Return the pid of a peer that said HELLO in the expected role.

    Raises:
        Error: PROTOCOL if it did not.
    """
    if frame.kind != Kind.HELLO or len(frame.body) != HELLO.size:
        raise Error(Code.PROTOCOL, "the peer did not say hello first")
    said, pid = HELLO.unpack(frame.body)
    if said != role:
        raise Error(Code.PROTOCOL, f"the peer has role {said}, expected {role.name.lower()}")
    return int(pid)


def milliseconds(timeout_s: float) -> int:
    """Return a timeout as it travels: at least 1 ms, no more than fits."""
    whole = int(timeout_s * 1000)
    return whole if 0 < whole <= MAX_TIMEOUT_MS else max(1, min(whole, MAX_TIMEOUT_MS))


def _check_prefix(prefix: bytes | bytearray | memoryview, start: int = 0) -> None:
    """Verify magic and version.

    Raises:
        Error: PROTOCOL, WRONG_PEER_VERSION.
    """
    magic, version = _PREFIX.unpack_from(prefix, start)
    if magic != MAGIC:
        raise Error(Code.PROTOCOL, "the peer does not speak hillfire's wire protocol")
    if version != WIRE_VERSION:
        text = f"the peer speaks wire version {version}, this process {WIRE_VERSION}: update one"
        raise Error(Code.WRONG_PEER_VERSION, text)


_REQUEST = int(Kind.REQUEST)  # plain numbers: an enumeration's cost as much as what is done here
_RESPONSE = int(Kind.RESPONSE)


def _head_bytes(kind: int, body: int, sources: int, destinations: int, data: int) -> int:
    """Return how long header, table and body are together.

    Raises:
        Error: PROTOCOL for an unknown kind, TOO_LARGE beyond a limit.
    """
    parts = sources + destinations
    if kind == _REQUEST:
        table = parts * _PART_BYTES
    elif kind == _RESPONSE:
        table = parts * _FILLED_BYTES
    elif not Kind.HELLO <= kind <= Kind.UNREGISTER:
        raise Error(Code.PROTOCOL, f"unknown kind of frame: {kind}")
    elif parts or data or body > MAX_CONTROL_BYTES:
        raise Error(Code.PROTOCOL, f"a {Kind(kind).name} frame with parts, data or a large body")
    else:
        table = 0
    if body > MAX_BODY_BYTES or parts > MAX_PARTS or data > MAX_DATA_BYTES:
        text = f"a frame with a body of {body} bytes, {parts} parts, {data} bytes of data"
        raise Error(Code.TOO_LARGE, text)
    return _HEADER_BYTES + table + body


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
        if available < _HEADER_BYTES:
            if available >= _PREFIX.size:
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
        table = view[_HEADER_BYTES:body] if sources or destinations else _NO_TABLE
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
