"""The node's side of a lease: what it counts from, and what comes before it."""

import asyncio
from typing import Any

from hillfire.clock import NS_PER_MS, Clock
from hillfire.cluster import Endpoint, NodeKind, Routing
from hillfire.proto import cluster_pb2
from hillfire.proto import manager_pb2 as pb
from hillfire.proto.discovery import reachable
from hillfire.proto.lease import Lease
from hillfire.proto.membership import Membership
from hillfire.types import NodeId


def test_a_lease_counts_from_the_sending_and_lasts_half() -> None:
    now = 0
    lease = Lease(Clock(lambda: now * NS_PER_MS))
    assert not lease.valid()
    now = 700  # the answer took this long
    lease.extend(0, 2000)
    assert lease.valid()
    now = 999
    assert lease.valid()
    now = 1000
    assert not lease.valid()
    lease.extend(600 * NS_PER_MS, 2000)
    assert lease.valid()
    lease.extend(100 * NS_PER_MS, 2000)  # an older answer, late
    now = 1500
    assert lease.valid()
    lease.end()
    assert not lease.valid()


def test_nobody_acts_on_an_old_routing_under_a_new_lease() -> None:
    """The routing that a heartbeat's answer brings is acted on before the lease is extended."""
    now, leased_when_told = 0, []

    class SlowManager:
        async def call(self, method: Any, request: Any, timeout_s: float) -> pb.HeartbeatReply:
            nonlocal now
            now += 300
            routing = cluster_pb2.Routing(cluster="c", version=5)
            return pb.HeartbeatReply(lease_ms=2000, routing=routing)

    async def test() -> None:
        nonlocal now

        def on_routing(routing: Routing) -> None:
            leased_when_told.append(membership.lease_valid())

        membership = Membership(
            "127.0.0.1:1",
            NodeId(1),
            NodeKind.STORAGE,
            Endpoint("", "", "", ""),
            1,
            "c",
            report=list,
            on_routing=on_routing,
            clock=Clock(lambda: now * NS_PER_MS),
        )
        membership._client = SlowManager()  # type: ignore[assignment]
        membership._lease_ms = 2000
        await membership._heartbeat()
        assert membership.lease_valid() and membership.routing.version == 5
        now = 1000
        assert not membership.lease_valid()

    asyncio.run(test())
    assert leased_when_told == [False]


def test_a_manager_that_listens_everywhere_is_found_where_it_is_known() -> None:
    assert reachable("0.0.0.0:4711", "10.0.0.7:9700") == "10.0.0.7:4711"
    assert reachable("[::]:4711", "manager:9700") == "manager:4711"
    assert reachable("10.0.0.8:4711", "10.0.0.7:9700") == "10.0.0.8:4711"
