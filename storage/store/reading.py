"""Verified reads: bytes leave a block only after the checksums of their grains were found right.

One system call reads all grains that a request touches: the requested bytes straight to their
destination, the rest of a partial first and last grain to scratch memory, since its checksum
covers the whole grain. Each byte is passed over once, those of partial grains twice.
"""

import os
import threading
from collections.abc import Sequence
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.storage.store.catalog import Catalog
from hillfire.storage.store.checksum import (
    GRAIN_BYTES,
    GRAIN_SHIFT,
    combine_grains,
    crc32c,
)
from hillfire.storage.store.files import BlockFiles
from hillfire.storage.store.records import PendingRecord, Placement, Record
from hillfire.types import ChunkId, Version


class Mismatch(Exception):
    """Bytes and record do not belong together: torn by an update just now, or corrupt."""


class Span(NamedTuple):
    """The grains [first, last] that hold a byte range; bytes from ``start`` to ``end``."""

    first: int
    last: int
    start: int
    end: int


def span(offset: int, n_bytes: int, length: int) -> Span:
    """Return the grains of ``n_bytes`` from ``offset`` of a chunk of ``length`` bytes."""
    first, last = offset >> GRAIN_SHIFT, (offset + n_bytes - 1) >> GRAIN_SHIFT
    return Span(first, last, first << GRAIN_SHIFT, min(last + 1 << GRAIN_SHIFT, length))


def read_verified(
    files: BlockFiles, record: Record, offset: int, into: memoryview, flags: int = 0
) -> int:
    """Fill ``into`` with a record's bytes from ``offset`` on, all within its length.

    Returns their CRC32C.

    Raises:
        Mismatch: they fail their checksum, or the file ends before them.
        BlockingIOError: with RWF_NOWAIT, if some are not in the page cache.
        Error: IO.
    """
    n_bytes = len(into)
    first, last, start, end = span(offset, n_bytes, record.meta.length)
    before, after = offset - start, end - offset - n_bytes
    block, grains = record.block, record.grains
    assert block is not None, "a chunk with bytes has a block"
    scratch = files.scratch(2 * GRAIN_BYTES)
    head, tail = scratch[:before], scratch[GRAIN_BYTES : GRAIN_BYTES + after]
    buffers = [view for view in (head, into, tail) if view.nbytes]
    done = files.read(block, start, buffers, end - start, flags)
    if done != end - start:
        if flags:
            raise BlockingIOError
        raise Mismatch(f"the block file ends {end - start - done} bytes too early")
    if first == last:
        crc = crc32c(into)
        whole = crc32c(tail, crc if not before else crc32c(into, crc32c(head)))
        if whole != grains[first]:
            raise Mismatch(f"grain {first}")
        return crc
    return _verify_many(record, into, head, tail, Span(first, last, start, end))


def _verify_many(
    record: Record, into: memoryview, head: memoryview, tail: memoryview, at: Span
) -> int:
    """Verify several grains, the whole ones in one pass; returns the CRC32C of ``into``."""
    first, last, start, end = at
    grains, crc, done = record.grains, 0, 0
    if head:
        done = GRAIN_BYTES - len(head)
        crc = crc32c(into[:done])
        if crc32c(into[:done], crc32c(head)) != grains[first]:
            raise Mismatch(f"grain {first}")
        first += 1
    partial = bool(tail) or end % GRAIN_BYTES != 0
    whole_end = len(into)
    if partial:
        whole_end = (last << GRAIN_SHIFT) - start - len(head)
        last -= 1
    if first <= last:
        middle = crc32c(into[done:whole_end])
        if middle != combine_grains(grains[first : last + 1]):
            raise Mismatch(f"grains {first} to {last}")
        crc = combine_grains(grains[first : last + 1], crc) if done else middle
    if partial:
        piece = into[whole_end:]
        if crc32c(tail, crc32c(piece)) != grains[last + 1]:
            raise Mismatch(f"grain {last + 1}")
        crc = crc32c(piece, crc)
    return crc


def read_payload(files: BlockFiles, record: PendingRecord, into: memoryview) -> int:
    """Fill ``into`` with the payload of a pending update; returns its length.

    Raises:
        Error: CORRUPT, IO.
    """
    pending = record.pending
    count = pending.payload_length
    if not count:
        return 0
    into = into[:count]
    if record.placement == Placement.PATCH:
        into[:] = record.payload
    else:
        assert record.block is not None, "a payload outside the record lies in a block"
        files.read(record.block, pending.offset, [into], count)
    if crc32c(into) != pending.payload_checksum:
        raise Error(Code.CORRUPT, "the payload of a pending update fails its checksum")
    return count


class Reader:
    """Reads chunks beside everything else that happens to them."""

    def __init__(
        self, files: BlockFiles, catalog: Catalog, stripes: Sequence[threading.Lock]
    ) -> None:
        """``stripes``: the locks under which patches are applied, a chunk's by its hash."""
        self._files = files
        self._catalog = catalog
        self._records = catalog.cache
        self._stripes = stripes

    def read(self, chunk: ChunkId, offset: int, into: memoryview) -> tuple[int, int, Version]:
        """See ``ChunkStore.read``."""
        number = self._catalog.enter()
        try:
            try:
                return self._read(chunk, offset, into, 0)
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
            return self._read(chunk, offset, into, os.RWF_NOWAIT)
        except (BlockingIOError, Mismatch):
            return None
        finally:
            self._catalog.leave(number)

    def _read(
        self, chunk: ChunkId, offset: int, into: memoryview, flags: int
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
        return len(into), read_verified(self._files, record, offset, into, flags), meta.version

    def _read_again(
        self, chunk: ChunkId, offset: int, into: memoryview
    ) -> tuple[int, int, Version]:
        """Read under the chunk's lock, into memory that nobody else can change meanwhile."""
        with self._stripes[hash(chunk) % len(self._stripes)]:
            private = self._files.scratch(len(into), "image")[: len(into)]
            try:
                count, crc, version = self._read(chunk, offset, private, 0)
            except Mismatch as exc:
                text = f"chunk {chunk.hex()}: stored bytes fail their checksum ({exc})"
                raise Error(Code.CORRUPT, text) from exc
        into[:count] = private[:count]
        return count, crc, version
