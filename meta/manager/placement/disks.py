"""Which disk of a node each of its chains lies on: so that a dead disk's load spreads too. Pure.

A disk's chains should have partners on as many different nodes, and on as many different disks,
as there are; a node's chains on one disk all with the same partner would make that partner rebuild
the disk alone. Disks are chosen chain by chain, always the one that met these partners least, then
chains of a node change disks wherever that evens out what is left. Which node of a host a chain
lies on is the same question, asked before.
"""

from collections.abc import Sequence

MAX_PASSES = 4
"""Rounds of exchanges over all nodes."""

NODE_WEIGHT = 4
"""To meet a node again costs so many times what it costs to meet a disk again."""

Seat = tuple[int, int]
"""(node, disk)"""


def seat(blocks: Sequence[Sequence[int]], room: Sequence[Sequence[int]]) -> list[tuple[Seat, ...]]:
    """Return the disk of each member of each block; ``room``: of each node's disks, in targets."""
    table = _Table(room)
    chosen = [table.chain(block) for block in blocks]
    for _ in range(MAX_PASSES):
        if not table.exchange(chosen):
            break
    return [tuple(chain) for chain in chosen]


class _Table:
    """How often disks have met nodes, and disks."""

    def __init__(self, room: Sequence[Sequence[int]]) -> None:
        self._disks = [len(disks) for disks in room]
        self._room = {(n, d): left for n, disks in enumerate(room) for d, left in enumerate(disks)}
        self._nodes: dict[tuple[Seat, int], int] = {}
        self._seats: dict[tuple[Seat, Seat], int] = {}

    def chain(self, block: Sequence[int]) -> list[Seat]:
        """Choose the disks of one chain, node by node."""
        chain: list[Seat] = []
        for node in block:
            others = [n for n in block if n != node]
            free = [(node, d) for d in range(self._disks[node]) if self._room[node, d]]
            best = min(free, key=lambda seat: self._key(seat, others, chain))
            self._room[best] -= 1
            chain.append(best)
        self._count(chain, 1)
        return chain

    def exchange(self, chains: list[list[Seat]]) -> bool:
        """Let chains of one node change disks where that is better; tell whether any did."""
        of_node: list[list[tuple[int, int]]] = [[] for _ in self._disks]
        for number, chain in enumerate(chains):
            for place, (node, _) in enumerate(chain):
                of_node[node].append((number, place))
        changed = False
        for mine in of_node:
            for i, here in enumerate(mine):
                if self._excess(chains[here[0]], here[1]):
                    changed = self._improve(chains, here, mine[:i] + mine[i + 1 :]) or changed
        return changed

    def _key(
        self, seat: Seat, others: Sequence[int], chosen: Sequence[Seat]
    ) -> tuple[int, int, int, int]:
        again = sum(self._nodes.get((seat, node), 0) for node in others)
        disks = sum(self._seats.get((seat, other), 0) for other in chosen)
        return again, disks, -self._room[seat], seat[1]

    def _cost(self, seat: Seat, chain: Sequence[Seat], place: int) -> int:
        """Return what it costs that this seat is in this chain, where it is not counted."""
        cost = 0
        for i, other in enumerate(chain):
            if i != place:
                cost += NODE_WEIGHT * self._nodes.get((seat, other[0]), 0)
                cost += self._seats.get((seat, other), 0)
        return cost

    def _excess(self, chain: Sequence[Seat], place: int) -> bool:
        """Whether a seat has met one of its chain's nodes, or disks, before."""
        seat = chain[place]
        return any(
            self._nodes.get((seat, other[0]), 0) > 1 or self._seats.get((seat, other), 0) > 1
            for i, other in enumerate(chain)
            if i != place
        )

    def _improve(
        self, chains: list[list[Seat]], here: tuple[int, int], partners: Sequence[tuple[int, int]]
    ) -> bool:
        """Exchange the disks of this member and of one of ``partners``, if that costs less."""
        chain, place = chains[here[0]], here[1]
        mine = chain[place]
        self._count_one(chain, place, -1)
        costs = {
            (mine[0], disk): self._cost((mine[0], disk), chain, place)
            for disk in range(self._disks[mine[0]])
        }
        found = None
        for number, where in partners:
            other, theirs = chains[number], chains[number][where]
            gain = costs[mine] - costs[theirs]
            if theirs == mine or gain <= 0:
                continue
            self._count_one(other, where, -1)
            gain += self._cost(theirs, other, where) - self._cost(mine, other, where)
            if gain > 0:
                other[where], chain[place] = mine, theirs
                self._count_one(other, where, 1)
                found = number
                break
            self._count_one(other, where, 1)
        self._count_one(chain, place, 1)
        return found is not None

    def _count(self, chain: Sequence[Seat], n: int) -> None:
        for i, seat in enumerate(chain):
            for other in chain[i + 1 :]:
                self._meet(seat, other, n)

    def _count_one(self, chain: Sequence[Seat], place: int, n: int) -> None:
        for i, other in enumerate(chain):
            if i != place:
                self._meet(chain[place], other, n)

    def _meet(self, x: Seat, y: Seat, n: int) -> None:
        for pair in ((x, y[0]), (y, x[0])):
            self._nodes[pair] = self._nodes.get(pair, 0) + n
        for seats in ((x, y), (y, x)):
            self._seats[seats] = self._seats.get(seats, 0) + n
