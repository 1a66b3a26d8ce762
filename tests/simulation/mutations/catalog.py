"""The mutations: defects that the searches must find, each a diff against production code.

A diff's first line says what is broken, its second what finds it: ``found by: seeds 3 17`` (of
the simulator), ``found by: walk 7 1`` (a bound of the small worlds, and seeds of ways through
it) or ``found by: pytest PATH::TEST``. Where that is a transcript, since no seed can tell, the
lines after it say why. A diff is applied to a copy of the source tree, never to the tree itself.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
PARTS = ("client", "fuse", "kernels", "meta", "proto", "storage", "src", "tests")
TIMEOUT_S = 100.0

_SEEDS = """
import sys
from tests.simulation.command import run_seed
for seed in sys.argv[1:]:
    result = run_seed(int(seed))
    if result.failure:
        print("FOUND", seed, result.failure.strip().splitlines()[-1])
        break
"""
_WALK = """
import sys
from tests.simulation import exhaustive
for seed in sys.argv[2:]:
    try:
        exhaustive.walk(exhaustive.BOUNDS[int(sys.argv[1])], int(seed), exhaustive.WALKS)
    except exhaustive.Wrong as exc:
        print("FOUND", sys.argv[1], seed, str(exc).splitlines()[0])
        break
"""


class Mutation(NamedTuple):
    """One defect."""

    name: str
    what: str
    finder: str
    """``seeds``, ``walk``, ``pytest``; empty if nothing is known to find it"""
    arguments: tuple[str, ...]
    path: Path


def load() -> list[Mutation]:
    """Read the diffs in the order of their names."""
    return [_read(path) for path in sorted(HERE.glob("*.diff"))]


def _read(path: Path) -> Mutation:
    what, line = path.read_text().splitlines()[:2]
    found = re.fullmatch(r"found by: (seeds|walk|pytest)((?: \S+)+)", line)
    if found is None:
        return Mutation(path.stem, what, "", (), path)
    return Mutation(path.stem, what, found[1], tuple(found[2].split()), path)


def record(mutation: Mutation, finder: str, arguments: Sequence[str]) -> None:
    """Write down what finds a mutation."""
    lines = mutation.path.read_text().splitlines(keepends=True)
    lines[1] = " ".join(("found by:", finder, *arguments)) + "\n"
    mutation.path.write_text("".join(lines))


def copy_tree(target: Path, source: Path = ROOT) -> None:
    """Copy what the searches import, links as links."""
    skipped = shutil.ignore_patterns("__pycache__", "*.diff", ".*", "*.egg-info")
    for part in PARTS:
        shutil.copytree(source / part, target / part, symlinks=True, ignore=skipped)
    shutil.copy(source / "pyproject.toml", target)


def apply(mutation: Mutation, tree: Path) -> None:
    """Break a copy.

    Raises:
        AssertionError: the diff does not apply any more.
    """
    command = ["git", "apply", "-p1", "--whitespace=nowarn", str(mutation.path)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{mutation.name} does not apply: {done.stderr}"


def find(finder: str, arguments: Sequence[str], tree: Path, timeout_s: float = TIMEOUT_S) -> str:
    """Search in a copy; return what was found, empty if all was well.

    Raises:
        AssertionError: the search itself did not work.
    """
    commands = {
        "seeds": ["-c", _SEEDS],
        "walk": ["-c", _WALK],
        "pytest": ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"],
    }
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tree / 'src'}:{tree}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, *commands[finder], *arguments],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if finder == "pytest":
        failed = re.search(r"^FAILED .*$", done.stdout, re.MULTILINE)
        assert done.returncode == 0 or failed, done.stdout + done.stderr
        return failed[0] if failed else ""
    assert done.returncode == 0, done.stderr
    found = re.search(r"^FOUND .*$", done.stdout, re.MULTILINE)
    return found[0] if found else ""
