"""Throttle: how much of a node's time recovery may take while others want it. Pure.

What recovery costs its users depends on the disk, the network and the processor at once, and a
limit in bytes a second would be right for one machine only. So recovery is given a *share of the
time*: with foreground requests under way it works on one batch, then rests in proportion to how
long that took. Whatever the bottleneck is, foreground requests have it for themselves for the rest
of the time, so they keep at least ``1 - share`` of their throughput. Without foreground requests
nothing is held back.

Time enters as nanoseconds of a clock that never jumps; ``storage/turns.py`` carries it out.

Source: design.md 5, Recovery ("throttled").
"""

from typing import NamedTuple

NS_PER_S = 1_000_000_000
WINDOW_NS = 500_000_000
"""Over so long it is measured how busy a node is."""
IDLE = 0.01
"""Less busy than that counts as idle: a mount that looks around must not slow a resync down."""
MAX_WORK_NS = 2 * NS_PER_S
"""A batch that took longer counts as this long: one stall must not bring about a long rest."""


class Meter:
    """How busy a node is: the part of the last half second in which a request was under way."""

    __slots__ = ("_at_work", "_busy_ns", "_last", "_since_ns", "_window_ns")

    def __init__(self) -> None:
        """Begin idle."""
        self._at_work = 0
        self._since_ns = 0
        """up to when the time at work is counted"""
        self._window_ns = 0
        """when the present window began"""
        self._busy_ns = 0
        self._last = 0.0
        """the part of the window before"""

    def enter(self, now_ns: int) -> None:
        """Take note that a request arrived."""
        self._count(now_ns)
        self._at_work += 1

    def leave(self, now_ns: int) -> None:
        """Take note that a request was answered."""
        self._count(now_ns)
        self._at_work -= 1
        assert self._at_work >= 0, "more requests left than came"

    def busy(self, now_ns: int) -> float:
        """Return the part, from 0 to 1, of the last window's length that somebody was served."""
        self._count(now_ns)
        age = now_ns - self._window_ns
        return min(1.0, self._busy_ns / WINDOW_NS + self._last * (1 - age / WINDOW_NS))

    def _count(self, now_ns: int) -> None:
        """Take the time since the last call in, window by window."""
        end = self._window_ns + WINDOW_NS
        if now_ns < end:
            if self._at_work:
                self._busy_ns += max(0, now_ns - self._since_ns)
        else:
            if self._at_work:
                self._busy_ns += max(0, end - max(self._since_ns, self._window_ns))
            full = 1.0 if self._at_work else 0.0
            windows = (now_ns - self._window_ns) // WINDOW_NS
            self._last = self._busy_ns / WINDOW_NS if windows == 1 else full
            self._window_ns += windows * WINDOW_NS
            self._busy_ns = now_ns - self._window_ns if self._at_work else 0
        self._since_ns = now_ns


class Limits(NamedTuple):
    """What a node's configuration allows recovery."""

    share: float = 0.2
    """of the time, while foreground requests keep the node busy; 1: never held back"""
    bytes_per_s: int = 0
    """at most, whoever else wants the node; 0: no such limit"""


class Throttle:
    """When recovery's next batch may begin on this node, all syncs and scrubs of it together."""

    def __init__(self, limits: Limits) -> None:
        """Begin with nothing at work."""
        self.limits = limits
        self.at_work = 0
        """batches under way"""
        self._began_ns = 0
        self._work_ns = 0
        """how long the last work took, from the first batch's begin to the last one's end"""
        self._ended_ns = 0
        self._bytes_from_ns = 0
        """when the limit in bytes a second lets the next batch begin"""

    def duty(self, busy: float, streams: int = 1) -> float:
        """Return the part of the time that one of ``streams`` syncs may be at work.

        ``busy``: of whichever of the two nodes is busier, sender or receiver; ``streams``: how many
        syncs the receiver takes at once, so that together they keep to its share. How busy does
        not matter once somebody is there: a client that waits most of its time for others loses
        as much by each batch that it has to wait for here.
        """
        if busy <= IDLE or self.limits.share >= 1:
            return 1.0
        return self.limits.share / max(1, streams)

    def wait_ns(self, now_ns: int, busy: float, streams: int = 1) -> int:
        """Return how long the next batch has to wait, as things are now; 0: it may begin.

        To be asked again before that time is over: if the foreground ends, so does the wait.
        """
        waits = max(0, self._bytes_from_ns - now_ns)
        duty = self.duty(busy, streams)
        if duty >= 1:
            return waits
        if self.at_work:
            return max(waits, self._work_ns // 2, NS_PER_S // 1000)
        rest_ns = int(self._work_ns * (1 / duty - 1))
        return max(waits, self._ended_ns + rest_ns - now_ns)

    def began(self, now_ns: int, n_bytes: int) -> None:
        """Take note that a batch begins."""
        if not self.at_work:
            self._began_ns = now_ns
        self.at_work += 1
        if self.limits.bytes_per_s:
            from_ns = max(self._bytes_from_ns, now_ns)
            self._bytes_from_ns = from_ns + n_bytes * NS_PER_S // self.limits.bytes_per_s

    def ended(self, now_ns: int) -> None:
        """Take note that a batch ended, whatever became of it."""
        self.at_work -= 1
        assert self.at_work >= 0, "more batches ended than began"
        if not self.at_work:
            self._ended_ns = now_ns
            self._work_ns = min(MAX_WORK_NS, now_ns - self._began_ns)
