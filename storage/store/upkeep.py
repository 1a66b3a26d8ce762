"""The upkeep of a store: what its log says is brought to its places, and room is made.

Work is put off until it is due and then done by whoever comes, or by a keeper. Stands apart from
the store's requests (enginestore.py), which only append to the log.
"""

import threading
from collections.abc import Mapping
from typing import Protocol

from hillfire.errors import Code, Error
from hillfire.storage.store.catalog import Catalog
from hillfire.storage.store.checkpoint import Checkpointer, Sealed
from hillfire.storage.store.journal import Journal
from hillfire.storage.store.opening import Opened
from hillfire.storage.store.options import KEEP_IDLE_BYTES, OVERFLOW, Options
from hillfire.storage.store.parts import Parts
from hillfire.storage.store.reader import Reader
from hillfire.storage.store.records import Channel, LatestTag, PendingRecord, Placement
from hillfire.types import ChunkId


class Waker(Protocol):
    """Whoever does the work that was put off."""

    def wake(self) -> None:
        """There is some now."""

    def close(self) -> None:
        """Stop."""


class Upkeep:
    """The state of a store, and the half of it that keeps it in order."""

    def __init__(self, parts: Parts, options: Options, opened: Opened) -> None:
        """Take over what ``read_parts`` found."""
        self._parts = parts
        self._options = options
        self._blocks = opened.blocks
        self._pending = opened.replayed.pending
        self._tags = opened.tags
        self._changed_tags: dict[Channel, LatestTag | None] = {}
        self._spare = parts.blocks.reserve(options.spare_bytes)
        self._catalog = Catalog(parts.records, options.record_limit, opened.replayed.records)
        self._records = self._catalog.cache
        last = max([opened.checkpointed, *opened.segments])
        self._journal = Journal(
            parts.log,
            last + 1,
            opened.replayed.frame,
            self._give_up_spare,
            behind=opened.segments,
            durable=opened.frame,
        )
        self._checkpointer = Checkpointer(
            parts.records, self._blocks, self._journal, opened.stored, self._give_up_spare
        )
        self._reader = Reader(self._blocks, self._catalog, self._journal.lock)
        self._maintaining = threading.Lock()
        self._unfinished: Sealed | None = None
        self._old_segments: list[int] = []
        self._failed: Error | None = None
        self._allocations = 0
        self.keeper: Waker | None = None

    def settle(self, opened: Opened, later: bool) -> None:
        """Make what was replayed the content of a sealed segment, and checkpoint it.

        ``later``: that can wait, unless the log is to be cut where frames were lost.

        Raises:
            Error: NO_SPACE, IO.
        """
        if not opened.segments:
            return
        dropped = self._drop_damaged(opened.stored)
        self._blocks.suspect_everything()
        frame, _, _, tags, torn = opened.replayed
        records = self._catalog.seal()
        *self._old_segments, last = opened.segments
        self._unfinished = Sealed(last, frame, records, dict(self._pending), tags)
        if torn or dropped or not later:
            self.bring_up_to_date()

    def _drop_damaged(self, stored: Mapping[ChunkId, PendingRecord]) -> bool:
        """Forget pending updates whose bytes went with the host's power, as if the log ended there.

        To commit them would put a damaged image in the place of a good one. True if there are any.
        """
        dropped = False
        for chunk, waiting in list(self._pending.items()):
            if stored.get(chunk) is not waiting and not self._reader.is_whole(chunk, waiting):
                del self._pending[chunk]
                self._drop(waiting)
                dropped = True
        return dropped

    def _drop(self, record: PendingRecord) -> None:
        """Leave what a pending update had for itself."""
        if record.block is not None and record.placement in (Placement.COPY, Placement.SHARE):
            self._catalog.retire(record.block)

    def progress(self) -> int:
        """Return a number that grows with what happens."""
        return self._journal.frame

    def upkeep(self) -> None:
        """Do work that was put off; a store whose disk fails at it refuses updates from then on."""
        try:
            self.bring_up_to_date()
        except Error as exc:
            if exc.code != Code.NO_SPACE:
                self._failed = exc

    def _exceeds(self, times: int) -> bool:
        options, catalog = self._options, self._catalog
        return (
            self._journal.position >= options.segment_bytes * times
            or len(catalog.fresh) >= options.segment_records * times
            or catalog.freed_bytes >= options.segment_freed_bytes * times
            or (times == 1 and self._blocks.tight and catalog.freed_bytes > 0)
        )

    def _keep_up(self) -> None:
        """Have work done that is due; do it here if there is no keeper, or it cannot keep up."""
        if not self._exceeds(1):
            return
        if self.keeper is not None and not self._exceeds(OVERFLOW):
            self.keeper.wake()
            return
        self.upkeep()

    def bring_up_to_date(self) -> bool:
        """Do a checkpoint, or else make holes of free blocks; True if there was something to do.

        Raises:
            Error: NO_SPACE, IO, CORRUPT.
        """
        with self._maintaining:
            if self._unfinished is None:
                if not self._journal.position and not self._catalog.freed_bytes:
                    return self._tidy()
                self._unfinished = self._seal()
            sealed = self._unfinished
            self._checkpointer.run(sealed)
            self._catalog.settle(sealed.segment)
            self._unfinished = None
            self._old_segments.append(sealed.segment)
            while self._old_segments:
                self._journal.remove(self._old_segments[-1])
                self._old_segments.pop()
            self._blocks.release(self._catalog.reusable())
            if not self._spare and self._blocks.has_room(self._options.spare_bytes):
                self._spare = self._parts.blocks.reserve(self._options.spare_bytes)
            return True

    def _seal(self) -> Sealed:
        with self._journal.lock:
            segment = self._journal.rotate()
            records = self._catalog.seal()
            tags, self._changed_tags = self._changed_tags, {}
            frame = self._journal.frame
            return Sealed(segment, frame, records, dict(self._pending), tags)

    def _tidy(self) -> bool:
        blocks = self._catalog.reusable()
        self._blocks.release(blocks)  # which also looks how tight it is
        if self._blocks.tight or self._allocations == self._blocks.allocations:
            keep = 0 if self._blocks.tight else KEEP_IDLE_BYTES
            return self._blocks.trim(keep) or bool(blocks)
        self._allocations = self._blocks.allocations
        return True

    def _make_room(self) -> None:
        """Bring back what was freed: the disk is full."""
        self.bring_up_to_date()

    def _give_up_spare(self) -> bool:
        """Let the log or the database have the file that is kept for them."""
        had, self._spare = self._spare, False
        return had and self._parts.blocks.reserve(0)
