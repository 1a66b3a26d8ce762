"""What a pending update makes of a chunk's record: the same when it happens as when it is replayed.

Pure.
"""

from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import ChunkMeta
from hillfire.storage.store.blocks import Block
from hillfire.storage.store.checksum import PAGE_BYTES, PAGE_SHIFT
from hillfire.storage.store.records import Overlay, PendingRecord, Placement, Record

_new = tuple.__new__  # half the price of calling a NamedTuple
_PATCH, _REMOVE = Placement.PATCH, int(Kind.REMOVE)
_OWN_BLOCK = (Placement.COPY, Placement.SHARE)


def committed(
    waiting: PendingRecord, old: Record | None, chain_version: int, frame: int, segment: int
) -> Record:
    """Return the record that a pending update becomes by a frame of a segment."""
    pending, placement, block, sums = waiting[:4]
    version, length, checksum, tag, epoch, kind = pending[:6]
    overlay = under = None
    if old is not None:
        if old.meta.epoch > epoch:
            epoch = old.meta.epoch
        if block is not None and placement not in _OWN_BLOCK:
            overlay, under = old.overlay, old.under
            if old.segment != segment:
                overlay, under = None, overlay
    if placement == _PATCH:
        overlay = _laid(overlay, waiting)
    meta = _new(ChunkMeta, (version, length, checksum, tag, chain_version, epoch, kind == _REMOVE))
    return _new(Record, (meta, block, sums, frame, segment, overlay, under))


def _laid(overlay: Overlay | None, waiting: PendingRecord) -> Overlay:
    """Return an overlay with the pages of a patch; readers of the old record may see them."""
    image, page = waiting.image, waiting.image_offset >> PAGE_SHIFT
    if overlay is None:
        overlay = {}
    if len(image) <= PAGE_BYTES:
        overlay[page] = image
        return overlay
    for at in range(0, len(image), PAGE_BYTES):
        overlay[page] = image[at : at + PAGE_BYTES]
        page += 1
    return overlay


def left(waiting: PendingRecord, old: Record | None) -> Block | None:
    """Return the block that a chunk leaves by an update, if it does."""
    if old is None or old.block is None:
        return None
    return old.block if waiting.block is None or waiting.placement in _OWN_BLOCK else None
