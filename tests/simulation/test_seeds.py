"""Seeds: as many worlds as fit the time, none of which may break, and what they covered.

Budget: 180 s on 2 cores (HILLFIRE_SIMULATION_SECONDS for another). The seeds are the same each
time, in order; how many fit is printed, with their operations, faults and coverage.
"""

import os

import pytest

from hillfire.meta.manager.chains import TABLE
from hillfire.storage.craq.rules import RULES
from tests.simulation.command import COMMAND, run_seeds
from tests.simulation.coverage import Coverage

SECONDS = float(os.environ.get("HILLFIRE_SIMULATION_SECONDS", "170"))
MIN_SEEDS = 50
"""Fewer say nothing about coverage."""
UNUSED_RULES = {
    3: "targets that act on one chain version agree on who is head, so R1 refuses first",
    15: "two good stores make the same image of the same update",
    16: "two good stores make the same image of the same update",
    35: "nothing that a returning target has newer may differ from what is under way",
    40: "the manager publishes the end of a node's last process before it lets the next one in",
    46: "it is for defects of the program",
}
"""Rules for what no correct world does, and why; unit tests and mutations use them."""


@pytest.mark.timeout(600)
def test_nothing_breaks_and_everything_is_covered(capsys: pytest.CaptureFixture[str]) -> None:
    total, failures, count, cpu_s = Coverage(), list[str](), 0, 0.0
    for result in run_seeds(range(1_000_000), os.cpu_count() or 1, SECONDS):
        count += 1
        cpu_s += result.cpu_s
        total.add(result.coverage)
        if result.failure:
            failures.append(f"{COMMAND} {result.seed}\n{result.failure}")
    with capsys.disabled():
        print(f"\n{total.table(count, cpu_s, SECONDS)}")
    assert not failures, f"{len(failures)} of {count} seeds fail:\n" + "\n".join(failures[:3])
    assert count >= MIN_SEEDS, f"only {count} seeds in {SECONDS} s"
    assert total.counts["operations"] >= 200 * count and total.faults >= 5 * count
    unhit = [n for n in RULES if not total.rules[n] and n not in UNUSED_RULES]
    assert not unhit, f"no world used the rules {unhit}"
    assert all(total.rows[row] for row in range(len(TABLE))), f"rows of the table: {total.rows}"
