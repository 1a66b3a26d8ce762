"""The manager's order of things, with time and disk in the test's hand.

Declared, stored, published: what nodes hear in between decides whether a lease outlives a removal.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hillfire.clock import NS_PER_MS, Clock
from hillfire.cluster import Decision, Endpoint, PublicState, Routing
from hillfire.config import ManagerConfig
from hillfire.errors import Code, Error
from hillfire.meta.manager.service import ManagerService
from hillfire.meta.manager.state import Store
from hillfire.proto import cluster_pb2
from hillfire.proto import manager_pb2 as pb
from hillfire.proto.service import CallContext
from hillfire.types import NodeId

L = 1000
CONTEXT = CallContext("test", 60.0)
HERE = Endpoint("127.0.0.1:1", "127.0.0.1:2", "", "host")


class SlowStore(Store):
    """A store whose disk can be held up, or made to fail."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, durable=False)
        self.free = asyncio.Event()
        self.free.set()
        self.held = asyncio.Event()
        self.broken = False

    async def save(self, routing: Routing, decisions: tuple[Decision, ...] = ()) -> None:
        if not self.free.is_set():
            self.held.set()
            await self.free.wait()
        if self.broken:
            raise Error(Code.NO_SPACE, "the test's disk is full")
        await super().save(routing, decisions)


class World:
    """A manager in which nothing happens by itself: no timer, no socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now_ms = 0
        self.store = SlowStore(directory)
        self.service = self.restarted()

    def restarted(self) -> ManagerService:
        config = ManagerConfig(directory=self.directory, lease_ms=L)
        return ManagerService(self.store, config, Clock(lambda: self.now_ms * NS_PER_MS))

    def pass_time(self, ms: int) -> None:
        """Let time go by for a manager that looks at its leases now and then."""
        for _ in range(ms // 50):
            self.now_ms += 50
            self.service.core.leases.look(self.now_ms * NS_PER_MS)

    @property
    def routing(self) -> Routing:
        return self.service.routing

    async def register(self, node: int, incarnation: int = 1, exclusive: bool = True) -> None:
        request = pb.RegisterRequest(
            node=node,
            kind=cluster_pb2.STORAGE,
            endpoint=cluster_pb2.Endpoint(grpc="127.0.0.1:1", tcp="127.0.0.1:2"),
            incarnation=incarnation,
            exclusive=exclusive,
        )
        await self.service.register(request, CONTEXT)

    def heartbeat(
        self,
        node: int,
        local: cluster_pb2.LocalState.ValueType = cluster_pb2.LOCAL_UP_TO_DATE,
        incarnation: int = 1,
    ) -> pb.HeartbeatReply:
        targets = [
            pb.TargetReport(target=t.id, local=local, chain_version=self.version(t.chain))
            for t in self.routing.targets.values()
            if t.node == node
        ]
        request = pb.HeartbeatRequest(node=node, incarnation=incarnation, targets=targets)
        return self.service.heartbeat(request, CONTEXT)

    def version(self, chain: int) -> int:
        return {int(c.id): c for c in self.routing.chains.values()}[chain].version

    async def evaluate(self) -> None:
        """Decide all that there is to decide, and wait until it is stored."""
        self.service.tick()
        await self.service.saved()

    def states(self, node: int) -> set[PublicState]:
        return {t.state for t in self.routing.targets.values() if t.node == node}


def run(directory: Path, test: Callable[[World], Awaitable[None]]) -> None:
    async def whole() -> None:
        world = World(directory)
        try:
            await world.service.announce(HERE)
            for node in (101, 102, 103):
                await world.register(node)
            request = pb.CreateChainsRequest(nodes=3, targets_per_node=1, replicas=3)
            await world.service.create_chains(request, CONTEXT)
            for node in (101, 102, 103):
                world.heartbeat(node)
            await world.evaluate()
            assert world.states(101) == {PublicState.SERVING}
            async with asyncio.timeout(20):
                await test(world)
        finally:
            world.store.close()

    asyncio.run(whole())


def refused(world: World, node: int, code: Code, incarnation: int = 1) -> None:
    with pytest.raises(Error) as caught:
        world.heartbeat(node, incarnation=incarnation)
    assert caught.value.code is code


def test_no_lease_is_given_between_a_death_and_its_publication(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.pass_time(L // 2)
        world.heartbeat(102)
        world.heartbeat(103)
        world.pass_time(L // 2)
        world.store.free.clear()
        deciding = asyncio.create_task(world.evaluate())
        await world.store.held.wait()
        assert world.routing.nodes[NodeId(101)].alive  # not visible yet
        refused(world, 101, Code.UNAVAILABLE)
        world.heartbeat(102)  # the others go on
        world.store.free.set()
        await deciding
        assert world.states(101) == {PublicState.OFFLINE}
        # what it said before its death is forgotten
        reply = world.service.heartbeat(pb.HeartbeatRequest(node=101, incarnation=1), CONTEXT)
        assert not {n.id: n for n in reply.routing.nodes}[101].alive
        await world.evaluate()
        assert world.states(101) == {PublicState.OFFLINE}
        world.heartbeat(101)
        await world.evaluate()
        assert world.routing.nodes[NodeId(101)].alive
        assert world.states(101) == {PublicState.WAITING}  # its claim is from before
        world.heartbeat(101, cluster_pb2.LOCAL_ONLINE)
        await world.evaluate()
        assert world.states(101) == {PublicState.SYNCING}

    run(tmp_path, test)


def test_a_death_that_cannot_be_stored_stays_decided(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        before = world.routing
        world.pass_time(L // 2)
        world.heartbeat(102)
        world.pass_time(L // 2)
        world.store.broken = True
        await world.evaluate()
        assert world.routing is before
        refused(world, 101, Code.UNAVAILABLE)
        refused(world, 103, Code.UNAVAILABLE)
        again = asyncio.create_task(world.register(101))
        world.pass_time(L // 2)
        world.heartbeat(102)
        await world.evaluate()
        assert not again.done()  # it is tried again a second after it failed
        world.store.broken = False
        world.pass_time(L // 2)
        await world.evaluate()
        await again
        assert world.states(101) == world.states(103) == {PublicState.OFFLINE}
        assert world.states(102) == {PublicState.SERVING}
        world.heartbeat(101)

    run(tmp_path, test)


def test_what_an_ended_process_left_in_the_network_is_refused(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        request = pb.AttestExitRequest(node=101, incarnation=1)
        await world.service.attest_exit(request, CONTEXT)
        assert world.states(101) == {PublicState.OFFLINE}
        refused(world, 101, Code.STALE)
        with pytest.raises(Error) as caught:
            await world.register(101, incarnation=1)
        assert caught.value.code is Code.STALE

        await world.register(101, incarnation=2)
        await world.register(101, incarnation=3)
        refused(world, 101, Code.STALE, incarnation=2)
        world.heartbeat(101, incarnation=3)
        await world.service.attest_exit(request, CONTEXT)  # of a process long gone
        world.heartbeat(101, incarnation=3)

    run(tmp_path, test)


def test_a_new_manager_sees_those_that_died_together_together(tmp_path: Path) -> None:
    """All nodes restart while the manager is away: none may be taken for the others' survivor."""

    async def test(world: World) -> None:
        await world.service.close()
        world.service = world.restarted()
        await world.service.announce(HERE)
        first = asyncio.create_task(world.register(101, incarnation=2))
        second = asyncio.create_task(world.register(102, incarnation=2))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not first.done() and not second.done()  # 103 may be alive or dead
        assert world.states(101) == {PublicState.SERVING}
        await world.register(103, incarnation=2)
        await asyncio.gather(first, second)
        for node in (101, 102, 103):
            assert world.states(node) == {PublicState.LAST_SERVING}
        world.heartbeat(103, cluster_pb2.LOCAL_ONLINE, incarnation=2)
        await world.evaluate()
        assert world.states(103) == {PublicState.SERVING}
        assert world.states(101) == world.states(102) == {PublicState.OFFLINE}

    run(tmp_path, test)


def test_a_new_manager_waits_a_lease_for_who_is_silent(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        await world.service.close()
        world.service = world.restarted()
        await world.service.announce(HERE)
        version = world.routing.version
        world.heartbeat(101)
        world.pass_time(L - 50)
        world.heartbeat(101)
        world.heartbeat(102)
        await world.evaluate()
        assert world.routing.version == version
        world.pass_time(50)
        await world.evaluate()
        assert not world.routing.nodes[NodeId(103)].alive
        assert world.states(101) == world.states(102) == {PublicState.SERVING}

    run(tmp_path, test)


def test_one_of_two_new_processes_wins(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        world.store.free.clear()
        request = pb.AttestExitRequest(node=101, incarnation=1)
        attested = asyncio.create_task(world.service.attest_exit(request, CONTEXT))
        await world.store.held.wait()
        both = [asyncio.create_task(world.register(101, incarnation=i)) for i in (2, 3)]
        for _ in range(10):
            await asyncio.sleep(0)
        world.store.free.set()
        await attested
        results = await asyncio.gather(*both, return_exceptions=True)
        assert results[0] is None
        assert isinstance(results[1], Error) and results[1].code is Code.BUSY
        assert world.routing.nodes[NodeId(101)].incarnation == 2
        await world.register(101, incarnation=3)  # now it takes the place in due form
        refused(world, 101, Code.STALE, incarnation=2)

    run(tmp_path, test)
