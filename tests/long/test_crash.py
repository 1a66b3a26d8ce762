"""Every crash of every engine, not a sample of them (budget: 1500 s)."""

import os
from pathlib import Path

import pytest

from tests.crash import copies, engines, stores

pytestmark = [
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse"),
    pytest.mark.timeout(900),
]
SEEDS = range(100, 106)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_crash_of_the_metadata_engine(tmp_path: Path, seed: int) -> None:
    calls, states = engines.record(tmp_path, seed, commits=300)
    count, refused = engines.check(calls, states, seed, sample=None)
    assert refused <= count // 20
    print(f"{len(calls)} calls, {count} crashes, {refused} with a hole that was refused")


@pytest.mark.parametrize("seed", SEEDS)
def test_every_crash_of_a_copy_of_the_log(tmp_path: Path, seed: int) -> None:
    calls, states = copies.record(tmp_path, seed, turns=150)
    print(f"{len(calls)} calls, {copies.check(calls, states, seed, sample=None)} crashes")


@pytest.mark.parametrize("durable", [False, True], ids=["default", "always"])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_crash_of_the_chunk_store(tmp_path: Path, seed: int, durable: bool) -> None:
    calls, states = stores.record(tmp_path, seed, 80, durable=durable)
    count, damaged = stores.check(calls, states, seed, None, durable=durable)
    print(f"{len(calls)} calls, {count} crashes, {damaged} chunks refused as damaged")
