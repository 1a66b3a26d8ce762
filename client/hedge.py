"""When a read that takes long is asked of another replica too, and how much of that is allowed.

Pure: time is passed in. A hedge is due when its request has taken clearly longer than nineteen of
twenty do at the replica that would be asked instead: what this node itself is used to does not
count, or one that is always slow would never be hedged. Hedges earn what they may cost from the
requests that are sent anyway, so that a cluster that is slow because it is loaded gets at most a
twentieth more. Retries to be made at once earn theirs likewise; those beyond it wait first.

Where hedges land is the affair of ``hedged.py``: never where the first answer may still land.

Source: Dean & Barroso, "The Tail at Scale" (CACM 2013); gRPC's retry throttling (A6).
"""

from collections.abc import Callable, Iterable

from hillfire.client.load import Loads, Ticket, class_of

HEDGE_SHARE = 0.05
"""Of all that is read, in bytes and requests' costs: what hedges may read besides."""
HEDGE_BURST = 8 * 1024 * 1024
"""What a quiet client may spend on hedges at once, in bytes and requests' costs."""
RETRY_SHARE = 0.2
"""Retries at once for each request that was answered."""
RETRY_BURST = 64.0
PATIENCE = 2.0
"""How late a request is hedged, in times of what nineteen of twenty take: under a load that fills
links one in twenty is always that late, and a second copy would only add to it."""
MIN_DELAY_S = 0.001
"""Nothing is hedged earlier: a thread that was not scheduled looks like that."""
MAX_DELAY_S = 0.5
"""Nor later: less than a lease, in which a dead node is found out."""
MAX_HEDGED_BYTES = 4 * 1024 * 1024
"""Larger requests are not hedged: a second copy would cost more than what it waits for."""


class Budget:
    """Tokens that are earned by a share of what happens anyway, up to a burst."""

    __slots__ = ("_meter", "_seen", "burst", "left", "share")

    def __init__(self, share: float, burst: float, meter: Callable[[], float]) -> None:
        """Begin with a full burst. ``meter`` counts what is done anyway; it is read seldom."""
        self.share = share
        self.burst = burst
        self.left = burst
        self._meter = meter
        self._seen = meter()

    def spend(self, amount: float) -> bool:
        """Take ``amount`` if it is there."""
        now = self._meter()
        self.left = min(self.burst, self.left + (now - self._seen) * self.share)
        self._seen = now
        if self.left < amount:
            return False
        self.left -= amount
        return True


class Hedging:
    """The decision for one client."""

    def __init__(self, loads: Loads, enabled: bool = True) -> None:
        """Decide by what ``loads`` knows of the nodes."""
        self.enabled = enabled
        self.budget = Budget(HEDGE_SHARE, HEDGE_BURST, lambda: loads.cost)
        self.retries = Budget(RETRY_SHARE, RETRY_BURST, lambda: loads.answers)
        """of reads that failed, at once"""
        self.direct: set[int] = set()
        """nodes that write into this process's memory themselves, abandoned or not"""
        self._loads = loads

    def delay_s(self, ticket: Ticket, others: Iterable[int]) -> float | None:
        """Return how long after it was sent a request is asked of ``others`` too; None: never.

        ``others`` are the nodes that would be asked instead, its own left out.
        """
        if not self.enabled or ticket.bytes > MAX_HEDGED_BYTES:
            return None
        size, least = class_of(ticket.bytes), -1.0
        for node in others:
            late_s = self._loads.of(node).late_s[size]
            if node != ticket.node and (least < 0 or late_s < least):
                least = late_s
        return None if least < 0 else min(MAX_DELAY_S, max(MIN_DELAY_S, PATIENCE * least))

    def allow(self, ticket: Ticket, now: float) -> bool:
        """Tell whether a hedge that is due may be sent, and pay for it; its node is late anyhow."""
        self._loads.overdue(ticket, now)
        return self.budget.spend(ticket.cost)
