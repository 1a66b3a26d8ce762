"""What the store keeps about a chunk, and how that lies in the database.

Three kinds of record, told apart by the first byte of their key, so that each can be listed:

=====  ==========================  =====================================================
key    then                        value
=====  ==========================  =====================================================
``c``  chunk id                    the committed record and its grains' checksums
``p``  chunk id                    the pending record, its grains' checksums and, for a
                                   patch, the payload
``t``  client (8), channel (4)     the latest committed tag: sequence, chunk, version
=====  ==========================  =====================================================

Values are packed little-endian and begin with a format version.
"""

from array import array
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.storage.store.base import ChunkMeta, Pending, Tag
from hillfire.storage.store.blocks import Block
from hillfire.types import ChunkId, Version

FORMAT = 1

_NO_CLASS = 0
_COMMITTED = Struct("<BBBIQIIQIQII")
_PENDING = Struct("<BBBIQIIQIQIBIII")
_TAG = Struct("<BQ16sQ")
_CHANNEL = Struct(">cQI")


class Placement(IntEnum):
    """Where a pending update's bytes are."""

    NONE = 0
    """It changes the record only: a shorter chunk, a tombstone."""
    APPEND = 1
    """In the chunk's own block, beyond the committed length."""
    COPY = 2
    """In a block of its own that holds the whole chunk as it will be."""
    PATCH = 3
    """In the pending record; ``commit`` writes them into the chunk's block."""


class Record(NamedTuple):
    """A committed chunk. Without bytes it has no block."""

    meta: ChunkMeta
    block: Block | None
    grains: "array[int]"


class PendingRecord(NamedTuple):
    """A pending update, ready to become a ``Record``."""

    pending: Pending
    placement: Placement
    block: Block | None
    """the chunk's block afterwards"""
    grains: "array[int]"
    """the chunk's grains afterwards"""
    payload: bytes
    """of a PATCH"""


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
    """Pack a committed record."""
    meta, block, grains = record
    size, index = (_NO_CLASS, 0) if block is None else block
    tag = meta.tag
    return (
        _COMMITTED.pack(
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
        )
        + grains.tobytes()
    )


def unpack_record(value: bytes) -> Record:
    """Unpack a committed record.

    Raises:
        Error: CORRUPT if it is none of this format.
    """
    _check(value, _COMMITTED.size)
    fields = _COMMITTED.unpack_from(value)
    _, removed, size, index, version, length, checksum = fields[:7]
    client, channel, sequence, chain_version, epoch = fields[7:]
    meta = ChunkMeta(
        Version(version),
        length,
        checksum,
        Tag(client, channel, sequence),
        chain_version,
        epoch,
        bool(removed),
    )
    grains = array("I", value[_COMMITTED.size :])
    return Record(meta, Block(size, index) if size else None, grains)


def pack_pending(record: PendingRecord) -> bytes:
    """Pack a pending record."""
    pending, placement, block, grains, payload = record
    size, index = (_NO_CLASS, 0) if block is None else block
    tag = pending.tag
    return b"".join(
        (
            _PENDING.pack(
                FORMAT,
                placement,
                size,
                index,
                pending.version,
                pending.length,
                pending.checksum,
                tag[0],
                tag[1],
                tag[2],
                pending.epoch,
                pending.kind,
                pending.offset,
                pending.payload_length,
                pending.payload_checksum,
            ),
            grains.tobytes(),
            payload,
        )
    )


def unpack_pending(value: bytes) -> PendingRecord:
    """Unpack a pending record.

    Raises:
        Error: CORRUPT if it is none of this format.
    """
    _check(value, _PENDING.size)
    fields = _PENDING.unpack_from(value)
    _, placement, size, index, version, length, checksum = fields[:7]
    client, channel, sequence, epoch, kind, offset, payload_length, payload_checksum = fields[7:]
    pending = Pending(
        Version(version),
        length,
        checksum,
        Tag(client, channel, sequence),
        epoch,
        kind,
        offset,
        payload_length,
        payload_checksum,
    )
    end = len(value) - (payload_length if placement == Placement.PATCH else 0)
    grains = array("I", value[_PENDING.size : end])
    block = Block(size, index) if size else None
    return PendingRecord(pending, Placement(placement), block, grains, value[end:])


def pack_tag(sequence: int, chunk: ChunkId, version: Version) -> bytes:
    """Pack a channel's latest tag."""
    return _TAG.pack(FORMAT, sequence, chunk, version)


def unpack_tag(key: bytes, value: bytes) -> tuple[Tag, ChunkId, Version]:
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
