"""Buffer pools: the memory that writes on their way live in, one pool a position in the chain.

A write at position p only ever waits for memory of position p + 1 elsewhere, so chains that cross
the same nodes in opposite orders cannot stop each other (design.md, section 4). A span is used
again only when nobody holds it and no forward that was given up may still be read from it.
"""

import asyncio
from bisect import insort
from collections import deque

from hillfire.errors import Code, Error
from hillfire.region import Region

GRAIN = 4096
MAX_WAITERS = 4096
"""Requests in line for one pool's memory; more are refused with OVERLOADED."""
RECHECK_S = 0.05
"""How often spans in quarantine are looked at while somebody waits for memory."""


class Holder:
    """Memory with users: ``ended`` is called when the last one let go."""

    __slots__ = ("_users",)

    def __init__(self) -> None:
        """Start with one user: whoever made it."""
        self._users = 1

    def hold(self) -> None:
        """Add a user."""
        self._users += 1

    def drop(self) -> None:
        """Remove a user."""
        self._users -= 1
        assert self._users >= 0, "dropped more often than held"
        if not self._users:
            self.ended()

    def ended(self) -> None:
        """Nobody uses the memory any more."""


class Span(Holder):
    """A range of a pool's region."""

    __slots__ = ("_pool", "length", "offset", "region", "view")

    def __init__(self, pool: "Pool", offset: int, length: int) -> None:
        """Made by ``Pool.take``."""
        super().__init__()
        self._pool = pool
        self.region = pool.region
        self.offset = offset
        self.length = length
        self.view = pool.region.view[offset : offset + length]

    def ended(self) -> None:
        """Give the range back."""
        self._pool.give_back(self.offset, self.length)


class Pool:
    """One region cut up on demand, first fit, waiters served in order. For one event loop."""

    def __init__(self, n_bytes: int) -> None:
        """Allocate and fault in.

        Raises:
            Error: NO_SPACE if the memory is not there.
        """
        self.region = Region.allocate(n_bytes)
        self._free: list[tuple[int, int]] = [(0, n_bytes)]
        self._limbo: list[tuple[int, int]] = []
        self._waiters: deque[tuple[int, asyncio.Future[Span]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        """Tell how much is free."""
        free = sum(length for _, length in self._free)
        return f"<Pool {self.region.size} B, {free} free, {len(self._waiters)} wait>"

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return self.region.size

    def take_now(self, length: int) -> Span | None:
        """Return a span if one is free and nobody waits."""
        return None if self._waiters else self._take(length)

    async def take(self, length: int, timeout_s: float) -> Span:
        """Return a span as soon as there is one.

        Raises:
            Error: OVERLOADED when none came free in time, TOO_LARGE when none ever can.
        """
        if length > self.region.size:
            text = f"{length} bytes at once; this node's pool_bytes is {self.region.size}"
            raise Error(Code.TOO_LARGE, text)
        span = self.take_now(length)
        if span is not None:
            return span
        if len(self._waiters) >= MAX_WAITERS:
            raise Error(Code.OVERLOADED, f"{MAX_WAITERS} requests wait for memory")
        future: asyncio.Future[Span] = asyncio.get_running_loop().create_future()
        self._waiters.append((length, future))
        self._watch()
        try:
            return await asyncio.wait_for(future, timeout_s)
        except BaseException as exc:
            if future.done() and not future.cancelled():
                future.result().drop()  # it came in the same moment
            if isinstance(exc, TimeoutError):
                raise Error(Code.OVERLOADED, f"no {length} bytes of memory came free") from exc
            raise

    def give_back(self, offset: int, length: int) -> None:
        """Take a range back, or keep it aside while a forward given up may still read it."""
        rounded = max(GRAIN, -(-length // GRAIN) * GRAIN)
        if self._busy(offset, rounded):
            self._limbo.append((offset, rounded))
        else:
            self._insert(offset, rounded)
        self._serve()

    def close(self) -> None:
        """Give the memory back once no view of it is left."""
        if self._timer is not None:
            self._timer.cancel()
        self.region.close()

    def _busy(self, offset: int, length: int) -> bool:
        if not self.region.quarantined:
            return False
        try:
            self.region.check(offset, length)
        except Error:
            return True
        return False

    def _take(self, length: int) -> Span | None:
        rounded = max(GRAIN, -(-length // GRAIN) * GRAIN)
        for position, (offset, room) in enumerate(self._free):
            if room >= rounded:
                if room == rounded:
                    del self._free[position]
                else:
                    self._free[position] = (offset + rounded, room - rounded)
                return Span(self, offset, length)
        return None

    def _insert(self, offset: int, length: int) -> None:
        free = self._free
        insort(free, (offset, length))
        position = free.index((offset, length))
        if position + 1 < len(free) and offset + length == free[position + 1][0]:
            length += free.pop(position + 1)[1]
            free[position] = (offset, length)
        if position and sum(free[position - 1]) == offset:
            before = free[position - 1]
            free[position - 1] = (before[0], before[1] + length)
            del free[position]

    def _serve(self) -> None:
        """Serve whoever waits longest, as far as the memory goes."""
        while self._waiters:
            length, future = self._waiters[0]
            if not future.done():
                span = self._take(length)
                if span is None:
                    return
                future.set_result(span)
            self._waiters.popleft()

    def _watch(self) -> None:
        """Look at the quarantined ranges while somebody waits."""
        if self._timer is None and self._waiters:
            self._timer = asyncio.get_running_loop().call_later(RECHECK_S, self._recheck)

    def _recheck(self) -> None:
        self._timer = None
        limbo, self._limbo = self._limbo, []
        for offset, length in limbo:
            if self._busy(offset, length):
                self._limbo.append((offset, length))
            else:
                self._insert(offset, length)
        self._serve()
        self._watch()


class Pools:
    """The pools of a node by position in the chain, made when a position is first held."""

    TRANSFERS = -1
    """The position of recovery's transfers."""

    def __init__(self, n_bytes: int) -> None:
        """Make pools of ``n_bytes`` each."""
        self.n_bytes = n_bytes
        self._pools: dict[int, Pool] = {}

    def at(self, position: int) -> Pool:
        """Return the pool of a position."""
        pool = self._pools.get(position)
        if pool is None:
            pool = self._pools[position] = Pool(self.n_bytes)
        return pool

    def close(self) -> None:
        """Close all."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
