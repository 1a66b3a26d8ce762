"""How evenly the load of what dies spreads over what survives, and how evenly it could. Pure.

Every replica of a chain answers reads. When a target dies, the others of its chain answer its
share: each of them an equal part. So a dead node's reads fall on the nodes that it met, as often
as it met them. ``ratio`` is the most that falls on one survivor over the mean of all survivors:
1.0 were perfect. The bound comes from counting: whole meetings, and none with the peers of one's
own failure domain.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hillfire.meta.manager.placement.homes import Domain, Home, Place
from hillfire.meta.manager.placement.plan import Plan

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Spread:
    """What follows from the worst single death among nodes, disks or hosts."""

    count: int
    """how many there are"""
    worst: str
    """whose death spreads worst"""
    ratio: float
    """most over mean, for the worst"""
    mean_ratio: float
    """most over mean, on the average of all deaths"""
    bound: float
    """no table has a smaller ``ratio``"""
    takers: int
    """how many survivors take over reads of the worst"""
    most: int
    """the most chains of one that died that one survivor takes over with"""
    most_bound: int
    """no table has a smaller ``most``"""


@dataclass(frozen=True, slots=True)
class Evenness:
    """A table, judged."""

    nodes: Spread
    hosts: Spread | None
    """where hosts have several nodes"""
    disks: Spread
    places: tuple[tuple[int, int], ...]
    """for each place in a chain, head first: how often the disks stand there, least and most"""
    node_places: tuple[tuple[int, int], ...]
    """the same of nodes"""


def evenness(plan: Plan) -> Evenness:
    """Judge a table."""
    homes = {home.node: home for home in plan.homes}
    disks = [Place(home.node, disk) for home in plan.homes for disk in range(home.disks)]
    nodes = [home.node for home in plan.homes]
    hosts = list(dict.fromkeys(home.within(Domain.HOST) for home in plan.homes))

    def domain(home: Home) -> Hashable:
        return home.within(plan.domain) if plan.most == 1 else home.within(Domain.NODE)

    of_node = _spread(
        plan, nodes, lambda p: p.node, lambda n: domain(homes[n]), lambda n: f"node {n}"
    )
    of_host = None
    if len(hosts) < len(nodes) and plan.domain is not Domain.NODE:
        racks = {home.within(Domain.HOST): domain(home) for home in plan.homes}
        of_host = _spread(
            plan,
            hosts,
            lambda p: homes[p.node].within(Domain.HOST),
            lambda h: racks[h],
            lambda h: f"host {h[0] or h[1]}",
        )
    of_disk = _spread(
        plan,
        disks,
        lambda p: p,
        lambda p: domain(homes[p.node]),
        lambda p: f"disk {p.disk} of node {p.node}",
    )
    return Evenness(
        of_node,
        of_host,
        of_disk,
        _places(plan, disks, lambda p: p),
        _places(plan, nodes, lambda p: p.node),
    )


def recovery_load(plan: Plan) -> list[list[int]]:
    """Return, for each node's death (row), how many chains each other node takes over with."""
    index = {home.node: i for i, home in enumerate(plan.homes)}
    load = [[0] * len(index) for _ in index]
    for chain in plan.chains:
        members = [index[place.node] for place in chain]
        for x in members:
            for y in members:
                load[x][y] += x != y
    return load


def _spread(
    plan: Plan,
    all_: Sequence[T],
    of: Callable[[Place], T],
    domain: Callable[[T], Hashable],
    name: Callable[[T], str],
) -> Spread:
    """Judge the deaths of things of one kind; ``of`` tells which of them a target is on."""
    met: dict[T, Counter[T]] = {thing: Counter() for thing in all_}
    chains: Counter[T] = Counter()
    for chain in plan.chains:
        members = [of(place) for place in chain]
        for i, x in enumerate(members):
            chains[x] += 1
            for j, y in enumerate(members):
                if i != j:
                    met[x][y] += 1
    together = Counter(domain(thing) for thing in all_)
    survivors = len(all_) - 1
    worst, worst_ratio, ratios, bound = all_[0], 0.0, 0.0, 0.0
    most = most_bound = 0
    for thing in all_:
        load = chains[thing] * (plan.replicas - 1)
        if not load or not survivors:
            continue
        here = max(met[thing].values())
        most = max(most, here)
        ratio = here * survivors / load
        ratios += ratio
        if ratio > worst_ratio:
            worst, worst_ratio = thing, ratio
        peers = len(all_) - together[domain(thing)]
        least = -(-load // peers)
        most_bound = max(most_bound, least)
        bound = max(bound, least * survivors / load)
    return Spread(
        len(all_),
        name(worst),
        worst_ratio,
        ratios / len(all_),
        bound,
        len(met[worst]),
        most,
        most_bound,
    )


def _places(plan: Plan, all_: Sequence[T], of: Callable[[Place], T]) -> tuple[tuple[int, int], ...]:
    ranges = []
    for position in range(plan.replicas):
        count = Counter(of(chain[position]) for chain in plan.chains)
        counts = [count[thing] for thing in all_]
        ranges.append((min(counts), max(counts)))
    return tuple(ranges)
