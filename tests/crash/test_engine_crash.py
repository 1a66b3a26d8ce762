"""The metadata engine cut at its system calls, RocksDB's own included (budget: 15 s)."""

import os
from pathlib import Path

import pytest

from tests.crash import engines

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")


@pytest.mark.parametrize("seed", range(2))
def test_every_crash_leaves_an_engine_that_opens_with_all_it_promised(
    tmp_path: Path, seed: int
) -> None:
    calls, states = engines.record(tmp_path, seed, commits=150)
    assert sum(call[0] == "add" for call in calls) > 8, "log files and tables came and went"
    count, refused = engines.check(calls, states, seed, sample=150)
    assert refused <= count // 20
    print(f"{len(calls)} calls, {count} crashes, {refused} with a hole that was refused")
