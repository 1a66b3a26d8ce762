"""Real processes under every kind of fault, with histories that are judged. Budget: 90 s.

Each kind happens at least once, in an order and at places that the seed draws. The same for ten
minutes: tests/long/test_faults.py.
"""

import os
import random
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

SEED = int(os.environ.get("HILLFIRE_SEED", "3"))


def once_each(source: random.Random, networked: bool) -> Iterator[Fault]:
    """Every kind of fault once, and one of those that combine several."""
    faults = [*PROCESS_FAULTS, source.choice(COMBINED_FAULTS)]
    faults += NETWORK_FAULTS + DISK_FAULTS if networked else ()
    source.shuffle(faults)
    yield from faults


@pytest.mark.timeout(240)
def test_every_kind_of_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        world = run(tmp_path, SEED, once_each, name="short")
    kills = world.figures["writes resume after a kill"]
    both = world.figures["writes resume after manager and node died"]
    assert max(kills) < 10 and max(both) < 15, "far from the goals of 3 and 6 s"
