"""The chunk store on a disk: block files for bytes, RocksDB for records.

An update is placed (choose.py, place.py), then one write batch makes a whole batch of updates
pending; another one commits them. What may be seen when:

- The committed record names block, length and grain checksums: bytes that it does not name do
  not exist. So copies and appends are written before they are visible, with no harm done if the
  process dies in between.
- A patch changes visible bytes. Its payload lies in the pending record; ``commit`` first records
  the new committed record, then writes the payload in place, then drops the pending record. A
  pending patch whose image is the committed one thus means *committed, perhaps not yet written*:
  opening writes it again. A reader that meets a block before its patch fails the check, waits for
  the chunk's lock, and reads again with the record as it is then.
- A block that a commit frees is not reused while a read that began before is still going on, nor
  before a sync.

Open time grows with the number of records, not with bytes: free blocks are those that no record
names.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import (
    ChunkMeta,
    ChunkStore,
    Image,
    Pending,
    Space,
    Tag,
    Update,
)
from hillfire.storage.store.catalog import Catalog
from hillfire.storage.store.files import BlockFiles
from hillfire.storage.store.metadata import Metadata
from hillfire.storage.store.opening import Opened, open_parts
from hillfire.storage.store.place import Placer
from hillfire.storage.store.reading import Reader, read_payload
from hillfire.storage.store.records import (
    PendingRecord,
    Placement,
    Record,
    channel_key,
    chunk_key,
    pack_pending,
    pack_record,
    pack_tag,
    pending_key,
    unpack_record,
)
from hillfire.types import ChunkId, InodeId, Version, chunk_id

RESERVE_BYTES = 64 * 1024 * 1024
"""Of the disk: block files leave this much, so that deletions can still be recorded."""
RECORD_LIMIT = 131_072
"""How many decoded records are kept in memory, about 0.7 KiB each for chunks of 1 MiB."""
UNSYNCED_BYTES = 256 * 1024 * 1024
"""Blocks that were freed are used again after a sync; this much of them brings one about."""
STRIPES = 64
"""How many locks the chunks share for the moment in which a patch is applied."""


def open_store(
    directory: Path,
    *,
    direct: bool = True,
    reserve_bytes: int = RESERVE_BYTES,
    record_limit: int = RECORD_LIMIT,
) -> ChunkStore:
    """Open the store in ``directory``, or create one there.

    ``direct`` writes large payloads past the page cache: with three stores on one disk that is 1.8
    to 2.3 GiB/s of new chunks for as long as it lasts, against 0.5 to 1.1 through the cache; but
    what was just written is then read from the disk the first time.

    Raises:
        Error: BUSY if another process has it open, CORRUPT if something is missing or damaged,
            WRONG_PEER_VERSION if it has another format, NO_SPACE, IO.
    """
    opened = open_parts(directory, direct=direct, reserve_bytes=reserve_bytes)
    return EngineStore(opened, record_limit)


class EngineStore(ChunkStore):
    """One target's chunks on a disk. Made by ``open_store``."""

    def __init__(self, opened: Opened, record_limit: int) -> None:
        """Take over what ``open_parts`` opened."""
        self._metadata: Metadata = opened.metadata
        self._files: BlockFiles = opened.files
        self._pending: dict[ChunkId, PendingRecord] = opened.pending
        self._tags = opened.tags
        self._lock = threading.Lock()
        self._catalog = Catalog(self._metadata, self._files, record_limit)
        self._records = self._catalog.cache
        self._placer = Placer(self._files, self._catalog.sync)
        self._stripes = [threading.Lock() for _ in range(STRIPES)]
        self._reader = Reader(self._files, self._catalog, self._stripes)

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

    def tags(self) -> Iterator[tuple[Tag, ChunkId, Version]]:
        """See ``ChunkStore.tags``."""
        with self._lock:
            return iter(list(self._tags.values()))

    def prepare(self, updates: Sequence[Update]) -> list[Image | Exception]:
        """See ``ChunkStore.prepare``."""
        answers: list[Image | Exception] = []
        fresh: list[tuple[ChunkId, PendingRecord]] = []
        get, pendings, place = self._catalog.get, self._pending, self._placer.place
        shrunk = self._catalog.shrunk
        self._catalog.retire(())
        if self._catalog.unsynced_bytes >= UNSYNCED_BYTES:
            try:
                self._catalog.sync()
            except Error as exc:
                return [exc] * len(updates)
        full = self._files.nearly_full()
        for update in updates:
            try:
                chunk = update.chunk
                if full and update.kind in (Kind.WRITE, Kind.REPLACE):
                    raise Error(Code.NO_SPACE, "the disk is full; deleting makes room")
                record = place(update, get(chunk), pendings.get(chunk), chunk in shrunk)
            except Error as exc:
                answers.append(exc)
            else:
                answers.append(Image(record.pending.length, record.pending.checksum))
                fresh.append((chunk, record))
        assert len({chunk for chunk, _ in fresh}) == len(fresh), "one update of a chunk at a time"
        try:
            if fresh:
                self._metadata.write([(pending_key(c), pack_pending(r)) for c, r in fresh])
        except Error as exc:
            for _, record in fresh:
                self._drop(record)
            return [exc if isinstance(answer, Image) else answer for answer in answers]
        for chunk, record in fresh:
            old = pendings.get(chunk)
            pendings[chunk] = record
            if old is not None:
                self._drop(old)
        return answers

    def _drop(self, record: PendingRecord) -> None:
        """Free what a pending update had for itself."""
        if record.placement == Placement.COPY and record.block is not None:
            self._catalog.retire([record.block])

    def commit(self, chunks: Sequence[tuple[ChunkId, Version, int]]) -> None:
        """See ``ChunkStore.commit``."""
        records: dict[ChunkId, Record] = {}
        puts: list[tuple[bytes, bytes]] = []
        deletes: list[bytes] = []
        patches: list[tuple[ChunkId, PendingRecord]] = []
        for chunk, version, chain_version in chunks:
            waiting = self._pending[chunk]
            pending = waiting.pending
            assert pending.version == version, f"pending is {pending.version}, not {version}"
            record = self._committed(chunk, waiting, chain_version)
            records[chunk] = record
            puts.append((chunk_key(chunk), pack_record(record)))
            if waiting.placement == Placement.PATCH:
                patches.append((chunk, waiting))
            else:
                deletes.append(pending_key(chunk))
        with ExitStack() as held:
            for stripe in sorted({hash(chunk) % STRIPES for chunk, _ in patches}):
                held.enter_context(self._stripes[stripe])
            with self._lock:
                puts += self._latest_tags(chunks)
            self._catalog.replace(records, puts, deletes)
            for _, patch in patches:
                assert patch.block is not None, "a patched chunk has a block"
                self._files.write(patch.block, patch.pending.offset, memoryview(patch.payload))
        if patches:
            self._metadata.write(deletes=[pending_key(chunk) for chunk, _ in patches])
        for chunk in records:
            del self._pending[chunk]

    def _committed(self, chunk: ChunkId, waiting: PendingRecord, chain_version: int) -> Record:
        """Return the record that a pending update becomes."""
        pending, old = waiting.pending, self.get(chunk)
        epoch = pending.epoch if old is None or old.epoch < pending.epoch else old.epoch
        meta = ChunkMeta(
            pending.version,
            pending.length,
            pending.checksum,
            pending.tag,
            chain_version,
            epoch,
            pending.kind == Kind.REMOVE,
        )
        return Record(meta, waiting.block, waiting.grains)

    def _latest_tags(
        self, chunks: Sequence[tuple[ChunkId, Version, int]]
    ) -> list[tuple[bytes, bytes]]:
        """Note the tags of updates that commit; a transfer may bring one that is not the latest."""
        puts = []
        for chunk, version, _ in chunks:
            tag = self._pending[chunk].pending.tag
            channel = tag.client, tag.channel
            latest = self._tags.get(channel)
            if latest is None or latest[0].sequence <= tag.sequence:
                self._tags[channel] = tag, chunk, version
                puts.append((channel_key(*channel), pack_tag(tag.sequence, chunk, version)))
        return puts

    def discard(self, chunk: ChunkId) -> None:
        """See ``ChunkStore.discard``."""
        record = self._pending.get(chunk)
        if record is not None:
            self._metadata.write(deletes=[pending_key(chunk)])
            del self._pending[chunk]
            self._drop(record)

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
        return read_payload(self._files, record, into)

    def scan(
        self, after: ChunkId | None = None, limit: int = 4096
    ) -> list[tuple[ChunkId, ChunkMeta]]:
        """See ``ChunkStore.scan``."""
        start = b"c" if after is None else chunk_key(after) + b"\0"
        return self._list(start, None, limit)

    def scan_inode(self, inode: InodeId) -> list[tuple[ChunkId, ChunkMeta]]:
        """See ``ChunkStore.scan_inode``."""
        found = self._list(chunk_key(chunk_id(inode, 0)), chunk_id(inode, 2**32 - 1), 2**32)
        return [(chunk, meta) for chunk, meta in found if not meta.removed]

    def _list(
        self, start: bytes, last: ChunkId | None, limit: int
    ) -> list[tuple[ChunkId, ChunkMeta]]:
        found: list[tuple[ChunkId, ChunkMeta]] = []
        for key, value in self._metadata.items(b"c", start):
            chunk = ChunkId(key[1:])
            if len(found) >= limit or (last is not None and chunk > last):
                break
            found.append((chunk, unpack_record(value).meta))
        return found

    def remember(self, tags: Iterable[tuple[Tag, ChunkId, Version]]) -> None:
        """See ``ChunkStore.remember``."""
        puts = []
        with self._lock:
            for tag, chunk, version in tags:
                channel = tag.client, tag.channel
                latest = self._tags.get(channel)
                if latest is None or latest[0].sequence < tag.sequence:
                    self._tags[channel] = tag, chunk, version
                    puts.append((channel_key(*channel), pack_tag(tag.sequence, chunk, version)))
            self._metadata.write(puts)

    def forget_clients(self, clients: Iterable[int]) -> None:
        """See ``ChunkStore.forget_clients``."""
        gone = set(clients)
        with self._lock:
            keys = [key for key in self._tags if key[0] in gone]
            self._metadata.write(deletes=[channel_key(*key) for key in keys])
            for key in keys:
                del self._tags[key]

    def verify(self, chunk: ChunkId, *, cold: bool = False) -> int:
        """See ``ChunkStore.verify``."""
        meta = self.get(chunk)
        length = 0 if meta is None else meta.length
        return self.read(chunk, 0, memoryview(bytearray(length)))[0]

    def sync(self) -> None:
        """See ``ChunkStore.sync``: first the bytes, then the records that name them."""
        self._catalog.sync()

    def space(self) -> Space:
        """See ``ChunkStore.space``."""
        return self._files.space()

    def close(self) -> None:
        """See ``ChunkStore.close``."""
        self._metadata.close()
        self._files.close()
