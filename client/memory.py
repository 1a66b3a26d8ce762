"""The memory of a batch: which region it lies in, and where, for each I/O.

Users name memory as they have it: a region with places in it, or an array, a tensor, a buffer. An
array that lies in a region is known by its address and used in place; any other memory is a
foreign buffer, at one memcpy over shm and tcp.
"""

from typing import Any

import numpy as np

from hillfire.arrays import Rows, address_of, rows_of
from hillfire.client.items import Longs, longs
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Part
from hillfire.region import Region


def register(memory: object) -> Region:
    """Return a region: of so many bytes of hillfire's memory, or over a buffer."""
    return Region.allocate(memory) if isinstance(memory, int) else Region.wrap(memory, True)


def place(memory: Any, count: int | None, lengths: Any, places: Any) -> tuple[Region, Longs, Longs]:
    """Return the region, the places in it and the lengths for ``count`` I/Os (None: one).

    A region needs ``lengths``; without ``places`` they follow one another from its start. An
    array has a row for each I/O, one I/O has the whole of it; ``lengths`` may be shorter.

    Raises:
        Error: INVALID for memory that does not match the count, or is not in one piece.
    """
    number = 1 if count is None else count
    if isinstance(memory, Region):
        if lengths is None:
            raise Error(Code.INVALID, "a region says nothing of lengths: name them")
        long = longs(lengths, number, "lengths")
        if places is None:
            return memory, np.cumsum(long) - long, long
        return memory, longs(places, number, "places"), long
    if places is not None:
        raise Error(Code.INVALID, "places are for regions: an array's rows are where they are")
    rows = rows_of(memory)
    if count is None or (count == 1 and rows.number != 1):
        rows = _whole(rows)
    if rows.number != number:
        raise Error(Code.INVALID, f"{rows.number} rows of memory for {number} I/Os")
    if lengths is None:
        long = np.full(number, rows.row_bytes, np.int64)
    else:
        long = longs(lengths, number, "lengths")
        if number and int(long.max()) > rows.row_bytes:
            text = f"{long.max()} bytes do not fit into a row of {rows.row_bytes}"
            raise Error(Code.INVALID, text)
    region = Region.holding(rows.address, rows.end) or Region.wrap(memory)
    first = rows.address - region.address
    return region, first + rows.stride * np.arange(number, dtype=np.int64), long


def part_of(view: memoryview) -> Part | None:
    """Return a buffer as a part of the allocated region that it lies in, None if there is none."""
    if view.readonly:
        return None
    start = address_of(view)
    region = Region.holding(start, start + len(view))
    if region is None or region.fd < 0:
        return None
    return Part(region, start - region.address, len(view))


def _whole(rows: Rows) -> Rows:
    """Return all rows as one."""
    if rows.number > 1 and rows.stride != rows.row_bytes:
        raise Error(Code.INVALID, "memory for one I/O that is not in one piece")
    total = rows.number * rows.row_bytes
    return Rows(rows.address, 1, total, total)
