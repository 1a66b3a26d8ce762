"""Leases on both sides, with time as a number: who may act, who may be declared dead, and when."""

from hypothesis import given
from hypothesis import strategies as st

from hillfire.cluster import Endpoint, Node, NodeKind
from hillfire.meta.manager.lease import Admission, Leases, admission
from hillfire.types import NodeId

L = 2000
A, B = NodeId(101), NodeId(102)


def watched(leases: Leases, start: int, end: int, step: int = 50) -> None:
    """Let the manager look at its leases all the time, as it does unless it is paused."""
    for now in range(start, end + 1, step):
        leases.look(now)


def test_a_lease_runs_for_its_full_length_from_the_last_heartbeat() -> None:
    leases = Leases(L, 0)
    leases.renew(A, 0)
    leases.renew(A, 300)
    watched(leases, 0, 300 + L)
    assert leases.alive(300 + L - 1) == {A} and leases.running(A, 300 + L - 1)
    assert leases.alive(300 + L) == frozenset() and not leases.running(A, 300 + L)


def test_an_attested_end_is_at_once() -> None:
    leases = Leases(L, 0)
    leases.renew(A, 0)
    leases.end(A)
    assert leases.alive(1) == frozenset()
    leases.end(B)  # never heard of: nothing to do


def test_a_new_manager_declares_nobody_dead_before_it_heard_of_all_or_waited() -> None:
    leases = Leases(L, 0)
    leases.grant([A, B], 0)
    watched(leases, 0, 100)
    leases.end(A)
    assert not leases.settled(100)
    leases.renew(B, 100)
    assert leases.settled(100)

    leases.grant([A, B], 1000)
    leases.renew(A, 1100)
    assert not leases.settled(1000 + L - 1) and leases.settled(1000 + L)
    assert leases.running(B, 1000 + L - 1)


def test_a_manager_without_nodes_is_settled() -> None:
    leases = Leases(L, 0)
    leases.grant([], 0)
    assert leases.settled(0)


def test_a_manager_that_was_paused_grants_leases_anew() -> None:
    leases = Leases(L, 0)
    leases.renew(A, 0)
    leases.renew(B, 0)
    leases.end(B)
    leases.look(10 * L)
    assert leases.alive(10 * L) == {A} and leases.alive(11 * L - 1) == {A}
    watched(leases, 10 * L, 11 * L)
    assert leases.alive(11 * L) == frozenset()


def test_a_pause_does_not_raise_the_dead() -> None:
    leases = Leases(L, 0)
    leases.renew(A, 0)
    watched(leases, 0, L)
    leases.look(10 * L)
    assert leases.alive(10 * L) == frozenset()


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 1500)), min_size=1, max_size=20),
    st.floats(0.9, 1.1),
)
def test_no_node_acts_once_its_removal_may_be_published(
    heartbeats: list[tuple[int, int]], drift: float
) -> None:
    """Whatever the delays, with a node's clock 10 % off: its lease ends before the manager's."""
    leases, sent, node_until = Leases(L, 0), 0, 0.0
    for pause, delay in heartbeats:
        sent += pause
        leases.renew(A, sent + delay)
        node_until = sent + L / 2 / drift
        expiry = sent + delay + L
        assert node_until < expiry
        assert leases.running(A, expiry - 1)


def test_admission() -> None:
    node = Node(A, NodeKind.STORAGE, Endpoint("g", "t", "", ""), 7, True)
    assert admission(None, 7, False, False) is Admission.FIRST
    assert admission(node, 7, False, True) is Admission.AGAIN
    assert admission(node, 8, True, True) is Admission.REPLACES
    assert admission(node, 8, False, False) is Admission.REPLACES
    assert admission(node, 8, False, True) is Admission.TOO_EARLY
    assert admission(node, 6, True, True) is Admission.TOO_EARLY  # a late word of the past
    assert admission(node, 6, True, False) is Admission.REPLACES  # or a clock that was set back
