"""A node's side of its lease; the manager's is meta/manager/lease.py.

It stands apart from the membership because every request asks it, and because its one rule is
what a removal is safe by.
"""

from hillfire.clock import NS_PER_MS, Clock


class Lease:
    """Whether this process may act: until half a lease after its last answered heartbeat left."""

    __slots__ = ("_boot_ns", "_until_ns")

    def __init__(self, clock: Clock) -> None:
        """Begin without a lease."""
        self._boot_ns = clock.boot_ns
        self._until_ns = 0

    def extend(self, sent_ns: int, lease_ms: int) -> None:
        """Count from when an answered heartbeat was sent; an older answer changes nothing."""
        self._until_ns = max(self._until_ns, sent_ns + lease_ms * NS_PER_MS // 2)

    def end(self) -> None:
        """Give it up at once."""
        self._until_ns = 0

    def valid(self) -> bool:
        """Whether it runs at this moment."""
        return self._boot_ns() < self._until_ns
