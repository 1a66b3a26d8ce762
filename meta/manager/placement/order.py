"""Who is head, who is tail: each place of a chain as often on every disk, and on every node. Pure.

The head of a chain takes in all its writes. A disk with four targets in chains of three should be
head once or twice, a node with sixty-four targets 21 or 22 times. That is always possible: to give
each chain one of its members as head is a flow from nodes through disks to chains, an equal share
of each is a flow within the bounds, and where the bounds are whole so is some flow. The same again
for each further place, over the members that are left.

Source: de Werra, "Equitable colorations of graphs" (1971); the flow's integrality theorem.
"""

from collections import Counter, deque
from collections.abc import Sequence

from hillfire.meta.manager.placement.disks import Seat


def order(chains: Sequence[Sequence[Seat]]) -> list[tuple[Seat, ...]]:
    """Return each chain with its members in order, head first; all chains are of one length."""
    left = [list(chain) for chain in chains]
    ordered: list[list[Seat]] = [[] for _ in chains]
    length = max((len(chain) for chain in chains), default=0)
    for places in range(length, 0, -1):
        for number, seat in enumerate(_chosen(left, places)):
            left[number].remove(seat)
            ordered[number].append(seat)
    return [tuple(chain) for chain in ordered]


def _chosen(chains: Sequence[Sequence[Seat]], places: int) -> list[Seat]:
    """Choose one member of each chain; a ``places``-th of each disk's and of each node's, rounded.

    Begins with the emptiest member of each chain; then the flow mends what is out of bounds.
    """
    of_disk = Counter(seat for chain in chains for seat in chain)
    of_node: Counter[int] = Counter()
    for (node, _), n in of_disk.items():
        of_node[node] += n
    disks: Counter[Seat] = Counter()
    nodes: Counter[int] = Counter()
    first = []
    for chain in chains:
        seat = min(chain, key=lambda s: (nodes[s[0]] / of_node[s[0]], disks[s] / of_disk[s], s))
        first.append(seat)
        disks[seat] += 1
        nodes[seat[0]] += 1

    flow = _Flow(len(of_node) + len(of_disk) + len(chains) + 1)
    vertex: dict[Seat | int, int] = {}
    for node in sorted(of_node):
        vertex[node] = len(vertex) + 1
        bounds = of_node[node] // places, -(-of_node[node] // places)
        flow.edge(0, vertex[node], nodes[node], *bounds)
    for seat in sorted(of_disk):
        vertex[seat] = len(vertex) + 1
        bounds = of_disk[seat] // places, -(-of_disk[seat] // places)
        flow.edge(vertex[seat[0]], vertex[seat], disks[seat], *bounds)
    last = len(vertex) + 1
    choices = [
        [flow.edge(vertex[s], last + number, int(s == first[number]), 0, 1) for s in chain]
        for number, chain in enumerate(chains)
    ]
    flow.mend()
    return [
        next(seat for seat, edge in zip(chain, edges, strict=True) if flow.amount[edge])
        for chain, edges in zip(chains, choices, strict=True)
    ]


class _Flow:
    """Whole amounts on edges; what is out of an edge's bounds is led round another way."""

    def __init__(self, vertices: int) -> None:
        self.amount: list[int] = []
        self._ends: list[tuple[int, int]] = []
        self._bounds: list[tuple[int, int]] = []
        self._at: list[list[int]] = [[] for _ in range(vertices)]

    def edge(self, start: int, end: int, amount: int, low: int, high: int) -> int:
        """Add an edge that carries ``amount`` and should carry from ``low`` to ``high``."""
        number = len(self.amount)
        self.amount.append(amount)
        self._ends.append((start, end))
        self._bounds.append((low, high))
        self._at[start].append(number)
        self._at[end].append(number)
        return number

    def mend(self) -> None:
        """Bring every edge within its bounds: each step brings one nearer and none further."""
        for edge, (low, high) in enumerate(self._bounds):
            start, end = self._ends[edge]
            while self.amount[edge] > high:
                self._lead(start, end)
                self.amount[edge] -= 1
            while self.amount[edge] < low:
                self._lead(end, start)
                self.amount[edge] += 1

    def _lead(self, start: int, end: int) -> None:
        """Lead one more from ``start`` to ``end``, along a shortest way that no bound forbids."""
        by: dict[int, int] = {start: -1}
        queue = deque([start])
        while end not in by:
            vertex = queue.popleft()  # never empty: a flow within the bounds exists
            for edge in self._at[vertex]:
                low, high = self._bounds[edge]
                forth, back = self._ends[edge]
                if forth == vertex:
                    onward, open_ = back, self.amount[edge] < high
                else:
                    onward, open_ = forth, self.amount[edge] > low
                if open_ and onward not in by:
                    by[onward] = edge
                    queue.append(onward)
        vertex = end
        while vertex != start:
            edge = by[vertex]
            forth, back = self._ends[edge]
            self.amount[edge] += 1 if back == vertex else -1
            vertex = forth if back == vertex else back
