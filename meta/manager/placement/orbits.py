"""A problem as an integer program small enough for a solver: whole orbits instead of blocks.

Pure. The nodes stand on a ring, and a design is asked for that looks the same after every shift by
``stride``. Then all shifts of a block come together (an orbit), all shifts of a pair of nodes meet
equally often, and the program has one variable an orbit and one constraint a pair orbit, instead
of millions: 180 nodes, 3 replicas, stride 3 make 15,930 columns and 270 rows. A stride as
large as the ring is no symmetry at all: every block is a column of its own, which small clusters
can afford and irregular ones (nodes or racks of different sizes) need.

Where nodes stand in racks of one size, neighbours on the ring are of different racks, so that a
shift keeps racks together.

Source: Kramer & Mesner, "t-designs on hypergraphs", Discrete Mathematics 15 (1976).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

from hillfire.meta.manager.placement.problem import Block, Problem
from hillfire.meta.manager.placement.search import Dice

MAX_COLUMNS = 16_000
MAX_STRIDES = 4
"""Symmetries that are tried, the strongest first."""


@dataclass(frozen=True, slots=True)
class Row:
    """``low <= sum(weight * variable) <= high`` over (variable, weight) pairs."""

    terms: tuple[tuple[int, int], ...]
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Program:
    """Choose how often each column's orbit is taken, from 0 to ``most`` times."""

    columns: tuple[tuple[Block, ...], ...]
    rows: tuple[Row, ...]
    most: int

    def blocks(self, values: Sequence[int]) -> list[Block]:
        """Return the design that a solution stands for."""
        chosen = zip(self.columns, values, strict=True)
        return [block for orbit, times in chosen for _ in range(times) for block in orbit]


def programs(problem: Problem) -> Iterator[Program]:
    """Yield the programs to try for a problem; what solves one is as even as can be."""
    nodes, replicas = problem.nodes, problem.replicas
    if problem.most > 1 or replicas < 2:
        return
    ring = _ring(problem)
    tried = 0
    for stride in range(1, nodes + 1) if problem.regular else (nodes,):
        orbits = problem.blocks * stride / nodes
        if nodes % stride or (stride < nodes and orbits != int(orbits)):
            continue
        if stride > 1 and comb(nodes, replicas) * stride // nodes > MAX_COLUMNS:
            return
        yield _program(problem, ring, stride)
        tried += 1
        if tried == MAX_STRIDES:
            return


def _ring(problem: Problem) -> list[int]:
    """Order the nodes such that their domains take turns."""
    turn: Counter[int] = Counter()
    keys = []
    for node, domain in enumerate(problem.domain):
        keys.append((turn[domain], domain, node))
        turn[domain] += 1
    return [node for _, _, node in sorted(keys)]


def _program(problem: Problem, ring: Sequence[int], stride: int) -> Program:
    nodes = problem.nodes
    orbit_of = _pairs(nodes, stride)
    columns = []
    degree: list[list[tuple[int, int]]] = [[] for _ in range(stride)]
    met: dict[int, list[tuple[int, int]]] = {
        key: [] for pair, key in orbit_of.items() if problem.may_meet(ring[pair[0]], ring[pair[1]])
    }
    size = Counter(orbit_of.values())
    for base in _bases(problem, ring, stride):
        orbit = sorted({_shifted(base, shift, nodes) for shift in range(0, nodes, stride)})
        columns.append(tuple(tuple(ring[place] for place in block) for block in orbit))
        number = len(columns) - 1
        for place, n in Counter(place % stride for place in base).items():
            degree[place].append((number, n * len(orbit) * stride // nodes))
        for key, n in Counter(orbit_of[pair] for pair in combinations(base, 2)).items():
            met[key].append((number, n * len(orbit) // size[key]))
    rows = [
        Row(tuple(terms), problem.degree[ring[place]], problem.degree[ring[place]])
        for place, terms in enumerate(degree)
    ]
    limits = {}
    for (x, y), key in orbit_of.items():
        of_x, of_y = problem.meetings(ring[x]), problem.meetings(ring[y])
        limits[key] = min(of_x[0], of_y[0]), min(of_x[1], of_y[1])
    rows += [Row(tuple(terms), *limits[key]) for key, terms in met.items()]
    most = max((high for _, high in limits.values()), default=0)
    return Program(tuple(columns), tuple(rows), max(most, 1) * (nodes // stride))


def _pairs(nodes: int, stride: int) -> dict[tuple[int, int], int]:
    """Return the number of the orbit of each pair of places."""
    orbit_of: dict[tuple[int, int], int] = {}
    number = 0
    for pair in combinations(range(nodes), 2):
        if pair not in orbit_of:
            for shift in range(0, nodes, stride):
                x, y = _shifted(pair, shift, nodes)
                orbit_of[x, y] = number
            number += 1
    return orbit_of


def _bases(problem: Problem, ring: Sequence[int], stride: int) -> Iterator[Block]:
    """Yield one block of each orbit; of too many a sample, the same each time."""
    nodes, replicas = problem.nodes, problem.replicas
    domain = [problem.domain[node] for node in ring]
    seen: set[Block] = set()
    for block in _candidates(nodes, replicas, stride):
        if len({domain[place] for place in block}) < replicas:
            continue
        turned = [_shifted(block, -place // stride * stride, nodes) for place in block]
        base = min(turned)
        if base not in seen:
            seen.add(base)
            yield base
            if len(seen) == MAX_COLUMNS:
                return


def _candidates(nodes: int, replicas: int, stride: int) -> Iterator[Block]:
    """Yield blocks with a member before ``stride``: all, or as many as are looked at of many."""
    if comb(nodes, replicas) * replicas * stride // nodes <= MAX_COLUMNS * replicas * 2:
        for first in range(stride):
            for rest in combinations(range(first + 1, nodes), replicas - 1):
                yield (first, *rest)
        return
    dice = Dice()
    for _ in range(2 * MAX_COLUMNS):
        block = {dice.below(stride)}
        while len(block) < replicas:
            block.add(dice.below(nodes))
        yield tuple(sorted(block))


def _shifted(block: Sequence[int], shift: int, nodes: int) -> Block:
    return tuple(sorted((place + shift) % nodes for place in block))
