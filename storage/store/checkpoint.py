"""A checkpoint: what a sealed segment of the log says goes to where it belongs for good.

In this order, each step on the disk before the next begins to matter:

1. the log itself, since a block may be overwritten only by pages that are safe elsewhere;
2. the pages of patches, into their blocks, sorted by place;
3. all bytes that were written to block files;
4. the records, in portions, each stamped with the frame that made it (replay leaves alone what is
   newer than a frame); the last one with pending updates, tags and the segment's number;
5. the segment is dropped, and the blocks that its commits left can be used again.

A crash in between leaves the segment, and it is done again from the start: every step may be
repeated. An error likewise.
"""

from collections.abc import Callable, Iterable, Mapping
from struct import Struct
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.storage.store.allocator import Allocator
from hillfire.storage.store.checksum import PAGE_BYTES, PAGE_SHIFT
from hillfire.storage.store.frames import pack_pending
from hillfire.storage.store.journal import Journal
from hillfire.storage.store.parts import RecordsDatabase
from hillfire.storage.store.records import (
    Channel,
    LatestTag,
    PendingRecord,
    Record,
    channel_key,
    chunk_key,
    pack_record,
    pack_tag,
    pending_key,
)
from hillfire.types import ChunkId

PORTION = 128
"""Records a write batch: RocksDB keeps the interpreter for about a millisecond with it."""
RUN_PAGES = 256
"""How many pages are written in one go at most."""
MARK_KEY = b"mark"
MARK = Struct("<QQ")
"""The last segment that was checkpointed, and its last frame."""


class Sealed(NamedTuple):
    """The state of a store at the end of a segment, as far as the segment changed it."""

    segment: int
    frame: int
    records: Mapping[ChunkId, Record]
    pending: Mapping[ChunkId, PendingRecord]
    tags: Mapping[Channel, LatestTag | None]
    """None for channels whose client's session ended"""


def _runs(pages: dict[int, bytes]) -> list[tuple[int, bytes]]:
    """Return pages by number as (offset, bytes), sorted, neighbours in one piece."""
    runs: list[tuple[int, bytes]] = []
    run: list[bytes] = []
    first = 0
    for page in sorted(pages):
        data = pages[page]
        if run and page == first + len(run) and len(run) < RUN_PAGES and len(run[-1]) == PAGE_BYTES:
            run.append(data)
            continue
        if run:
            runs.append((first << PAGE_SHIFT, run[0] if len(run) == 1 else b"".join(run)))
        first, run = page, [data]
    if run:
        runs.append((first << PAGE_SHIFT, run[0] if len(run) == 1 else b"".join(run)))
    return runs


class Checkpointer:
    """Carries checkpoints out. One at a time."""

    def __init__(
        self,
        database: RecordsDatabase,
        blocks: Allocator,
        journal: Journal,
        stored: dict[ChunkId, PendingRecord],
        free: Callable[[], bool],
    ) -> None:
        """Move to ``database`` and ``blocks``; ``free`` may make room on a full disk.

        ``stored``: the pending updates that are in the database.
        """
        self._database = database
        self._blocks = blocks
        self._journal = journal
        self._stored = stored
        self._free = free

    def run(self, sealed: Sealed) -> None:
        """Move a sealed segment's content to its places.

        Raises:
            Error: NO_SPACE, IO, CORRUPT; it must be run again.
        """
        self._journal.sync()
        self._apply(sealed.records.values())
        self._blocks.sync()
        chunks = list(sealed.records)
        for at in range(0, len(chunks), PORTION):
            portion = chunks[at : at + PORTION]
            self._write(
                [(chunk_key(chunk), pack_record(sealed.records[chunk])) for chunk in portion]
            )
        self._finish(sealed)
        self._database.sync()

    def _apply(self, records: Iterable[Record]) -> None:
        """Write the pages that only the log has into their blocks, neighbours in one go."""
        classes: dict[int, dict[int, bytes]] = {}
        for record in records:
            block = record.block
            for overlay in (record.under, record.overlay):
                if overlay is None or block is None:
                    continue
                pages = classes.setdefault(block.size_class, {})
                first, end = block.offset >> PAGE_SHIFT, record.meta.length
                for page, data in list(overlay.items()):
                    if page << PAGE_SHIFT < end:
                        pages[first + page] = data
        for size_class, pages in classes.items():
            self._blocks.scatter(size_class, _runs(pages))

    def _finish(self, sealed: Sealed) -> None:
        """Write the last portion, which makes the segment a thing of the past."""
        stored, pending = self._stored, sealed.pending
        puts = [(MARK_KEY, MARK.pack(sealed.segment, sealed.frame))]
        deletes = [pending_key(chunk) for chunk in stored if chunk not in pending]
        for chunk, waiting in pending.items():
            if stored.get(chunk) is not waiting:
                puts.append((pending_key(chunk), pack_pending(chunk, waiting)))
        for channel, latest in sealed.tags.items():
            if latest is None:
                deletes.append(channel_key(*channel))
            else:
                tag, chunk, version = latest
                puts.append((channel_key(*channel), pack_tag(tag.sequence, chunk, version)))
        self._write(puts, deletes)
        stored.clear()
        stored.update(pending)

    def _write(self, puts: list[tuple[bytes, bytes]], deletes: Iterable[bytes] = ()) -> None:
        deletes = list(deletes)
        try:
            self._database.write(puts, deletes)
        except Error as exc:
            if exc.code != Code.NO_SPACE or not self._free():
                raise
            self._database.write(puts, deletes)
