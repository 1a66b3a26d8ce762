"""The store's requests: updates are placed and logged, records and bytes are read.

engine.py tells the life of an update.
"""

from collections.abc import Iterable, Iterator, Sequence

from hillfire.errors import Code, Error
from hillfire.proto.wire import copies
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import ChunkMeta, ChunkStore, Direct, Image, Pending, Space, Update
from hillfire.storage.store.becoming import committed, left
from hillfire.storage.store.blocks import Block
from hillfire.storage.store.frames import (
    pack_commit,
    pack_discard,
    pack_forget,
    pack_prepare,
    pack_tag,
)
from hillfire.storage.store.opening import Opened
from hillfire.storage.store.options import OVERFLOW, Options
from hillfire.storage.store.overwrite import TYPES, overwrite
from hillfire.storage.store.parts import Parts
from hillfire.storage.store.place import Placer
from hillfire.storage.store.reading import read_payload
from hillfire.storage.store.records import LatestTag, PendingRecord, Record
from hillfire.storage.store.upkeep import Upkeep
from hillfire.types import ChunkId, InodeId, Version

_new = tuple.__new__  # half the price of calling a NamedTuple


class EngineStore(Upkeep, ChunkStore):
    """One target's chunks. Made by ``engine.open_store`` or ``engine.open_engine``."""

    def __init__(self, parts: Parts, options: Options, opened: Opened) -> None:
        """Take over what ``read_parts`` found."""
        super().__init__(parts, options, opened)
        self._placer = Placer(self._blocks, self._make_room, self._catalog.get, self._pending)
        self._direct: Direct | None = None

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
        answers = self._prepare(updates, False)
        return [answer for answer in answers if answer is not None]

    def prepare_cached(self, updates: Sequence[Update]) -> list[Image | Exception | None]:
        """See ``ChunkStore.prepare_cached``."""
        return [None] * len(updates) if self.waits() else self._prepare(updates, True)

    def waits(self) -> bool:
        """See ``ChunkStore.waits``: it does if each frame is synced, or upkeep lags behind."""
        return self._options.durable or self._exceeds(OVERFLOW)

    def _prepare(self, updates: Sequence[Update], nowait: bool) -> list[Image | Exception | None]:
        if self._failed is not None:
            return [self._failed] * len(updates)
        answers: list[Image | Exception | None] = []
        fresh: list[tuple[ChunkId, PendingRecord]] = []
        entries: list[bytes] = []
        images: list[bytes] = []
        get, pendings, place = self._catalog.get, self._pending, self._placer.place
        shrunk, is_shared = self._catalog.shrunk, self._blocks.is_shared
        full = self._blocks.nearly_full(sum([update.length for update in updates]) + 1)
        bytes_written = False
        for update in updates:
            try:
                chunk = update.chunk
                if full and update.kind in (Kind.WRITE, Kind.REPLACE, Kind.CLONE):
                    raise Error(Code.NO_SPACE, "the disk is full; deleting makes room")
                old = get(chunk)
                if overwrite is not None and old is not None and not is_shared(old[1]):
                    made = overwrite(update, old, TYPES)
                    if made is not None:
                        answer, record, entry, image = made
                        answers.append(answer)
                        fresh.append((chunk, record))
                        entries.append(entry)
                        images.append(image)
                        continue
                record = place(update, old, pendings.get(chunk), chunk in shrunk, nowait)
            except Error as exc:
                answers.append(exc)
                continue
            except BlockingIOError:
                answers.append(None)
                continue
            answers.append(_new(Image, record[0][1:3]))  # length and checksum, as in Pending
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
        copies.LOG.value += sum(map(len, images))
        try:
            if self._options.durable and bytes_written:
                self._blocks.sync()
            with self._journal.lock:
                self._journal.append(entries, images)
                for chunk, record in fresh:
                    replaced = pendings.get(chunk)
                    pendings[chunk] = record
                    if replaced is not None:
                        self._drop(replaced)
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

    def commit(self, chunks: Sequence[tuple[ChunkId, Version, int]]) -> None:
        """See ``ChunkStore.commit``."""
        if self._failed is not None:
            raise self._failed
        entries, olds = [], []
        pendings, get = self._pending, self._catalog.get
        for chunk, version, chain_version in chunks:
            pending = pendings[chunk][0]
            assert pending.version == version, f"pending is {pending.version}, not {version}"
            entries.append(pack_commit(chunk, version, chain_version))
            olds.append(get(chunk))
        records: dict[ChunkId, Record] = {}
        freed: list[Block] = []
        shrunk, tags, changed = self._catalog.shrunk, self._tags, self._changed_tags
        with self._journal.lock:
            frame = self._journal.append(entries)
            segment = self._journal.segment
            for (chunk, version, chain_version), old in zip(chunks, olds, strict=True):
                waiting = pendings.pop(chunk)
                record = committed(waiting, old, chain_version, frame, segment)
                records[chunk] = record
                if old is not None:
                    block = left(waiting, old)
                    if block is not None:
                        freed.append(block)
                    elif record.meta.length < old.meta.length:
                        shrunk[chunk] = segment
                tag = record[0].tag
                channel = tag[:2]
                latest = tags.get(channel)
                if latest is None or latest[0][2] <= tag[2]:
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

    def direct(self) -> Direct | None:
        """See ``ChunkStore.direct``."""
        files = self._blocks.files.table()
        direct = self._direct
        if direct is None or direct[1] is not files:
            if files is None:
                return None
            catalog = self._catalog
            self._direct = direct = Direct(self._records, files, catalog.enter, catalog.leave)
        return direct

    def read_pending(self, chunk: ChunkId, into: memoryview) -> int:
        """See ``ChunkStore.read_pending``."""
        record = self._pending.get(chunk)
        if record is None:
            raise Error(Code.INVALID, f"nothing is pending for chunk {chunk.hex()}")
        return read_payload(self._blocks, record, into)

    def verify(self, chunk: ChunkId, *, cold: bool = False) -> int:
        """See ``ChunkStore.verify``."""
        return self._reader.verify(chunk, cold)

    # ------------------------------------------------------------------ the whole

    def maintain(self) -> bool:
        """See ``ChunkStore.maintain``: a checkpoint, or else free blocks become holes."""
        return self.bring_up_to_date()

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
