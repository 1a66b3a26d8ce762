"""How a routing becomes visible: one at a time, stored first, then everyone who waits is told.

Between a node's declared death and its publication (the disk takes milliseconds, or seconds) that
node is *condemned*: the service answers none of its heartbeats, so that it cannot gain a lease
that outlives its removal.
"""

import asyncio
import logging

from hillfire.clock import happens
from hillfire.cluster import NodeKind, Routing
from hillfire.meta.manager.state import Store
from hillfire.proto import cluster_pb2 as pb
from hillfire.proto import convert
from hillfire.types import NodeId

log = logging.getLogger(__name__)

MAX_WAITERS = 10_000
"""Calls held open at once; further ones are answered at once."""


class Publisher:
    """What everyone sees, and the one way to change it."""

    routing: Routing
    message: pb.Routing
    """the same, ready to be sent"""
    condemned: frozenset[NodeId]
    """declared dead by a routing that is not visible yet"""
    lock: asyncio.Lock
    """held from reading ``routing`` until the one made of it is visible"""

    def __init__(self, store: Store) -> None:
        """Begin with what is stored."""
        self._store = store
        self.routing = store.routing
        self.message = convert.routing_to_message(store.routing)
        self.condemned = frozenset()
        self.lock = asyncio.Lock()
        self.news = asyncio.Event()
        """set once there is a newer routing; the next one has another event"""
        self._waiting = 0

    async def publish(self, routing: Routing) -> frozenset[NodeId]:
        """Store a routing, then let everyone see it; return whom it declares dead.

        If it cannot be stored, those stay condemned until one can.

        Raises:
            Error: NOT_LEADER, NO_SPACE, IO.
        """
        assert self.lock.locked(), "a change is decided and published under the lock"
        before = self.routing
        self.condemned |= {
            node.id
            for node in before.nodes.values()
            if node.alive and not routing.nodes[node.id].alive
        }
        await self._store.save(routing)
        self.routing, self.message = routing, convert.routing_to_message(routing)
        dead, self.condemned = self.condemned, frozenset()
        self._tell_waiters()
        _log_changes(before, routing)
        return dead

    async def newer(self, known: int, timeout_s: float) -> pb.Routing:
        """Return the routing, once it is newer than ``known`` or the time is over."""
        if known >= self.routing.version and self._waiting < MAX_WAITERS:
            self._waiting += 1
            try:
                await happens(self.news, timeout_s)
            finally:
                self._waiting -= 1
        return self.message

    def close(self) -> None:
        """Let those go who wait."""
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


def _log_changes(before: Routing, after: Routing) -> None:
    for node in after.nodes.values():
        known = before.nodes.get(node.id)
        if known is None or known.alive is not node.alive:
            kind = NodeKind(node.kind).name.lower()
            log.info("event=%s kind=%s node=%d", "up" if node.alive else "dead", kind, node.id)
    for chain in after.chains.values():
        if before.chains.get(chain.id) != chain:
            states = " ".join(f"{t}:{s.name.lower()}" for t, s in chain.targets)
            log.info(
                "event=chain chain=%d version=%d targets='%s'", chain.id, chain.version, states
            )
