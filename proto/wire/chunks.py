"""Chunk reads and writes as they travel: packed arrays in the body, one part of memory an item.

Methods of the data plane and the records of their bodies. An item at position ``i`` belongs to
the request's part ``i`` (READ: a destination; WRITE and FORWARD: a source; an update without
payload has a part of length 0). Packed records cost 0.28 µs an item where protobuf costs 1.3.
"""

from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import partial
from struct import Struct, error
from typing import Any, Generic, NamedTuple, TypeVar

from hillfire import metrics
from hillfire.errors import Code, Error
from hillfire.types import ChunkId

T = TypeVar("T", bound=tuple[object, ...])

READ = 1
WRITE = 2
FORWARD = 3
FETCH = 4


_OPERATIONS = {READ: metrics.READ, WRITE: metrics.WRITE, FORWARD: metrics.FORWARD}


def operation_of(method: int) -> metrics.Operation:
    """Return where the time of requests with this method is counted."""
    return _OPERATIONS.get(method, metrics.CALL)


class Kind(IntEnum):
    """What an update does to a chunk."""

    WRITE = 1
    TRUNCATE = 2
    """Cut, or extend with zeros, to ``length`` bytes; no payload."""
    REMOVE = 3
    """Leaves a tombstone, so that versions never restart; no payload."""
    REPLACE = 4
    """The whole chunk as it is on the predecessor (FORWARD only): recovery's transfer."""
    CLONE = 5
    """Becomes what another chunk of the chain is; no payload."""
    LOST = 6
    """A chunk of which no good copy is left (FORWARD only): ``length`` and ``checksum`` are its
    image's, no payload."""


NO_CHUNK = ChunkId(bytes(16))
"""The source of whatever is no CLONE."""


class ReadItem(NamedTuple):
    """Bytes [offset, offset + part length) of a chunk; what lies past its end is not filled."""

    chunk: ChunkId
    chain: int
    chain_version: int
    offset: int
    flags: int = 0


RELAXED = 1
"""Read flag: the committed version will do although a newer one is pending."""


class ReadResult(NamedTuple):
    """``filled`` bytes, of which ``checksum`` is the CRC32C; an absent chunk is 0 bytes, OK."""

    code: int
    filled: int
    checksum: int
    version: int


class WriteItem(NamedTuple):
    """One update as a client sends it to a chain's head.

    ``client``, ``channel`` and ``sequence`` are its tag: a retry carries the same one. A channel
    has one update outstanding at a time, its sequence grows by at least one an update.
    """

    chunk: ChunkId
    chain: int
    chain_version: int
    kind: int
    offset: int
    length: int
    """of the payload; TRUNCATE: the new length"""
    checksum: int
    """CRC32C of the payload"""
    epoch: int
    """the inode's, as the client knows it"""
    chunk_bytes: int
    """the layout's chunk size: no byte may lie beyond it"""
    client: int
    channel: int
    sequence: int
    source: ChunkId = NO_CHUNK
    """CLONE: the chunk to copy, of the same chain"""


class WriteResult(NamedTuple):
    """The outcome of one update: the chunk's version, length and checksum afterwards."""

    code: int
    version: int
    length: int
    checksum: int


class ForwardItem(NamedTuple):
    """An update from a target to its successor: the client's, the version and the post-image."""

    chunk: ChunkId
    chain: int
    chain_version: int
    kind: int
    offset: int
    length: int
    checksum: int
    epoch: int
    chunk_bytes: int
    client: int
    channel: int
    sequence: int
    version: int
    """of the chunk once this update is committed"""
    post_length: int
    """of the chunk afterwards"""
    post_checksum: int
    """of the whole chunk afterwards: CRC32C over the CRC32Cs of its 64 KiB grains"""
    source: ChunkId = NO_CHUNK
    source_version: int = 0
    """CLONE: of the source, which does not change meanwhile"""
    serial: int = 0
    """grows with every forward that a sender makes under one chain version; 0: whole chunks"""


class FetchItem(NamedTuple):
    """A chunk that a target wants from another, whole, into the request's part."""

    chunk: ChunkId
    chain: int
    chain_version: int


class FetchResult(NamedTuple):
    """A committed chunk's record, and the CRC32C of its bytes; TOO_LARGE for the part: the record.

    An absent chunk is version 0, OK.
    """

    code: int
    removed: int
    version: int
    length: int
    checksum: int
    payload_checksum: int
    epoch: int
    client: int
    channel: int
    sequence: int


class Codec(Generic[T]):
    """Packs a sequence of one kind of record into a body, and back."""

    def __init__(self, fields: str, record: type[T]) -> None:
        """``fields`` is the struct format of ``record``, a NamedTuple."""
        self._struct = Struct(fields)
        self.n_bytes = self._struct.size
        """of one record"""
        self._record: Callable[[tuple[Any, ...]], T] = partial(tuple.__new__, record)
        self._name = record.__name__

    def pack(self, items: Iterable[T]) -> bytes:
        """Return the body that carries the items."""
        pack = self._struct.pack
        return b"".join([pack(*item) for item in items])

    def unpack(self, body: memoryview | bytes) -> list[T]:
        """Return the items of a body.

        Raises:
            Error: PROTOCOL if the body is not a whole number of records.
        """
        return list(map(self._record, self.tuples(body)))

    def unpack_one(self, body: memoryview | bytes, position: int) -> T:
        """Return one of the items."""
        return self._record(self._struct.unpack_from(body, position * self.n_bytes))

    def pack_one(self, body: bytearray, position: int, item: tuple[object, ...]) -> None:
        """Write one of the items into a body that has room for it."""
        self._struct.pack_into(body, position * self.n_bytes, *item)

    def tuples(self, body: memoryview | bytes) -> list[tuple[Any, ...]]:
        """Return the items of a body as plain tuples, at half the price.

        Raises:
            Error: PROTOCOL if the body is not a whole number of records.
        """
        try:
            return list(self._struct.iter_unpack(body))
        except error as exc:
            text = f"a body of {len(body)} bytes is no array of {self._name}"
            raise Error(Code.PROTOCOL, text) from exc


READ_ITEMS = Codec("<16sIIII", ReadItem)
READ_RESULTS = Codec("<HxxIIQ", ReadResult)
WRITE_ITEMS = Codec("<16sIIIIIIIIQIQ16s", WriteItem)
WRITE_RESULTS = Codec("<HxxQII", WriteResult)
FORWARD_ITEMS = Codec("<16sIIIIIIIIQIQQII16sQQ", ForwardItem)
FETCH_ITEMS = Codec("<16sII", FetchItem)
FETCH_RESULTS = Codec("<HBxQIIIIQIQ", FetchResult)
