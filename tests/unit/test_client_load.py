"""Which replica is asked, when a read is asked twice, and how much may be on its way. Budget: 5 s.

All of it is pure: time is a number here.
"""

import random
from collections import Counter

import pytest

from hillfire.client import hedge, load
from hillfire.client.hedge import Budget, Hedging
from hillfire.client.load import Loads, class_of
from hillfire.client.plan import Replica
from hillfire.client.window import Window
from tests.unit.client_world import endpoint

MIB = 1 << 20
A, B, C = (Replica(10 * node, node, endpoint(f"n{node}")) for node in (1, 2, 3))


def answered(loads: Loads, node: int, took_s: float, now: float, n_bytes: int = MIB) -> None:
    loads.ended(loads.started(node, 1, n_bytes, now), now + took_s)


def warm(loads: Loads, paces: dict[int, float], rounds: int = 40, now: float = 0.0) -> float:
    for _ in range(rounds):
        for node, took_s in paces.items():
            answered(loads, node, took_s, now)
        now += 0.01
    return now


def chosen(loads: Loads, now: float, count: int = 300, n_bytes: int = MIB) -> Counter[int]:
    """Who is asked when everything is answered at once."""
    return Counter(loads.choose((A, B, C), n_bytes, turn, now).node for turn in range(count))


def test_equals_take_turns() -> None:
    loads = Loads()
    assert chosen(loads, 0.0) == {1: 100, 2: 100, 3: 100}
    now = warm(loads, {1: 0.0010, 2: 0.0012, 3: 0.0009})
    assert chosen(loads, now) == {1: 100, 2: 100, 3: 100}, "noise is no reason"


def test_what_is_on_its_way_counts() -> None:
    loads = Loads()
    tickets = []
    for turn in range(30):
        replica = loads.choose((A, B, C), MIB, turn * 7, 0.0)
        tickets.append(loads.started(replica.node, 1, MIB, 0.0))
    assert Counter(t.node for t in tickets) == {1: 10, 2: 10, 3: 10}
    for ticket in tickets:
        if ticket.node == 2:
            loads.ended(ticket, 0.1)
    assert loads.choose((A, B, C), MIB, 0, 0.1) == B
    assert loads.bytes == 20 * MIB


def test_what_the_caller_will_send_counts_too() -> None:
    planned = {1: 3 * MIB, 3: MIB}
    assert Loads().choose((A, B, C), MIB, 0, 0.0, planned) == B


def test_a_near_replica_is_asked_as_often_as_its_weight_says() -> None:
    loads, counts = Loads(), Counter[int]()
    for turn in range(500):
        replica = loads.choose((A, A, A, A, B), MIB, turn, 0.0)
        counts[replica.node] += 1
        loads.started(replica.node, 1, MIB, 0.0)
    assert 3.5 < counts[1] / counts[2] < 4.5


def test_a_slow_node_gets_little_and_is_asked_again_once_in_a_while() -> None:
    loads = Loads()
    now = warm(loads, {1: 0.001, 2: 0.050, 3: 0.001})
    assert loads.slow == {2}
    answered(loads, 2, 0.050, now)
    assert chosen(loads, now + 0.1)[2] == 0
    assert loads.turns((A, B, C), now + 0.1) == [A, C]
    probe = now + 0.1 + load.PROBE_S
    assert chosen(loads, probe)[2] == 100 and loads.turns((A, B, C), probe) == [A, B, C]
    ticket = loads.started(2, 1, MIB, probe)
    assert chosen(loads, probe + 1.0)[2] == 0, "one request is probe enough"
    assert loads.turns((A, B, C), probe + 1.0) == [A, C]
    loads.ended(ticket, probe + 1.0)


def test_a_node_that_recovered_is_found_out() -> None:
    loads = Loads()
    now = warm(loads, {1: 0.001, 2: 0.050, 3: 0.001})
    probes = 0
    while 2 in loads.slow:
        now += load.PROBE_S
        answered(loads, 2, 0.001, now)
        probes += 1
        assert probes < 8
    warm(loads, {1: 0.001, 2: 0.001, 3: 0.001}, now=now)
    assert chosen(loads, now) == {1: 100, 2: 100, 3: 100}


def test_a_node_that_stopped_in_the_middle_of_a_request_is_slow_before_it_answers() -> None:
    loads = Loads()
    now = warm(loads, {1: 0.001, 2: 0.001, 3: 0.001})
    tickets = [loads.started(2, 1, MIB, now) for _ in range(4)]
    for ticket in tickets:
        loads.overdue(ticket, now + 0.1)
    assert loads.slow == {2} and loads.turns((A, B, C), now + 10.0) == [A, C]


def test_one_answer_that_was_late_makes_no_node_slow() -> None:
    loads = Loads()
    now = warm(loads, {1: 0.001, 2: 0.001, 3: 0.001})
    answered(loads, 2, 5.0, now)
    assert not loads.slow
    answered(loads, 2, 5.0, now)
    answered(loads, 2, 5.0, now)
    assert loads.slow == {2}


def test_where_all_are_slow_nobody_is() -> None:
    loads = Loads()
    warm(loads, {1: 0.001, 2: 0.001, 3: 0.001})
    now = warm(loads, {1: 0.1, 2: 0.1, 3: 0.1}, rounds=100, now=10.0)
    assert not loads.slow and chosen(loads, now) == {1: 100, 2: 100, 3: 100}


def test_a_chain_of_slow_nodes_is_still_read() -> None:
    loads = Loads()
    now = warm(loads, {1: 0.001, 2: 0.050, 3: 0.001, 4: 0.001, 5: 0.001})
    assert loads.turns((B,), now) == (B,) and loads.choose((B,), MIB, 5, now) == B


def test_errors_say_nothing_of_the_pace_and_an_end_is_counted_once() -> None:
    loads = Loads()
    ticket = loads.started(1, 1, MIB, 0.0)
    loads.ended(ticket, 0.00001, answered=False)
    loads.ended(ticket, 0.00001)
    assert loads.of(1).pace == 0.0 and loads.bytes == loads.of(1).cost == 0


@pytest.mark.parametrize("shape", ["uniform", "exponential", "two humps"])
def test_late_is_what_one_in_twenty_exceed(shape: str) -> None:
    chance, loads = random.Random(3), Loads()

    def took_s() -> float:
        if shape == "uniform":
            return chance.uniform(0.001, 0.002)
        if shape == "exponential":
            return chance.expovariate(1000)
        return 0.1 if chance.random() < 0.02 else chance.uniform(0.001, 0.002)

    later = total = 0
    for number in range(8000):
        sample = took_s()
        if number >= 2000:
            later += sample > loads.of(1).late_s[class_of(MIB)]
            total += 1
        answered(loads, 1, sample, 0.0)
    assert 0.03 < later / total < 0.07
    assert loads.of(1).late_s[0] == load.FIRST_LATE_S, "small requests are told apart"


def test_sizes_are_told_apart() -> None:
    kib = [0, 4, 64, 65, 256, 257, 1024, 1025, 4096, 4097, 65536]
    assert [class_of(k * 1024) for k in kib] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_hedge_is_due_when_the_other_replica_would_have_answered() -> None:
    loads = Loads()
    hedging = Hedging(loads)
    now = warm(loads, {1: 0.010, 2: 0.300, 3: 0.020}, rounds=400)
    slow, fast = loads.started(2, 1, MIB, now), loads.started(1, 1, MIB, now)
    soon, later = hedging.delay_s(slow, [1, 2, 3]), hedging.delay_s(fast, [2, 3])
    assert soon and later
    assert 0.008 < soon / hedge.PATIENCE < 0.014, "not what node 2 is used to"
    assert 0.016 < later / hedge.PATIENCE < 0.028
    assert hedging.delay_s(fast, [1]) is None, "nobody else has it"
    big = loads.started(2, 8, hedge.MAX_HEDGED_BYTES + 1, now)
    assert hedging.delay_s(big, [1, 3]) is None
    warm(loads, {1: 0.00001, 2: 9.0}, rounds=800)
    assert hedging.delay_s(slow, [1]) == hedge.MIN_DELAY_S
    assert hedging.delay_s(fast, [2]) == hedge.MAX_DELAY_S
    assert Hedging(loads, enabled=False).delay_s(slow, [1]) is None


def test_hedges_cost_at_most_a_twentieth_more() -> None:
    """Every request is late: as when the whole cluster is overloaded."""
    loads = Loads()
    hedging, hedged, sent = Hedging(loads), 0, 0
    for number in range(5000):
        ticket = loads.started(1 + number % 3, 1, MIB, 0.0)
        sent += ticket.cost
        if hedging.allow(ticket, 1.0):
            hedged += ticket.cost
    assert 0 < hedged - hedge.HEDGE_SHARE * sent <= hedge.HEDGE_BURST


def test_a_budget_is_earned_and_has_an_end() -> None:
    done = [0.0]
    budget = Budget(0.5, 4.0, lambda: done[0])
    assert [budget.spend(1.0) for _ in range(5)] == [True] * 4 + [False]
    done[0] = 2.0
    assert budget.spend(1.0) and not budget.spend(0.5)
    done[0] = 1000.0
    assert [budget.spend(1.0) for _ in range(5)] == [True] * 4 + [False]


def test_a_window_bounds_all_operations_together_but_stops_none() -> None:
    loads = Loads()
    window = Window(loads, 4 * MIB, 2)
    tickets = [loads.started(1, 1, MIB, 0.0), loads.started(2, 1, 2 * MIB, 0.0)]
    assert window.admits(3, MIB, 1) and not window.admits(3, MIB + 1, 1)
    assert window.admits(3, 64 * MIB, 0), "an operation's first request never waits"
    tickets.append(loads.started(1, 1, 0, 0.0))
    assert not window.admits(1, 10, 1) and window.admits(2, 10, 1), "two at a node"
    loads.ended(tickets[0], 0.1)
    assert window.admits(1, 10, 1)
