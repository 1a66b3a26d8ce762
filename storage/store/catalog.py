"""The committed records: what changed since the last checkpoint, the one before, the database.

A record is looked up in this order: ``fresh`` (committed in the log's segment that is written
now), ``sealed`` (committed in the segment before, which a checkpoint is moving to the database),
the database. ``cache`` holds the newest of any of them, bounded. A commit changes all in one step
under the lock, so no two readers see a record and then an older one.

Reads announce themselves (``enter``, ``leave``) with numbers that grow. A block that a commit
freed is used again after the checkpoint of that commit's segment, since until then the loss of the
host's power, or the checkpoint itself, may bring back the record that names it; and not before
every read has left that entered earlier.
"""

import itertools
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice

from hillfire.storage.store.base import ChunkMeta
from hillfire.storage.store.blocks import Block
from hillfire.storage.store.parts import RecordsDatabase
from hillfire.storage.store.records import Record, chunk_key, unpack_meta, unpack_record
from hillfire.types import ChunkId, InodeId, chunk_id

EVICT_SHARE = 8
"""A full cache drops its oldest eighth at once, which is cheap a record."""
INODE_BYTES = 10
"""How much of a chunk's id is name space and inode."""

Records = dict[ChunkId, Record]


class Catalog:
    """Committed records by chunk. Thread-safe."""

    def __init__(self, database: RecordsDatabase, limit: int, fresh: Records) -> None:
        """Keep at most ``limit`` decoded records; ``fresh`` are those that the log brought."""
        self._database = database
        self._limit = limit
        self._lock = threading.Lock()
        self.cache: Records = {}
        self.fresh = fresh
        self.sealed: Records = {}
        self._of_inode: dict[bytes, set[ChunkId]] = {}
        self._of_inode_sealed: dict[bytes, set[ChunkId]] = {}
        for chunk in fresh:
            self._of_inode.setdefault(chunk[:INODE_BYTES], set()).add(chunk)
        self._generation = 0
        self._numbers = itertools.count()
        self._inside: dict[int, None] = {}
        self._freed: list[Block] = []
        self._freed_sealed: list[Block] = []
        self._limbo: deque[tuple[int, list[Block]]] = deque()
        self.freed_bytes = 0
        """of blocks that commits of this segment freed"""
        self.shrunk: dict[ChunkId, int] = {}
        """chunks that were cut in place, and in which segment, until that is checkpointed"""

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
                found = self._newest(chunk)
                if found is not None:
                    return found
                generation = self._generation
            value = self._database.get(chunk_key(chunk))
            record = None if value is None else unpack_record(value)
            with self._lock:
                found = self._newest(chunk)
                if found is not None:
                    return found
                if generation == self._generation:
                    if record is not None:
                        self._remember(chunk, record)
                    return record

    def _newest(self, chunk: ChunkId) -> Record | None:
        """Return a record that is in memory, with the lock held."""
        found = self.cache.get(chunk) or self.fresh.get(chunk) or self.sealed.get(chunk)
        if found is not None and chunk not in self.cache:
            self._remember(chunk, found)
        return found

    def _remember(self, chunk: ChunkId, record: Record) -> None:
        if len(self.cache) >= self._limit:
            for old in list(islice(self.cache, max(1, self._limit // EVICT_SHARE))):
                del self.cache[old]
        self.cache[chunk] = record

    # ------------------------------------------------------------------ changes

    def replace(self, records: Mapping[ChunkId, Record], freed: Sequence[Block]) -> None:
        """Make records the committed ones, and note which blocks they left."""
        with self._lock:
            self._generation += 1
            for chunk, record in records.items():
                if chunk not in self.fresh:
                    self._of_inode.setdefault(chunk[:INODE_BYTES], set()).add(chunk)
                self.fresh[chunk] = record
                self._remember(chunk, record)
            self._freed += freed
            for block in freed:
                self.freed_bytes += block.n_bytes

    def retire(self, block: Block) -> None:
        """Note that a block is left by an update that was never committed."""
        with self._lock:
            self._freed.append(block)
            self.freed_bytes += block.n_bytes

    def seal(self) -> Records:
        """Set what changed so far aside for a checkpoint; returns it."""
        with self._lock:
            assert not self.sealed, "one checkpoint at a time"
            self.sealed, self.fresh = self.fresh, {}
            self._of_inode_sealed, self._of_inode = self._of_inode, {}
            self._freed_sealed, self._freed = self._freed, []
            self.freed_bytes = 0
            return self.sealed

    def settle(self, segment: int) -> None:
        """Drop what was set aside: the database has it, and blocks have the overlays' pages."""
        with self._lock:
            self._generation += 1
            settled, self.sealed = self.sealed, {}
            self._of_inode_sealed = {}
            self._limbo.append((next(self._numbers), self._freed_sealed))
            self._freed_sealed = []
            for chunk in [each for each, when in self.shrunk.items() if when <= segment]:
                del self.shrunk[chunk]
        for chunk, record in settled.items():
            if record.overlay is not None or record.under is not None:
                with self._lock:
                    self._strip(chunk, record)

    def _strip(self, chunk: ChunkId, record: Record) -> None:
        """Take overlays away that a checkpoint has written."""
        if self.cache.get(chunk) is record:
            self.cache[chunk] = record._replace(overlay=None, under=None)
        newer = self.fresh.get(chunk)
        if newer is not None and newer.under is not None:
            stripped = newer._replace(under=None)
            if self.cache.get(chunk) is newer:
                self.cache[chunk] = stripped
            self.fresh[chunk] = stripped

    # ------------------------------------------------------------------ reads, and blocks

    def enter(self) -> int:
        """Begin a read; returns the number to leave by."""
        number = next(self._numbers)
        self._inside[number] = None
        return number

    def leave(self, number: int) -> None:
        """End a read."""
        del self._inside[number]

    def reusable(self) -> list[Block]:
        """Hand out the blocks that are left for good and that no read is inside of."""
        found: list[Block] = []
        with self._lock:
            oldest = min(list(self._inside), default=None)
            while self._limbo and (oldest is None or self._limbo[0][0] < oldest):
                found += self._limbo.popleft()[1]
        return found

    # ------------------------------------------------------------------ lists

    def scan(self, after: ChunkId | None, limit: int) -> list[tuple[ChunkId, ChunkMeta]]:
        """List records behind ``after`` in the order of their chunks' ids, at most ``limit``.

        Raises:
            Error: CORRUPT, IO.
        """
        with self._lock:
            newer = {**self.sealed, **self.fresh}
        if after is not None:
            newer = {chunk: record for chunk, record in newer.items() if chunk > after}
        start = b"c" if after is None else chunk_key(after) + b"\0"
        return self._merged(newer, start, None, limit)

    def scan_inode(self, inode: InodeId) -> list[tuple[ChunkId, ChunkMeta]]:
        """List one file's records.

        Raises:
            Error: CORRUPT, IO.
        """
        first, last = chunk_id(inode, 0), chunk_id(inode, 2**32 - 1)
        prefix = first[:INODE_BYTES]
        newer: Records = {}
        with self._lock:
            for chunk in self._of_inode_sealed.get(prefix, ()):
                newer[chunk] = self.sealed[chunk]
            for chunk in self._of_inode.get(prefix, ()):
                newer[chunk] = self.fresh[chunk]
        return self._merged(newer, chunk_key(first), last, 2**32)

    def _merged(
        self, newer: Records, start: bytes, last: ChunkId | None, limit: int
    ) -> list[tuple[ChunkId, ChunkMeta]]:
        found: dict[ChunkId, ChunkMeta] = {}
        end: ChunkId | None = None
        for key, value in self._database.items(b"c", start):
            chunk = ChunkId(key[1:])
            if last is not None and chunk > last:
                break
            if len(found) >= limit:
                end = chunk
                break
            if chunk not in newer:
                found[chunk] = unpack_meta(value)[0]
            else:
                found[chunk] = newer[chunk].meta
        for chunk, record in newer.items():
            if end is None or chunk < end:
                found[chunk] = record.meta
        return [(chunk, found[chunk]) for chunk in sorted(found)[:limit]]
