"""The tests of the tests: each stored defect is found by the search that is stored with it.

Budget: 60 s. ``python -m tests.simulation.mutations --hunt`` looks for seeds anew.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.simulation.mutations.catalog import Mutation, apply, copy_tree, find, load

MUTATIONS = load()
LEAST = 20
JOBS = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    tree = tmp_path_factory.mktemp("base")
    copy_tree(tree)
    yield tree


def test_there_are_enough_and_each_says_what_finds_it() -> None:
    assert len(MUTATIONS) >= LEAST
    assert not [mutation.name for mutation in MUTATIONS if not mutation.finder]


@pytest.mark.timeout(300)
def test_each_mutation_is_found(base: Path, tmp_path: Path) -> None:
    def search(mutation: Mutation) -> str:
        tree = tmp_path / mutation.name
        copy_tree(tree, base)
        apply(mutation, tree)
        return find(mutation.finder, mutation.arguments, tree)

    with ThreadPoolExecutor(JOBS) as pool:
        found = dict(zip((m.name for m in MUTATIONS), pool.map(search, MUTATIONS), strict=True))
    assert not [name for name, said in found.items() if not said], found


@pytest.mark.timeout(300)
def test_the_unbroken_code_passes_the_same_searches(base: Path) -> None:
    seeds = {seed for m in MUTATIONS if m.finder == "seeds" for seed in m.arguments}
    assert find("seeds", sorted(seeds, key=int), base, 280) == ""
    for walked in sorted({m.arguments for m in MUTATIONS if m.finder == "walk"}):
        assert find("walk", walked, base) == ""
