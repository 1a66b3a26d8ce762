"""Which nodes make up which chain: a balanced table for any number of nodes and replicas.

Pure. Each new chain takes nodes that have met each other least and, among those, the emptiest; the
places in a chain, the head's first, go to whoever has stood there least. So a dead node's reads
spread over as many others as there are, and no node carries more writes than another. A solver
for balanced incomplete block designs goes behind the same function.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import permutations

from hillfire.errors import Code, Error
from hillfire.types import NodeId

MAX_TARGETS_PER_NODE = 999
MAX_REPLICAS = 16
MAX_NODES = 4096
MAX_TARGETS = 1 << 16
MAX_PERMUTED = 5
"""Longer chains are only rotated: their permutations are too many to try."""


def require(nodes: int, targets_per_node: int, replicas: int) -> None:
    """Refuse numbers that make no chain.

    Raises:
        Error: CONFIGURATION, naming what would do.
    """
    limits = (
        ("replicas", replicas, MAX_REPLICAS),
        ("targets_per_node", targets_per_node, MAX_TARGETS_PER_NODE),
        ("nodes", nodes, MAX_NODES),
        ("nodes x targets_per_node", nodes * targets_per_node, MAX_TARGETS),
    )
    for name, value, most in limits:
        if not 1 <= value <= most:
            raise Error(Code.CONFIGURATION, f"{name} = {value}: choose 1 to {most}")
    if nodes < replicas:
        raise Error(
            Code.CONFIGURATION,
            f"{replicas} replicas need {replicas} storage nodes, there are {nodes}: "
            f"start {replicas - nodes} more or ask for fewer replicas",
        )


def place(
    nodes: Sequence[NodeId], targets_per_node: int, replicas: int
) -> tuple[tuple[NodeId, ...], ...]:
    """Return the nodes of each chain, head first; no node is twice in one chain.

    Every node gets ``targets_per_node`` targets; where the sum is no multiple of ``replicas`` up
    to ``replicas - 1`` places stay empty.

    Raises:
        Error: CONFIGURATION when these numbers make no chain.
    """
    homes = sorted(set(nodes))
    require(len(homes), targets_per_node, replicas)
    table = _Table(homes, targets_per_node)
    chains = len(homes) * targets_per_node // replicas
    return tuple(table.next_chain(replicas, chains - done) for done in range(chains))


class _Table:
    """The chains so far, as counts."""

    def __init__(self, nodes: Sequence[NodeId], targets_per_node: int) -> None:
        self.free = dict.fromkeys(nodes, targets_per_node)
        self._met: Counter[tuple[NodeId, NodeId]] = Counter()
        self._roles: Counter[tuple[NodeId, int]] = Counter()

    def next_chain(self, replicas: int, left: int) -> tuple[NodeId, ...]:
        """Choose the members one by one, then who of them stands where; ``left``: chains to go."""
        members: list[NodeId] = []
        for _ in range(replicas):
            candidates = [n for n, free in self.free.items() if free and n not in members]
            members.append(min(candidates, key=lambda n: self._cost(n, members, left)))
        chain = self._in_order(members)
        for position, node in enumerate(chain):
            self.free[node] -= 1
            self._roles[node, position] += 1
            for other in chain:
                self._met[node, other] += 1
        return chain

    def _cost(
        self, node: NodeId, members: Sequence[NodeId], left: int
    ) -> tuple[bool, int, int, int, NodeId]:
        """Order candidates: who has met these members least, then who has most room.

        But whoever has as many places as there are chains left has to be in each of them: with
        that the table can always be completed.
        """
        met = [self._met[node, member] for member in members]
        room = self.free[node]
        return room < left, max(met, default=0), sum(met), -room, node

    def _in_order(self, members: Sequence[NodeId]) -> tuple[NodeId, ...]:
        """Choose the order in which everyone stands where it has stood least, heads first."""
        ring = sorted(members)
        orders = [(*ring[i:], *ring[:i]) for i in range(len(ring))]
        if len(ring) <= MAX_PERMUTED:
            orders = list(permutations(ring))
        return min(orders, key=self._repetition)

    def _repetition(self, order: Sequence[NodeId]) -> tuple[int, int]:
        """Count how often these nodes were in these places: as head, then in all."""
        stood = [self._roles[node, place] for place, node in enumerate(order)]
        return stood[0], sum(stood)
