"""Frames: what one message of the wire looks like, how it is made and taken apart again.

Pure: bytes in, frames out, no socket. Both sides and both transports share it. A frame is

    header (40 bytes) | part table | body | data (tcp only)

The first six bytes, magic and version, stay where they are in every version to come, so that a
peer of another version is refused by name. Every length is checked against the limits of
``base.py`` before a byte is allocated for it.
"""

from collections.abc import Sequence
from enum import IntEnum
from struct import Struct, pack
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import PART as PART  # of the format: here is where one looks for it
from hillfire.proto.wire.base import (
    WIRE_VERSION,
)

MAGIC = b"hlfr"

HEADER = Struct("<4sHBxIQIIIII")
"""magic, version, kind, method or code, request, timeout_ms, body, sources, destinations, data"""

FILLED = Struct("<I")
"""A part of a RESPONSE: how many bytes of this destination were filled."""

_pack_header = HEADER.pack

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


REQUEST = int(Kind.REQUEST)
"""A plain number, as those that follow: an enumeration's cost as much as what is done with it."""
RESPONSE = int(Kind.RESPONSE)
HEADER_BYTES = HEADER.size
PART_BYTES = PART.size
FILLED_BYTES = FILLED.size
PREFIX = Struct("<4sH")
"""Of the header, in every version."""


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
        REQUEST,
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
        RESPONSE,
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
