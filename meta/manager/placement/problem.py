"""The problem that all ways to place chains solve: which nodes stand together, and how often.

Pure. A design here is a list of *blocks*, the nodes of one chain each, by their index. Two nodes
*meet* in a block that holds both. When a node dies, each node that it met takes over reads of the
chains they shared: the load spreads as evenly as the meetings do. The ideal is a balanced
incomplete block design, in which any two nodes meet equally often.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

Block = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Blocks of ``replicas`` nodes, of which node i is to be in ``degree[i]``.

    At most ``most`` nodes of a block are of one domain; ``domain[i]`` is node i's.
    """

    degree: tuple[int, ...]
    domain: tuple[int, ...]
    replicas: int
    most: int = 1
    sizes: tuple[int, ...] = field(init=False)
    """how many nodes each domain has"""

    def __post_init__(self) -> None:
        """Count the domains."""
        sizes = [0] * (max(self.domain, default=-1) + 1)
        for d in self.domain:
            sizes[d] += 1
        object.__setattr__(self, "sizes", tuple(sizes))

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(self.degree)

    @property
    def blocks(self) -> int:
        """How many blocks a design has."""
        return sum(self.degree) // self.replicas

    def peers(self, node: int) -> int:
        """Return how many nodes may meet ``node``."""
        if self.most > 1:
            return self.nodes - 1
        return self.nodes - self.sizes[self.domain[node]]

    def may_meet(self, x: int, y: int) -> bool:
        """Whether two nodes may be in one block."""
        return x != y and (self.most > 1 or self.domain[x] != self.domain[y])

    def meetings(self, node: int) -> tuple[int, int]:
        """Return the even number of meetings with each peer, rounded down and up."""
        total, peers = self.degree[node] * (self.replicas - 1), self.peers(node)
        return (total // peers, -(-total // peers)) if peers else (0, 0)

    @property
    def regular(self) -> bool:
        """Whether all nodes are alike: of one degree, in domains of one size."""
        return len(set(self.degree)) == 1 and len(set(self.sizes)) == 1 and self.most == 1

    @property
    def least_cost(self) -> int:
        """A lower bound of :func:`cost`: every node's meetings as even as whole numbers can be."""
        twice = 0
        for node in range(self.nodes):
            peers = self.peers(node)
            if peers:
                each, more = divmod(self.degree[node] * (self.replicas - 1), peers)
                twice += peers * each * each + more * (2 * each + 1)
        return (twice + 1) // 2


def meetings(problem: Problem, blocks: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return how often each two nodes meet, as a symmetric matrix."""
    met = [[0] * problem.nodes for _ in range(problem.nodes)]
    for block in blocks:
        for x, y in combinations(block, 2):
            met[x][y] += 1
            met[y][x] += 1
    return met


def cost(met: Sequence[Sequence[int]]) -> int:
    """Return the sum of the squares of the meetings: least where they are most even."""
    return sum(n * n for row in met for n in row) // 2


def solves(problem: Problem, blocks: Sequence[Sequence[int]]) -> bool:
    """Whether these blocks keep every rule of the problem."""
    degree = [0] * problem.nodes
    for block in blocks:
        for node in block:
            degree[node] += 1
        domains = [problem.domain[node] for node in block]
        if len(set(block)) != problem.replicas or len(block) != problem.replicas:
            return False
        if any(domains.count(d) > problem.most for d in domains):
            return False
    return tuple(degree) == problem.degree
