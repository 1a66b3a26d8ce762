"""Seeds: as many worlds as fit the time, none of which may break, and what they covered.

Budget: 140 s on 2 cores (HILLFIRE_SIMULATION_SECONDS for another). The seeds are the same each
time, in order; how many fit is printed, with their operations, faults and coverage.
"""

import os

import pytest

from hillfire.meta.manager.chains import TABLE
from hillfire.storage.craq.rules import RULES
from tests.simulation.command import COMMAND, run_seeds
from tests.simulation.coverage import Coverage

SECONDS = float(os.environ.get("HILLFIRE_SIMULATION_SECONDS", "130"))
MIN_SEEDS = 50
"""Fewer say nothing about coverage."""
FIRST = (37, 72)
"""Seeds that use what few others do: they are run before all others."""
RARE_RULES = {15: 400, 27: 10_000, 32: 400, 48: 10_000, 68: 10_000}
"""Rules that so many seeds are sure to use."""
UNUSED_RULES = {
    3: "targets that act on one chain version agree on who is head, so R1 refuses first",
    16: "two good stores make the same image of the same update",
    35: "nothing that a returning target has newer may differ from what is under way",
    40: "the manager publishes the end of a node's last process before it lets the next one in",
    46: "it is for defects of the program",
    70: "giving up a last-serving target loses data, which these worlds never do",
    71: "client sessions are longer than a world lasts",
}
"""Rules for what no correct world does, and why; unit tests and mutations use them."""


@pytest.mark.timeout(600)
def test_nothing_breaks_and_everything_is_covered(capsys: pytest.CaptureFixture[str]) -> None:
    total, failures, count, cpu_s = Coverage(), list[str](), 0, 0.0
    seeds = [*FIRST, *(seed for seed in range(100_000) if seed not in FIRST)]
    for result in run_seeds(seeds, os.cpu_count() or 1, SECONDS):
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
    wanted = [n for n in RULES if n not in UNUSED_RULES and count >= RARE_RULES.get(n, 0)]
    unhit = [n for n in wanted if not total.rules[n]]
    assert not unhit, f"no world used the rules {unhit}"
    assert all(total.rows[row] for row in range(len(TABLE))), f"rows of the table: {total.rows}"
