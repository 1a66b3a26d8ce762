"""A real manager process, and memberships of the test's own: who is removed, when, and who hears.

Time budget: 25 s on two idle cores.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hillfire import clock
from hillfire.cluster import Endpoint, LocalState, NodeKind, PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.proto import convert, service
from hillfire.proto import manager_pb2 as pb
from hillfire.proto.membership import Membership
from hillfire.proto.wire.pick import connect_async
from hillfire.types import NodeId, TargetId

LEASE_MS = 800
HERE = Path(__file__).parent


class Manager:
    """The manager as a child process, so that it can be killed."""

    def __init__(self, directory: Path, *, lease_ms: int = LEASE_MS) -> None:
        self.directory = directory
        self.lease_ms = lease_ms
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, at the address that it had before, and wait until it says where it listens."""
        listen = self.address or "127.0.0.1:0"
        child = str(HERE / "manager_child.py")
        arguments = [sys.executable, child, str(self.directory), listen, str(self.lease_ms)]
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the manager did not start"

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: int = signal.SIGKILL) -> int:
        """End it and return its status."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        with process:
            return process.wait(10)

    def standby(self) -> "Manager":
        """Return another manager over the same directory; not started yet."""
        return Manager(self.directory, lease_ms=self.lease_ms)

    async def call(self, name: str, message: Any, timeout_s: float = 10.0) -> Any:
        """Call an rpc as a supervisor would: over the wire."""
        connection = await connect_async(Endpoint("", self.address, "", ""), 5.0)
        try:
            called = service.method("Manager", name)
            reply = await connection.request(service.encode(called, message), timeout_s)
            return service.decode(called, reply)
        finally:
            connection.close()


class Member:
    """A storage node that holds nothing: it says of its targets what the test wants."""

    def __init__(
        self, manager: Manager | str, node: int, *, incarnation: int = 1, **more: Any
    ) -> None:
        self.local = LocalState.ONLINE
        self.failed: asyncio.Future[Error] = asyncio.get_running_loop().create_future()
        self.seen: list[Routing] = []
        self.news = asyncio.Event()
        self.membership = Membership(
            manager=manager if isinstance(manager, str) else manager.address,
            node=NodeId(node),
            kind=NodeKind.STORAGE,
            endpoint=Endpoint(f"127.0.0.1:{node}", f"127.0.0.1:{node}", "", "host"),
            incarnation=incarnation,
            cluster=more.pop("cluster", ""),
            report=self._report,
            on_routing=self._on_routing,
            on_failure=self.failed.set_result,
            **more,
        )

    @property
    def routing(self) -> Routing:
        return self.membership.routing

    def _report(self) -> list[pb.TargetReport]:
        """Claim to be in the state that the manager wants each target to be in."""
        routing, reports = self.membership.routing, []
        for target in routing.targets.values():
            if target.node == self.membership._node:
                version = routing.chains[target.chain].version
                local = LocalState.UP_TO_DATE
                if target.state in (PublicState.WAITING, PublicState.OFFLINE):
                    local = LocalState.ONLINE
                reports.append(
                    pb.TargetReport(
                        target=target.id,
                        local=pb.TargetReport(local=int(local)).local,  # type: ignore[arg-type]
                        chain_version=version,
                        used_bytes=1 << 20,
                        capacity_bytes=1 << 30,
                    )
                )
        return reports

    def _on_routing(self, routing: Routing) -> None:
        self.seen.append(routing)
        self.news.set()
        asyncio.get_running_loop().call_soon(self.membership.poke)

    async def until(
        self, holds: Callable[[Routing], bool], timeout_s: float = 5.0
    ) -> tuple[Routing, float]:
        """Wait for a routing of which something holds; return it and when it came."""
        async with asyncio.timeout(timeout_s):
            while not holds(self.routing):
                self.news.clear()
                await self.news.wait()
        return self.routing, time.monotonic()


@contextlib.asynccontextmanager
async def cluster(
    directory: Path, count: int = 3, *, lease_ms: int = LEASE_MS
) -> AsyncIterator[tuple[Manager, list[Member]]]:
    """A manager and storage nodes 101, 102, ... with one chain over three of them each."""
    manager = Manager(directory / "manager", lease_ms=lease_ms)
    members: list[Member] = []
    try:
        manager.start()
        members += [Member(manager, 101 + i) for i in range(count)]
        for member in members:
            await member.membership.start()
        request = pb.CreateChainsRequest(nodes=count, targets_per_node=2, replicas=3)
        await manager.call("CreateChains", request)
        await members[0].until(all_serve)
        yield manager, members
    finally:
        for member in members:
            await member.membership.stop()
        manager.end()


def all_serve(routing: Routing) -> bool:
    return bool(routing.chains) and all(
        len(c.serving) == len(c.targets) for c in routing.chains.values()
    )


def lives(node: int) -> Callable[[Routing], bool]:
    return lambda routing: routing.nodes[NodeId(node)].alive


def dead(node: int) -> Callable[[Routing], bool]:
    return lambda routing: not routing.nodes[NodeId(node)].alive


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


def test_chains_are_created_once_and_serve(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as (manager, members):
            routing = members[0].routing
            assert len(routing.chains) == 2 and routing.tables[1].chains == (1, 2)
            for chain in routing.chains.values():
                assert {routing.targets[t].node for t, _ in chain.targets} == {101, 102, 103}
            assert all(m.membership.lease_valid() for m in members)
            again = pb.CreateChainsRequest(nodes=3, targets_per_node=2, replicas=3)
            assert len((await manager.call("CreateChains", again)).chains) == 2
            with pytest.raises(Error, match="2 chains of 3 targets on 3 nodes") as caught:
                await manager.call(
                    "CreateChains", pb.CreateChainsRequest(nodes=3, targets_per_node=4, replicas=3)
                )
            assert caught.value.code is Code.EXISTS

    run(test)


def test_a_silent_node_is_removed_after_a_lease_and_not_before(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as (_, members):
            silent = time.monotonic()
            for task in members[0].membership._tasks:
                task.cancel()
            routing, when = await members[1].until(dead(101))
            interval_s = LEASE_MS / 4 / 1000
            assert LEASE_MS / 1000 - interval_s <= when - silent <= LEASE_MS / 1000 + 1
            assert not members[0].membership.lease_valid()
            for chain in routing.chains.values():
                assert len(chain.serving) == 2
                assert chain.state_of(chain.targets[-1][0]) is PublicState.OFFLINE

    run(test)


def test_an_attested_exit_is_published_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, lease_ms=20_000) as (manager, members):
            await members[0].membership.stop()
            attest = pb.AttestExitRequest(node=101, incarnation=1)
            await manager.call("GetRouting", pb.GetRoutingRequest())  # imports are done
            started = time.monotonic()
            await asyncio.gather(manager.call("AttestExit", attest), members[1].until(dead(101)))
            took_s = time.monotonic() - started
            print(f"attested exit to a polling node: {took_s * 1000:.1f} ms")
            assert took_s < 0.1

            # the returning process is brought up to date and serves again
            back = members[0] = Member(manager, 101, incarnation=2)
            await back.membership.start()
            await back.until(all_serve)
            states = [r.targets[TargetId(101001)].state for r in back.seen]
            assert PublicState.SYNCING in states

    run(test)


def test_a_new_incarnation_ends_the_old_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, lease_ms=20_000) as (manager, members):
            polite = Member(manager, 101, incarnation=2, exclusive=False)
            with pytest.raises(Error, match="may be alive"):
                await polite.membership.start(timeout_s=0.3)
            await polite.membership.stop()

            new = Member(manager, 101, incarnation=3)
            await new.membership.start()
            first = new.seen[0]
            mine = [t for t in first.targets.values() if t.node == 101]
            assert mine and all(t.state is PublicState.OFFLINE for t in mine)
            error = await asyncio.wait_for(members[0].failed, 5)
            assert error.code is Code.STALE
            assert not members[0].membership.lease_valid()
            await new.until(all_serve)
            await new.membership.stop()

    run(test)


def test_the_manager_dies_and_comes_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, lease_ms=2000) as (manager, members):
            before = members[0].routing
            manager.end()
            started = time.monotonic()
            manager.start()
            back = time.monotonic()
            await members[0].until(lambda r: r.manager != before.manager)
            for member in members:
                await member.membership.leased(5)
            print(
                f"manager back in {back - started:.2f} s, leases in {time.monotonic() - back:.2f} s"
            )
            after = members[0].routing
            assert (after.chains, after.nodes) == (before.chains, before.nodes)
            assert after.cluster == before.cluster and after.version > before.version
            assert all(all(n.alive for n in r.nodes.values()) for r in members[0].seen[-3:])

    run(test)


def test_node_and_manager_die_together(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, lease_ms=1000) as (manager, members):
            manager.end()
            await members[2].membership.stop()
            manager.start()
            started = time.monotonic()
            _, when = await members[0].until(dead(103))
            assert 0.9 <= when - started <= 2.0  # the new manager grants a full lease

    run(test)


def test_all_stop_and_start_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path, lease_ms=2000) as (manager, members):
            manager.end(signal.SIGTERM)
            for member in members:
                await member.membership.stop()
            manager.start()
            members[:] = [Member(manager, 101 + i, incarnation=2) for i in range(3)]
            started = time.monotonic()
            await asyncio.gather(*(m.membership.start() for m in members))
            for member in members:  # nobody is told that it serves before it was told that it died
                mine = [
                    t for t in member.seen[0].targets.values() if t.node == member.membership._node
                ]
                assert mine and all(t.state is PublicState.LAST_SERVING for t in mine)
            _, when = await members[0].until(all_serve)
            print(f"all chains serve {when - started:.2f} s after the nodes' start")
            assert when - started < 3

    run(test)


def test_another_clusters_node_is_refused_by_name(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as (manager, members):
            stranger = Member(manager, 104, cluster="f" * 32, directory=tmp_path / "node")
            with pytest.raises(Error) as caught:
                await stranger.membership.start()
            await stranger.membership.stop()
            assert caught.value.code is Code.WRONG_CLUSTER
            text = str(caught.value)
            assert "f" * 32 in text and members[0].routing.cluster in text
            assert str(tmp_path / "node") in text and "manager" in text

    run(test)


def test_a_manager_that_was_paused_declares_nobody_dead(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as (manager, members):
            before = members[0].routing
            manager.send(signal.SIGSTOP)
            await asyncio.sleep(2 * LEASE_MS / 1000)  # the pause itself is what is tested
            assert not members[0].membership.lease_valid()
            manager.send(signal.SIGCONT)
            for member in members:
                await member.membership.leased(5)
            after = await manager.call("GetRouting", pb.GetRoutingRequest())
            assert convert.routing_from_message(after).chains == before.chains
            assert all(node.alive for node in after.nodes)

    run(test)


def test_a_stopped_process_wakes_without_its_lease(tmp_path: Path) -> None:
    """The child asks for its lease before anything else runs in it after SIGCONT."""

    async def test() -> None:
        async with cluster(tmp_path) as (manager, _):
            child = subprocess.Popen(  # noqa: ASYNC220  # takes a millisecond
                [sys.executable, str(HERE / "member_child.py"), manager.address],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            with child:
                assert child.stdin and child.stdout
                assert await asyncio.to_thread(child.stdout.readline) == "True\n"
                child.send_signal(signal.SIGSTOP)
                await asyncio.sleep(LEASE_MS / 1000)
                child.stdin.write("?")
                child.stdin.flush()
                child.send_signal(signal.SIGCONT)
                assert await asyncio.to_thread(child.stdout.readline) == "False\n"
                child.kill()

    run(test)


def test_the_boot_clock_runs() -> None:
    first = clock.boot_ns()
    assert first <= clock.boot_ns() and abs(clock.wall_ns() - time.time_ns()) < 10**10
    assert clock.SYSTEM.boot_ns is clock.boot_ns and os.getpid() > 0
