"""Reads of chunks beside everything else that happens to them.

A read takes the record as it is, and verifies. If that fails, an update or the reader's own client
may have changed bytes under it: it is tried once more with commits held off, into memory that
nobody else can change. What fails then is damaged.
"""

import threading

from hillfire.errors import Code, Error
from hillfire.proto.wire import copies
from hillfire.storage.store.allocator import Allocator
from hillfire.storage.store.becoming import committed
from hillfire.storage.store.catalog import Catalog
from hillfire.storage.store.checksum import GRAIN_SHIFT, digest
from hillfire.storage.store.reading import Mismatch, read_verified
from hillfire.storage.store.records import PendingRecord, Placement, Record
from hillfire.storage.store.scratch import scratch
from hillfire.storage.store.sums import check
from hillfire.types import ChunkId, Version

VERIFY_BYTES = 1024 * 1024
"""How much is verified at a time; a multiple of a grain."""


class Reader:
    """The reading half of a store. Thread-safe."""

    def __init__(self, blocks: Allocator, catalog: Catalog, commits: threading.Lock) -> None:
        """Read from ``blocks``; chunks change under the lock ``commits``."""
        self._blocks = blocks
        self._catalog = catalog
        self._records = catalog.cache
        self._commits = commits

    def read(self, chunk: ChunkId, offset: int, into: memoryview) -> tuple[int, int, Version]:
        """See ``ChunkStore.read``."""
        number = self._catalog.enter()
        try:
            try:
                return self._read(chunk, offset, into, False)
            except Mismatch:
                return self._read_again(chunk, offset, into)
        finally:
            self._catalog.leave(number)

    def read_cached(
        self, chunk: ChunkId, offset: int, into: memoryview
    ) -> tuple[int, int, Version] | None:
        """See ``ChunkStore.read_cached``."""
        number = self._catalog.enter()
        try:
            return self._read(chunk, offset, into, True)
        except (BlockingIOError, Mismatch):
            return None
        finally:
            self._catalog.leave(number)

    def _read(
        self, chunk: ChunkId, offset: int, into: memoryview, nowait: bool
    ) -> tuple[int, int, Version]:
        record = self._records.get(chunk) or self._catalog.get(chunk)
        if record is None:
            return 0, 0, Version(0)
        meta = record[0]
        count = meta.length - offset
        if count <= 0 or not into:
            return 0, 0, meta.version
        if count < len(into):
            into = into[:count]
        return len(into), read_verified(self._blocks, record, offset, into, nowait), meta.version

    def _read_again(
        self, chunk: ChunkId, offset: int, into: memoryview
    ) -> tuple[int, int, Version]:
        with self._commits:
            private = scratch(len(into), "image")
            try:
                count, crc, version = self._read(chunk, offset, private, False)
            except Mismatch as exc:
                text = f"chunk {chunk.hex()}: stored bytes fail their checksum ({exc})"
                raise Error(Code.CORRUPT, text) from exc
        into[:count] = private[:count]
        copies.SCRATCH.value += count
        return count, crc, version

    def verify(self, chunk: ChunkId, cold: bool) -> int:
        """See ``ChunkStore.verify``."""
        number = self._catalog.enter()
        try:
            record = self._catalog.get(chunk)
            if record is None or not record.meta.length:
                return 0
            try:
                return self._verify(record, cold)
            except (Mismatch, Error) as exc:
                if isinstance(exc, Error) and exc.code != Code.CORRUPT:
                    raise
                with self._commits:  # unless it was being changed
                    record = self._catalog.get(chunk)
                    assert record is not None, "a chunk that was there leaves a tombstone at least"
                    try:
                        return self._verify(record, cold)
                    except Mismatch as damage:
                        text = f"chunk {chunk.hex()}: stored bytes fail their checksum ({damage})"
                        raise Error(Code.CORRUPT, text) from damage
        finally:
            self._catalog.leave(number)

    def is_whole(self, chunk: ChunkId, waiting: PendingRecord) -> bool:
        """Tell whether the bytes of a pending update are there, with all that it builds upon."""
        if waiting.placement in (Placement.NONE, Placement.PATCH):
            return True
        record = committed(waiting, self._catalog.get(chunk), 0, 0, 0)
        start = waiting.first << GRAIN_SHIFT
        try:
            for at in range(start, record.meta.length, VERIFY_BYTES):
                into = scratch(min(VERIFY_BYTES, record.meta.length - at), "image")
                read_verified(self._blocks, record, at, into)
        except Mismatch:
            return False
        return True

    def _verify(self, record: Record, cold: bool) -> int:
        meta, block, sums = record[:3]
        if block is None:
            raise Error(Code.CORRUPT, "the chunk has lost its bytes; write it whole again")
        if not check(sums, meta.length) or digest(sums.grains) != meta.checksum:
            raise Mismatch("the record's own checksums")
        if cold:
            self._blocks.files.drop_cache(block.size_class, block.offset, meta.length)
        for at in range(0, meta.length, VERIFY_BYTES):
            into = scratch(min(VERIFY_BYTES, meta.length - at), "image")
            read_verified(self._blocks, record, at, into)
        return meta.length
