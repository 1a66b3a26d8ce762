"""The throttle: full speed when nobody else is there, a share of the time otherwise."""

import asyncio
import time

import pytest

from hillfire.cluster import LocalState, PublicState, Routing, Target
from hillfire.storage.resync import Recovery
from hillfire.storage.throttle import MAX_WORK_NS, NS_PER_S, WINDOW_NS, Limits, Meter, Throttle
from hillfire.storage.turns import Peer, Turns
from hillfire.types import ChainId, NodeId, TargetId

MS = 1_000_000


def test_meter_measures_the_part_of_the_time_in_which_somebody_is_served() -> None:
    meter = Meter()
    assert meter.busy(0) == 0
    for start in range(0, 4 * WINDOW_NS, 10 * MS):  # 3 of each 10 ms
        meter.enter(start)
        meter.leave(start + 3 * MS)
    assert meter.busy(4 * WINDOW_NS) == pytest.approx(0.3, abs=0.01)
    assert meter.busy(4 * WINDOW_NS + WINDOW_NS // 2) == pytest.approx(0.15, abs=0.01)
    assert meter.busy(6 * WINDOW_NS) == 0


def test_meter_counts_requests_side_by_side_once_and_those_still_under_way() -> None:
    meter = Meter()
    meter.enter(0)
    meter.enter(WINDOW_NS // 2)
    meter.leave(WINDOW_NS)
    assert meter.busy(WINDOW_NS) == 1
    assert meter.busy(7 * WINDOW_NS) == 1  # one never ended
    meter.leave(7 * WINDOW_NS)
    assert meter.busy(8 * WINDOW_NS) == 0


def work(throttle: Throttle, busy: float, batch_ns: int, until_ns: int, streams: int = 1) -> float:
    """Work as the throttle lets, and return the part of the time at work."""
    now = worked = 0
    while now < until_ns:
        now += throttle.wait_ns(now, busy, streams)
        throttle.began(now, 1 << 20)
        now += batch_ns
        worked += batch_ns
        throttle.ended(now)
    return worked / now


def test_without_foreground_nothing_is_held_back() -> None:
    assert work(Throttle(Limits(share=0.2)), 0, 10 * MS, NS_PER_S) == 1
    assert work(Throttle(Limits(share=1)), 1, 10 * MS, NS_PER_S) == 1


@pytest.mark.parametrize("batch_ns", [MS, 30 * MS, 400 * MS])
def test_with_foreground_recovery_keeps_to_its_share_of_the_time(batch_ns: int) -> None:
    long = 60 * NS_PER_S
    assert work(Throttle(Limits(share=0.2)), 1.0, batch_ns, long) == pytest.approx(0.2, abs=0.01)
    # whoever is there for little of the time waits for as long each time
    assert work(Throttle(Limits(share=0.2)), 0.1, batch_ns, long) == pytest.approx(0.2, abs=0.01)
    # three senders that work towards one node keep to its share together
    third = work(Throttle(Limits(share=0.3)), 1.0, batch_ns, long, streams=3)
    assert third == pytest.approx(0.1, abs=0.01)


def test_one_batch_at_a_time_beside_foreground_and_a_stall_is_forgiven() -> None:
    throttle = Throttle(Limits(share=0.25))
    throttle.began(0, 1)
    assert throttle.wait_ns(MS, busy=0) == 0
    assert throttle.wait_ns(MS, busy=1) > 0
    throttle.ended(100 * NS_PER_S)
    assert throttle.wait_ns(100 * NS_PER_S, busy=1) == 3 * MAX_WORK_NS
    assert throttle.wait_ns(100 * NS_PER_S, busy=0) == 0


def test_bytes_a_second_are_a_limit_whoever_is_there() -> None:
    throttle = Throttle(Limits(share=1, bytes_per_s=10 << 20))
    now = 0
    for _ in range(100):
        now += throttle.wait_ns(now, 0)
        throttle.began(now, 1 << 20)
        throttle.ended(now)
    assert now == pytest.approx(9.9 * NS_PER_S, rel=0.01)


def test_turns_are_taken_in_order_and_one_who_gives_up_leaves_the_line() -> None:
    async def main() -> None:
        turns = Turns(Limits(share=0.5))
        busy = Peer()
        assert busy.busy == 1
        order: list[int] = []

        async def batch(number: int) -> None:
            async with turns.turn(1, busy):
                order.append(number)
                await asyncio.sleep(0.005)

        tasks = [asyncio.create_task(batch(number)) for number in range(5)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        began = time.monotonic()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 1, 3, 4]
        assert isinstance(done[2], asyncio.CancelledError)
        assert time.monotonic() - began > 0.03  # four of 5 ms, three rests of 5 ms
        assert turns.throttle.at_work == 0

    asyncio.run(main())


def test_streams_towards_a_node_are_counted_from_the_routing() -> None:
    def target(number: int, node: int, state: PublicState) -> Target:
        return Target(TargetId(number), NodeId(node), ChainId(number), 0, state, LocalState.ONLINE)

    syncing, serving = PublicState.SYNCING, PublicState.SERVING
    targets = [target(1, 5, syncing), target(2, 5, serving), target(3, 5, syncing)]
    targets.append(target(4, 6, syncing))
    routing = Routing("", 1, targets={each.id: each for each in targets})

    async def main() -> None:
        recovery = Recovery(Turns(Limits()), 4, lambda: routing)
        assert recovery.streams(NodeId(5)) == 2
        assert recovery.streams(NodeId(6)) == 1

    asyncio.run(main())
