"""A cluster of the model: chain table by production's placement, layouts by production's host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

from hillfire.client.core import Core
from hillfire.client.hedge import Hedging
from hillfire.client.load import Loads
from hillfire.client.plan import Extent, Replica
from hillfire.client.window import MAX_BYTES, Window
from hillfire.cluster import (
    Chain,
    ChainTable,
    Endpoint,
    LocalState,
    Node,
    NodeKind,
    PublicState,
    Routing,
    Target,
)
from hillfire.layout import Layout
from hillfire.meta.host import Host
from hillfire.meta.manager.placement import Home, make_plan
from hillfire.region import Region
from hillfire.types import ChainId, NodeId, TargetId
from tests.model.fabric import MIB, Clock, Hardware, Link, StorageNode
from tests.model.readers import GRANTED_BYTES, Reader

FIRST_NODE = 101


@dataclass(frozen=True)
class Setting:
    """What is modelled."""

    nodes: int = 180
    disks: int = 16
    targets_per_disk: int = 4
    replicas: int = 3
    clients: int = 500
    files: int = 2000
    file_bytes: int = 1024 * MIB
    chunk_bytes: int = MIB
    stripe: int = 16
    depth: int = 2
    """batches on their way a client"""
    entries: int = 32
    """reads a batch"""
    entry_bytes: int = MIB
    hardware: Hardware = field(default_factory=Hardware)
    seed: int = 1


@dataclass(frozen=True)
class Choice:
    """What clients schedule by, to be left out one by one."""

    by_load: bool = True
    """which replica: by load, else in turn"""
    granted_bytes: int = GRANTED_BYTES
    """request-to-send: on their way out of nodes to one client; 0: no bound"""
    window_bytes: int = MAX_BYTES
    """asked for by one client"""
    hedged: bool = True
    slow_every: int = 0
    """every n-th node is slow"""
    slowness: float = 4.0
    """what its disks and ports take against others"""


class InTurn(Loads):
    """Replica choice as if nothing were known of the nodes."""

    def choose(
        self,
        turns: Sequence[Replica],
        n_bytes: int,
        turn: int,
        now: float,
        planned: Mapping[int, int] | None = None,
    ) -> Replica:
        return turns[turn % len(turns)]


@dataclass(frozen=True)
class Figures:
    """What came out, between the warm-up and the end."""

    share: float
    """of the storage NICs' rate that clients got; headers and hedges are lost"""
    sent: float
    """of their rate, hedges that lost included"""
    worst_node: float
    """share of the node that sent least"""
    blocked: float
    """part of the time that ports stood still for a full link"""
    client_rate: float
    """bytes a second, the mean client"""
    request_p50_s: float
    request_p99_s: float
    batch_p50_s: float
    batch_p99_s: float


class Cluster:
    """Nodes, clients, and the routing that they all know."""

    def __init__(self, setting: Setting, choice: Choice | None = None) -> None:
        self.setting = setting
        self.choice = choice or Choice()
        self.clock = Clock()
        hardware = setting.hardware
        homes = [Home(NodeId(FIRST_NODE + n), setting.disks) for n in range(setting.nodes)]
        table = make_plan(homes, setting.targets_per_disk, setting.replicas).chains
        self.nodes = {
            home.node: StorageNode(self.clock, hardware, setting.disks, home.node) for home in homes
        }
        if self.choice.slow_every:
            for home in homes[:: self.choice.slow_every]:
                self.nodes[home.node].slow_down(self.choice.slowness)
        known, targets, chains = {}, {}, {}
        places: dict[tuple[int, str], tuple[StorageNode, int]] = {}
        for home in homes:
            where = Endpoint(grpc=str(home.node), tcp=f"node{home.node}:1", shm="", host="")
            known[home.node] = Node(home.node, NodeKind.STORAGE, where, 1, True)
        serving, sound = PublicState.SERVING, LocalState.UP_TO_DATE
        for number, members in enumerate(table, 1):
            chain = ChainId(number)
            ids = [TargetId(number * 100 + place) for place in range(len(members))]
            for target, (node, disk) in zip(ids, members, strict=True):
                targets[target] = Target(target, node, chain, disk, serving, sound)
                places[chain, known[node].endpoint.tcp] = (self.nodes[node], disk)
            chains[chain] = Chain(chain, 1, tuple((target, serving) for target in ids))
        tables = {1: ChainTable(1, tuple(chains))}
        self.routing = Routing("model", 1, None, known, targets, chains, tables)
        self.files = self._files(tuple(chains))
        self.readers = self._readers(places)

    def _files(self, chains: tuple[ChainId, ...]) -> list[Extent]:
        """Files of consecutive inodes, as one program made them."""
        setting = self.setting
        host = Host(cast(Any, None), chunk_bytes=setting.chunk_bytes, stripe=setting.stripe)
        host.set_chains(chains)
        files = []
        for inode in range(1000, 1000 + setting.files):
            raw = host.layout(inode)
            layout = Layout(raw.chunk_bytes, tuple(ChainId(chain) for chain in raw.chains))
            files.append(Extent(inode, setting.file_bytes, 1, layout))
        return files

    def _readers(self, places: dict[tuple[int, str], tuple[StorageNode, int]]) -> list[Reader]:
        readers: list[Reader] = []
        nowhere = Endpoint("", "manager:1", "", "")
        for number in range(self.setting.clients):
            core = Core(
                nowhere, number + 1, clock=lambda: self.clock.now, wall_ns=lambda: 0, host=""
            )
            if readers:
                core.routes = readers[0].core.routes  # one copy for all: they only read it
            else:
                core.routes.take(self.routing)
            choice = self.choice
            if not choice.by_load:
                core.loads = InTurn()
                core.hedging, core.window = Hedging(core.loads), Window(core.loads)
            core.hedging.enabled = choice.hedged
            core.window.max_bytes = choice.window_bytes
            link = Link(self.setting.hardware)
            readers.append(Reader(self.clock, core, link, places, number, choice.granted_bytes))
        return readers

    def run(self, warm_s: float, end_s: float) -> Figures:
        """Let all clients read, and measure from ``warm_s`` to ``end_s``."""
        setting, clock = self.setting, self.clock
        memory = Region.wrap(bytearray(setting.entry_bytes))
        chance = Random(setting.seed)
        for reader in self.readers:
            for _ in range(setting.depth):
                begin = reader.begin, self.files, setting.entries, setting.entry_bytes, memory
                clock.at(chance.uniform(0, warm_s / 4), *begin)
        clock.run(warm_s)
        before = [self._sent(node) for node in self.nodes.values()]
        blocked = self._blocked()
        for reader in self.readers:
            reader.latencies.clear()
            reader.waits.clear()
            reader.moved = 0
        clock.run(end_s)
        took_s = end_s - warm_s
        ports = setting.hardware.ports
        rate = ports * setting.hardware.port_rate * took_s
        shares = [
            (self._sent(node) - sent) / rate
            for node, sent in zip(self.nodes.values(), before, strict=True)
        ]
        waits = sorted(wait for reader in self.readers for wait in reader.waits)
        batches = sorted(wait for reader in self.readers for wait in reader.latencies)
        return Figures(
            share=sum(r.moved for r in self.readers) / (rate * len(shares)),
            sent=sum(shares) / len(shares),
            worst_node=min(shares),
            blocked=(self._blocked() - blocked) / (took_s * ports * len(shares)),
            client_rate=sum(r.moved for r in self.readers) / took_s / len(self.readers),
            request_p50_s=_quantile(waits, 0.5),
            request_p99_s=_quantile(waits, 0.99),
            batch_p50_s=_quantile(batches, 0.5),
            batch_p99_s=_quantile(batches, 0.99),
        )

    @staticmethod
    def _sent(node: StorageNode) -> int:
        return sum(port.sent for port in node.ports)

    def _blocked(self) -> float:
        return sum(port.blocked_s for node in self.nodes.values() for port in node.ports)


def _quantile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")
