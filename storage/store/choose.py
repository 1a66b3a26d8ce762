"""Where an update's bytes shall go: the decision, apart from carrying it out.

Pure. The placements (records.Placement) cost differently: appending writes what is new and
nothing else; a patch writes twice, and little; a copy writes the whole chunk once; sharing writes
nothing.
"""

from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import Update
from hillfire.storage.store.blocks import MAX_CLASS, Block, size_class
from hillfire.storage.store.records import PendingRecord, Placement

PATCH_BYTES = 64 * 1024
"""Overwrites below this are patches; in large chunks, below a 64th of the chunk."""
PATCH_SHARE = 64

SHRINK_CLASSES = 2
"""A truncated chunk moves to a smaller block once that is this many classes smaller."""


MAX_BYTES = 1 << MAX_CLASS
"""No chunk is larger than the largest block."""

_WRITE, _TRUNCATE, _REMOVE = int(Kind.WRITE), int(Kind.TRUNCATE), int(Kind.REMOVE)
_REPLACE, _LOST = int(Kind.REPLACE), int(Kind.LOST)
_PATCH, _COPY = Placement.PATCH, Placement.COPY
_new = tuple.__new__  # half the price of calling a NamedTuple


class Choice(NamedTuple):
    """A placement, and the chunk's length afterwards."""

    placement: Placement
    length: int


def choose(
    length: int,
    block: Block | None,
    pending: PendingRecord | None,
    update: Update,
    fixed: bool = False,
    shared: bool = False,
) -> Choice:
    """Decide how an update of a chunk of ``length`` bytes in ``block`` is placed.

    ``pending`` is the update that it will replace, if there is one. ``fixed``: the chunk was longer
    at the last checkpoint, so to append in place would overwrite what a crash may bring back.
    ``shared``: other chunks use the block too, so nothing in it may change.

    Raises:
        Error: TOO_LARGE beyond the chunk size, INVALID for an unknown kind.
    """
    kind = update.kind
    if kind == _WRITE:
        end = update.offset + update.length
    elif kind == _REMOVE:
        return Choice(Placement.NONE, 0)
    elif kind == _LOST:
        return Choice(Placement.NONE, update.length)
    elif kind in (_REPLACE, _TRUNCATE):
        end = update.length
    else:
        raise Error(Code.INVALID, f"there is no kind {kind} of update")
    if end > update.chunk_bytes or end > MAX_BYTES:
        raise Error(Code.TOO_LARGE, f"byte {end} is beyond the chunk size {update.chunk_bytes}")
    if kind == _REPLACE:
        return Choice(Placement.COPY if end else Placement.NONE, end)
    if kind == _TRUNCATE:
        if end < length and block is not None:
            moves = end and size_class(end) + SHRINK_CLASSES <= block.size_class
            return Choice(Placement.COPY if moves else Placement.NONE, end)
        start = length
    else:
        if not update.length:
            return Choice(Placement.NONE, length)
        start, end = update.offset, max(end, length)
    if end == length and start == length:
        return Choice(Placement.NONE, length)
    fits = block is not None and end <= block.n_bytes and not shared
    if start >= length:
        in_place = fits and not fixed and _free_beyond(pending, update)
        return Choice(Placement.APPEND if in_place else Placement.COPY, end)
    whole = start == 0 and update.length >= length
    n_bytes = update.length
    small = n_bytes < PATCH_BYTES or n_bytes < length // PATCH_SHARE
    return _new(Choice, (_PATCH if fits and small and not whole else _COPY, end))


def _free_beyond(pending: PendingRecord | None, update: Update) -> bool:
    """Tell whether nothing pending lies in the block beyond the committed length.

    To write over another pending update's bytes would leave its record naming bytes that are not
    its own if the process died right then. The same update again writes the same bytes.
    """
    if pending is None or pending.placement != Placement.APPEND:
        return True
    old = pending.pending
    return (old.version, old.tag, old.kind, old.offset, old.payload_checksum) == (
        update.version,
        update.tag,
        update.kind,
        update.offset,
        update.checksum,
    ) and (update.kind == Kind.TRUNCATE or old.payload_length == update.length)
