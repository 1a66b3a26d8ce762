"""From nodes to a chain table, and whether a table that came from elsewhere keeps the rules. Pure.

``make_plan`` takes the ways to a design in the order of their cost: a known one; the search, which
ends at once where it reaches the lower bound; then, if a solver was given and the search fell
short, the solver, which may find the bound, or prove nothing, within its limit of work.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hillfire.errors import Code, Error
from hillfire.meta.manager.placement.designs import known
from hillfire.meta.manager.placement.disks import seat
from hillfire.meta.manager.placement.homes import Domain, Home, Levels, Place, levels, require
from hillfire.meta.manager.placement.orbits import Program, programs
from hillfire.meta.manager.placement.order import order
from hillfire.meta.manager.placement.problem import Block, Problem, cost, meetings, solves
from hillfire.meta.manager.placement.search import search
from hillfire.types import NodeId

Solve = Callable[[Program], list[int] | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """A chain table, and what it was made from."""

    homes: tuple[Home, ...]
    targets_per_disk: int
    replicas: int
    domain: Domain
    """the level that chains keep apart"""
    most: int
    """replicas of a chain within one domain; 1 where there are enough domains"""
    chains: tuple[tuple[Place, ...], ...]
    """head first"""
    method: str
    """how the design was found: known, search or solver"""
    optimal: bool
    """whether the meetings of nodes are as even as whole numbers can be"""

    @property
    def unused(self) -> int:
        """How many places stay empty."""
        places = sum(home.disks for home in self.homes) * self.targets_per_disk
        return places - len(self.chains) * self.replicas


def make_plan(
    homes: Sequence[Home],
    targets_per_disk: int,
    replicas: int,
    domain: Domain | None = None,
    *,
    solve: Solve | None = None,
    steps: int | None = None,
) -> Plan:
    """Place chains of ``replicas`` targets over nodes with ``targets_per_disk`` on each disk.

    ``domain``: what two replicas must never share; None: as wide as leaves no place empty.
    ``solve``: asked where search falls short of the optimum. ``steps``: of the search at most.

    Raises:
        Error: CONFIGURATION when these numbers make no chain, or there are too few domains.
    """
    homes = sorted(homes)
    _require(homes, targets_per_disk, replicas)
    apart = levels(homes, targets_per_disk, replicas, domain)
    problem = Problem(apart.used, apart.domain_of, replicas, apart.most)
    blocks, method = _design(problem, solve, steps)
    assert solves(problem, blocks), f"a design by {method} breaks a rule"
    chains = _seated(apart, blocks, targets_per_disk)
    optimal = cost(meetings(problem, blocks)) == problem.least_cost
    return Plan(
        tuple(homes),
        targets_per_disk,
        replicas,
        apart.domain,
        apart.most,
        chains,
        method,
        optimal,
    )


def place(
    nodes: Sequence[NodeId], targets_per_node: int, replicas: int
) -> tuple[tuple[NodeId, ...], ...]:
    """Return the nodes of each chain, head first; no node is twice in one chain.

    Raises:
        Error: CONFIGURATION when these numbers make no chain.
    """
    homes = [Home(node) for node in sorted(set(nodes))]
    plan = make_plan(homes, targets_per_node, replicas, Domain.NODE)
    return tuple(tuple(place.node for place in chain) for chain in plan.chains)


def check(
    homes: Sequence[Home],
    chains: Sequence[Sequence[Place]],
    targets_per_disk: int,
    replicas: int,
    domain: Domain | None,
) -> None:
    """Refuse a table that came from elsewhere and breaks a rule.

    Raises:
        Error: CONFIGURATION, naming the chain.
    """
    _require(homes, targets_per_disk, replicas)
    of = {home.node: home for home in homes}
    used: Counter[Place] = Counter()
    if not chains:
        raise Error(Code.CONFIGURATION, "the table has no chain")
    for number, chain in enumerate(chains, 1):
        for place in chain:
            used[place] += 1
            home = of.get(place.node)
            if home is None:
                text = f"chain {number} is on node {place.node}, which is not up or no storage node"
                raise Error(Code.CONFIGURATION, text)
            if not 0 <= place.disk < home.disks:
                text = f"chain {number} is on disk {place.disk} of node {place.node}, which has "
                raise Error(Code.CONFIGURATION, f"{text}{home.disks}, counted from 0")
            if used[place] > targets_per_disk:
                text = f"disk {place.disk} of node {place.node} has more than {targets_per_disk}"
                raise Error(Code.CONFIGURATION, f"{text} targets in chains 1 to {number}")
        apart = Domain.NODE if domain is None else domain
        places = {of[place.node].within(apart) for place in chain}
        if len(chain) != replicas or len(places) != replicas:
            raise Error(
                Code.CONFIGURATION,
                f"chain {number} has {len(chain)} targets on {len(places)} "
                f"{apart.name.lower()}s: {replicas} on as many are asked for",
            )


def _require(homes: Sequence[Home], targets_per_disk: int, replicas: int) -> None:
    if targets_per_disk < 1:
        raise Error(Code.CONFIGURATION, f"targets_per_disk = {targets_per_disk}: choose 1 or more")
    for home in homes:
        if home.disks < 1:
            raise Error(Code.CONFIGURATION, f"node {home.node} has {home.disks} disks")
    most = max((home.disks for home in homes), default=0) * targets_per_disk
    require(len(homes), most, replicas)


def _design(problem: Problem, solve: Solve | None, steps: int | None) -> tuple[list[Block], str]:
    """Return blocks as even as they can be found, and how."""
    perfect = known(problem)
    if perfect is not None:
        return perfect, "known"
    found = search(problem, steps)
    evenness = cost(meetings(problem, found))
    if solve is None or evenness == problem.least_cost:
        return found, "search"
    for program in programs(problem):
        values = solve(program)
        blocks = [] if values is None else program.blocks(values)
        if blocks and cost(meetings(problem, blocks)) < evenness:
            return blocks, "solver"
    return found, "search"


def _seated(
    apart: Levels, blocks: Sequence[Block], targets_per_disk: int
) -> tuple[tuple[Place, ...], ...]:
    """Choose the node and the disk of each target, and its place in its chain."""
    homes = [home for unit in apart.units for home in unit]
    first = [0]
    for unit in apart.units:
        first.append(first[-1] + len(unit))
    on_hosts = [[home.disks * targets_per_disk for home in unit] for unit in apart.units]
    nodes = [[first[unit] + i for unit, i in chain] for chain in seat(blocks, on_hosts)]
    seats = seat(nodes, [[targets_per_disk] * home.disks for home in homes])
    return tuple(
        tuple(Place(homes[node].node, disk) for node, disk in chain) for chain in order(seats)
    )
