"""The model of a large cluster (``python -m tests.model``) in its short form. Budget: 15 s."""

import pytest

from tests.model.cluster import Choice, Cluster, Figures, Setting
from tests.model.fabric import MIB, Clock, Hardware, Link, Port

SMALL = Setting(nodes=24, clients=67, files=300)


def run(choice: Choice, warm_s: float = 0.005) -> Figures:
    return Cluster(SMALL, choice).run(warm_s, warm_s + 0.006)


def test_a_port_that_nobody_holds_up_sends_at_its_rate() -> None:
    clock, hardware = Clock(), Hardware()
    port, links, done = Port(clock, hardware), [Link(hardware) for _ in range(8)], []
    for link in links:
        for _ in range(4):
            port.send(4 * MIB, link, lambda: done.append(clock.now))
    clock.run(1.0)
    expected = 32 * 4 * MIB / (hardware.port_rate * hardware.payload)
    assert done[-1] == pytest.approx(expected, rel=0.02) and port.blocked_s < 0.1 * expected


def test_a_full_link_holds_up_what_is_behind_it() -> None:
    """Two ports fill one client's link: each is held up half of the time, others' bytes too."""
    clock, hardware = Clock(), Hardware()
    ports, full, idle = [Port(clock, hardware) for _ in range(2)], Link(hardware), Link(hardware)
    arrived: list[float] = []
    for port in ports:
        port.send(64 * MIB, full, lambda: None)
        port.send(MIB, idle, lambda: arrived.append(clock.now))
    clock.run(1.0)
    alone = 64 * MIB / (hardware.port_rate * hardware.payload)
    assert max(arrived) > 1.9 * alone, "behind what two ports sent to the full link"
    assert sum(port.blocked_s for port in ports) > 0.9 * alone


def test_the_schedule_fills_the_storage_nodes_links() -> None:
    """In a cluster so small chance weighs more than in one of 180 nodes."""
    everything = run(Choice())
    assert everything.share > 0.78
    assert everything.blocked < 0.07
    alone = run(Choice(by_load=False, granted_bytes=0, window_bytes=1 << 40, hedged=False))
    assert everything.share > alone.share + 0.03, "what is it good for?"
    assert alone.blocked > 2 * everything.blocked
    assert everything.request_p99_s < alone.request_p99_s


def test_a_slow_node_holds_the_others_up_only_without_the_schedule() -> None:
    everything = run(Choice(slow_every=24), 0.010)
    in_turn = run(Choice(slow_every=24, by_load=False, hedged=False), 0.010)
    assert everything.share > 0.65
    assert in_turn.share < 0.6 * everything.share
