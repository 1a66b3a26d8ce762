"""Designs that are known: perfect, and found without searching for them.

Pure. Two families, both for nodes that are all alike and need no wider failure domains:

- *cyclic* designs: a few base blocks, each shifted round the ring of nodes, such that every
  difference between two nodes occurs equally often. (7, 3, 1) is {0, 1, 3} and its shifts. With
  one base block these are the projective planes (13, 4, 1), (21, 5, 1), (31, 6, 1) and the
  biplanes; with several, most triple systems. The base blocks are found by a bounded backtracking
  that covers the least difference still missing.
- *affine planes* of prime order: the lines of a plane over the integers mod p: (9, 3, 1),
  (25, 5, 1), (49, 7, 1).

Source: Colbourn & Dinitz, Handbook of Combinatorial Designs, 2nd edition, II.1 and II.7, II.18.
"""

from itertools import product

from hillfire.meta.manager.placement.problem import Block, Problem

MAX_TRIED = 200_000
"""Base blocks tried before a cyclic design is given up."""


def known(problem: Problem) -> list[Block] | None:
    """Return a perfect design for this problem, or None where none is known (or exists)."""
    if not problem.regular or problem.sizes[0] != 1:
        return None
    nodes, replicas, degree = problem.nodes, problem.replicas, problem.degree[0]
    if replicas < 2 or replicas >= nodes or degree * (replicas - 1) % (nodes - 1):
        return None
    for copies in range(degree, 0, -1):
        if degree % copies or (degree // copies) * (replicas - 1) % (nodes - 1):
            continue
        design = affine(nodes, replicas, degree // copies)
        design = design or cyclic(nodes, replicas, degree // copies)
        if design:
            return design * copies
    return None


def affine(nodes: int, replicas: int, degree: int) -> list[Block] | None:
    """Return the lines of the affine plane of order ``replicas``, if that is a prime."""
    p = replicas
    if nodes != p * p or degree != p + 1 or any(p % n == 0 for n in range(2, p)):
        return None
    slanted = [
        tuple(x * p + (slope * x + shift) % p for x in range(p))
        for slope, shift in product(range(p), repeat=2)
    ]
    upright = [tuple(x * p + y for y in range(p)) for x in range(p)]
    return slanted + upright


def cyclic(nodes: int, replicas: int, degree: int) -> list[Block] | None:
    """Return all shifts of base blocks in which each difference occurs equally often.

    Where ``replicas`` divides ``nodes`` there may be one short base block besides, the multiples
    of ``nodes / replicas``, which has fewer shifts.
    """
    full, short = divmod(degree, replicas)
    times = degree * (replicas - 1) // (nodes - 1)
    missing = [0] + [times] * (nodes - 1)
    blocks: list[Block] = []
    if short == 1 and nodes % replicas == 0:
        step = nodes // replicas
        for d in range(step, nodes, step):
            missing[d] -= 1
        blocks = [tuple(range(shift, nodes, step)) for shift in range(step)]
    elif short:
        return None
    bases = _Bases(nodes, replicas, missing).found(full)
    if bases is None:
        return None
    return blocks + [
        tuple((node + shift) % nodes for node in base) for base in bases for shift in range(nodes)
    ]


class _Bases:
    """The backtracking for base blocks whose differences make up what is missing."""

    def __init__(self, nodes: int, replicas: int, missing: list[int]) -> None:
        self._nodes = nodes
        self._replicas = replicas
        self._missing = missing
        self._tried = 0

    def found(self, wanted: int) -> list[Block] | None:
        """Return ``wanted`` base blocks, or None."""
        if min(self._missing) < 0:
            return None
        if wanted == 0:
            return [] if not any(self._missing) else None
        least = next(d for d, n in enumerate(self._missing) if n)
        return self._grown([0], least, wanted)

    def _grown(self, block: list[int], node: int, wanted: int) -> list[Block] | None:
        """Add ``node`` to a block, then all that may follow it, then the other blocks."""
        self._tried += 1
        if self._tried > MAX_TRIED or not self._use(block, node):
            return None
        grown = [*block, node]
        if len(grown) == self._replicas:
            rest = self.found(wanted - 1)
            found = None if rest is None else [tuple(grown), *rest]
        else:
            found = None
            for following in range(node + 1, self._nodes):
                found = self._grown(grown, following, wanted)
                if found is not None or self._tried > MAX_TRIED:
                    break
        if found is None:
            self._free(block, node)
        return found

    def _use(self, block: list[int], node: int) -> bool:
        """Take the differences of ``node`` to a block, if all of them are still missing."""
        for done, other in enumerate(block):
            for d in (node - other, other - node):
                self._missing[d % self._nodes] -= 1
            if self._missing[node - other] < 0 or self._missing[(other - node) % self._nodes] < 0:
                self._free(block[: done + 1], node)
                return False
        return True

    def _free(self, block: list[int], node: int) -> None:
        for other in block:
            for d in (node - other, other - node):
                self._missing[d % self._nodes] += 1
