"""Memory that a server can map, lent to requests whose own memory it cannot.

Foreign buffers cost one memcpy over shm: through here. A request takes one region for all its
foreign parts and gives it back with its answer; one that was given up keeps it until then.
"""

from collections.abc import Sequence

from hillfire.region import Region

KEEP_BYTES = 128 * 1024 * 1024
"""Of free staging memory that a connection keeps; first touch of new memory is slow."""
_SMALLEST = 20  # as a power of two


class Loan:
    """One region, cut up for a request's foreign parts, by their positions."""

    __slots__ = ("_staging", "offsets", "region", "views")

    def __init__(
        self, staging: "Staging", region: Region, foreign: Sequence[tuple[int, int]]
    ) -> None:
        """Give each (position, length) its place, one after another."""
        self._staging = staging
        self.region = region
        self.offsets: dict[int, int] = {}
        self.views: dict[int, memoryview] = {}
        end = 0
        for position, length in foreign:
            self.offsets[position] = end
            self.views[position] = region.view[end : end + length]
            end += length

    def give_back(self) -> None:
        """End the loan: the server has let go."""
        self.views.clear()
        self._staging.take_back(self.region)


class Staging:
    """Regions by powers of two, kept for reuse up to a limit."""

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        """Keep at most ``keep_bytes`` of free regions."""
        self._free: dict[int, list[Region]] = {}
        self._kept = 0
        self._keep_bytes = keep_bytes

    def lend(self, foreign: Sequence[tuple[int, int]]) -> Loan:
        """Return memory for parts given as (position, length).

        Raises:
            Error: NO_SPACE.
        """
        total = sum(length for _, length in foreign)
        power = max(_SMALLEST, (total - 1).bit_length())
        free = self._free.get(power)
        if free:
            self._kept -= 1 << power
            return Loan(self, free.pop(), foreign)
        return Loan(self, Region.allocate(1 << power), foreign)

    def take_back(self, region: Region) -> None:
        """Keep a region for reuse, or end it."""
        if self._kept + region.size > self._keep_bytes:
            region.close()
            return
        self._kept += region.size
        self._free.setdefault(region.size.bit_length() - 1, []).append(region)

    def close(self) -> None:
        """End the free regions."""
        for free in self._free.values():
            for region in free:
                region.close()
        self._free.clear()
        self._kept = 0
