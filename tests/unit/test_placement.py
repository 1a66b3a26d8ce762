"""Chain tables: never two targets of a chain on one node, and everything spread evenly."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hillfire.errors import Code, Error
from hillfire.meta.manager.placement import place
from hillfire.types import NodeId


def nodes(count: int) -> list[NodeId]:
    return [NodeId(101 + i) for i in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 5))
def test_every_table_is_even(count: int, targets: int, replicas: int) -> None:
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


def test_three_nodes_take_turns() -> None:
    table = place(nodes(3), 3, 3)
    for position in range(3):
        assert {chain[position] for chain in table} == set(nodes(3))


@pytest.mark.parametrize(("count", "targets", "replicas"), [(4, 6, 3), (7, 3, 3), (9, 4, 3)])
def test_pairs_meet_about_equally(count: int, targets: int, replicas: int) -> None:
    met = Counter(
        pair
        for chain in place(nodes(count), targets, replicas)
        for pair in combinations(sorted(chain), 2)
    )
    counts = [met[pair] for pair in combinations(nodes(count), 2)]
    assert max(counts) - min(counts) <= 2


def test_too_few_nodes_are_named() -> None:
    with pytest.raises(Error, match="3 replicas need 3 storage nodes, there are 2: start 1 more"):
        place(nodes(2), 4, 3)


@pytest.mark.parametrize(("targets", "replicas"), [(0, 3), (4, 0), (4, 1 << 31), (1 << 31, 3)])
def test_impossible_numbers_are_refused(targets: int, replicas: int) -> None:
    with pytest.raises(Error) as caught:
        place(nodes(5), targets, replicas)
    assert caught.value.code is Code.CONFIGURATION
