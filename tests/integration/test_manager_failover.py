"""Several manager processes over one directory: killed, stopped, woken: one leads, none does harm.

Time budget: 35 s on two idle cores.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hillfire.errors import Code, Error
from hillfire.proto import cluster_pb2, convert
from hillfire.proto import manager_pb2 as pb
from hillfire.types import InodeId, chunk_id
from tests.integration import chain
from tests.integration.test_manager import Manager, Member, all_serve, dead, run

LEASE_MS = 1000


@contextlib.asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[tuple[Manager, Manager, list[Member]]]:
    """A leader, a manager that stands by, and three storage nodes that know both."""
    leader = Manager(directory / "manager", lease_ms=LEASE_MS)
    standby = leader.standby()
    members: list[Member] = []
    try:
        leader.start()
        standby.start()
        both = f"{leader.address},{standby.address}"
        members += [Member(both, 101 + i) for i in range(3)]
        for member in members:
            await member.membership.start()
        request = pb.CreateChainsRequest(nodes=3, targets_per_node=2, replicas=3)
        await leader.call("CreateChains", request)
        await members[0].until(all_serve)
        yield leader, standby, members
    finally:
        for member in members:
            await member.membership.stop()
        leader.end()
        standby.end()


async def epoch_of(manager: Manager) -> int:
    description = await manager.call("Describe", pb.DescribeRequest())
    return int(description.epoch)


async def refusal(manager: Manager, name: str, request: object) -> Code:
    with pytest.raises(Error) as caught:
        await manager.call(name, request)
    return caught.value.code


def test_one_leads_and_the_other_says_that_it_does_not(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as (leader, standby, members):
            assert await epoch_of(leader) == 1
            for name, request in (
                ("GetRouting", pb.GetRoutingRequest()),
                ("Heartbeat", pb.HeartbeatRequest(node=101, incarnation=1)),
                ("CreateChains", pb.CreateChainsRequest(nodes=3, targets_per_node=2, replicas=3)),
                ("Session", pb.ClientSessionRequest(client=7)),
                ("Describe", pb.DescribeRequest()),
            ):
                assert await refusal(standby, name, request) is Code.NOT_LEADER
            assert members[0].routing.manager is not None
            assert members[0].routing.manager.tcp == leader.address

    run(test)


def test_the_standby_takes_over_from_a_killed_leader(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as (leader, standby, members):
            before = members[0].routing
            killed = time.monotonic()
            leader.end()
            _, when = await members[0].until(
                lambda r: r.manager is not None and r.manager.tcp == standby.address
            )
            for member in members:
                await member.membership.leased(5)
            print(f"taken over after {when - killed:.2f} s, leases {time.monotonic() - killed:.2f}")
            assert await epoch_of(standby) == 2
            after = members[0].routing
            assert (after.chains, after.nodes) == (before.chains, before.nodes)
            assert after.version > before.version
            leader.start()  # it comes back, and stands by
            assert await refusal(leader, "GetRouting", pb.GetRoutingRequest()) is Code.NOT_LEADER

    run(test)


def test_a_leader_that_was_stopped_does_no_harm_when_it_wakes(tmp_path: Path) -> None:
    """It holds the lock and its database all the while; a heartbeat waits in its socket."""

    async def test() -> None:
        async with cluster(tmp_path) as (leader, standby, members):
            seen = members[0].routing.version
            stopped = time.monotonic()
            leader.send(signal.SIGSTOP)
            # These two wait unread until it wakes: its lease has to be looked at then.
            late = asyncio.create_task(
                leader.call("Heartbeat", pb.HeartbeatRequest(node=101, incarnation=1), 20)
            )
            exit_of = pb.AttestExitRequest(node=102, incarnation=1)
            attest = asyncio.create_task(leader.call("AttestExit", exit_of, 20))
            routing, when = await members[0].until(
                lambda r: r.manager is not None and r.manager.tcp == standby.address, 10
            )
            print(f"taken over {when - stopped:.2f} s after the stop")
            assert when - stopped >= LEASE_MS / 1000
            assert routing.version > seen
            for member in members:
                await member.membership.leased(5)
            # What the new leader decides now, the old one must not know and not undo.
            await members[2].membership.stop()
            await standby.call("AttestExit", pb.AttestExitRequest(node=103, incarnation=1))
            await members[0].until(dead(103))
            leader.send(signal.SIGCONT)
            for waiting in (late, attest):
                with pytest.raises(Error) as caught:
                    await waiting
                assert caught.value.code in (Code.NOT_LEADER, Code.CONNECTION)
            assert await refusal(leader, "GetRouting", pb.GetRoutingRequest()) is Code.NOT_LEADER
            for name in ("Register", "AttestExit"):
                message = {"Register": pb.RegisterRequest, "AttestExit": pb.AttestExitRequest}[name]
                request = message(node=104, incarnation=5)
                if isinstance(request, pb.RegisterRequest):
                    request.kind = cluster_pb2.STORAGE
                    request.endpoint.grpc = request.endpoint.tcp = "127.0.0.1:1"
                assert await refusal(leader, name, request) is Code.NOT_LEADER
            now = convert.routing_from_message(
                await standby.call("GetRouting", pb.GetRoutingRequest())
            )
            assert 104 not in now.nodes and not dead(102)(now) and dead(103)(now)
            for member in members[:2]:
                versions = [r.version for r in member.seen]
                assert versions == sorted(set(versions))
                assert member.membership.lease_valid()
                assert not any(102 in r.nodes and dead(102)(r) for r in member.seen)
            # And it is of use again: it takes over in its turn, with everything.
            standby.end()
            await members[0].until(
                lambda r: r.manager is not None and r.manager.tcp == leader.address, 10
            )
            assert await epoch_of(leader) == 3
            assert dead(103)(members[0].routing)

    run(test)


def test_manager_and_node_die_together_with_a_standby(tmp_path: Path) -> None:
    async def test() -> None:
        async with cluster(tmp_path) as (leader, _, members):
            killed = time.monotonic()
            leader.end()
            for task in members[2].membership._tasks:
                task.cancel()
            routing, when = await members[0].until(dead(103), 10)
            print(f"chains without the dead node {when - killed:.2f} s after both died")
            assert all(len(each.serving) == 2 for each in routing.chains.values())
            # A full lease, counted from the new leader's begin.
            assert LEASE_MS / 1000 <= when - killed <= 3 * LEASE_MS / 1000 + 1

    run(test)


def test_a_leader_is_stopped_again_and_again(tmp_path: Path) -> None:
    """Short pauses cost nothing; whoever leads, what was decided stays and versions only grow."""

    async def test() -> None:
        async with cluster(tmp_path) as (leader, standby, members):
            for _ in range(3):
                leader.send(signal.SIGSTOP)
                await asyncio.sleep(0.2 * LEASE_MS / 1000)  # the pause itself is what is tested
                leader.send(signal.SIGCONT)
                for member in members:
                    await member.membership.leased(5)
            assert await epoch_of(leader) == 1
            for paused, other in ((leader, standby), (standby, leader)):
                paused.send(signal.SIGSTOP)
                await members[0].until(
                    lambda r, other=other: r.manager.tcp == other.address,  # type: ignore[misc]
                    10,
                )
                paused.send(signal.SIGCONT)
                for member in members:
                    await member.membership.leased(5)
            assert await epoch_of(leader) == 3
            assert all_serve(members[0].routing)
            versions = [r.version for r in members[0].seen]
            assert versions == sorted(set(versions))

    run(test)


def test_writes_resume_after_a_kill_and_after_manager_and_node_die_together(tmp_path: Path) -> None:
    """Nobody attests an end here: what passes is the default lease, with the default heartbeats."""
    for number, (names, limit_s) in enumerate(((("head",), 3.0), (("head", "manager"), 6.0))):
        directory = tmp_path / str(number)
        directory.mkdir()
        with chain.Cluster(directory, lease_ms=2000) as storage:
            storage.wait()
            client = chain.Client(storage)
            try:
                chunk = chunk_id(InodeId(9), 0)
                client.write([(chunk, 0, bytes(4096))])
                head = client.routing.targets[client.chain().serving[0]]
                killed = time.monotonic()
                storage.kill(*(int(head.node) if name == "head" else name for name in names))
                if "manager" in names:
                    storage.start_manager()
                client.write([(chunk, 0, bytes(4096))])
                took_s = time.monotonic() - killed
                print(f"writes go on {took_s:.2f} s after {' and '.join(names)} died")
                assert took_s <= limit_s
            finally:
                client.close()
