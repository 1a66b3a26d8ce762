"""The chunk store cut at its system calls, RocksDB's own included (budget: 20 s)."""

import os
from pathlib import Path

import pytest

from tests.crash import stores

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")


@pytest.mark.parametrize("durable", [False, True], ids=["default", "always"])
@pytest.mark.parametrize("seed", range(2))
def test_every_crash_leaves_a_store_that_opens_with_all_it_promised(
    tmp_path: Path, seed: int, durable: bool
) -> None:
    calls, states = stores.record(tmp_path, seed, 40, durable=durable)
    count, damaged = stores.check(calls, states, seed, 80, durable=durable)
    print(f"{len(calls)} calls, {count} crashes, {damaged} chunks refused as damaged")
