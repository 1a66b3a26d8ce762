"""Who may be alive: the manager's side of the nodes' leases. Pure; time comes in as nanoseconds.

A node acts only until L/2 after it *sent* its last answered heartbeat; the manager takes it for
dead no earlier than L after it *received* one. The gap is what makes a removal safe against slow
messages, paused processes and clocks that drift by up to a third.

Source: design of 3FS's manager; Gray & Cheriton, "Leases" (SOSP 1989).
"""

from collections.abc import Iterable
from enum import Enum

from hillfire.cluster import Node
from hillfire.types import NodeId

PAUSE_FRACTION = 4
"""A manager that did not look at its leases for L/4 was paused itself: heartbeats wait unread."""


class Leases:
    """Until when each node has to be taken for alive."""

    def __init__(self, length_ns: int, now_ns: int) -> None:
        """Start with no node."""
        self._length_ns = length_ns
        self._until: dict[NodeId, int] = {}
        self._looked_ns = now_ns
        self._unheard: set[NodeId] = set()
        self._hold_until_ns = now_ns

    def __repr__(self) -> str:
        """Tell how many leases there are."""
        return f"<Leases {len(self._until)} nodes, {len(self._unheard)} not heard since the start>"

    def grant(self, nodes: Iterable[NodeId], now_ns: int) -> None:
        """Give every node that the last manager knew as alive a full lease.

        Until each of them was heard of, or its lease is over, nobody is declared dead: those that
        died together shall be seen together (:meth:`settled`).
        """
        self._unheard = set(nodes)
        self._hold_until_ns = now_ns + self._length_ns
        for node in self._unheard:
            self.extend(node, now_ns)

    def extend(self, node: NodeId, now_ns: int) -> None:
        """Count a node's full lease from now, without having heard of it."""
        self._until[node] = now_ns + self._length_ns

    def renew(self, node: NodeId, now_ns: int) -> None:
        """Count a node's full lease from now: a heartbeat has arrived."""
        self.extend(node, now_ns)
        self._unheard.discard(node)

    def end(self, node: NodeId) -> None:
        """End a node's lease at once: its process is known to be gone."""
        self._until.pop(node, None)
        self._unheard.discard(node)

    def look(self, now_ns: int) -> bool:
        """Note that the manager runs; if it was paused, start every running lease anew (R64).

        Returns whether it was.
        """
        paused = now_ns - self._looked_ns > self._length_ns // PAUSE_FRACTION
        if paused:
            for node, until_ns in self._until.items():
                if until_ns > self._looked_ns:
                    self._until[node] = now_ns + self._length_ns
        self._looked_ns = now_ns
        return paused

    def running(self, node: NodeId, now_ns: int) -> bool:
        """Whether a node has to be taken for alive."""
        return self._until.get(node, 0) > now_ns

    def alive(self, now_ns: int) -> frozenset[NodeId]:
        """List the nodes that have to be taken for alive."""
        return frozenset(node for node, until_ns in self._until.items() if until_ns > now_ns)

    def settled(self, now_ns: int) -> bool:
        """Whether deaths may be declared: a new manager has heard of all, or waited for L."""
        return not self._unheard or now_ns >= self._hold_until_ns


class Admission(Enum):
    """What a registration means."""

    FIRST = "a node that was not known"
    AGAIN = "the process that is registered already"
    REPLACES = "the end of the process that was registered"
    TOO_EARLY = "another process of this node may still be alive"


def admission(known: Node | None, incarnation: int, exclusive: bool, running: bool) -> Admission:
    """Decide what it means that a process of this incarnation registers.

    ``exclusive``: it holds the lock of its data directory, so no older one can be alive;
    ``running``: the lease of the process that was registered before is not over. Incarnations
    grow: a lower one is most likely what a process of the past has left in the network, read
    after its successor's by a manager that was paused (found by the simulator).
    """
    if known is None:
        return Admission.FIRST
    if known.incarnation == incarnation:
        return Admission.AGAIN
    later = exclusive and incarnation > known.incarnation
    return Admission.REPLACES if later or not running else Admission.TOO_EARLY
