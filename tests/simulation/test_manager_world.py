"""The real manager between nodes that crash, pause, return and speak late: is a write ever lost?

The manager's service, leases, decisions and storage are the production ones; time, messages and
nodes are the test's. Nodes are modelled by the rules that they promise to keep (design.md §5):
a write is acknowledged once every target that its head takes for serving has it; the predecessor
of a syncing target waits for it from when it says that the sync is done. One invariant, after
every step: **whoever serves under a valid lease has every acknowledged write**. At the end of a
seed every chain serves again with all its targets.

``HILLFIRE_SEEDS=N`` runs more seeds; a failure names its seed and step. Time budget: 15 s.
"""

import asyncio
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hillfire.clock import NS_PER_MS, Clock
from hillfire.cluster import Chain, Endpoint, LocalState, PublicState, Routing
from hillfire.config import ManagerConfig
from hillfire.errors import Error
from hillfire.meta.manager.chains import NEW_CHAIN_VERSION, check
from hillfire.meta.manager.service import ManagerService
from hillfire.meta.manager.state import Store
from hillfire.proto import cluster_pb2, convert
from hillfire.proto import manager_pb2 as pb
from hillfire.proto.service import CallContext
from hillfire.types import ChainId, TargetId

L = 1000
SEEDS = int(os.environ.get("HILLFIRE_SEEDS", "25"))
STEPS = 300
NODES = (101, 102, 103, 104)
CONTEXT = CallContext("world", 1e6)
SERVING, SYNCING = PublicState.SERVING, PublicState.SYNCING


@dataclass
class Replica:
    """A target as its node has it."""

    id: TargetId
    chain: ChainId
    data: set[int] = field(default_factory=set)
    local: LocalState = LocalState.ONLINE
    version: int = 0  # of the chain, acted on
    taken_up: bool = False
    completing: int = 0  # chain version in which it waits for its syncing successor


@dataclass
class Process:
    """A node's process; its replicas' data outlives it."""

    id: int
    incarnation: int = 0
    running: bool = False
    paused: bool = False
    lease_until_ms: float = 0
    routing: Routing = field(default_factory=lambda: Routing("", 0))
    replicas: dict[TargetId, Replica] = field(default_factory=dict)
    registering: "asyncio.Task[pb.RegisterReply] | None" = None

    def chain(self, replica: Replica) -> Chain:
        return self.routing.chains[replica.chain]

    def take(self, routing: Routing) -> None:
        """Act on a newer routing, as storage/targets.py does."""
        if routing.version <= self.routing.version:
            return
        self.routing = routing
        for target in routing.targets.values():
            if target.node == self.id and target.id not in self.replicas:
                new = Replica(target.id, target.chain)
                if routing.chains[target.chain].version == NEW_CHAIN_VERSION:
                    new.taken_up, new.local = True, LocalState.UP_TO_DATE
                self.replicas[target.id] = new
        for replica in self.replicas.values():
            chain = self.chain(replica)
            state = chain.state_of(replica.id)
            if not replica.taken_up and state is SERVING:
                continue
            replica.taken_up = True
            if chain.version != replica.version:
                replica.version, replica.completing = chain.version, 0
                if chain.version != NEW_CHAIN_VERSION:
                    fresh = state is SERVING
                    replica.local = LocalState.UP_TO_DATE if fresh else LocalState.ONLINE

    def state(self, replica: Replica) -> PublicState:
        if not replica.taken_up or self.chain(replica).version != replica.version:
            return PublicState.OFFLINE
        return self.chain(replica).state_of(replica.id)


class World:
    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ms = 0
        self.directory = directory
        self.store = Store(directory, durable=False)
        self.service = self.new_manager()
        self.nodes = {i: Process(i) for i in NODES}
        self.acknowledged: dict[ChainId, set[int]] = {}
        self.late: list[pb.HeartbeatRequest] = []
        self.writes = 0
        self.did: Counter[str] = Counter()

    def new_manager(self) -> ManagerService:
        config = ManagerConfig(directory=self.directory, lease_ms=L, durable=False)
        return ManagerService(self.store, config, Clock(lambda: self.now_ms * NS_PER_MS))

    async def settle(self) -> None:
        """Let tasks run, then give registered processes their answers."""
        for _ in range(6):
            await asyncio.sleep(0)
        for node in self.nodes.values():
            task = node.registering
            if task is not None and task.done():
                node.registering = None
                if task.exception() is None and node.running:
                    node.take(convert.routing_from_message(task.result().routing))
                elif task.exception() is not None:
                    assert isinstance(task.exception(), Error), task.exception()
                    if node.running:
                        self.register(node)

    def register(self, node: Process) -> None:
        request = pb.RegisterRequest(
            node=node.id,
            kind=cluster_pb2.STORAGE,
            endpoint=cluster_pb2.Endpoint(grpc="127.0.0.1:1", tcp="127.0.0.1:2"),
            incarnation=node.incarnation,
            exclusive=True,
        )
        task = asyncio.ensure_future(self.service.register(request, CONTEXT))
        node.registering = task

    # ------------------------------------------------------------------ what can happen

    async def pass_time(self) -> None:
        for _ in range(self.random.choice((1, 1, 1, 1, 2, 8))):
            self.now_ms += 50
            self.service.tick()
            await self.service.saved()

    async def start(self, node: Process) -> None:
        if node.running or node.registering is not None:
            return
        node.running, node.paused = True, False
        node.incarnation += 1
        node.lease_until_ms, node.routing = 0, Routing("", 0)
        for replica in node.replicas.values():
            replica.local, replica.taken_up = LocalState.ONLINE, False
            replica.version = replica.completing = 0
        self.register(node)

    async def crash(self, node: Process) -> None:
        if not node.running:
            return
        self.did["crash"] += 1
        node.running = False
        if self.random.random() < 0.5:
            self.did["attested"] += 1
            request = pb.AttestExitRequest(node=node.id, incarnation=node.incarnation)
            try:
                await self.service.attest_exit(request, CONTEXT)
            except Error:
                return

    async def pause(self, node: Process) -> None:
        node.paused = not node.paused
        self.did["pause"] += node.paused

    async def heartbeat(self, node: Process) -> None:
        if not node.running or node.paused or node.registering is not None:
            return
        request = pb.HeartbeatRequest(
            node=node.id,
            incarnation=node.incarnation,
            known_version=node.routing.version,
            targets=[
                pb.TargetReport(
                    target=r.id,
                    local=cluster_pb2.LocalState.ValueType(int(r.local)),
                    chain_version=r.version,
                )
                for r in node.replicas.values()
            ],
        )
        kind = self.random.random()
        if kind < 0.1:  # lost, or late
            self.late.append(request)
            return
        try:
            reply = self.service.heartbeat(request, CONTEXT)
        except Error:
            self.register(node)
            return
        if kind < 0.2:  # the answer is lost
            return
        if reply.HasField("routing"):
            node.take(convert.routing_from_message(reply.routing))
        node.lease_until_ms = max(node.lease_until_ms, self.now_ms + L / 2)

    async def heartbeats(self, _: Process) -> None:
        """Let most nodes speak."""
        for node in self.nodes.values():
            if self.random.random() < 0.8:
                await self.heartbeat(node)

    async def late_heartbeat(self, _: Process) -> None:
        if self.late:
            self.did["late"] += 1
            request = self.late.pop(self.random.randrange(len(self.late)))
            try:
                self.service.heartbeat(request, CONTEXT)
            except Error:
                return

    async def restart_manager(self, _: Process) -> None:
        if self.random.random() < 0.1:
            self.did["manager restart"] += 1
            await self.service.close()
            for node in self.nodes.values():
                if node.registering is not None:
                    node.registering.cancel()
                    await asyncio.gather(node.registering, return_exceptions=True)
                    node.registering = None
            self.service = self.new_manager()
            await self.service.announce(Endpoint("127.0.0.1:1", "127.0.0.1:2", "", "h"))
            for node in self.nodes.values():
                if node.running and not node.routing.version:
                    self.register(node)

    async def write(self, node: Process) -> None:
        """A head takes a write through its chain, as far as it comes."""
        for replica in node.replicas.values():
            if not self.acts(node, replica) or self.chain_of(node, replica)[0] != replica.id:
                continue
            self.writes += 1
            for member in self.chain_of(node, replica):
                holder, copy = self.find(member)
                state = node.chain(replica).state_of(member)
                reached = copy is not None and self.acts(holder, copy, (SERVING, SYNCING))
                reached = reached and copy is not None and copy.version == replica.version
                if copy is not None and reached:
                    copy.data.add(self.writes)
                elif state is SERVING:
                    self.did["write stuck"] += 1
                    break
                elif any(
                    r.completing == replica.version
                    for n in self.nodes.values()
                    for r in n.replicas.values()
                    if r.chain == replica.chain and n.running
                ):
                    break  # the predecessor waits for the syncing one from here on
            else:
                self.did["write"] += 1
                self.acknowledged.setdefault(replica.chain, set()).add(self.writes)

    async def sync(self, node: Process) -> None:
        """A predecessor equals its syncing successor and says so; either step may be the last."""
        for replica in node.replicas.values():
            line = self.chain_of(node, replica)
            if not self.acts(node, replica) or replica.id not in line[-2:-1]:
                continue
            holder, copy = self.find(line[-1])
            if node.chain(replica).state_of(line[-1]) is not SYNCING or copy is None:
                continue
            if not self.acts(holder, copy, (SYNCING,)) or copy.version != replica.version:
                continue
            replica.completing = replica.version
            copy.data = set(replica.data)
            if self.random.random() < 0.7:
                self.did["sync"] += 1
                copy.local = LocalState.UP_TO_DATE

    # ------------------------------------------------------------------ what holds

    def acts(
        self, node: Process, replica: Replica, states: tuple[PublicState, ...] = (SERVING,)
    ) -> bool:
        """Whether a node would handle a request for a target at this moment."""
        return (
            node.running
            and not node.paused
            and self.now_ms < node.lease_until_ms
            and bool(node.routing.version)
            and node.state(replica) in states
        )

    def chain_of(self, node: Process, replica: Replica) -> tuple[TargetId, ...]:
        if not node.routing.version:
            return ()
        return node.chain(replica).writable

    def find(self, target: TargetId) -> tuple[Process, Replica | None]:
        node = self.nodes[target // 1000]
        return node, node.replicas.get(target)

    def verify(self) -> None:
        for chain in self.service.routing.chains.values():
            check(chain)
        for node in self.nodes.values():
            for replica in node.replicas.values():
                if self.acts(node, replica):
                    missing = self.acknowledged.get(replica.chain, set()) - replica.data
                    assert not missing, f"{node.id} serves {replica} without {missing}"

    def healthy(self) -> bool:
        return all(len(c.serving) == 3 for c in self.service.routing.chains.values())

    async def calm(self) -> None:
        """Time in which nothing goes wrong."""
        for node in self.nodes.values():
            await self.start(node)
            node.paused = False
        for _ in range(200):
            await self.settle()
            for node in self.nodes.values():
                await self.heartbeat(node)
                await self.sync(node)
            await self.pass_time()
            self.verify()
            if self.healthy():
                return
        raise AssertionError(f"chains do not come back: {self.service.routing.chains}")


async def live(directory: Path, seed: int) -> Counter[str]:
    world = World(directory, seed)
    step = -1
    try:
        await world.service.announce(Endpoint("127.0.0.1:1", "127.0.0.1:2", "", "h"))
        for node in world.nodes.values():
            await world.start(node)
        await world.settle()
        request = pb.CreateChainsRequest(nodes=4, targets_per_node=3, replicas=3)
        await world.service.create_chains(request, CONTEXT)
        await world.calm()
        common = [world.heartbeats] * 10 + [world.write] * 8 + [world.sync] * 6 + [world.start] * 3
        rare = [world.crash, world.pause, world.pause, world.late_heartbeat, world.restart_manager]
        for step in range(STEPS):  # noqa: B007  # told on failure
            happens = world.random.choice(common + rare)
            await happens(world.random.choice(list(world.nodes.values())))
            if world.random.random() < 0.4:
                await world.pass_time()
            await world.settle()
            world.verify()
        await world.calm()
        for node in world.nodes.values():  # at rest all replicas have everything
            for replica in node.replicas.values():
                assert world.acknowledged.get(replica.chain, set()) <= replica.data
    except BaseException as error:
        error.add_note(f"seed {seed} step {step} at {world.now_ms} ms")
        raise
    finally:
        for node in world.nodes.values():
            if node.registering is not None:
                node.registering.cancel()
        world.store.close()
    return world.did


def test_no_acknowledged_write_is_lost(tmp_path: Path) -> None:
    did: Counter[str] = Counter()
    for seed in range(SEEDS):
        did += asyncio.run(live(tmp_path / str(seed), seed))
    print(dict(did))
    for what in ("crash", "attested", "pause", "late", "manager restart", "write", "sync"):
        assert did[what] >= SEEDS // 2, f"hardly any {what}: {did}"
