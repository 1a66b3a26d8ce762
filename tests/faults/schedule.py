"""Faults by name: each does its harm, measures what it must, and sees everything serve again."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hillfire
from hillfire.errors import Error
from tests.faults.cluster import Cluster
from tests.faults.hosts import HERE
from tests.faults.load import Load

LEASE_S = 2.0
REPLICAS = 3
RETURN_TIMEOUT_S = 40.0
"""Until every target of every chain serves again."""
PROBE_TIMEOUT_S = 30.0


class World:
    """What faults act upon."""

    def __init__(self, cluster: Cluster, load: Load, source: random.Random) -> None:
        """Take the cluster, its clients, and where choices come from."""
        self.cluster = cluster
        self.load = load
        self.random = source
        self.figures: dict[str, list[float]] = {}
        """seconds, by what was measured"""
        self.done: list[tuple[str, float, float]] = []
        """faults, when each began and when all served again"""
        self.small: list[str] = []
        """nodes with a small disk"""
        self._probe: Callable[[], None] = lambda: None

    def a_node(self) -> str:
        """Choose a storage node."""
        return self.random.choice(self.cluster.nodes)

    def a_manager(self) -> str:
        """Choose the manager that leads, or the one that stands by."""
        return self.random.choice(self.cluster.managers)

    def serve_again(self) -> None:
        """Wait until everything serves; nothing may have ended unasked."""
        self.cluster.wait_serving(RETURN_TIMEOUT_S)
        assert not self.cluster.ended(), f"ended: {self.cluster.ended()}"
        assert not self.load.ended(), f"clients ended: {self.load.ended()}"

    @contextmanager
    def prober(self, address: str, chunk_bytes: int) -> Iterator[None]:
        """Have a client of our own that times when writes to every chain work."""
        with (
            hillfire.connect(address, transport="tcp", io_timeout_s=PROBE_TIMEOUT_S) as fs,
            fs.open("/probe", "w+b") as file,
        ):
            region = fs.register(PROBED * 4096)
            entries = [(file, i * chunk_bytes, i * 4096, 4096) for i in range(PROBED)]

            def probe() -> None:
                for result in fs.write_batch(entries, region):
                    if isinstance(result, Error):
                        raise result

            probe()
            self._probe = probe
            yield

    def resumed(self, what: str) -> None:
        """Measure how long it takes from now until every chain has taken a write."""
        began = time.monotonic()
        self._probe()
        self.figures.setdefault(what, []).append(time.monotonic() - began)


PROBED = 16
"""Chunks of a file in a row: they are on as many chains as there are, up to that."""


def kill_node(world: World) -> None:
    """A storage node dies at once and comes back later."""
    node = world.a_node()
    world.cluster.kill(node)
    world.resumed("writes resume after a kill")
    world.cluster.start(node)
    world.serve_again()


def fast_restart(world: World) -> None:
    """A node is back before its lease ran out."""
    node = world.a_node()
    world.cluster.kill(node)
    world.cluster.start(node)
    world.resumed("writes resume after a fast restart")
    world.serve_again()


def kill_all_replicas(world: World) -> None:
    """Every replica of every chain dies at the same instant."""
    world.cluster.kill(*world.cluster.nodes)
    world.cluster.start(*world.cluster.nodes)
    world.resumed("writes resume after all replicas died")
    world.serve_again()


def kill_all_but_one(world: World) -> None:
    """Of every chain one replica at least is left, and later all die before others are back."""
    nodes = world.random.sample(world.cluster.nodes, len(world.cluster.nodes))
    first, rest = nodes[: REPLICAS - 1], nodes[REPLICAS - 1 :]
    world.cluster.kill(*first)
    world.resumed("writes resume after all but one replica died")
    world.cluster.kill(*rest)
    world.cluster.start(*nodes)
    world.serve_again()


def kill_manager(world: World) -> None:
    """A manager dies, the leader or its standby, and is started again as a standby."""
    name = world.a_manager()
    world.cluster.kill(name)
    world.cluster.start(name)
    world.serve_again()


def kill_managers(world: World) -> None:
    """Both managers die and are started again."""
    world.cluster.kill(*world.cluster.managers)
    world.cluster.start(*world.cluster.managers)
    world.serve_again()


def kill_meta(world: World) -> None:
    """The metadata service dies and is started again."""
    world.cluster.kill("meta")
    world.cluster.start("meta")
    world.serve_again()


def kill_manager_and_node(world: World) -> None:
    """The leader and a node die together; the standby takes over."""
    node, name = world.a_node(), world.cluster.leader()
    world.cluster.kill(name, node)
    world.resumed("writes resume after the leading manager and a node died")
    world.cluster.start(name, node)
    world.serve_again()


def kill_managers_and_node(world: World) -> None:
    """Every manager and a node die together; a manager is started again at once."""
    node = world.a_node()
    what = "writes resume after all managers and a node died"
    world.cluster.kill(*world.cluster.managers, node)
    began = time.monotonic()
    world.cluster.start("manager")
    world.resumed(what)
    world.figures[what][-1] = time.monotonic() - began
    world.cluster.start("standby", node)
    world.serve_again()


def pause_node(world: World) -> None:
    """A node stands still for longer than its lease and wakes with requests queued."""
    node = world.a_node()
    world.cluster.pause(node)
    time.sleep(LEASE_S * world.random.uniform(1.1, 1.8))
    world.cluster.resume(node)
    world.serve_again()


def pause_node_briefly(world: World) -> None:
    """A node stands still, but wakes around the instant at which its lease runs out."""
    node = world.a_node()
    world.cluster.pause(node)
    time.sleep(LEASE_S * world.random.uniform(0.4, 1.05))
    world.cluster.resume(node)
    world.serve_again()


def pause_manager(world: World) -> None:
    """A manager stands still for longer than every lease: if it led, another leads by then."""
    name = world.a_manager()
    world.cluster.pause(name)
    time.sleep(LEASE_S * 1.3)
    world.cluster.resume(name)
    world.serve_again()


def _cut(world: World, ways: list[tuple[str, str]], least: float, most: float) -> None:
    net = world.cluster.net
    assert net is not None
    net.cut(ways)
    time.sleep(world.random.uniform(least, most))
    net.heal()
    world.serve_again()


def partition_node(world: World) -> None:
    """A node is cut off from everybody, both ways."""
    assert world.cluster.net is not None
    _cut(world, world.cluster.net.around(world.a_node()), 2.5, 4.5)


def partition_one_way(world: World) -> None:
    """A node hears everybody and is heard by nobody, or the other way round."""
    assert world.cluster.net is not None
    out = world.random.random() < 0.5
    _cut(world, world.cluster.net.around(world.a_node(), out=out, into=not out), 2.5, 4.5)


def partition_between_nodes(world: World) -> None:
    """Two nodes do not reach each other, one or both ways; everybody else reaches both."""
    a, b = world.random.sample(world.cluster.nodes, 2)
    _cut(world, [(a, b)] if world.random.random() < 0.5 else [(a, b), (b, a)], 1.5, 4.0)


def partition_manager(world: World) -> None:
    """Nobody reaches a manager for longer than the lease; the one that leads is not replaced.

    It still reaches the disk by which a leader is known, so its nodes stop until it is heard again.
    """
    assert world.cluster.net is not None
    _cut(world, world.cluster.net.around(world.a_manager()), 2.2, 3.5)


def partition_from_managers(world: World) -> None:
    """A node does not reach the managers, but everybody else: only its lease tells it to stop."""
    node = world.a_node()
    ways = [(node, name) for name in world.cluster.managers]
    _cut(world, [*ways, *((b, a) for a, b in ways)], 2.6, 3.6)


def partition_clients(world: World) -> None:
    """The clients do not reach a node that everybody else reaches."""
    node = world.a_node()
    _cut(world, [(HERE, node), (node, HERE)], 1.5, 3.0)


def full_disk(world: World) -> None:
    """A node's disk is full, by somebody else's file, and later it is not."""
    node = world.random.choice(world.small)
    filler = world.cluster.store_of(node, 0).parents[1] / "filler"
    world.load.tell(full=True)
    fill(filler)
    time.sleep(2.5)
    filler.unlink()
    world.serve_again()
    world.load.tell(full=False)


def fill(path: Path) -> None:
    """Write a file until its disk has no room for another byte."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        for n_bytes in (1 << 20, 4096, 1):
            block = bytes(n_bytes)
            try:
                while True:
                    os.write(fd, block)
            except OSError:
                continue
    finally:
        os.close(fd)


def kill_while_returning(world: World) -> None:
    """A node comes back, and while it is brought up to date another dies."""
    first, second = world.random.sample(world.cluster.nodes, 2)
    world.cluster.kill(first)
    world.resumed("writes resume after a kill")
    world.cluster.start(first)
    time.sleep(world.random.uniform(0.0, 0.5))
    world.cluster.kill(second)
    world.cluster.start(second)
    world.serve_again()


def kill_manager_while_returning(world: World) -> None:
    """A node comes back, and the manager dies while it is brought up to date."""
    node = world.a_node()
    world.cluster.kill(node)
    world.resumed("writes resume after a kill")
    world.cluster.start(node)
    time.sleep(world.random.uniform(0.0, 0.4))
    name = world.cluster.leader()
    world.cluster.kill(name)
    world.cluster.start(name)
    world.serve_again()


def flap(world: World) -> None:
    """A node dies again and again as soon as it is back."""
    node = world.a_node()
    for _ in range(3):
        world.cluster.kill(node)
        world.cluster.start(node)
        time.sleep(world.random.uniform(0.0, 0.6))
    world.serve_again()


def kill_behind_paused_manager(world: World) -> None:
    """A node dies while the leader stands still, which wakes to stale leases, or replaced."""
    node, name = world.a_node(), world.cluster.leader()
    world.cluster.pause(name)
    world.cluster.kill(node)
    time.sleep(LEASE_S * world.random.uniform(0.3, 1.4))
    world.cluster.resume(name)
    world.resumed("writes resume after a kill behind a paused manager")
    world.cluster.start(node)
    world.serve_again()


def pause_one_kill_others(world: World) -> None:
    """All nodes but one die while that one stands still; it wakes alone."""
    one, *others = world.random.sample(world.cluster.nodes, len(world.cluster.nodes))
    world.cluster.pause(one)
    world.cluster.kill(*others)
    time.sleep(LEASE_S * world.random.uniform(0.5, 1.5))
    world.cluster.resume(one)
    world.cluster.start(*others)
    world.serve_again()


Fault = Callable[[World], None]

PROCESS_FAULTS: tuple[Fault, ...] = (
    kill_node,
    fast_restart,
    kill_all_replicas,
    kill_all_but_one,
    kill_manager,
    kill_managers,
    kill_meta,
    kill_manager_and_node,
    kill_managers_and_node,
    pause_node,
    pause_node_briefly,
    pause_manager,
)
COMBINED_FAULTS: tuple[Fault, ...] = (
    kill_while_returning,
    kill_manager_while_returning,
    flap,
    kill_behind_paused_manager,
    pause_one_kill_others,
)
NETWORK_FAULTS: tuple[Fault, ...] = (
    partition_node,
    partition_one_way,
    partition_between_nodes,
    partition_manager,
    partition_from_managers,
    partition_clients,
)
DISK_FAULTS: tuple[Fault, ...] = (full_disk,)
