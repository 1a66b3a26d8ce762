"""Messages that no well-meaning node sends, to a manager over gRPC and over the wire.

Whatever comes, an error of ours is answered, nothing changes, and the manager goes on.
Time budget: 10 s.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hillfire.cluster import Endpoint, Routing
from hillfire.config import ManagerConfig
from hillfire.errors import Code, Error
from hillfire.meta.manager.server import ManagerServer
from hillfire.proto import cluster_pb2, service
from hillfire.proto import manager_pb2 as pb
from hillfire.proto.wire.base import Request
from hillfire.proto.wire.pick import connect_async

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
GOOD_ENDPOINT = cluster_pb2.Endpoint(grpc="127.0.0.1:1", tcp="127.0.0.1:2", host="h")
RPCS = ("GetRouting", "Register", "Heartbeat", "AttestExit", "CreateChains")


def registration(**changes: Any) -> pb.RegisterRequest:
    fields = {
        "node": 101,
        "kind": cluster_pb2.STORAGE,
        "endpoint": GOOD_ENDPOINT,
        "incarnation": 1,
        "exclusive": True,
        **changes,
    }
    return pb.RegisterRequest(**fields)


def forged_state() -> pb.HeartbeatRequest:
    """A heartbeat of node 101 that reports state 99, which only raw bytes can say."""
    good = pb.HeartbeatRequest(node=101, incarnation=1).SerializeToString()
    report = b"\x08\x01\x10\x63"
    return pb.HeartbeatRequest.FromString(good + b"\x22" + bytes([len(report)]) + report)


def forged_domain() -> pb.CreateChainsRequest:
    """A wish for failure domain 99, which only raw bytes can say."""
    good = pb.CreateChainsRequest(nodes=1, targets_per_node=4, replicas=1).SerializeToString()
    return pb.CreateChainsRequest.FromString(good + b"\x28\x63")


def table(*chains: list[tuple[int, int]]) -> pb.CreateChainsRequest:
    """A wish for these chains of (node, disk) on one node, one replica each."""
    request = pb.CreateChainsRequest(nodes=1, targets_per_node=4, replicas=1)
    for chain in chains:
        request.chains.add(places=[pb.PlannedPlace(node=node, disk=disk) for node, disk in chain])
    return request


HOSTILE: list[tuple[str, Any, Code]] = [
    ("Register", registration(node=0), Code.INVALID),
    ("Register", registration(node=U32), Code.INVALID),
    ("Register", registration(kind=0), Code.INVALID),
    ("Register", registration(incarnation=0, node=102), Code.INVALID),
    ("Register", registration(endpoint=cluster_pb2.Endpoint(), node=102), Code.INVALID),
    (
        "Register",
        registration(endpoint=cluster_pb2.Endpoint(grpc="g" * 100_000, tcp="t"), node=102),
        Code.INVALID,
    ),
    ("Register", registration(cluster="nobody's", node=102), Code.WRONG_CLUSTER),
    ("Register", registration(cluster="\n\x1b[2J" * 10_000, node=102), Code.WRONG_CLUSTER),
    ("Register", registration(incarnation=U64, exclusive=False), Code.BUSY),
    ("Register", registration(kind=cluster_pb2.META), Code.CONFIGURATION),
    ("Heartbeat", pb.HeartbeatRequest(node=U32, incarnation=1), Code.NOT_FOUND),
    ("Heartbeat", pb.HeartbeatRequest(node=0), Code.NOT_FOUND),
    ("Heartbeat", pb.HeartbeatRequest(node=101, incarnation=U64), Code.NOT_FOUND),
    ("Heartbeat", forged_state(), Code.INVALID),
    (
        "Heartbeat",
        pb.HeartbeatRequest(node=101, incarnation=1, targets=[pb.TargetReport()] * 5000),
        Code.INVALID,
    ),
    ("AttestExit", pb.AttestExitRequest(node=U32, incarnation=U64), Code.NOT_FOUND),
    ("CreateChains", pb.CreateChainsRequest(), Code.CONFIGURATION),
    (
        "CreateChains",
        pb.CreateChainsRequest(nodes=U32, targets_per_node=U32, replicas=U32),
        Code.CONFIGURATION,
    ),
    (
        "CreateChains",
        pb.CreateChainsRequest(nodes=4096, targets_per_node=999, replicas=3),
        Code.CONFIGURATION,
    ),
    (
        "CreateChains",
        pb.CreateChainsRequest(nodes=2, targets_per_node=4, replicas=3),
        Code.CONFIGURATION,
    ),
    (
        "CreateChains",
        pb.CreateChainsRequest(nodes=4000, targets_per_node=4, replicas=3),
        Code.UNAVAILABLE,
    ),
    ("CreateChains", forged_domain(), Code.INVALID),
    ("CreateChains", table([]), Code.CONFIGURATION),
    ("CreateChains", table([(101, 0), (101, 0)]), Code.CONFIGURATION),
    ("CreateChains", table([(101, U32)]), Code.CONFIGURATION),
    ("CreateChains", table([(U32, 0)]), Code.CONFIGURATION),
    ("CreateChains", table(*[[(101, 0)]] * 9), Code.CONFIGURATION),
]

HARMLESS: list[tuple[str, Any]] = [
    ("AttestExit", pb.AttestExitRequest(node=101, incarnation=U64)),
    ("GetRouting", pb.GetRoutingRequest(known_version=U64, wait_ms=20)),
    (
        "Heartbeat",
        pb.HeartbeatRequest(
            node=101,
            incarnation=1,
            known_version=U64,
            targets=[
                pb.TargetReport(
                    target=U32, local=cluster_pb2.LOCAL_OFFLINE, used_bytes=U64, chain_version=U32
                )
            ],
        ),
    ),
]


async def with_manager(
    directory: Path, test: Callable[[ManagerServer, Any], Awaitable[None]]
) -> None:
    server = ManagerServer(
        ManagerConfig(directory=directory, listen="127.0.0.1:0", durable=False, lease_ms=60_000)
    )
    await server.start()
    try:
        connection = await connect_async(Endpoint("", server.address, "", ""), 5)
        try:
            await over_wire(connection, "Register", registration())
            async with asyncio.timeout(20):
                await test(server, connection)
        finally:
            connection.close()
    finally:
        await server.stop()


async def over_wire(connection: Any, name: str, message: Any) -> Any:
    called = service.method("Manager", name)
    reply = await connection.request(service.encode(called, message), 5)
    return service.decode(called, reply)


def content(routing: Routing) -> tuple[object, ...]:
    return routing.nodes, routing.targets, routing.chains, routing.tables, routing.cluster


def test_hostile_messages_are_refused_and_change_nothing(tmp_path: Path) -> None:
    async def test(server: ManagerServer, connection: Any) -> None:
        assert server.routing.manager is not None
        client = service.GrpcClient(server.routing.manager.grpc)
        before = content(server.routing)
        try:
            for name, message, code in HOSTILE:
                with pytest.raises(Error) as caught:
                    await over_wire(connection, name, message)
                assert caught.value.code is code, (name, message, caught.value)
                assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()
                with pytest.raises(Error) as caught:
                    await client.call(service.method("Manager", name), message, 5)
                assert caught.value.code is code, (name, message, caught.value)
            for name, message in HARMLESS:
                await over_wire(connection, name, message)
            assert content(server.routing) == before
        finally:
            await client.close()

    asyncio.run(with_manager(tmp_path, test))


def test_random_bodies_are_refused_or_understood(tmp_path: Path) -> None:
    """Bytes that mean nothing, and good messages with a byte changed or cut off."""

    async def test(server: ManagerServer, connection: Any) -> None:
        rng = random.Random(20)
        good = [m.SerializeToString() for _, m, _ in HOSTILE if m.ByteSize() < 200]
        for step in range(400):
            body = bytearray(rng.choice(good) if step % 2 else rng.randbytes(rng.randrange(64)))
            if body and step % 2:
                body[rng.randrange(len(body))] = rng.randrange(256)
            if step % 5 == 0:
                del body[rng.randrange(len(body) + 1) :]
            called = service.method("Manager", rng.choice(RPCS[1:]))
            try:
                await connection.request(Request(called.id, bytes(body)), 5)
            except Error as error:
                assert error.code not in (Code.INTERNAL, Code.CONNECTION, Code.TIMED_OUT), body
        routing = await over_wire(connection, "GetRouting", pb.GetRoutingRequest())
        assert routing.cluster == server.routing.cluster

    asyncio.run(with_manager(tmp_path, test))


def test_waiting_calls_are_let_go_when_the_manager_stops(tmp_path: Path) -> None:
    async def test(server: ManagerServer, connection: Any) -> None:
        request = pb.GetRoutingRequest(known_version=U64, wait_ms=U32)
        waiting = asyncio.create_task(over_wire(connection, "GetRouting", request))
        await over_wire(connection, "GetRouting", pb.GetRoutingRequest())
        assert not waiting.done()
        async with asyncio.timeout(3):
            await server.stop()
            try:
                await waiting
            except Error as error:
                assert error.code in (Code.CONNECTION, Code.UNAVAILABLE)

    asyncio.run(with_manager(tmp_path, test))
