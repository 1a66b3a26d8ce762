"""What the store keeps about a chunk, and how that lies in the database.

Three kinds of record, told apart by the first byte of their key, so that each can be listed:

=====  ==========================  =====================================================
key    then                        value
=====  ==========================  =====================================================
``c``  chunk id                    the committed record and its checksums
``p``  chunk id                    the update that was pending at the last checkpoint
``t``  client (8), channel (4)     the latest committed tag: sequence, chunk, version
=====  ==========================  =====================================================

Values are packed little-endian and begin with a format version. What became of chunks since the
last checkpoint is in the log (frames.py).
"""

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.storage.store.base import ChunkMeta, Pending, Tag
from hillfire.storage.store.blocks import Block
from hillfire.storage.store.sums import Sums, n_grains, none, unpack
from hillfire.types import ChunkId, Version

FORMAT = 2

_NO_CLASS = 0
_COMMITTED = Struct("<BBBIQIIQIQIIQ")
_TAG = Struct("<BQ16sQ")
_CHANNEL = Struct(">cQI")

Overlay = dict[int, bytes]
"""Pages of a chunk by number, as the log has them and its block does not yet."""
Channel = tuple[int, int]
LatestTag = tuple[Tag, ChunkId, Version]


class Placement(IntEnum):
    """Where a pending update's bytes are."""

    NONE = 0
    """It changes the record only: a shorter chunk, a tombstone."""
    APPEND = 1
    """In the chunk's own block, beyond the committed length."""
    COPY = 2
    """In a block of its own that holds the whole chunk as it will be."""
    PATCH = 3
    """In the log, as whole pages; a checkpoint writes them into the chunk's block."""
    SHARE = 4
    """In the block of the chunk that it is a clone of."""


class Record(NamedTuple):
    """A committed chunk. Without bytes it has no block; with bytes and no block it is lost."""

    meta: ChunkMeta
    block: Block | None
    sums: Sums
    frame: int = 0
    """the number of the log frame that committed it"""
    segment: int = 0
    """of the log, where that frame is; 0: of a record that came from the database"""
    overlay: Overlay | None = None
    """pages of this segment: they prevail over the block"""
    under: Overlay | None = None
    """pages of the segment before, which a checkpoint may be writing just now"""


class PendingRecord(NamedTuple):
    """A pending update, ready to become a ``Record``."""

    pending: Pending
    placement: Placement
    block: Block | None
    """the chunk's block afterwards"""
    sums: Sums
    """of the chunk afterwards"""
    first: int
    """the grains that are not as they were before: ``n_changed`` from ``first`` on"""
    n_changed: int
    image_offset: int = 0
    image: bytes = b""
    """PATCH: the pages that hold the payload, as they will be"""


def chunk_key(chunk: ChunkId) -> bytes:
    """Return the key of a committed record."""
    return b"c" + chunk


def pending_key(chunk: ChunkId) -> bytes:
    """Return the key of a pending record."""
    return b"p" + chunk


def channel_key(client: int, channel: int) -> bytes:
    """Return the key of a channel's latest tag."""
    return _CHANNEL.pack(b"t", client, channel)


def pack_record(record: Record) -> bytes:
    """Pack a committed record; its overlay is applied first."""
    meta, block, sums = record[:3]
    size, index = (_NO_CLASS, 0) if block is None else block
    tag = meta.tag
    return _COMMITTED.pack(
        FORMAT,
        meta.removed,
        size,
        index,
        meta.version,
        meta.length,
        meta.checksum,
        tag[0],
        tag[1],
        tag[2],
        meta.chain_version,
        meta.epoch,
        record.frame,
    ) + sums.pack(0, len(sums.grains))


def unpack_meta(value: bytes) -> tuple[ChunkMeta, Block | None, int]:
    """Unpack a committed record but for its checksums: what, where, and in which frame.

    Raises:
        Error: CORRUPT if it is none of this format.
    """
    _check(value, _COMMITTED.size)
    fields = _COMMITTED.unpack_from(value)
    _, removed, size, index, version, length, checksum = fields[:7]
    client, channel, sequence, chain_version, epoch, frame = fields[7:]
    meta = ChunkMeta(
        Version(version),
        length,
        checksum,
        Tag(client, channel, sequence),
        chain_version,
        epoch,
        bool(removed),
    )
    return meta, Block(size, index) if size else None, frame


def unpack_record(value: bytes) -> Record:
    """Unpack a committed record.

    Raises:
        Error: CORRUPT if it is none of this format.
    """
    meta, block, frame = unpack_meta(value)
    if block is None:
        return Record(meta, None, none(), frame)
    packed = memoryview(value)[_COMMITTED.size :]
    count = n_grains(meta.length)
    try:
        return Record(meta, block, unpack(packed, meta.length, 0, count), frame)
    except ValueError as exc:
        raise Error(Code.CORRUPT, f"a record's checksums are cut short: {exc}") from exc


def pack_tag(sequence: int, chunk: ChunkId, version: Version) -> bytes:
    """Pack a channel's latest tag."""
    return _TAG.pack(FORMAT, sequence, chunk, version)


def unpack_tag(key: bytes, value: bytes) -> LatestTag:
    """Unpack a channel's latest tag from its key and value.

    Raises:
        Error: CORRUPT if it is none of this format.
    """
    _check(value, _TAG.size)
    _, client, channel = _CHANNEL.unpack(key)
    _, sequence, chunk, version = _TAG.unpack(value)
    return Tag(client, channel, sequence), ChunkId(chunk), Version(version)


def _check(value: bytes, n_bytes: int) -> None:
    found = value[0] if len(value) >= n_bytes else -1
    if found != FORMAT:
        raise Error(Code.CORRUPT, f"a record of format {found} where {FORMAT} is read")
