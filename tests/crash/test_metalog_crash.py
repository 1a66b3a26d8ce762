"""A copy of the metadata's log cut at its system calls (budget: 10 s)."""

import os
from pathlib import Path

import pytest

from tests.crash import copies

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")


@pytest.mark.parametrize("seed", range(2))
def test_every_crash_leaves_what_was_acknowledged(tmp_path: Path, seed: int) -> None:
    calls, states = copies.record(tmp_path, seed, turns=60)
    print(f"{len(calls)} calls, {copies.check(calls, states, seed, sample=300)} crashes")
