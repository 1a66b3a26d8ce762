"""The steps of placement one by one: shares, designs, search, the solver, disks, order."""

import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hillfire.cluster import Endpoint, Node, NodeKind, Routing
from hillfire.errors import Code, Error
from hillfire.meta.manager.decide import Wish, first_routing, with_chains, with_node
from hillfire.meta.manager.placement import Domain, Home, Place, make_plan
from hillfire.meta.manager.placement.designs import affine, known
from hillfire.meta.manager.placement.disks import seat
from hillfire.meta.manager.placement.orbits import programs
from hillfire.meta.manager.placement.order import order
from hillfire.meta.manager.placement.problem import Problem, cost, meetings, solves
from hillfire.meta.manager.placement.search import greedy, search
from hillfire.meta.manager.placement.shares import shares
from hillfire.meta.manager.placement.solver import available, cp_sat
from hillfire.types import NodeId


def problem(nodes: int, degree: int, replicas: int, racks: int = 0) -> Problem:
    domain = tuple(i % racks if racks else i for i in range(nodes))
    _, used = shares([degree] * nodes, domain, 1, replicas)
    return Problem(tuple(used), domain, replicas)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Any problem that can be solved at all, relaxed ones among them."""
    room = draw(st.lists(st.integers(1, 12), min_size=2, max_size=12))
    domain = draw(st.lists(st.integers(0, 4), min_size=len(room), max_size=len(room)))
    numbers = {d: i for i, d in enumerate(dict.fromkeys(domain))}
    most = draw(st.integers(1, 3))
    replicas = draw(st.integers(1, 5))
    places = tuple(numbers[d] for d in domain)
    _, used = shares(room, places, most, replicas)
    return Problem(tuple(used), places, replicas, most)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_shares_can_always_be_filled(given: Problem) -> None:
    """What counting promises, the greedy design and the search deliver."""
    assert solves(given, greedy(given))
    design = search(given, steps=200)
    assert solves(given, design)
    met = meetings(given, design)
    assert given.least_cost <= cost(met) <= cost(meetings(given, greedy(given)))


def test_a_design_that_breaks_a_rule_is_seen() -> None:
    pairs = problem(4, 2, 2, racks=2)
    good = [(0, 1), (2, 3), (0, 3), (2, 1)]
    assert solves(pairs, good)
    assert not solves(pairs, [(0, 2), (1, 3), (0, 3), (2, 1)]), "two of one rack"
    assert not solves(pairs, [(0, 1), (0, 1), (0, 3), (2, 1)]), "a node too often"
    assert not solves(pairs, [(0, 0), (2, 3), (1, 3), (2, 1)]), "a node twice in a block"


def test_affine_planes_exist_for_primes() -> None:
    for p in (2, 3, 5, 7):
        lines = affine(p * p, p, p + 1)
        assert lines is not None and len(lines) == p * (p + 1)
        met = Counter(pair for line in lines for pair in combinations(sorted(line), 2))
        assert set(met.values()) == {1} and len(met) == p * p * (p * p - 1) // 2
    assert affine(16, 4, 5) is None, "four is no prime: the lines would not be lines"


def test_no_design_is_claimed_where_there_is_none() -> None:
    assert known(problem(22, 7, 7)) is None, "(22, 7, 2) does not exist"
    assert known(problem(8, 3, 3)) is None
    assert known(problem(9, 4, 3, racks=3)) is None, "racks: not every pair may meet"


@pytest.mark.parametrize(
    ("nodes", "degree", "replicas", "racks"),
    [(16, 5, 4, 0), (60, 48, 3, 12)],
)
def test_the_solver_finds_what_is_hard_to_find(
    nodes: int, degree: int, replicas: int, racks: int
) -> None:
    assert available() is cp_sat, "the development extra has OR-Tools"
    hard = problem(nodes, degree, replicas, racks)
    for program in programs(hard):
        values = cp_sat(program)
        if values is not None:
            design = program.blocks(values)
            assert solves(hard, design)
            assert cost(meetings(hard, design)) == hard.least_cost
            return
    pytest.fail("not found")


def test_the_solver_has_its_say_where_search_falls_short() -> None:
    homes = [Home(NodeId(i)) for i in range(1, 29)]
    alone = make_plan(homes, 9, 4)
    assert (alone.method, alone.optimal) == ("search", False)
    asked = make_plan(homes, 9, 4, solve=cp_sat)
    assert (asked.method, asked.optimal) == ("solver", True), "(28, 4, 1)"
    assert make_plan(homes, 9, 4, solve=lambda program: None).chains == alone.chains


def test_the_solver_says_so_where_there_is_no_way() -> None:
    """Four blocks of four over eight nodes, no two in two: two blocks is all there can be."""
    asked = list(programs(problem(8, 2, 4)))
    assert len(asked) > 1 and all(cp_sat(program) is None for program in asked)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 4))
def test_disks_and_places_are_spread(given: Problem, disks: int) -> None:
    """Each disk is in each place of a chain as often as any other with as many targets, +- 1."""
    blocks = search(given, steps=50)
    room = [[-(-n // disks)] * disks for n in given.degree]
    seats = seat(blocks, room)
    assert [tuple(node for node, _ in chain) for chain in seats] == [tuple(b) for b in blocks]
    used = Counter(s for chain in seats for s in chain)
    assert all(n <= room[node][disk] for (node, disk), n in used.items())
    chains = order(seats)
    assert [set(chain) for chain in chains] == [set(chain) for chain in seats]
    of_node = Counter(node for chain in seats for node, _ in chain)
    for position in range(given.replicas):
        here = Counter(chain[position] for chain in chains)
        for s, n in used.items():
            assert n // given.replicas <= here[s] <= -(-n // given.replicas)
        nodes = Counter(chain[position][0] for chain in chains)
        for node, n in of_node.items():
            assert n // given.replicas <= nodes[node] <= -(-n // given.replicas)


def test_a_dead_disk_is_rebuilt_by_many() -> None:
    """Three nodes, 16 disks: a disk's four chains are on four disks of each other node."""
    plan = make_plan([Home(NodeId(i), 16) for i in range(3)], 4, 3)
    met = Counter(pair for chain in plan.chains for pair in combinations(sorted(chain), 2))
    assert max(met.values()) == 1


def test_disks_change_chains_where_that_evens_out_who_meets() -> None:
    """Seven nodes with three disks: no two disks share two chains (at first some did)."""
    plan = make_plan([Home(NodeId(i), 3) for i in range(7)], 4, 3)
    met = Counter(pair for chain in plan.chains for pair in combinations(sorted(chain), 2))
    assert max(met.values()) == 1


def test_planning_does_not_load_the_solver() -> None:
    """Nor does the manager, which would carry it for the rest of its days."""
    code = (
        "import sys; from hillfire.meta.manager.placement import make_plan, Home;"
        "import hillfire.meta.manager.placement.solver, hillfire.meta.manager.service;"
        "make_plan([Home(i) for i in range(1, 9)], 4, 3);"
        "sys.exit(any(m.split('.')[0] in ('ortools', 'numpy', 'pandas') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# ------------------------------------------------------------------ into the routing


def cluster_in_racks(nodes: int, disks: int, racks: int) -> Routing:
    routing = first_routing("c")
    for i in range(nodes):
        here = Endpoint("g:1", "t:1", "", f"boot{i}")
        node = Node(
            NodeId(101 + i), NodeKind.STORAGE, here, 1, True, rack=f"r{i % racks}", disks=disks
        )
        routing = with_node(routing, node) or routing
    return routing


def racks_of(routing: Routing) -> list[set[str]]:
    return [
        {routing.nodes[routing.targets[t].node].rack for t, _ in chain.targets}
        for chain in routing.chains.values()
    ]


def test_the_manager_places_over_racks_and_disks() -> None:
    routing = with_chains(cluster_in_racks(6, 2, 3), Wish(6, 8, 3))
    assert routing is not None and len(routing.chains) == 16
    assert all(len(racks) == 3 for racks in racks_of(routing))
    used = Counter((t.node, t.disk) for t in routing.targets.values())
    assert set(used.values()) == {4} and len(used) == 12
    assert with_chains(routing, Wish(6, 8, 3)) is None
    for other in (Wish(6, 4, 3), Wish(5, 8, 3), Wish(6, 8, 2)):
        with pytest.raises(Error) as caught:
            with_chains(routing, other)
        assert caught.value.code is Code.EXISTS


def test_the_manager_refuses_what_cannot_be_kept_apart() -> None:
    with pytest.raises(Error, match="3 replicas on different racks need 3 racks, there are 2"):
        with_chains(cluster_in_racks(6, 1, 2), Wish(6, 4, 3, 1, Domain.RACK))
    with pytest.raises(Error, match="choose a multiple of a node's 2 disks"):
        with_chains(cluster_in_racks(6, 2, 3), Wish(6, 5, 3))


def test_a_table_handed_in_is_taken_as_it_is_or_refused() -> None:
    routing = cluster_in_racks(6, 1, 3)
    homes = [Home(n.id, n.disks, n.endpoint.host, n.rack) for n in routing.nodes.values()]
    table = tuple(reversed(make_plan(homes, 4, 3).chains))
    made = with_chains(routing, Wish(6, 4, 3, 1, Domain.RACK, table))
    assert made is not None
    placed = tuple(
        tuple(Place(made.targets[t].node, made.targets[t].disk) for t, _ in chain.targets)
        for chain in made.chains.values()
    )
    assert placed == table
    broken = ((table[0][0], table[0][0], table[0][1]), *table[1:])
    with pytest.raises(Error, match="chain 1 has 3 targets on 2 racks"):
        with_chains(routing, Wish(6, 4, 3, 1, Domain.RACK, broken))
