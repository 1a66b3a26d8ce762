"""Verified reads: bytes leave a block only after the checksums that cover them were found right.

A request is verified by whole grains where it is large and by pages where it is small and they are
known. One system call reads all grains or pages that it touches: the requested bytes straight to
their destination, the rest of a partial first and last one to scratch memory, since a checksum
covers the whole. Two kinds of request take a way through scratch memory instead: chunks some of
whose pages are still in the log, and the first small read of a grain, which learns its pages.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.proto.wire import copies
from hillfire.storage.store.allocator import Allocator
from hillfire.storage.store.checksum import (
    GRAIN_BYTES,
    GRAIN_SHIFT,
    PAGE_BYTES,
    PAGE_SHIFT,
    combine_grains,
    combine_pages,
    crc32c,
)
from hillfire.storage.store.records import Overlay, PendingRecord, Placement, Record
from hillfire.storage.store.scratch import scratch
from hillfire.storage.store.sums import page_sums

SMALL_BYTES = 32 * 1024
"""Requests up to this size are verified by pages."""


class Mismatch(Exception):
    """Bytes and record do not belong together: torn by an update just now, or corrupt."""


class Span(NamedTuple):
    """The grains or pages [first, last] that hold a byte range; bytes from ``start`` to ``end``."""

    first: int
    last: int
    start: int
    end: int


def span(offset: int, n_bytes: int, length: int, shift: int = GRAIN_SHIFT) -> Span:
    """Return what holds ``n_bytes`` from ``offset`` of a chunk of ``length`` bytes."""
    first, last = offset >> shift, (offset + n_bytes - 1) >> shift
    return Span(first, last, first << shift, min(last + 1 << shift, length))


def read_verified(
    blocks: Allocator, record: Record, offset: int, into: memoryview, nowait: bool = False
) -> int:
    """Fill ``into`` with a record's bytes from ``offset`` on, all within its length.

    Returns their CRC32C.

    Raises:
        Mismatch: they fail their checksum, or the file ends before them.
        BlockingIOError: with ``nowait``, if some are not in the page cache.
        Error: IO, CORRUPT if the chunk is known to have lost its bytes.
    """
    meta, block, sums, _, _, overlay, under = record
    if block is None:
        raise Error(Code.CORRUPT, "the chunk has lost its bytes; write it whole again")
    n_bytes = len(into)
    if n_bytes <= SMALL_BYTES:
        known = sums.knows(offset >> GRAIN_SHIFT, (offset + n_bytes - 1) >> GRAIN_SHIFT)
        if not known or overlay is not None or under is not None:
            return _read_scratch(blocks, record, offset, into, nowait, known)
        at = span(offset, n_bytes, meta.length, PAGE_SHIFT)
        assert sums.fine is not None, "known pages are there"
        crcs, shift, unit = sums.fine[0], PAGE_SHIFT, PAGE_BYTES
    else:
        if overlay is not None or under is not None:
            return _read_scratch(blocks, record, offset, into, nowait, False)
        at = span(offset, n_bytes, meta.length)
        crcs, shift, unit = sums.grains, GRAIN_SHIFT, GRAIN_BYTES
    first, last, start, end = at
    before, after = offset - start, end - offset - n_bytes
    number = block.number << block.size_class
    if not before and not after:
        _read(blocks, record, number + start, [into], nowait)
        if first == last:
            crc = crc32c(into)
            if crc != crcs[first]:
                raise Mismatch(f"bytes {start} to {end}")
            return crc
        return _verify_many(crcs, shift, into, _NOTHING, _NOTHING, at)
    edges = scratch(2 * unit, "edges")
    head, tail = edges[:before], edges[unit : unit + after]
    _read(blocks, record, number + start, [v for v in (head, into, tail) if v.nbytes], nowait)
    if first == last:
        crc = crc32c(into)
        found = crc32c(tail, crc if not before else crc32c(into, crc32c(head)))
        if found != crcs[first]:
            raise Mismatch(f"bytes {start} to {end}")
        return crc
    return _verify_many(crcs, shift, into, head, tail, at)


_NOTHING = memoryview(b"")


def _read(blocks: Allocator, record: Record, at: int, into: list[memoryview], nowait: bool) -> None:
    block = record.block
    assert block is not None, "a chunk with bytes has a block"
    n_bytes = sum(map(len, into))
    done = blocks.files.read(block.size_class, at, into, n_bytes, nowait=nowait)
    if done != n_bytes:
        if nowait:
            raise BlockingIOError
        raise Mismatch(f"the block file ends {n_bytes - done} bytes too early")


def _verify_many(
    crcs: Sequence[int], shift: int, into: memoryview, head: memoryview, tail: memoryview, at: Span
) -> int:
    """Verify several grains or pages, the whole ones in one pass; returns ``into``'s CRC32C."""
    first, last, start, end = at
    unit = 1 << shift
    crc, done = 0, 0
    if head:
        done = unit - len(head)
        crc = crc32c(into[:done])
        if crc32c(into[:done], crc32c(head)) != crcs[first]:
            raise Mismatch(f"bytes from {start} on")
        first += 1
    partial = bool(tail) or end % unit != 0
    whole_end = len(into)
    if partial:
        whole_end = (last << shift) - start - len(head)
        last -= 1
    if first <= last:
        middle = crc32c(into[done:whole_end])
        if middle != _combine(shift, crcs[first : last + 1]):
            raise Mismatch(f"bytes {first << shift} to {last + 1 << shift}")
        if not done:
            crc = middle
        elif shift == GRAIN_SHIFT:
            crc = combine_grains(crcs[first : last + 1], crc)
        else:
            crc = crc32c(into[:whole_end])
    if partial:
        piece = into[whole_end:]
        if crc32c(tail, crc32c(piece)) != crcs[last + 1]:
            raise Mismatch(f"bytes {last + 1 << shift} to {end}")
        crc = crc32c(piece, crc)
    return crc


def _combine(shift: int, crcs: Sequence[int]) -> int:
    if shift == GRAIN_SHIFT:
        return combine_grains(crcs)
    return combine_pages(crcs, len(crcs) << PAGE_SHIFT)


def _read_scratch(
    blocks: Allocator, record: Record, offset: int, into: memoryview, nowait: bool, known: bool
) -> int:
    """Read whole grains or known pages to scratch memory, verify, learn, and copy."""
    length, sums = record.meta.length, record.sums
    shift = PAGE_SHIFT if known else GRAIN_SHIFT
    first, last, start, end = span(offset, len(into), length, shift)
    image = scratch(end - start, "read")
    if not _from_overlay(record, image, start):
        block = record.block
        assert block is not None, "a chunk with bytes has a block"
        _read(blocks, record, block.offset + start, [image], nowait)
        for overlay in (record.under, record.overlay):
            if overlay is not None:
                _lay_over(overlay, image, start, end)
    if known:
        assert sums.fine is not None, "known pages are there"
        for page, crc in enumerate(page_sums(image), first):
            if crc != sums.fine[0][page]:
                raise Mismatch(f"page {page}")
    elif len(into) <= SMALL_BYTES:
        for grain in range(first, last + 1):
            piece = image[(grain << GRAIN_SHIFT) - start :][:GRAIN_BYTES]
            pages = page_sums(piece)
            if combine_pages(pages, len(piece)) != sums.grains[grain]:
                raise Mismatch(f"grain {grain}")
            if not sums.knows(grain, grain):
                sums.learn(length, grain, pages)
    else:
        _verify_many(sums.grains, GRAIN_SHIFT, image, _NOTHING, _NOTHING,
                     Span(first, last, start, end))  # fmt: skip
    piece = image[offset - start :][: len(into)]
    into[:] = piece
    copies.SCRATCH.value += len(piece)
    return crc32c(piece)


def _from_overlay(record: Record, image: memoryview, start: int) -> bool:
    """Fill one page from an overlay that has all of it; False if there is none."""
    if len(image) > PAGE_BYTES:
        return False
    for overlay in (record.overlay, record.under):
        data = None if overlay is None else overlay.get(start >> PAGE_SHIFT)
        if data is not None:
            if len(data) < len(image):
                return False
            image[:] = data[: len(image)]
            return True
    return False


def _lay_over(overlay: Overlay, image: memoryview, start: int, end: int) -> None:
    """Replace the pages that an overlay has; those behind ``end`` were cut off since."""
    for page in range(start >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1):
        data = overlay.get(page)
        if data is not None:
            at = (page << PAGE_SHIFT) - start
            stop = min(at + len(data), len(image))
            image[at:stop] = data[: stop - at]


def read_payload(blocks: Allocator, record: PendingRecord, into: memoryview) -> int:
    """Fill ``into`` with the payload of a pending update; returns its length.

    Raises:
        Error: CORRUPT, IO.
    """
    pending, block = record.pending, record.block
    count = pending.payload_length
    if not count:
        return 0
    into = into[:count]
    if record.placement == Placement.PATCH:
        into[:] = record.image[pending.offset - record.image_offset :][:count]
    else:
        assert block is not None, "a payload outside the log lies in a block"
        blocks.files.read(block.size_class, block.offset + pending.offset, [into], count)
    if crc32c(into) != pending.payload_checksum:
        raise Error(Code.CORRUPT, "the payload of a pending update fails its checksum")
    return count
