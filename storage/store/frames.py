"""The log's frames: how a batch of updates, commits and the like lies in a segment.

A frame is a header, entries (what happens) and images (pages of patches), and begins at a multiple
of 64 bytes. The header's checksum covers the entries, an entry's checksum its image; the header
names segment and frame number, so that what a segment held in a former life is not taken for its
content. It also names the last frame that was known to be on the disk: when a frame is damaged,
later ones tell a tail that never got there from one that rotted. Pure.
"""

from collections.abc import Iterator, Sequence
from struct import Struct
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.storage.store.base import Pending, Tag
from hillfire.storage.store.blocks import Block
from hillfire.storage.store.checksum import crc32c
from hillfire.storage.store.parts import Buffer
from hillfire.storage.store.records import FORMAT, LatestTag, PendingRecord, Placement, Record
from hillfire.storage.store.sums import n_grains, none, unpack
from hillfire.types import ChunkId, Version

FRAME_BYTES = 64
"""Frames begin at multiples of this."""
_MAGIC = b"hflog\x00\x02\n"
_HEADER = Struct("<8sIIIIQQQ")
_HEAD = Struct("<IIQQQ")

_NO_CHUNK = bytes(16)
_PREPARE = Struct("<BBBBI16sQQIQIIIIII16sQIIIIII")
_COMMIT = Struct("<B16sQI")
_DISCARD = Struct("<B16s")
_TAG = Struct("<BQIQ16sQ")
_FORGET = Struct("<BQ")
_PENDING = Struct("<BI")
PREPARE, COMMIT, DISCARD, TAG, FORGET = range(1, 6)


class Frame(NamedTuple):
    """A frame that was found whole."""

    number: int
    durable: int
    """the last frame that was on the disk when this one was written"""
    entries: memoryview
    images: memoryview


def seal(
    segment: int, number: int, durable: int, entries: Sequence[bytes], images: Sequence[Buffer]
) -> tuple[list[Buffer], int]:
    """Return a frame as buffers in a row, and how many bytes of the segment it takes."""
    body = b"".join(entries)
    image_bytes = sum(map(len, images))
    head = _HEAD.pack(len(body), image_bytes, segment, number, durable)
    header = _MAGIC + crc32c(body, crc32c(head)).to_bytes(8, "little") + head
    n_bytes = len(header) + len(body) + image_bytes
    return [header + body, *images], -(-n_bytes // FRAME_BYTES) * FRAME_BYTES


def scan(content: bytes, segment: int) -> Iterator[Frame]:
    """List the whole frames of a segment in order, also those behind a damaged one."""
    view, at = memoryview(content), 0
    while at >= 0 and at + _HEADER.size <= len(content):
        frame, n_bytes = _frame(view, at, segment)
        if frame is not None:
            yield frame
            at += n_bytes
        else:
            at = content.find(_MAGIC, at + 1)


def _frame(content: memoryview, at: int, segment: int) -> tuple[Frame | None, int]:
    magic, crc, _, n_entries, n_images, found, number, durable = _HEADER.unpack_from(content, at)
    start = at + _HEADER.size
    middle, end = start + n_entries, start + n_entries + n_images
    if magic != _MAGIC or found != segment or end > len(content) or at % FRAME_BYTES:
        return None, 0
    entries, images = content[start:middle], content[middle:end]
    if crc32c(entries, crc32c(content[at + 16 : start])) != crc:
        return None, 0
    done = 0
    for entry in parse(entries, images):
        if isinstance(entry, Prepare):
            done += len(entry.image)
            if crc32c(entry.image) != entry.image_checksum:
                return None, 0
    if done != n_images:
        return None, 0
    return Frame(number, durable, entries, images), -(-(end - at) // FRAME_BYTES) * FRAME_BYTES


# ---------------------------------------------------------------------- entries


class Prepare(NamedTuple):
    """An update became pending; its checksums are given where they are not the chunk's own."""

    chunk: ChunkId
    pending: Pending
    placement: Placement
    block: Block | None
    first: int
    n_changed: int
    sums: memoryview
    image_offset: int
    image: memoryview
    image_checksum: int

    def record(self, old: Record | None) -> PendingRecord:
        """Return the pending record, of a chunk with this committed one."""
        length = self.pending.length
        before = None
        if old is not None and self.n_changed < n_grains(length):
            before = old.sums
        sums = none()
        if self.block is not None and length:
            sums = unpack(self.sums, length, self.first, self.n_changed, before)
        return PendingRecord(
            self.pending,
            self.placement,
            self.block,
            sums,
            self.first,
            self.n_changed,
            self.image_offset,
            bytes(self.image),
        )


class Commit(NamedTuple):
    """A pending update became the committed one."""

    chunk: ChunkId
    version: Version
    chain_version: int


class Discard(NamedTuple):
    """A pending update was given up."""

    chunk: ChunkId


class Forget(NamedTuple):
    """A client's session ended."""

    client: int


class Learn(NamedTuple):
    """A channel's latest tag was told."""

    tag: LatestTag


Entry = Prepare | Commit | Discard | Forget | Learn


def pack_prepare(
    chunk: ChunkId, record: PendingRecord, *, everything: bool = False
) -> tuple[bytes, bytes]:
    """Return the entry of an update that became pending, and its image.

    ``everything``: with the checksums of the whole chunk, so that it stands by itself.
    """
    pending, placement, block, sums, first, count, image_offset, image = record
    size, index = (0, 0) if block is None else block
    if everything:
        first, count = 0, len(sums.grains)
    packed = sums.pack(first, count) if count else b""
    version, length, checksum, tag, epoch, kind, offset, n_bytes, crc, source, at = pending
    if not image:
        image_crc = 0
    elif len(image) == n_bytes:
        image_crc = crc
    else:
        image_crc = crc32c(image)
    return (
        _PREPARE.pack(
            PREPARE,
            placement,
            kind,
            size,
            index,
            chunk,
            version,
            tag[0],
            tag[1],
            tag[2],
            epoch,
            offset,
            n_bytes,
            crc,
            length,
            checksum,
            _NO_CHUNK if source is None else source,
            at,
            first,
            count,
            len(packed),
            image_offset,
            len(image),
            image_crc,
        )
        + packed,
        image,
    )


def pack_pending(chunk: ChunkId, record: PendingRecord) -> bytes:
    """Pack a pending record for the database, so that it stands by itself."""
    entry, image = pack_prepare(chunk, record, everything=True)
    return _PENDING.pack(FORMAT, len(entry)) + entry + image


def unpack_pending(value: bytes) -> tuple[ChunkId, PendingRecord]:
    """Unpack a pending record from the database.

    Raises:
        Error: CORRUPT if it is none of this format.
    """
    if len(value) < _PENDING.size or value[0] != FORMAT:
        raise Error(Code.CORRUPT, f"a pending record of another format than {FORMAT}")
    start = _PENDING.size
    middle = start + _PENDING.unpack_from(value)[1]
    view = memoryview(value)
    for entry in parse(view[start:middle], view[middle:]):
        if isinstance(entry, Prepare):
            return entry.chunk, entry.record(None)
    raise Error(Code.CORRUPT, "a pending record without an update")


def pack_commit(chunk: ChunkId, version: Version, chain_version: int) -> bytes:
    """Return the entry of a commit."""
    return _COMMIT.pack(COMMIT, chunk, version, chain_version)


def pack_discard(chunk: ChunkId) -> bytes:
    """Return the entry of a pending update that was given up."""
    return _DISCARD.pack(DISCARD, chunk)


def pack_tag(latest: LatestTag) -> bytes:
    """Return the entry of a tag that was told."""
    tag, chunk, version = latest
    return _TAG.pack(TAG, tag[0], tag[1], tag[2], chunk, version)


def pack_forget(client: int) -> bytes:
    """Return the entry of a session that ended."""
    return _FORGET.pack(FORGET, client)


def parse(entries: memoryview, images: memoryview) -> Iterator[Entry]:
    """List the entries of a frame.

    Raises:
        Error: CORRUPT if there is one of another format.
    """
    at, done = 0, 0
    while at < len(entries):
        what = entries[at]
        if what == PREPARE:
            fields = _PREPARE.unpack_from(entries, at)
            at += _PREPARE.size
            prepare = _prepare(fields, entries[at : at + fields[20]], images[done:])
            at += fields[20]
            done += len(prepare.image)
            yield prepare
        elif what == COMMIT:
            _, chunk, version, chain_version = _COMMIT.unpack_from(entries, at)
            at += _COMMIT.size
            yield Commit(ChunkId(chunk), Version(version), chain_version)
        elif what == DISCARD:
            yield Discard(ChunkId(_DISCARD.unpack_from(entries, at)[1]))
            at += _DISCARD.size
        elif what == TAG:
            _, client, channel, sequence, chunk, version = _TAG.unpack_from(entries, at)
            at += _TAG.size
            yield Learn((Tag(client, channel, sequence), ChunkId(chunk), Version(version)))
        elif what == FORGET:
            yield Forget(_FORGET.unpack_from(entries, at)[1])
            at += _FORGET.size
        else:
            raise Error(Code.CORRUPT, f"a log entry of kind {what}, which there is not")


def _prepare(fields: tuple, sums: memoryview, images: memoryview) -> Prepare:  # type: ignore[type-arg]
    _, placement, kind, size, index, chunk, version, client, channel, sequence = fields[:10]
    epoch, offset, n_bytes, crc, length, checksum, source, source_version = fields[10:18]
    first, count, _, image_offset, image_bytes, image_crc = fields[18:]
    pending = Pending(
        Version(version),
        length,
        checksum,
        Tag(client, channel, sequence),
        epoch,
        kind,
        offset,
        n_bytes,
        crc,
        None if source == _NO_CHUNK else ChunkId(source),
        Version(source_version),
    )
    return Prepare(
        ChunkId(chunk),
        pending,
        Placement(placement),
        Block(size, index) if size else None,
        first,
        count,
        sums,
        image_offset,
        images[:image_bytes],
        image_crc,
    )
