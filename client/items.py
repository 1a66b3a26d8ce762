"""A batch as arrays: which file, where in it, where in memory, how many bytes, for each I/O.

Pure. What users pass (lists, arrays, one number for all) becomes int64 arrays here, once; plans
are made of them without a loop.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hillfire.client.plan import Extent
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Part
from hillfire.region import Region

Longs = NDArray[np.int64]


class Items:
    """I/O ``i``: ``lengths[i]`` bytes at ``offsets[i]`` of a file, at ``places[i]`` of a region."""

    __slots__ = ("extents", "lengths", "offsets", "places", "region", "which")

    def __init__(
        self,
        extents: Sequence[Extent],
        which: Longs | None,
        offsets: Longs,
        places: Longs,
        lengths: Longs,
        region: Region,
    ) -> None:
        """``which[i]`` is the position of I/O ``i``'s file in ``extents``; None: there is one."""
        self.extents = extents
        self.which = which
        self.offsets = offsets
        self.places = places
        self.lengths = lengths
        self.region = region

    def __len__(self) -> int:
        """Return how many I/Os there are."""
        return len(self.offsets)

    def entries(self) -> Iterator[tuple[Extent, int, Part]]:
        """Yield each as a tuple, as it is planned one by one."""
        region, extents = self.region, self.extents
        which = [0] * len(self) if self.which is None else self.which.tolist()
        for file, offset, place, length in zip(
            which, self.offsets.tolist(), self.places.tolist(), self.lengths.tolist(), strict=True
        ):
            yield extents[file], offset, Part(region, place, length)


def longs(values: Any, count: int, what: str) -> Longs:
    """Return ``count`` whole numbers as an int64 array; a single one stands for all.

    Raises:
        Error: INVALID for anything else.
    """
    found = np.asarray(values)
    if found.dtype.kind not in "iu" and found.size:
        raise Error(Code.INVALID, f"{what} must be whole numbers, not {found.dtype}")
    if found.ndim == 0:
        return np.full(count, found, np.int64)
    if found.shape != (count,):
        text = f"{what} of shape {found.shape} for a batch of {count}"
        raise Error(Code.INVALID, text)
    if found.dtype.kind == "u" and count and found.max() > np.iinfo(np.int64).max:
        raise Error(Code.INVALID, f"{what} up to {found.max()}")
    return found.astype(np.int64, copy=False)
