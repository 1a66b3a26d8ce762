"""Memory that a server can map, lent to requests whose own memory it cannot.

Foreign buffers cost one memcpy over shm: through here. A request takes one block for all its
foreign parts and gives it back with its answer; one that was given up keeps it until then.
Blocks are powers of two, small ones cut from slabs, so that few regions need be registered.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.region import Region

MAX_STAGING_BYTES = 1024 * 1024 * 1024
"""Of a connection. With slabs of 8 MiB that is fewer regions than a server allows."""
KEEP_BYTES = 128 * 1024 * 1024
"""Of free blocks larger than a slab; first touch of new memory is slow, so they are kept."""
_SMALLEST = 12  # as a power of two
_SLAB = 23


class Block(NamedTuple):
    """A stretch of a staging region."""

    region: Region
    offset: int
    power: int


class Loan:
    """One block, cut up for a request's foreign parts, by their positions."""

    __slots__ = ("_block", "_staging", "offsets", "region", "views")

    def __init__(
        self, staging: "Staging", block: Block, foreign: Sequence[tuple[int, int]]
    ) -> None:
        """Give each (position, length) its place, one after another."""
        self._staging = staging
        self._block = block
        self.region = block.region
        self.offsets: dict[int, int] = {}
        self.views: dict[int, memoryview] = {}
        end = block.offset
        for position, length in foreign:
            self.offsets[position] = end
            self.views[position] = block.region.view[end : end + length]
            end += length

    def give_back(self) -> None:
        """End the loan: the server has let go."""
        self.views.clear()
        self._staging.take_back(self._block)


class Staging:
    """The blocks of one connection."""

    def __init__(self, max_bytes: int = MAX_STAGING_BYTES, keep_bytes: int = KEEP_BYTES) -> None:
        """Begin with none."""
        self._free: dict[int, list[Block]] = {}
        self._slabs: list[Region] = []
        self._bytes = 0
        self._kept = 0
        self._max_bytes = max_bytes
        self._keep_bytes = keep_bytes

    def lend(self, foreign: Sequence[tuple[int, int]]) -> Loan:
        """Return memory for parts given as (position, length).

        Raises:
            Error: NO_SPACE; OVERLOADED if too much is lent already.
        """
        total = sum(length for _, length in foreign)
        power = max(_SMALLEST, (total - 1).bit_length())
        free = self._free.setdefault(power, [])
        if not free:
            region = self._allocate(max(power, _SLAB))
            free.extend(Block(region, at, power) for at in range(0, region.size, 1 << power))
            if power <= _SLAB:
                self._slabs.append(region)
        elif power > _SLAB:
            self._kept -= 1 << power
        return Loan(self, free.pop(), foreign)

    def _allocate(self, power: int) -> Region:
        """Return a new region of a power of two."""
        if self._bytes + (1 << power) > self._max_bytes:
            text = f"{self._bytes} bytes of staging memory are in use; register a region instead"
            raise Error(Code.OVERLOADED, text)
        region = Region.allocate(1 << power)
        self._bytes += region.size
        return region

    def take_back(self, block: Block) -> None:
        """Keep a block for reuse, or end its region."""
        size = 1 << block.power
        if block.power > _SLAB:
            if self._kept + size > self._keep_bytes:
                self._bytes -= size
                block.region.close()
                return
            self._kept += size
        self._free[block.power].append(block)

    def close(self) -> None:
        """End all regions. Loans are over."""
        for slab in self._slabs:
            slab.close()
        for power, free in self._free.items():
            if power > _SLAB:
                for block in free:
                    block.region.close()
        self._slabs.clear()
        self._free.clear()
