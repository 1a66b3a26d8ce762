"""What shells of the client do with calls that are started and not waited for. Budget: 5 s.

One suite over the synchronous shell, its flights and the asyncio shell, against a real server.
"""

import asyncio
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hillfire.client.actions import Abandon, Await, Call, Exchange, Operation, Pause, Start
from hillfire.client.aio import Client, Lane
from hillfire.client.connections import Connections
from hillfire.client.flight import Flight
from hillfire.client.sync import Shell
from hillfire.cluster import Endpoint
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import AsyncConnection, Part, Request
from hillfire.region import Region
from tests.conformance.wire_child import ECHO, FAIL, HOLD, RELEASE
from tests.conformance.wire_faces import Server, until

LONG_S = 10.0
Make = Callable[[], Operation[Any]]


class BareShell(Shell):
    """The synchronous shell without a cluster: what ``run`` needs and no more."""

    def __init__(self, transport: str) -> None:
        self.wires = Connections(transport)


class BareClient(Client):
    """Likewise the asyncio shell."""

    def __init__(self, transport: str) -> None:
        self._transport = transport
        self._connections: dict[Lane, AsyncConnection] = {}
        self._connecting: dict[Lane, asyncio.Task[AsyncConnection]] = {}
        self._closed = False


def by_run(make: Make, transport: str) -> Any:
    shell = BareShell(transport)
    try:
        return shell.run(make())
    finally:
        shell.wires.close()


def by_flight(make: Make, transport: str) -> Any:
    wires = Connections(transport)
    try:
        return Flight(wires, make()).result()
    finally:
        wires.close()


def by_loop(make: Make, transport: str) -> Any:
    async def main() -> Any:
        client = BareClient(transport)
        try:
            return await client.run(make())
        finally:
            await asyncio.sleep(0)  # what was abandoned is cancelled now
            for connection in client._connections.values():
                connection.close()

    return asyncio.run(main())


@pytest.fixture(params=[by_run, by_flight, by_loop])
def drive(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.end()


def echo(server: Server, body: bytes = b"x") -> Call:
    return Call(server.endpoint, Request(ECHO, body), LONG_S)


def code(flying: Any) -> Code | None:
    error = flying.outcome.error
    return None if error is None else error.code


def hold(server: Server, region: Region, timeout_s: float = LONG_S) -> Call:
    request = Request(HOLD, b"", (), [Part(region, 0, 4096)])
    return Call(server.endpoint, request, timeout_s)


def is_free(region: Region) -> bool:
    try:
        region.check(0, 4096)
    except Error as exc:
        assert exc.code is Code.BUSY
        return False
    return True


def soon(holds: Callable[[], bool]) -> Operation[None]:
    """Wait until something holds, and leave the shell at work meanwhile."""
    end = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < end
        yield Pause(0.005)


def held_back(region: Region, transport: str) -> bool:
    """Whether a given-up answer keeps its place; over tcp it is received elsewhere."""
    return transport == "tcp" or not is_free(region)


def test_the_first_answer_is_acted_on_and_the_loser_abandoned(
    drive: Any, transport: str, server: Server
) -> None:
    region = Region.allocate(8192)

    def operation() -> Operation[Any]:
        slow, quick = yield Start([hold(server, region), echo(server)])
        while quick.outcome is None:
            yield Await([slow, quick], LONG_S)
        assert quick.outcome.error is None and quick.outcome.body == b"x"
        assert slow.outcome is None
        yield Abandon([slow])
        assert code(slow) is Code.CANCELLED
        yield Pause(0.0)
        assert held_back(region, transport), "its answer may still land"
        (again,) = yield Start([echo(server, b"y")])
        yield Await([again], LONG_S)
        assert again.outcome.body == b"y", "the connection serves on"
        server.ask(RELEASE)
        yield from soon(lambda: is_free(region))

    drive(operation, transport)


def test_a_wait_ends_with_its_time_and_the_call_goes_on(
    drive: Any, transport: str, server: Server
) -> None:
    region = Region.allocate(8192)

    def operation() -> Operation[Any]:
        (held,) = yield Start([hold(server, region)])
        began = time.monotonic()
        yield Await([held], 0.02)
        assert held.outcome is None and 0.019 <= time.monotonic() - began < 5
        yield from soon(lambda: server.state()["holding"] == 1)
        server.ask(RELEASE)
        yield Await([held], LONG_S)
        assert code(held) is None
        yield Await([held], LONG_S)  # nothing is left to wait for
        assert is_free(region) and bytes(region.view[:3]) == b"LLL"

    drive(operation, transport)


def test_a_call_ends_when_its_time_is_up(drive: Any, transport: str, server: Server) -> None:
    region = Region.allocate(8192)

    def operation() -> Operation[Any]:
        (held,) = yield Start([hold(server, region, 0.05)])
        yield Await([held], LONG_S)
        assert held.outcome.error.code is Code.TIMED_OUT
        assert held_back(region, transport)
        server.ask(RELEASE)
        yield from soon(lambda: is_free(region))

    drive(operation, transport)


def test_what_an_operation_leaves_is_abandoned(drive: Any, transport: str, server: Server) -> None:
    region = Region.allocate(8192)

    def operation() -> Operation[str]:
        (held,) = yield Start([hold(server, region)])
        yield Await([held], 0.01)
        return "done"

    assert drive(operation, transport) == "done"
    server.ask(RELEASE)
    until(lambda: is_free(region), "the answer came")


def test_errors_are_outcomes_and_others_go_on(drive: Any, transport: str, server: Server) -> None:
    def operation() -> Operation[Any]:
        failing = Call(server.endpoint, Request(FAIL, b"12"), LONG_S)
        nowhere = Call(Endpoint("", "127.0.0.1:1", "/nowhere", "x"), Request(ECHO, b""), LONG_S)
        calls = yield Start([failing, nowhere, echo(server), echo(server, b"2")])
        while any(each.outcome is None for each in calls):
            yield Await(calls, LONG_S)
        codes = [each.outcome.error and each.outcome.error.code for each in calls]
        assert codes == [Code.INVALID, Code.CONNECTION, None, None]
        assert [each.outcome.body for each in calls[2:]] == [b"x", b"2"]
        outcomes = yield Exchange([failing, echo(server)])
        assert outcomes[0].error.code is Code.INVALID and outcomes[1].body == b"x"

    drive(operation, transport)


def test_the_servers_end_ends_every_call(drive: Any, transport: str) -> None:
    server, region = Server(), Region.allocate(8192)

    def operation() -> Operation[Any]:
        calls = yield Start([hold(server, region), hold(server, region)])
        yield from soon(lambda: server.state()["holding"] == 2)
        server.kill()
        while any(each.outcome is None for each in calls):
            yield Await(calls, LONG_S)
        assert {each.outcome.error.code for each in calls} == {Code.CONNECTION}
        assert is_free(region)
        (late,) = yield Start([echo(server)])
        yield Await([late], LONG_S)
        assert late.outcome.error.code is Code.CONNECTION

    try:
        drive(operation, transport)
    finally:
        server.end()


def test_what_was_abandoned_is_dropped_without_a_word(drive: Any, server: Server) -> None:
    """Connection, quarantine and memory hold each other in a circle, which goes as a whole."""

    regions: list[weakref.ref[Region]] = []

    def operation() -> Operation[Any]:
        region = Region.allocate(8192)
        regions.append(weakref.ref(region))
        (held,) = yield Start([hold(server, region)])
        yield from soon(lambda: server.state()["holding"] == 1)
        yield Abandon([held])

    drive(operation, "shm")
    gc.collect()  # an unclosed socket would be a warning, and so an error
    assert [region() for region in regions] == [None], "its memory is held for ever"
    server.ask(RELEASE)


def test_a_cancelled_flight_leaves_its_parts_in_quarantine(transport: str, server: Server) -> None:
    region, wires = Region.allocate(8192), Connections(transport)

    def operation() -> Operation[Any]:
        yield Exchange([hold(server, region), echo(server)])
        raise AssertionError("it was cancelled")

    flight = Flight(wires, operation())
    until(lambda: server.state()["holding"] == 1, "the request arrived")
    flight.cancel()
    with pytest.raises(Error) as caught:
        flight.result()
    assert caught.value.code is Code.CANCELLED and flight.ended
    assert held_back(region, transport)
    server.ask(RELEASE)
    until(lambda: is_free(region), "the answer came")
    wires.close()
