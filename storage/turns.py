"""Turns: recovery's batches wait here for their turn. The shell of ``throttle.py``.

One per node, shared by all its syncs and scrubs, so that together they keep to the node's share.
How busy the other end is it tells with each page of its records (``storage.proto``); a node that
has told nothing yet counts as busy.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hillfire.storage.throttle import NS_PER_S, Limits, Meter, Throttle

RECHECK_S = 0.05
"""How often who waits looks again: the foreground may have ended meanwhile."""
MAX_WAITING = 65_536
"""Batches in line: a few for each target of a node."""


class Peer:
    """How busy a sync's other end is, as far as it is known."""

    __slots__ = ("busy", "streams")

    def __init__(self) -> None:
        """Take it for busy until it has told."""
        self.busy = 1.0
        self.streams = 1
        """syncs that it takes at once"""


ALONE = Peer()
"""For work that concerns this node only: nobody at the other end."""
ALONE.busy = 0.0


class Turns:
    """Who may work for recovery now, in the order of asking."""

    def __init__(self, limits: Limits) -> None:
        """``meter`` is to be told of every foreground request."""
        self.meter = Meter()
        self.throttle = Throttle(limits)
        self._line: deque[asyncio.Event] = deque()

    def busy(self) -> float:
        """Return how busy foreground requests keep this node, from 0 to 1."""
        return self.meter.busy(time.monotonic_ns())

    @asynccontextmanager
    async def turn(self, n_bytes: int, peer: Peer = ALONE) -> AsyncIterator[None]:
        """Wait for one's turn to move ``n_bytes``, and hold it within the block."""
        assert len(self._line) < MAX_WAITING, "each sync has a few batches on their way"
        await self._first_in_line()
        try:
            while True:
                now_ns = time.monotonic_ns()
                busy = max(self.meter.busy(now_ns), peer.busy)
                wait_ns = self.throttle.wait_ns(now_ns, busy, peer.streams)
                if not wait_ns:
                    break
                await asyncio.sleep(min(RECHECK_S, wait_ns / NS_PER_S))
            self.throttle.began(now_ns, n_bytes)
        finally:
            self._line.popleft()
            if self._line:
                self._line[0].set()
        try:
            yield
        finally:
            self.throttle.ended(time.monotonic_ns())

    async def _first_in_line(self) -> None:
        mine = asyncio.Event()
        self._line.append(mine)
        if len(self._line) == 1:
            return
        try:
            await mine.wait()
        except BaseException:
            if self._line[0] is mine:
                self._line.popleft()
                if self._line:
                    self._line[0].set()
            else:
                self._line.remove(mine)
            raise
