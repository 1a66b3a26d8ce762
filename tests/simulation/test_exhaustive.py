"""Every interleaving of a small world holds. Budget: 20 s (two cores, nothing else running).

The larger bounds by command: ``python -m tests.simulation.exhaustive --bound N``.
"""

# mypy: ignore-errors

import sys
import time

import pytest

from tests.simulation import exhaustive


@pytest.mark.timeout(300)
def test_two_writers_and_a_crash_at_any_moment(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    found = exhaustive.explore(exhaustive.BOUNDS[1])
    took = time.monotonic() - began
    with capsys.disabled():
        sys.stdout.write(
            f"\nexhaustive, bound 1: {found.states} states, {found.steps} steps, "
            f"{found.rests} at rest, depth {found.depth}, {took:.1f} s\n"
        )
    assert found.left == 0, "some states were not visited"
    seen = found.actions
    assert found.rests > 50 and seen["crash"] > 40 and seen["restart"] > 400, "too quiet a world"


def test_the_same_bound_gives_the_same_states() -> None:
    first, second = (exhaustive.explore(exhaustive.BOUNDS[1], limit_states=200) for _ in range(2))
    assert (first.steps, first.actions) == (second.steps, second.actions)


def test_a_wrong_state_is_told_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(world: exhaustive.World) -> None:
        if world.acked == 2:
            raise exhaustive.Wrong("two were acknowledged")

    monkeypatch.setattr(exhaustive.World, "_look", look)
    with pytest.raises(exhaustive.Wrong, match=r"two were acknowledged\n +1 (.|\n)*deliver"):
        exhaustive.explore(exhaustive.BOUNDS[1])


def test_ways_at_random_through_the_largest_bound() -> None:
    found = exhaustive.walk(exhaustive.BOUNDS[7], 1, exhaustive.WALKS)
    assert found.rests == exhaustive.WALKS and found.actions["crash"] > exhaustive.WALKS / 2
