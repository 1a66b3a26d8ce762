"""Chain tables: each place used once, no two replicas in a domain, and everything spread evenly."""

import time
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hillfire.errors import Code, Error
from hillfire.meta.manager.placement import Domain, Home, Place, Plan, check, make_plan, place
from hillfire.meta.manager.placement.evenness import evenness, recovery_load
from hillfire.types import NodeId

BIG_BUDGET_S = 60.0
"""For 180 nodes x 16 disks x 4 targets x 3 replicas in 12 racks; measured: 2.8 s."""


def nodes(count: int) -> list[NodeId]:
    return [NodeId(101 + i) for i in range(count)]


def homes(count: int, disks: int = 1, racks: int = 0) -> list[Home]:
    return [Home(n, disks, f"h{n}", f"r{n % racks}" if racks else "") for n in nodes(count)]


@st.composite
def clusters(draw: st.DrawFn) -> list[Home]:
    """Clusters of any shape: nodes with their own number of disks, some on one host, some racks."""
    count = draw(st.integers(1, 14))
    hosts = draw(st.lists(st.integers(1, 8), min_size=count, max_size=count))
    racks = draw(st.lists(st.integers(0, 4), min_size=9, max_size=9))
    disks = draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    return [
        Home(n, disks[i], f"h{hosts[i]}", f"r{racks[hosts[i]]}" if racks[hosts[i]] else "")
        for i, n in enumerate(nodes(count))
    ]


def most_chains(plan: Plan, domain: Domain) -> int:
    """Count by brute force: chains fill one by one from the fullest domains and nodes."""
    left: dict[object, Counter[NodeId]] = {}
    for home in plan.homes:
        left.setdefault(home.within(domain), Counter())[home.node] = (
            home.disks * plan.targets_per_disk
        )
    chains = 0
    while True:
        fullest = sorted(left, key=lambda d: -left[d].total())[: plan.replicas]
        if len(fullest) < plan.replicas or not left[fullest[-1]].total():
            return chains
        for d in fullest:
            left[d][left[d].most_common(1)[0][0]] -= 1
        chains += 1


@settings(max_examples=80, deadline=None)
@given(clusters(), st.integers(1, 4), st.integers(1, 5), st.sampled_from([None, *Domain]))
def test_every_table_keeps_the_rules(
    given: list[Home], targets: int, replicas: int, domain: Domain | None
) -> None:
    try:
        plan = make_plan(given, targets, replicas, domain, steps=300)
    except Error as error:
        assert error.code is Code.CONFIGURATION
        assert len({home.within(domain or Domain.NODE) for home in given}) < replicas
        return
    if plan.chains:
        apart = plan.domain if plan.most == 1 else Domain.HOST
        check(plan.homes, plan.chains, targets, replicas, apart)
    if domain is not None:
        assert plan.domain is domain and plan.most == 1
        # As many chains as there can be, counted another way.
        assert len(plan.chains) == most_chains(plan, domain)
    else:
        assert len(plan.chains) == most_chains(plan, Domain.NODE)
    if plan.domain is Domain.RACK:
        for chain in plan.chains:
            within = Counter(_home(plan, place).within(Domain.RACK) for place in chain)
            assert max(within.values()) <= plan.most
    even = evenness(plan)
    for spread in (even.nodes, even.disks):
        assert spread.ratio >= spread.bound - 1e-9 or not plan.chains
    assert make_plan(given, targets, replicas, domain, steps=300) == plan


def _home(plan: Plan, where: Place) -> Home:
    return next(home for home in plan.homes if home.node == where.node)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 20), st.integers(1, 4), st.integers(1, 6), st.integers(2, 4))
def test_alike_nodes_are_used_alike(count: int, disks: int, targets: int, replicas: int) -> None:
    """Heads, tails and all between are on every disk and node as often as on any other, +- 1."""
    if count < replicas:
        return
    plan = make_plan(homes(count, disks), targets, replicas)
    assert plan.unused < replicas
    even = evenness(plan)
    # Who gives up an unused place has one target less, so maybe one head less and one tail less.
    slack = 1 if plan.unused else 0
    for least, most in (*even.places, *even.node_places):
        assert most - least <= 1 + slack
    # A dead node's load: within one chain of the bound (most often at it).
    assert even.nodes.most <= even.nodes.most_bound + 1


@pytest.mark.parametrize("count", [3, 4, 5, 6, 7, 8, 9, 10, 13])
def test_small_clusters_are_instant_and_even(count: int) -> None:
    began = time.process_time()
    plan = make_plan(homes(count), 4, 3)
    assert time.process_time() - began < 1
    even = evenness(plan)
    if count == 5:  # 18 of 20 places: one node meets another three times, counting allows two
        assert (even.nodes.most, even.nodes.most_bound) == (3, 2) or plan.optimal
    else:
        assert plan.optimal
        assert even.nodes.ratio == even.nodes.bound


@pytest.mark.parametrize(
    ("count", "targets", "replicas"),
    [(7, 3, 3), (13, 4, 4), (9, 4, 3), (13, 6, 3), (15, 7, 3), (21, 5, 5), (11, 5, 5), (31, 6, 6)],
)
def test_known_designs_are_found_exactly(count: int, targets: int, replicas: int) -> None:
    plan = make_plan(homes(count), targets, replicas)
    met = {n for i, row in enumerate(recovery_load(plan)) for j, n in enumerate(row) if i != j}
    assert met == {targets * (replicas - 1) // (count - 1)}
    assert plan.method == "known"
    assert evenness(plan).nodes.ratio == 1.0


def test_a_design_is_repeated_when_there_is_room() -> None:
    plan = make_plan(homes(7, 4), 3, 3)
    assert plan.method == "known" and len(plan.chains) == 28
    assert evenness(plan).nodes.ratio == 1.0


def test_a_large_cluster_in_racks_is_as_even_as_can_be_in_seconds() -> None:
    began = time.process_time()
    plan = make_plan(homes(180, 16, 12), 4, 3)
    took_s = time.process_time() - began
    assert took_s < BIG_BUDGET_S
    assert len(plan.chains) == 3840 and plan.unused == 0
    assert (plan.domain, plan.most, plan.optimal) == (Domain.RACK, 1, True)
    check(plan.homes, plan.chains, 4, 3, Domain.RACK)
    even = evenness(plan)
    # No two nodes share more than one chain: a dead node's reads go to 128 others, one each.
    assert (even.nodes.most, even.nodes.takers) == (1, 128)
    assert even.nodes.ratio == pytest.approx(179 / 128)
    assert even.node_places == ((21, 22),) * 3 and even.places == ((1, 2),) * 3
    assert even.disks.most == 1


def test_replicas_on_one_host_never_share_it_where_there_are_enough() -> None:
    """Several nodes a host: chains keep hosts apart, and a dead host's load spreads too."""
    several = [Home(n, 2, f"h{i // 2}", "") for i, n in enumerate(nodes(14))]
    plan = make_plan(several, 3, 3)
    check(plan.homes, plan.chains, 3, 3, Domain.HOST)
    even = evenness(plan)
    assert plan.domain is Domain.HOST and even.hosts is not None
    assert even.hosts.ratio == 1.0, "seven hosts: the plane of order two, four times"


def test_one_host_with_all_nodes_is_no_domain() -> None:
    """What `hillfire up` starts: three nodes of one machine."""
    plan = make_plan([Home(n, 1, "here", "") for n in nodes(3)], 4, 3)
    assert plan.domain is Domain.NODE and len(plan.chains) == 4


def test_fewer_racks_than_replicas_are_an_error_or_a_documented_relaxation() -> None:
    with pytest.raises(
        Error, match=r"3 replicas on different racks need 3 racks, there are 2 "
    ) as e:
        make_plan(homes(6, 1, 2), 4, 3, Domain.RACK)
    assert e.value.code is Code.CONFIGURATION and "keep only hosts apart" in str(e.value)
    plan = make_plan(homes(6, 1, 2), 4, 3)
    assert (plan.domain, plan.most, len(plan.chains)) == (Domain.RACK, 2, 8)


def test_uneven_racks_leave_places_empty_only_where_that_was_asked_for() -> None:
    uneven = [
        Home(n, 1, "", "a" if i < 6 else "b" if i < 8 else "c") for i, n in enumerate(nodes(9))
    ]
    strict = make_plan(uneven, 4, 3, Domain.RACK)
    assert len(strict.chains) == 4, "rack c has four places, and each chain needs one of them"
    assert strict.unused == 24
    plan = make_plan(uneven, 4, 3)
    assert len(plan.chains) == 12 and plan.unused == 0 and plan.domain is Domain.HOST


def test_a_host_is_in_one_rack() -> None:
    torn = [Home(NodeId(1), 1, "h", "a"), Home(NodeId(2), 1, "h", "b"), *homes(3)]
    with pytest.raises(Error, match="nodes 1 and 2 are on host h but in racks 'a' and 'b'"):
        make_plan(torn, 4, 3)


def test_a_table_from_elsewhere_is_checked() -> None:
    plan = make_plan(homes(7, 2, 7), 3, 3, Domain.RACK)
    good = plan.chains
    check(plan.homes, good, 3, 3, Domain.RACK)
    first = good[0]
    bad = {
        "has no chain": (),
        "which is not up": ((first[0]._replace(node=NodeId(9)), *first[1:]), *good[1:]),
        "which has 2, counted from 0": ((first[0]._replace(disk=2), *first[1:]), *good[1:]),
        "has more than 3": (*good, good[0]),
        "chain 1 has 3 targets on 2 racks": ((first[0], first[1], first[0]), *good[1:]),
        "chain 1 has 2 targets on 2 racks": (first[:2], *good[1:]),
    }
    for message, chains in bad.items():
        with pytest.raises(Error, match=message) as caught:
            check(plan.homes, chains, 3, 3, Domain.RACK)
        assert caught.value.code is Code.CONFIGURATION
    same_rack = [replace_rack(home, "r") for home in plan.homes]
    with pytest.raises(Error, match="on 1 racks: 3 on as many are asked for"):
        check(same_rack, good, 3, 3, Domain.RACK)
    check(same_rack, good, 3, 3, Domain.NODE)


def replace_rack(home: Home, rack: str) -> Home:
    return home._replace(rack=rack)


def test_evenness_sees_a_lopsided_table() -> None:
    """Two pairs of nodes that always stand together: each takes all of the other's load."""
    plan = make_plan(homes(4), 2, 2)
    a, b, c, d = (home.node for home in plan.homes)
    pairs = [(a, b), (a, b), (c, d), (c, d)]
    lopsided = replace(plan, chains=tuple((Place(x, 0), Place(y, 0)) for x, y in pairs))
    spread = evenness(lopsided).nodes
    assert (spread.ratio, spread.takers, spread.most) == (3.0, 1, 2)
    assert spread.bound == 1.5 and spread.most_bound == 1
    assert evenness(lopsided).node_places == ((0, 2), (0, 2))


# ------------------------------------------------------------------ nodes only


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 5))
def test_every_table_of_nodes_is_even(count: int, targets: int, replicas: int) -> None:
    if count < replicas:
        return
    table = place(nodes(count), targets, replicas)
    assert len(table) == count * targets // replicas
    assert all(len(set(chain)) == len(chain) == replicas for chain in table)
    used = Counter(node for chain in table for node in chain)
    assert max(used.values(), default=0) <= targets
    assert sum(used.values()) > count * targets - replicas
    heads = Counter(chain[0] for chain in table)
    assert max(heads.values(), default=0) - min(heads[n] for n in nodes(count)) <= 2


@pytest.mark.parametrize(("count", "targets", "replicas"), [(4, 6, 3), (7, 3, 3), (9, 4, 3)])
def test_pairs_meet_equally(count: int, targets: int, replicas: int) -> None:
    met = Counter(
        pair
        for chain in place(nodes(count), targets, replicas)
        for pair in combinations(sorted(chain), 2)
    )
    counts = [met[pair] for pair in combinations(nodes(count), 2)]
    assert max(counts) - min(counts) <= (0 if targets * (replicas - 1) % (count - 1) == 0 else 1)


def test_too_few_nodes_are_named() -> None:
    with pytest.raises(Error, match="3 replicas need 3 storage nodes, there are 2: start 1 more"):
        place(nodes(2), 4, 3)


@pytest.mark.parametrize(("targets", "replicas"), [(0, 3), (4, 0), (4, 1 << 31), (1 << 31, 3)])
def test_impossible_numbers_are_refused(targets: int, replicas: int) -> None:
    with pytest.raises(Error) as caught:
        place(nodes(5), targets, replicas)
    assert caught.value.code is Code.CONFIGURATION
