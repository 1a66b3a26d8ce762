"""Look for what finds each mutation: ``python -m tests.simulation.mutations --hunt``.

Without ``--hunt``: what is written down is tried again, and told.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.simulation.mutations.catalog import Mutation, apply, copy_tree, find, load, record

STEP = 8
"""Seeds tried in one process."""
KEPT = 2
"""Seeds written down: the second is for when a change of the worlds moves the first."""


WALKED = ((7, 1), (4, 1), (6, 1), (7, 2))
"""Bounds and seeds of small worlds, which are tried first: they are quick."""


def hunt(mutation: Mutation, base: Path, seeds: int) -> str:
    """Try walks and then seeds until enough find a mutation, and write them down."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        copy_tree(tree, base)
        apply(mutation, tree)
        for walked in WALKED:
            arguments = [str(number) for number in walked]
            if said := find("walk", arguments, tree):
                record(mutation, "walk", arguments)
                return said
        found: list[str] = []
        for first in range(0, seeds, STEP):
            tried = [str(seed) for seed in range(first, first + STEP)]
            while tried and len(found) < KEPT:
                said = _try(tried, tree)
                if not said:
                    break
                seed = said.split()[1]
                tried = tried[tried.index(seed) + 1 :]
                if not _try([seed], base):  # what fails anyhow finds nothing
                    found.append(seed)
            if len(found) >= KEPT:
                break
    if found:
        record(mutation, "seeds", found)
    return " ".join(found)


def _try(seeds: Sequence[str], tree: Path) -> str:
    try:
        return find("seeds", seeds, tree)
    except subprocess.TimeoutExpired:
        return ""


def again(mutation: Mutation, base: Path) -> str:
    """Try what is written down."""
    if not mutation.finder:
        return ""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        copy_tree(tree, base)
        apply(mutation, tree)
        return find(mutation.finder, mutation.arguments, tree)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hunt", action="store_true", help="look for seeds")
    parser.add_argument("--all", action="store_true", help="for those that have some, too")
    parser.add_argument("--seeds", type=int, default=200, help="how many to try")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("names", nargs="*", help="of mutations; default all")
    options = parser.parse_args()
    chosen = [m for m in load() if not options.names or m.name in options.names]
    if options.hunt and not options.all:
        chosen = [m for m in chosen if not m.finder]
    missing = 0
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as pool:
        base = Path(name)
        copy_tree(base)
        work = (
            partial(hunt, base=base, seeds=options.seeds)
            if options.hunt
            else partial(again, base=base)
        )
        for mutation, said in zip(chosen, pool.map(work, chosen), strict=True):
            sys.stdout.write(f"{mutation.name}: {said or 'NOT FOUND'}\n")
            sys.stdout.flush()
            missing += not said
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
