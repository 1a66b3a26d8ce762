"""The committed records: the database, a bounded cache before it, and the blocks' afterlife.

One question has one answer at a time: while a commit is on its way to the database, its chunks
are answered with the old record, from the cache if it is there, from ``_committing`` if it was
evicted; afterwards with the new one. So no two readers see a record and then an older one.

Reads announce themselves (``enter``, ``leave``) with numbers that grow. A block that a commit
freed waits in limbo, stamped with the next number, until every read with a smaller one has left:
a read that enters later finds the record that no longer names the block.

Then it waits for the next ``sync``. Until the database's log is on the disk, the loss of the
host's power brings back the record that named the block, and what an ``fsync`` once made durable
must still be in it.
"""

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from hillfire.storage.store.blocks import Block
from hillfire.storage.store.files import BlockFiles
from hillfire.storage.store.metadata import Metadata
from hillfire.storage.store.records import Record, chunk_key, unpack_record
from hillfire.types import ChunkId

EVICT_SHARE = 8
"""A full cache drops its oldest eighth at once, which is cheap a record."""


class Catalog:
    """Committed records by chunk. Thread-safe."""

    def __init__(self, metadata: Metadata, files: BlockFiles, limit: int) -> None:
        """Keep at most ``limit`` decoded records in memory."""
        self._metadata = metadata
        self._files = files
        self._limit = limit
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self.cache: dict[ChunkId, Record] = {}
        self._committing: dict[ChunkId, Record | None] = {}
        self._generation = 0
        self._numbers = itertools.count()
        self._inside: dict[int, None] = {}
        self._limbo: deque[tuple[int, Sequence[Block]]] = deque()
        self._unsynced: list[Block] = []
        self.unsynced_bytes = 0
        self.shrunk: dict[ChunkId, int] = {}
        """chunks that were cut in place since the last sync, and when"""

    def get(self, chunk: ChunkId) -> Record | None:
        """Return a chunk's committed record.

        Raises:
            Error: CORRUPT, IO.
        """
        found = self.cache.get(chunk)
        return found if found is not None else self._fetch(chunk)

    def _fetch(self, chunk: ChunkId) -> Record | None:
        while True:  # ends: each turn but the last met a commit that ended meanwhile
            with self._lock:
                if chunk in self._committing:
                    return self._committing[chunk]
                generation = self._generation
            value = self._metadata.get(chunk_key(chunk))
            record = None if value is None else unpack_record(value)
            with self._lock:
                if chunk in self._committing:
                    return self._committing[chunk]
                if generation == self._generation:
                    if record is not None:
                        self._remember(chunk, record)
                    return record
                if chunk in self.cache:
                    return self.cache[chunk]

    def _remember(self, chunk: ChunkId, record: Record) -> None:
        if len(self.cache) >= self._limit:
            for old in list(islice(self.cache, max(1, self._limit // EVICT_SHARE))):
                del self.cache[old]
        self.cache[chunk] = record

    def replace(
        self,
        records: Mapping[ChunkId, Record],
        puts: Iterable[tuple[bytes, bytes]],
        deletes: Iterable[bytes],
    ) -> None:
        """Make records the committed ones, in the database (by these changes) and then here.

        Blocks that they no longer name go into limbo.

        Raises:
            Error: IO, NO_SPACE; nothing has changed then.
        """
        olds = {chunk: self.get(chunk) for chunk in records}
        with self._lock:
            self._committing.update(olds)
        try:
            self._metadata.write(puts, deletes)
        except BaseException:
            with self._lock:
                for chunk in records:
                    del self._committing[chunk]
            raise
        freed = []
        with self._lock:
            self._generation += 1
            for chunk, record in records.items():
                self._remember(chunk, record)
                del self._committing[chunk]
                old = olds[chunk]
                if old is None or old.block is None:
                    continue
                if old.block != record.block:
                    freed.append(old.block)
                elif record.meta.length < old.meta.length:
                    self.shrunk[chunk] = next(self._numbers)
        if freed:
            self.retire(freed)

    def enter(self) -> int:
        """Begin a read; returns the number to leave by."""
        number = next(self._numbers)
        self._inside[number] = None
        return number

    def leave(self, number: int) -> None:
        """End a read."""
        del self._inside[number]

    def retire(self, blocks: Sequence[Block]) -> None:
        """Free blocks after a sync, once every read that may be inside them has ended."""
        with self._lock:
            if blocks:
                self._limbo.append((next(self._numbers), blocks))
            oldest = min(list(self._inside), default=None)
            while self._limbo and (oldest is None or self._limbo[0][0] < oldest):
                for block in self._limbo.popleft()[1]:
                    self._unsynced.append(block)
                    self.unsynced_bytes += block.n_bytes

    def sync(self) -> None:
        """Bring bytes and then the records that name them to the disk; free what they left.

        Raises:
            Error: NO_SPACE, IO.
        """
        with self._syncing:  # one that found nothing dirty must not overtake one that did
            self.retire(())
            with self._lock:
                freed, self._unsynced = self._unsynced, []
                self.unsynced_bytes = 0
                until = next(self._numbers)
            try:
                self._files.sync()
                self._metadata.sync()
            except BaseException:
                with self._lock:
                    self._unsynced += freed
                    self.unsynced_bytes += sum(block.n_bytes for block in freed)
                raise
            self._files.release(freed)
            with self._lock:
                for chunk in [chunk for chunk, when in self.shrunk.items() if when < until]:
                    del self.shrunk[chunk]
