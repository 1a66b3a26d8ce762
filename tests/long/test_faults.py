"""Ten minutes of faults against real processes, with histories that are judged.

``deploy/test long``. HILLFIRE_MINUTES and HILLFIRE_SEED choose how long and which. Budget: 15 min.
"""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.run import run
from tests.faults.schedule import (
    COMBINED_FAULTS,
    DISK_FAULTS,
    NETWORK_FAULTS,
    PROCESS_FAULTS,
    Fault,
)

MINUTES = float(os.environ.get("HILLFIRE_MINUTES", "10"))
SEED = int(os.environ.get("HILLFIRE_SEED", "1"))


def for_minutes(source: random.Random, networked: bool) -> Iterator[Fault]:
    """Every kind once, then whatever comes."""
    faults = [*PROCESS_FAULTS, *COMBINED_FAULTS]
    faults += NETWORK_FAULTS + DISK_FAULTS if networked else ()
    until = time.monotonic() + MINUTES * 60
    source.shuffle(faults)
    yield from faults
    while time.monotonic() < until:
        yield source.choice(faults)


@pytest.mark.timeout(MINUTES * 60 + 900)
def test_faults_for_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        world = run(
            tmp_path, SEED, for_minutes, name="long", nodes=5, targets_per_node=3, rate=40.0
        )
    assert len(world.done) >= 3 * MINUTES
