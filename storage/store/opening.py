"""Opening a store: its format is checked, its log replayed, its blocks counted.

Every record is read once, no byte of a chunk is. A store with a block file missing or cut short
does not open, since its chunks would read as absent where other replicas have them; only what the
log names may be missing, as nobody has promised yet that it is on the disk.
"""

from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.storage.store.allocator import Allocator, Limits
from hillfire.storage.store.checkpoint import MARK, MARK_KEY
from hillfire.storage.store.frames import unpack_pending
from hillfire.storage.store.parts import Parts, RecordsDatabase
from hillfire.storage.store.records import (
    FORMAT,
    Channel,
    LatestTag,
    PendingRecord,
    Placement,
    unpack_meta,
    unpack_tag,
)
from hillfire.storage.store.replay import Replayed, replay
from hillfire.types import ChunkId

_FORMAT_KEY = b"format"
_FORMAT_VALUE = b"hillfire chunk store %d" % FORMAT


class Opened(NamedTuple):
    """What a store begins with."""

    blocks: Allocator
    stored: dict[ChunkId, PendingRecord]
    """the pending updates in the database"""
    tags: dict[Channel, LatestTag]
    replayed: Replayed
    checkpointed: int
    """the last segment of the log that the database knows all of"""
    frame: int
    """the last frame of that segment"""
    segments: list[int]
    """those that were replayed"""


def check_format(database: RecordsDatabase) -> None:
    """Write a new store's format, or check that of an old one.

    Raises:
        Error: WRONG_PEER_VERSION, CORRUPT, NO_SPACE, IO.
    """
    found = database.get(_FORMAT_KEY)
    if found is None:
        if next(database.items(b""), None) is not None:
            raise Error(Code.CORRUPT, "the database holds records but does not name its format")
        database.write([(_FORMAT_KEY, _FORMAT_VALUE)])
        database.sync()
    elif found != _FORMAT_VALUE:
        text = f"this is a {found.decode(errors='replace')}, not format {FORMAT}"
        raise Error(Code.WRONG_PEER_VERSION, text)


def read_parts(parts: Parts, limits: Limits) -> Opened:
    """Read what is there.

    Raises:
        Error: CORRUPT if something is missing or damaged, WRONG_PEER_VERSION, NO_SPACE, IO.
    """
    database = parts.records
    check_format(database)
    mark = database.get(MARK_KEY)
    segment, frame = (0, 0) if mark is None else MARK.unpack(mark)
    blocks = Allocator(parts.blocks, limits)
    stored = dict(unpack_pending(value) for _, value in database.items(b"p"))
    tags: dict[Channel, LatestTag] = {}
    for key, value in database.items(b"t"):
        latest = unpack_tag(key, value)
        tags[latest[0].client, latest[0].channel] = latest
    numbers = parts.log.segments()
    for number in numbers:
        if number <= segment:  # it was checkpointed, and the crash came before its removal
            parts.log.remove(number)
    numbers = [number for number in numbers if number > segment]
    replayed = replay(parts, numbers, frame, dict(stored), tags)
    _mark(database, blocks, replayed, stored)
    return Opened(blocks, stored, tags, replayed, segment, frame, numbers)


def _mark(
    database: RecordsDatabase,
    blocks: Allocator,
    replayed: Replayed,
    stored: dict[ChunkId, PendingRecord],
) -> None:
    """Count who uses which block."""
    fresh = replayed.records
    for key, value in database.items(b"c"):
        if ChunkId(key[1:]) not in fresh:
            block = unpack_meta(value)[1]
            if block is not None and not blocks.mark(block):
                raise Error(Code.CORRUPT, f"{block} is named by a record but missing")
    named = [(True, record.block) for record in fresh.values()]
    for chunk, waiting in replayed.pending.items():
        if waiting.placement in (Placement.COPY, Placement.SHARE):
            named.append((stored.get(chunk) is not waiting, waiting.block))
    for from_log, block in named:
        if block is None:
            continue
        if from_log:
            blocks.extend(block)
        if not blocks.mark(block):
            raise Error(Code.CORRUPT, f"{block} is named by a pending record but missing")
