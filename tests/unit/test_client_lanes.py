"""Lanes over real wires: how many connections calls are spread over."""

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest

from hillfire.client.actions import Call, Flying
from hillfire.client.aio import Client, _first
from hillfire.client.connections import TCP_CALLS, TCP_CONNECTIONS, Connections
from hillfire.client.lanes import Lanes
from hillfire.cluster import Endpoint
from hillfire.proto.wire.base import Answer, Incoming, Request
from hillfire.proto.wire.pick import host_id
from hillfire.proto.wire.server import WireServer

ECHO, HOLD, RELEASE = 1, 2, 3
CALLS = 20


class Held:
    """A server that holds answers back until it is told."""

    def __init__(self, folder: Path) -> None:
        self.ready = threading.Event()
        self.over: asyncio.Event
        self.loop: asyncio.AbstractEventLoop
        self.server: WireServer
        self.thread = threading.Thread(target=lambda: asyncio.run(self.main(folder)))
        self.thread.start()
        assert self.ready.wait(10)
        self.endpoint = Endpoint("", self.server.tcp_address, self.server.shm_path, host_id())

    async def main(self, folder: Path) -> None:
        self.loop, self.over, self.gate = (
            asyncio.get_running_loop(),
            asyncio.Event(),
            asyncio.Event(),
        )
        self.server = WireServer(self.handle, tcp="127.0.0.1:0", shm=str(folder / "wire.sock"))
        await self.server.start()
        self.ready.set()
        await self.over.wait()
        await self.server.stop()

    def handle(self, incoming: Incoming) -> Answer | Awaitable[Answer]:
        if incoming.method == HOLD:
            return self.hold(incoming)
        if incoming.method == RELEASE:
            self.gate.set()
        return Answer(body=bytes(incoming.body))

    async def hold(self, incoming: Incoming) -> Answer:
        await self.gate.wait()
        return Answer(body=bytes(incoming.body))

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Held]:
    made = Held(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize(("transport", "expected"), [("tcp", TCP_CONNECTIONS), ("shm", 1)])
def test_what_is_under_way_over_tcp_has_several_connections(
    server: Held, transport: str, expected: int
) -> None:
    wires = Connections(transport)
    lanes = Lanes(wires)
    calls = [Call(server.endpoint, Request(HOLD, bytes([k])), 10.0) for k in range(CALLS)]
    flying = lanes.start(calls[:TCP_CALLS])
    assert server.server.kinds() == [transport], "one does for a few calls"
    flying += lanes.start(calls[TCP_CALLS:])
    assert len({id(each.handle.lane.connection) for each in flying}) == expected
    flying += lanes.start([Call(server.endpoint, Request(RELEASE, b""), 10.0)])
    while any(each.outcome is None for each in flying):
        lanes.wait(flying, 10.0)
    bodies = [each.outcome.body for each in flying if each.outcome is not None]
    assert bodies == [bytes([k]) for k in range(CALLS)] + [b""]
    assert repr(lanes) == "<Lanes 0 calls on 0 connections>"
    again = lanes.start([Call(server.endpoint, Request(ECHO, b"kept"), 10.0)])
    lanes.wait(again, 10.0)
    assert server.server.kinds() == [transport] * expected, "they are kept for the next time"
    wires.close()


@pytest.mark.parametrize(("transport", "expected"), [("tcp", TCP_CONNECTIONS), ("shm", 1)])
def test_so_it_is_on_an_event_loop(server: Held, transport: str, expected: int) -> None:
    async def main() -> None:
        client = Client("127.0.0.1:1", transport=transport)

        def begin(method: int, body: bytes = b"") -> Flying:
            return client._begin(Call(server.endpoint, Request(method, body), 10.0))

        async def ended(*calls: Flying) -> None:
            while waiting := [each for each in calls if each.outcome is None]:
                await _first(waiting, 10.0)

        await ended(begin(ECHO))
        flying = []
        for k in range(CALLS):
            flying.append(begin(HOLD, bytes([k])))
            await asyncio.sleep(0)
            if client._connecting:
                await asyncio.wait(client._connecting.values())
        assert server.server.kinds() == [transport] * expected
        if expected > 1:
            busy = [each.outstanding for each in client._connections.values()]
            assert max(busy) - min(busy) <= TCP_CALLS
        await ended(begin(RELEASE), *flying)
        bodies = [each.outcome.body for each in flying if each.outcome is not None]
        assert bodies == [bytes([k]) for k in range(CALLS)]
        await client.close()

    asyncio.run(main())
