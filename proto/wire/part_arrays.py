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


def pack(parts: Parts, region: int, offsets: NDArray[np.int64]) -> bytes:
    """Return the records of parts as they lie at ``offsets`` of the region with this number."""
    records: NDArray[np.void] = np.empty(len(parts), _RECORD)
    records["region"] = region
    records["offset"] = offsets
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


def rows(table: memoryview) -> tuple[memoryview, int]:
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


def in_a_row(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each begins if they lie one after another."""
    places: NDArray[np.int64] = lengths.cumsum() - lengths
    return places


def filled_of(parts: Parts, table: memoryview) -> NDArray[np.int64]:
    """Return how many bytes of each part were filled, by a response's table.

    Raises:
        Error: PROTOCOL for more than there is room, or for another number of parts.
    """
    filled = np.frombuffer(table, "<u4").astype(np.int64)
    if len(filled) != len(parts) or (filled > parts.lengths).any():
        raise Error(Code.PROTOCOL, "an answer with more, or others, than its destinations hold")
    return filled


def spans(offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return (begin, end) of stretches in their order, neighbours as one, empty ones left out."""
    some = lengths > 0
    begins = offsets[some]
    ends = begins + lengths[some]
    if not len(begins):
        return []
    breaks = np.flatnonzero(begins[1:] != ends[:-1])
    firsts = begins[np.concatenate(([0], breaks + 1))]
    lasts = ends[np.concatenate((breaks, [len(ends) - 1]))]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def runs(parts: Parts, filled: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Return how parts that lie in a row elsewhere are copied, in as few steps as there can be.

    Each step is (where it begins in the row, where in the parts' region, its length), for the
    first ``filled`` bytes of each part.
    """
    some = filled > 0
    here, there = in_a_row(parts.lengths)[some], parts.offsets[some]
    lengths = filled[some]
    if not len(here):
        return []
    apart = (here[1:] != here[:-1] + lengths[:-1]) | (there[1:] != there[:-1] + lengths[:-1])
    firsts = np.concatenate(([0], np.flatnonzero(apart) + 1))
    totals = np.add.reduceat(lengths, firsts)
    found = zip(here[firsts].tolist(), there[firsts].tolist(), totals.tolist(), strict=True)
    return list(found)
