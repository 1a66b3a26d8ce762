"""The parts of a large batch as NumPy sees them: checked and packed in one go.

Imported only where there are such batches: to load NumPy takes longer than most commands.
"""

import numpy as np
from numpy.typing import NDArray

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import PART, Parts

_RECORD = np.dtype([("region", "<u8"), ("offset", "<u8"), ("length", "<u4")])
assert _RECORD.itemsize == PART.size


def check(parts: Parts) -> int:
    """Return the sum of the lengths of parts that lie within their region.

    Raises:
        Error: INVALID for one that does not.
    """
    offsets, lengths, size = parts.offsets, parts.lengths, parts.region.size
    if len(offsets) != len(lengths):
        raise Error(Code.INVALID, f"{len(offsets)} offsets of parts, {len(lengths)} lengths")
    if not len(offsets):
        return 0
    wrong = (offsets < 0) | (lengths < 0) | (lengths > size - offsets)
    if wrong.any():
        first = int(np.argmax(wrong))
        parts.region.check(int(offsets[first]), int(lengths[first]))
    return int(lengths.sum())


def pack(parts: Parts, region: int) -> bytes:
    """Return the records of parts, as of the region with this number."""
    records: NDArray[np.void] = np.empty(len(parts), _RECORD)
    records["region"] = region
    records["offset"] = parts.offsets
    records["length"] = parts.lengths
    return records.tobytes()


def lengths_only(parts: Parts) -> bytes:
    """Return the records of parts whose place is no affair of the server."""
    records: NDArray[np.void] = np.zeros(len(parts), _RECORD)
    records["length"] = parts.lengths
    return records.tobytes()


def survey(table: memoryview) -> tuple[int, int, int]:
    """Return the region of a table's records, the highest end, and the sum of the lengths.

    The region is -1 if there are several, or if an end is beyond what can be.
    """
    records = np.frombuffer(table, _RECORD)
    regions, offsets, lengths = records["region"], records["offset"], records["length"]
    region = int(regions[0])
    total = int(lengths.sum(dtype=np.uint64))
    if int(offsets.max()) >> 62 or not (regions == region).all():
        return -1, 0, total
    return region, int((offsets + lengths).max()), total


def in_a_row(table: memoryview) -> tuple[memoryview, int]:
    """Return the records of a table as if its parts lay one after another, and their sum."""
    records = np.frombuffer(table, _RECORD).copy()
    ends = records["length"].cumsum(dtype=np.uint64)
    records["region"] = 0
    records["offset"] = ends - records["length"]
    return memoryview(records.tobytes()), int(ends[-1])


def all_filled(table: memoryview, filled: bytes) -> bool:
    """Tell whether every part of a table was filled to its end, by a response's table."""
    lengths = np.frombuffer(table, _RECORD)["length"]
    return np.array_equal(lengths, np.frombuffer(filled, "<u4"))


def filled_spans(parts: Parts, table: memoryview) -> list[tuple[int, int]]:
    """Return (begin, end) in the region of what a response's table says was filled of parts.

    They come in the parts' order, neighbours as one.

    Raises:
        Error: PROTOCOL for more than there is room.
    """
    filled = np.frombuffer(table, "<u4").astype(np.int64)
    if (filled > parts.lengths).any():
        raise Error(Code.PROTOCOL, "more bytes for a destination than it holds")
    some = filled > 0
    begins = parts.offsets[some]
    ends = begins + filled[some]
    if not len(begins):
        return []
    breaks = np.flatnonzero(begins[1:] != ends[:-1])
    firsts = begins[np.concatenate(([0], breaks + 1))]
    lasts = ends[np.concatenate((breaks, [len(ends) - 1]))]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
