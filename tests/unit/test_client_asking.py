"""Reads on their way: the window, hedges that win, lose and fail, and where they land. Budget: 5 s.

The world answers in virtual time, ``world.delays`` after what a node takes.
"""

import random
from collections import Counter
from typing import Any

import pytest

from hillfire.client import hedge, reading
from hillfire.client.actions import Abandon, Await, Call, Exchange, Operation, Outcome, Start
from hillfire.client.hedged import ATTEMPT_S
from hillfire.client.items import Items, longs
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Part
from hillfire.proto.wire.chunks import READ
from hillfire.region import Quarantine, Region
from hillfire.types import ByteRange, InodeId, chunk_id
from tests.unit.client_world import CHUNK, World

DATA = random.Random(1).randbytes(30 * CHUNK)


class Pool:
    """Staging memory that counts."""

    def __init__(self) -> None:
        self.out: list[Part] = []

    def try_acquire(self, length: int) -> Part | None:
        part = Part(Region.allocate(length), 0, length)
        self.out.append(part)
        return part

    def release(self, part: Part) -> None:
        self.out.remove(part)


class Late(World):
    """Nodes whose answers take their time; over shared memory they land even when abandoned."""

    direct = False

    def __init__(self, direct: bool = False) -> None:
        super().__init__()
        self.inode(5, len(DATA))
        extent = self.core.extent(self.copy(5))
        for index in range(len(DATA) // CHUNK):
            chain = extent.layout.chain_of(index)
            assert chain
            name = chunk_id(InodeId(5), index)
            self.chunks[name] = bytearray(DATA[index * CHUNK : (index + 1) * CHUNK])
        self.pool = Pool()
        self.core.pool = self.pool
        self.extent = extent
        self.direct = direct
        self.quarantines: list[tuple[Region, Quarantine]] = []
        self.asked: Counter[str] = Counter()
        self.most = 0
        if direct:
            self.core.hedging.direct = {101, 102, 103}

    def _start(self, call: Call) -> Any:
        self.asked[call.endpoint.tcp.split(":")[0]] += 1
        self.most = max(self.most, self.core.loads.bytes)
        return super()._start(call)

    def _answer(self, call: Call) -> Outcome:
        outcome = super()._answer(call)
        return outcome._replace(verified=self.direct and outcome.verified)

    def run(self, operation: Operation[Any]) -> Any:
        return super().run(self._watched(operation))

    def _watched(self, operation: Operation[Any]) -> Operation[Any]:
        """What is abandoned before its answer stays in quarantine if its server can land there."""
        action = operation.send(None)
        while True:
            if isinstance(action, Abandon) and self.direct:
                for flying in action.flying:
                    for part in flying.call.request.destinations if not flying.outcome else ():
                        span = ByteRange(part.offset, part.length)
                        self.quarantines.append((part.region, part.region.quarantine(span)))
                        part.region.view[part.offset : part.offset + part.length] = (
                            bytes([0xDD]) * part.length
                        )
            assert isinstance(action, Exchange | Start | Await | Abandon) or action
            try:
                action = operation.send((yield action))
            except StopIteration as stop:
                return stop.value

    def read(self, offset: int, length: int, region: Region | None = None) -> bytes:
        into = Part(region or Region.wrap(bytearray(length)), 0, length)
        began = self.now
        (result,) = self.run(reading.read_batch(self.core, [(self.extent, offset, into)]))
        self.took = self.now - began
        if isinstance(result, Error):
            raise result
        return bytes(into.region.view[:result])

    def fetch(self, offset: int, length: int) -> bytes:
        began = self.now
        data: bytes = self.run(reading.fetch(self.core, self.extent, offset, length))
        self.took = self.now - began
        return data


def usual(world: Late, took_s: float = 0.0002, count: int = 300) -> None:
    """Teach the client what answers usually take."""
    for number in range(count):
        for node in (101, 102, 103):
            for n_bytes in (100, 2 * CHUNK, 4 * CHUNK):
                ticket = world.core.loads.started(node, 1, n_bytes, world.now)
                world.core.loads.ended(ticket, world.now + took_s * (1 + number % 7 / 10))


def test_a_slow_node_costs_a_read_a_little_and_soon_nothing() -> None:
    world = Late()
    usual(world)
    world.delays = {"n1": 0.5}
    times = []
    for number in range(300):
        offset = number * 977 % (len(DATA) - 100)
        assert world.read(offset, 100) == DATA[offset : offset + 100]
        times.append(world.took)
    assert max(times) < 0.01, "never the half second of the slow node"
    assert world.core.loads.slow == {102}
    assert world.asked["n1"] < 30, "others are asked from now on"
    assert not world.pool.out, "all staging memory came back"
    assert sum(call.endpoint.tcp.startswith("n1") for call in world.abandoned) == world.asked["n1"]


def test_without_hedges_it_costs_the_slow_nodes_time() -> None:
    world = Late()
    usual(world)
    world.core.hedging.enabled = False
    world.delays = {"n1": 0.5}
    # A lone request is an Exchange, which this world answers at once: read from two chunks.
    for number in range(30):
        world.read(number * CHUNK - CHUNK // 2 if number else 0, CHUNK)
    assert world.asked["n1"] and not world.abandoned
    assert world.now > 100.5


def test_a_hedge_that_loses_is_abandoned_and_its_memory_comes_back() -> None:
    world = Late()
    usual(world)
    world.delays = {"n0": 0.01, "n1": 0.01, "n2": 0.01}
    assert world.read(0, 100) == DATA[:100]
    assert sum(world.asked.values()) == 2 and len(world.abandoned) == 1
    assert not world.pool.out and not world.core.loads.bytes
    assert all(not load.flying for load in world.core.loads.nodes.values())


def test_when_everything_is_slow_hedges_stay_within_their_budget() -> None:
    world = Late()
    usual(world)
    world.core.hedging.budget.burst = world.core.hedging.budget.left = 10 * 136 * 1024
    hedged = 0
    for _ in range(400):
        cost = world.core.loads.cost
        usual(world, count=4)  # or it learns that this is usual
        world.core.loads.cost = cost
        world.delays = {"n0": 0.05, "n1": 0.05, "n2": 0.05}
        world.read(0, 100)
        hedged = sum(world.asked.values()) - 400
    assert hedged <= 10 + 400 * hedge.HEDGE_SHARE + 1


def test_memory_that_may_still_be_landed_in_is_left_to_the_first_answer() -> None:
    """A caller's own memory over shared memory: no second copy can be put there."""
    world = Late(direct=True)
    usual(world)
    world.delays = {"n0": 0.05, "n1": 0.05, "n2": 0.05}
    region = Region.allocate(100)
    assert world.read(0, 100, region) == DATA[:100]
    assert not world.abandoned and not world.quarantines


def test_staging_memory_that_may_still_be_landed_in_is_exchanged_for_other() -> None:
    world = Late(direct=True)
    usual(world)
    world.delays = {"n0": 0.5}
    for first in range(12):
        at = first * CHUNK
        assert world.fetch(at, 3 * CHUNK) == DATA[at : at + 3 * CHUNK]
        assert world.took < 0.05
    assert world.quarantines, "something was abandoned"
    assert not world.pool.out


def test_a_late_answer_to_memory_of_ones_own_never_shows() -> None:
    world = Late(direct=True)
    usual(world)
    world.core.hedging.direct.clear()  # not known yet: it is found out by the first hedge
    world.delays = {"n0": 0.5, "n1": 0.0, "n2": 0.0}
    region = Region.allocate(100)
    got: list[bytes] = []
    while not world.quarantines:
        before = len(got)
        operation = reading.read_batch(
            world.core, [(world.extent, 0, Part(region, 0, 100))], patient=False
        )
        (result,) = world.run(operation)
        if isinstance(result, Error):
            assert result.code is Code.BUSY
            break
        got.append(bytes(region.view))
        assert got[before] == DATA[:100]
    assert world.quarantines and 101 in world.core.hedging.direct


@pytest.mark.parametrize("fault", [Code.CORRUPT, Code.NOT_COMMITTED, Code.BUSY])
def test_a_hedge_that_fails_leaves_the_first_request_to_answer(fault: Code) -> None:
    world = Late()
    usual(world)
    world.delays = {"n0": 0.02, "n1": 0.02, "n2": 0.02}
    seen: list[int] = []

    def faulty(node: int, item: Any) -> Code | None:
        seen.append(node)
        return fault if len(world.asked) > 1 and node != int(first[0][1:]) + 101 else None

    world.delays = {"n0": 0.3, "n1": 0.3, "n2": 0.3}
    first = [next(f"n{r.node - 101}" for r in world.core.routes.lines[1].turns)]
    original = world._start

    def start(call: Call) -> Any:
        if not world.asked:
            first[0] = call.endpoint.tcp.split(":")[0]
            world.delays = {name: 0.3 if name == first[0] else 0.01 for name in ("n0", "n1", "n2")}
        return original(call)

    world._start = start  # type: ignore[method-assign]
    world.fault = faulty
    assert world.read(0, 100) == DATA[:100]
    assert sum(world.asked.values()) == 2 and 0.29 < world.took < 0.31
    assert not world.pool.out


def test_a_first_request_that_fails_waits_for_its_hedge() -> None:
    world = Late()
    usual(world)
    first: list[str] = []
    original = world._start

    def start(call: Call) -> Any:
        if not first:
            first.append(call.endpoint.tcp.split(":")[0])
            world.delays = {n: 0.05 if n == first[0] else 0.08 for n in ("n0", "n1", "n2")}
            world.down = {first[0]}
        return original(call)

    world._start = start  # type: ignore[method-assign]
    assert world.read(0, 100) == DATA[:100]
    assert sum(world.asked.values()) == 2 and world.took < 0.1
    assert not world.pool.out and not world.pauses


def test_a_hedge_with_changed_bytes_is_not_used() -> None:
    world = Late()
    usual(world)
    first: list[str] = []
    start, answer = world._start, world._answer

    def started(call: Call) -> Any:
        if not first:
            first.append(call.endpoint.tcp.split(":")[0])
            world.delays = {first[0]: 0.2}
        return start(call)

    def answered(call: Call) -> Outcome:
        outcome = answer(call)
        if call.request.method == READ and not call.endpoint.tcp.startswith(first[0]):
            region, place, _ = call.request.destinations[0]
            region.view[place] ^= 1
        return outcome

    world._start, world._answer = started, answered  # type: ignore[method-assign]
    assert world.read(0, 100) == DATA[:100]
    assert 0.19 < world.took < 0.21


def test_what_is_on_its_way_is_bounded_and_all_of_it_arrives() -> None:
    world = Late()
    usual(world)
    world.core.window.max_bytes = 12 * CHUNK
    assert world.read(0, len(DATA)) == DATA
    assert world.most == 10 * CHUNK, "one of the three requests at a time"
    world = Late()
    world.read(0, len(DATA))
    assert world.most == len(DATA)


def test_a_large_batch_as_arrays_is_hedged_too() -> None:
    world = Late()
    usual(world)
    chance, count = random.Random(3), 120
    offsets = [chance.randrange(len(DATA) - 500) for _ in range(count)]
    for delays in ({"n1": 0.5}, {"n0": 0.5}, {}):
        world.delays = delays
        region = Region.wrap(bytearray(500 * count))
        items = Items(
            [world.extent], None, longs(offsets, count, "offsets"),
            longs([500 * n for n in range(count)], count, "places"),
            longs(500, count, "lengths"), region,
        )  # fmt: skip
        began = world.now
        assert world.run(reading.read_items(world.core, items)) == [500] * count
        assert world.now - began < 0.1
        for number, offset in enumerate(offsets):
            got = bytes(region.view[500 * number : 500 * (number + 1)])
            assert got == DATA[offset : offset + 500]
    assert not world.pool.out


def test_slow_nodes_are_left_out_of_arrays_where_others_serve() -> None:
    world = Late()
    table = world.core.table()
    left = table.without(frozenset({102}))
    assert (left.counts == table.counts - 1).all()
    slots = {replica.node: slot for slot, replica in enumerate(table.replicas)}
    for row in range(len(left.counts)):
        assert slots[102] not in left.turns[row, : left.counts[row]]
    everybody = frozenset(slots)
    assert (table.without(everybody).counts == table.counts).all()


def test_retries_at_once_become_retries_after_a_pause_when_they_are_the_rule() -> None:
    world = Late()
    world.core.hedging.enabled = False
    world.core.hedging.retries.left = 3.0
    world.core.hedging.retries.share = 0.0
    turn = [0]

    def fault(node: int, item: Any) -> Code | None:
        turn[0] += 1
        return Code.LEASE_EXPIRED if turn[0] % 2 else None

    world.fault = fault
    for _ in range(6):
        world.core.routes._suspects = {}
        world.read(0, 100)
    assert len(world.pauses) == 3


def test_an_attempt_ends_before_the_operation_gives_up() -> None:
    assert hedge.MAX_DELAY_S < ATTEMPT_S
