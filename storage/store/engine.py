"""The chunk store on a disk: block files for bytes, a log for what happens, a database for records.

The life of an update, and what may be seen when:

1. ``prepare`` places it (choose.py, place.py). Copies and appends are written to blocks, where no
   record names them yet; a patch becomes the pages that it touches. Then one frame makes the whole
   batch *pending*: its entries, and the pages, are the pending updates. There is no other copy.
2. ``commit`` appends a frame that names the updates. From then on they are *committed*: memory
   shows the new records. A patch's pages lie over the block as its chunk's *overlay*; readers
   verify the block's bytes with the overlay laid over them, so it is all one to them whether a page
   was written to its place already.
3. When a segment of the log is full, it is *sealed* and the next one begins. A *checkpoint* brings
   what the sealed one says to the block files and the database (checkpoint.py), beside everything
   else, and drops it. Only then are blocks used again that its commits left.

After a crash the log is replayed (replay.py): what a frame says happened whole or not at all, and
doing it again changes nothing. Bytes are synced before the records that name them only by ``sync``,
by a checkpoint, or always if the store is *durable*; bytes lost otherwise fail their checksum.

Nothing here needs a thread, a clock or the operating system: all of it runs over parts.py. Work is
put off until it is due and then done by whoever comes, or by a keeper (keeper.py).
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.allocator import Limits
from hillfire.storage.store.base import (
    ChunkMeta,
    ChunkStore,
    Image,
    Pending,
    Space,
    Update,
)
from hillfire.storage.store.becoming import committed, left
from hillfire.storage.store.blocks import Block
from hillfire.storage.store.catalog import Catalog
from hillfire.storage.store.checkpoint import Checkpointer, Sealed
from hillfire.storage.store.files import DiskBlocks
from hillfire.storage.store.frames import (
    pack_commit,
    pack_discard,
    pack_forget,
    pack_prepare,
    pack_tag,
)
from hillfire.storage.store.journal import Journal
from hillfire.storage.store.keeper import Keeper
from hillfire.storage.store.logfiles import DiskLog
from hillfire.storage.store.metadata import Metadata
from hillfire.storage.store.opening import Opened, read_parts
from hillfire.storage.store.parts import Parts
from hillfire.storage.store.place import Placer
from hillfire.storage.store.reader import Reader
from hillfire.storage.store.reading import read_payload
from hillfire.storage.store.records import Channel, LatestTag, PendingRecord, Placement, Record
from hillfire.storage.store.system import System
from hillfire.types import ChunkId, InodeId, Version

MIB = 1024 * 1024


class Options(NamedTuple):
    """How a store behaves."""

    durable: bool = False
    """``prepare`` and ``commit`` return after the disk has everything"""
    reserve_bytes: int = 64 * MIB
    no_new_chunks_part: float = 0.98
    no_writes_part: float = 0.99
    """See ``allocator.Limits``."""
    spare_bytes: int = 8 * MIB
    """Of the disk: a file that is given up when the log or the database find it full."""
    record_limit: int = 65_536
    """How many decoded records are kept in memory, about 1.7 KiB each for chunks of 1 MiB."""
    segment_bytes: int = 16 * MIB
    """A segment of the log is sealed when it holds this much, or"""
    segment_records: int = 8192
    """changed so many chunks, or"""
    segment_freed_bytes: int = 256 * MIB
    """freed so many bytes of blocks."""


OVERFLOW = 4
"""A segment may hold so many times its size while the one before is being checkpointed."""
KEEP_IDLE_BYTES = 16 * MIB
"""Of free blocks that the disk has set aside, in a store with nothing to do."""


class Waker(Protocol):
    """Whoever does the work that was put off."""

    def wake(self) -> None:
        """There is some now."""

    def close(self) -> None:
        """Stop."""


def open_store(
    directory: Path,
    *,
    direct: bool = True,
    durable: bool = False,
    no_new_chunks_part: float | None = None,
    no_writes_part: float | None = None,
    options: Options | None = None,
    reserve_bytes: int | None = None,
    record_limit: int | None = None,
    system: System | None = None,
) -> "EngineStore":
    """Open the store in ``directory``, or create one there.

    ``direct`` writes large payloads past the page cache: with three stores on one disk that is 1.8
    to 2.3 GiB/s of new chunks for as long as it lasts, against 0.5 to 1.1 through the cache; but
    what was just written is then read from the disk the first time. ``durable``: ``prepare`` and
    ``commit`` return when the disk has everything. With ``no_new_chunks_part`` of the disk in use
    nothing is written that takes more of it, with ``no_writes_part`` nothing at all; to cut and to
    remove always works.

    Raises:
        Error: BUSY if another process has it open, CORRUPT if something is missing or damaged,
            WRONG_PEER_VERSION if it has another format, NO_SPACE, IO.
    """
    given: dict[str, Any] = {
        "durable": durable or None,
        "no_new_chunks_part": no_new_chunks_part,
        "no_writes_part": no_writes_part,
        "reserve_bytes": reserve_bytes,
        "record_limit": record_limit,
    }
    options = options or Options()
    options = options._replace(**{name: each for name, each in given.items() if each is not None})
    parts = _open_parts(directory, direct, system or System())
    try:
        store = open_engine(parts, options, later=True)
    except Error as exc:
        raise Error(exc.code, f"{directory}: {exc.strerror}") from exc
    store.keeper = Keeper(store.upkeep, store.progress)
    store.keeper.wake()
    return store


def _open_parts(directory: Path, direct: bool, system: System) -> Parts:
    try:
        system.make_directory(directory)
    except OSError as exc:
        raise Error(Code.IO, f"cannot create {directory}: {exc.strerror}") from exc
    metadata = Metadata(directory / "records")
    try:
        blocks = DiskBlocks(directory / "blocks", direct=direct, system=system)
    except BaseException:
        metadata.close()
        raise
    try:
        return Parts(metadata, blocks, DiskLog(directory / "log", system))
    except BaseException:
        metadata.close()
        blocks.close()
        raise


def open_engine(
    parts: Parts, options: Options | None = None, *, later: bool = False
) -> "EngineStore":
    """Open or create a store over ``parts``, which are closed if that fails.

    ``later``: the checkpoint of what the log held is left to ``maintain``.

    Raises:
        Error: CORRUPT, WRONG_PEER_VERSION, NO_SPACE, IO.
    """
    options = options or Options()
    try:
        limits = Limits(options.reserve_bytes, options.no_new_chunks_part, options.no_writes_part)
        opened = read_parts(parts, limits)
        store = EngineStore(parts, options, opened)
        store.settle(opened, later)
        return store
    except BaseException:
        parts.records.close()
        parts.blocks.close()
        parts.log.close()
        raise


class EngineStore(ChunkStore):
    """One target's chunks. Made by ``open_store`` or ``open_engine``."""

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
        self._placer = Placer(self._blocks, self._make_room, self._catalog.get, self._pending)
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
            self.maintain()

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

    # ------------------------------------------------------------------ records

    def get(self, chunk: ChunkId) -> ChunkMeta | None:
        """See ``ChunkStore.get``."""
        record = self._records.get(chunk)
        if record is None:
            record = self._catalog.get(chunk)
            if record is None:
                return None
        return record[0]

    def pending(self) -> Iterator[tuple[ChunkId, Pending]]:
        """See ``ChunkStore.pending``."""
        return iter([(chunk, record.pending) for chunk, record in list(self._pending.items())])

    def tags(self) -> Iterator[LatestTag]:
        """See ``ChunkStore.tags``."""
        with self._journal.lock:
            return iter(list(self._tags.values()))

    def scan(
        self, after: ChunkId | None = None, limit: int = 4096
    ) -> list[tuple[ChunkId, ChunkMeta]]:
        """See ``ChunkStore.scan``."""
        return self._catalog.scan(after, limit)

    def scan_inode(self, inode: InodeId) -> list[tuple[ChunkId, ChunkMeta]]:
        """See ``ChunkStore.scan_inode``."""
        found = self._catalog.scan_inode(inode)
        return [(chunk, meta) for chunk, meta in found if not meta.removed]

    # ------------------------------------------------------------------ updates

    def prepare(self, updates: Sequence[Update]) -> list[Image | Exception]:
        """See ``ChunkStore.prepare``."""
        if self._failed is not None:
            return [self._failed] * len(updates)
        answers: list[Image | Exception] = []
        fresh: list[tuple[ChunkId, PendingRecord]] = []
        entries: list[bytes] = []
        images: list[bytes] = []
        get, pendings, place = self._catalog.get, self._pending, self._placer.place
        shrunk = self._catalog.shrunk
        full = self._blocks.nearly_full()
        bytes_written = False
        for update in updates:
            try:
                chunk = update.chunk
                if full and update.kind in (Kind.WRITE, Kind.REPLACE, Kind.CLONE):
                    raise Error(Code.NO_SPACE, "the disk is full; deleting makes room")
                record = place(update, get(chunk), pendings.get(chunk), chunk in shrunk)
            except Error as exc:
                answers.append(exc)
                continue
            answers.append(Image(record.pending.length, record.pending.checksum))
            fresh.append((chunk, record))
            entry, image = pack_prepare(chunk, record)
            entries.append(entry)
            if image:
                images.append(image)
            else:
                bytes_written = True
        assert len({chunk for chunk, _ in fresh}) == len(fresh), "one update of a chunk at a time"
        if not fresh:
            return answers
        try:
            if self._options.durable and bytes_written:
                self._blocks.sync()
            with self._journal.lock:
                self._journal.append(entries, images)
                for chunk, record in fresh:
                    old = pendings.get(chunk)
                    pendings[chunk] = record
                    if old is not None:
                        self._drop(old)
        except Error as exc:
            for _, record in fresh:
                self._drop(record)
            return [exc if isinstance(answer, Image) else answer for answer in answers]
        if self._options.durable:
            try:
                self._journal.sync()
            except Error as exc:
                self._failed = exc
                return [exc if isinstance(answer, Image) else answer for answer in answers]
        self._keep_up()
        return answers

    def _drop(self, record: PendingRecord) -> None:
        """Leave what a pending update had for itself."""
        if record.block is not None and record.placement in (Placement.COPY, Placement.SHARE):
            self._catalog.retire(record.block)

    def commit(self, chunks: Sequence[tuple[ChunkId, Version, int]]) -> None:
        """See ``ChunkStore.commit``."""
        if self._failed is not None:
            raise self._failed
        entries, olds = [], []
        for chunk, version, chain_version in chunks:
            pending = self._pending[chunk].pending
            assert pending.version == version, f"pending is {pending.version}, not {version}"
            entries.append(pack_commit(chunk, version, chain_version))
            olds.append(self._catalog.get(chunk))
        records: dict[ChunkId, Record] = {}
        freed: list[Block] = []
        shrunk, tags, changed = self._catalog.shrunk, self._tags, self._changed_tags
        with self._journal.lock:
            frame = self._journal.append(entries)
            segment = self._journal.segment
            for (chunk, version, chain_version), old in zip(chunks, olds, strict=True):
                waiting = self._pending.pop(chunk)
                record = committed(waiting, old, chain_version, frame, segment)
                records[chunk] = record
                if old is not None:
                    block = left(waiting, old)
                    if block is not None:
                        freed.append(block)
                    elif record.meta.length < old.meta.length:
                        shrunk[chunk] = segment
                tag = waiting.pending.tag
                channel = tag.client, tag.channel
                latest = tags.get(channel)
                if latest is None or latest[0].sequence <= tag.sequence:
                    tags[channel] = changed[channel] = tag, chunk, version
            self._catalog.replace(records, freed)
        if self._options.durable:
            self._journal.sync()
        self._keep_up()

    def discard(self, chunk: ChunkId) -> None:
        """See ``ChunkStore.discard``."""
        if chunk not in self._pending:
            return
        with self._journal.lock:
            self._journal.append([pack_discard(chunk)])
            self._drop(self._pending.pop(chunk))

    def remember(self, tags: Iterable[LatestTag]) -> None:
        """See ``ChunkStore.remember``."""
        with self._journal.lock:
            later = []
            for latest in tags:
                tag = latest[0]
                known = self._tags.get((tag.client, tag.channel))
                if known is None or known[0].sequence < tag.sequence:
                    later.append(latest)
            if not later:
                return
            self._journal.append([pack_tag(latest) for latest in later])
            for latest in later:
                channel = latest[0].client, latest[0].channel
                self._tags[channel] = self._changed_tags[channel] = latest
        self._keep_up()

    def forget_clients(self, clients: Iterable[int]) -> None:
        """See ``ChunkStore.forget_clients``."""
        gone = set(clients)
        with self._journal.lock:
            channels = [channel for channel in self._tags if channel[0] in gone]
            if not channels:
                return
            self._journal.append([pack_forget(client) for client in sorted(gone)])
            for channel in channels:
                del self._tags[channel]
                self._changed_tags[channel] = None

    # ------------------------------------------------------------------ reads

    def read(self, chunk: ChunkId, offset: int, into: memoryview) -> tuple[int, int, Version]:
        """See ``ChunkStore.read``."""
        return self._reader.read(chunk, offset, into)

    def read_cached(
        self, chunk: ChunkId, offset: int, into: memoryview
    ) -> tuple[int, int, Version] | None:
        """See ``ChunkStore.read_cached``.

        A record that is not in memory is looked up in RocksDB, whose blocks nearly always are.
        """
        return self._reader.read_cached(chunk, offset, into)

    def read_pending(self, chunk: ChunkId, into: memoryview) -> int:
        """See ``ChunkStore.read_pending``."""
        record = self._pending.get(chunk)
        if record is None:
            raise Error(Code.INVALID, f"nothing is pending for chunk {chunk.hex()}")
        return read_payload(self._blocks, record, into)

    def verify(self, chunk: ChunkId, *, cold: bool = False) -> int:
        """See ``ChunkStore.verify``."""
        return self._reader.verify(chunk, cold)

    # ------------------------------------------------------------------ upkeep

    def progress(self) -> int:
        """Return a number that grows with what happens."""
        return self._journal.frame

    def upkeep(self) -> None:
        """Do work that was put off; a store whose disk fails at it refuses updates from then on."""
        try:
            self.maintain()
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

    def maintain(self) -> bool:
        """See ``ChunkStore.maintain``: a checkpoint, or else free blocks become holes."""
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
        self.maintain()

    def _give_up_spare(self) -> bool:
        """Let the log or the database have the file that is kept for them."""
        had, self._spare = self._spare, False
        return had and self._parts.blocks.reserve(0)

    def sync(self) -> None:
        """See ``ChunkStore.sync``: first the bytes, then the records that name them."""
        if self._failed is not None:
            raise self._failed
        try:
            self._blocks.sync()
            self._journal.sync()
        except Error as exc:
            if exc.code != Code.NO_SPACE:  # which is over when there is room
                self._failed = exc
            raise

    def space(self) -> Space:
        """See ``ChunkStore.space``."""
        return self._blocks.space()

    def close(self) -> None:
        """See ``ChunkStore.close``."""
        if self.keeper is not None:
            self.keeper.close()
        try:
            if self._failed is None:
                self.maintain()
        except Error:  # the log has it all: the next opening does it again
            return
        finally:
            self._parts.records.close()
            self._parts.blocks.close()
            self._parts.log.close()
