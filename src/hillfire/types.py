"""Identifiers and small values that every part speaks of.

They stand apart because they have no behaviour and no dependency: the pure cores, the wire and
the shells all import them, and they import nothing.
"""

from struct import Struct
from typing import NamedTuple, NewType

NodeId = NewType("NodeId", int)
TargetId = NewType("TargetId", int)
ChainId = NewType("ChainId", int)
InodeId = NewType("InodeId", int)
ClientId = NewType("ClientId", int)
"""A random 64-bit number that names one client process for as long as its session lasts."""
Version = NewType("Version", int)
"""Of one chunk: 0 means that it was never written."""

ROOT_INODE = InodeId(1)
"""The number that FUSE gives to the root of a mount."""

ChunkId = NewType("ChunkId", bytes)
"""16 bytes, big-endian: name space (2), inode (8), reserved (2), index (4).

A file's chunks sort together and in order.
"""

FILES = 0
"""The name space of file chunks; the KV-cache tier's come after it."""

_CHUNK_ID = Struct(">HQHI")
CHUNK_ID_BYTES = _CHUNK_ID.size


def chunk_id(inode: InodeId, index: int, name_space: int = FILES) -> ChunkId:
    """Name chunk ``index`` of ``inode``."""
    return ChunkId(_CHUNK_ID.pack(name_space, inode, 0, index))


def split_chunk_id(chunk: ChunkId) -> tuple[InodeId, int]:
    """Return the inode and the index that a chunk id was made of."""
    _, inode, _, index = _CHUNK_ID.unpack(chunk)
    return InodeId(inode), index


class ByteRange(NamedTuple):
    """``length`` bytes from ``offset``."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first offset after the range."""
        return self.offset + self.length
