"""ClientShell: drives operations of the production client core over simulated exchanges.

What ``client/sync.py`` does with sockets: an exchange is messages of the simulated network, a pause
is virtual time. The bodies are packed and unpacked by production's own codecs.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hillfire.client.actions import (
    Abandon,
    Action,
    Await,
    Call,
    Exchange,
    Flying,
    Operation,
    Outcome,
    Pause,
    Start,
)
from hillfire.cluster import Routing
from hillfire.errors import Code, Error
from hillfire.proto import convert, dispatch, service
from hillfire.proto.wire.base import Part
from hillfire.proto.wire.chunks import (
    READ,
    READ_ITEMS,
    READ_RESULTS,
    WRITE,
    WRITE_ITEMS,
    WRITE_RESULTS,
)
from hillfire.proto.wire.chunks import Kind as Update
from hillfire.types import ChunkId
from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

STAT = service.method("Meta", "Stat")
TRUNCATE = service.method("Meta", "Truncate")
SYNC = service.method("Storage", "Sync")
GET_ROUTING = service.method("Manager", "GetRouting")
_SERVICES = {each.id: each for each in (STAT, TRUNCATE, SYNC, GET_ROUTING)}


class ClientShell(Process):
    """The process of a client, as far as it moves messages."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(name, world.scheduler, world.story, world.rate())
        self.world = world
        self.versions: dict[tuple[ChunkId, int], int] = {}
        """as answers told them, by chunk and CRC32C of what was written, or offset of what was
        read: they only help the checker, which believes none of them"""

    def run_operation(self, operation: Operation[Any], done: Callable[[Any], None]) -> None:
        """Drive one of the core's operations to its end: its result, or its ``Error``."""

        def step(value: Any) -> None:
            try:
                action: Action = operation.send(value)
            except StopIteration as stop:
                done(stop.value)
                return
            except Error as error:
                done(error)
                return
            if type(action) is Exchange:
                self._exchange(action.calls, step)
            elif type(action) is Pause:
                self.after(action.seconds, lambda: step(None))
            elif type(action) is Start:
                step([self._start(call) for call in action.calls])
            elif type(action) is Await:
                self._await(action, lambda: step(None))
            elif type(action) is Abandon:
                for flying in action.flying:
                    _settle(flying, Outcome(b"", Error(Code.CANCELLED), False))
                step(None)
            else:
                raise AssertionError(f"no client operation here does {action}")

        step(None)

    def _exchange(self, calls: Sequence[Call], step: Callable[[Any], None]) -> None:
        outcomes: list[Outcome | None] = [None] * len(calls)
        left = len(calls)

        def answered(position: int, outcome: Outcome) -> None:
            nonlocal left
            outcomes[position] = outcome
            left -= 1
            if not left:
                step(outcomes)

        for position, call in enumerate(calls):
            self._call(call, lambda outcome, at=position: answered(at, outcome))  # type: ignore[misc]

    def _start(self, call: Call) -> Flying:
        flying = Flying(call)
        flying.handle = []  # whom to tell
        self._call(call, lambda outcome: _settle(flying, outcome))
        return flying

    def _await(self, action: Await, go_on: Callable[[], None]) -> None:
        waiting = [flying for flying in action.flying if flying.outcome is None]
        if not waiting:
            go_on()
            return
        gone = False

        def once() -> None:
            nonlocal gone
            if not gone:
                gone = True
                go_on()

        for flying in waiting:
            flying.handle.append(once)
        self.after(action.timeout_s, once)

    def _call(self, call: Call, answered: Callable[[Outcome], None]) -> None:
        request, world = call.request, self.world
        receiver = world.process_at(call.endpoint)
        body: Any
        if request.method == READ:
            method = "read"
            body = READ_ITEMS.unpack(request.body), [part.length for part in request.destinations]
        elif request.method == WRITE:
            method = "write"
            body = WRITE_ITEMS.unpack(request.body), [_bytes(part) for part in request.sources]
        else:
            called = _SERVICES[request.method]
            method, body = _translated(called, dispatch.parse(called.request_type, request.body))

        def reply(value: Any) -> None:
            if isinstance(value, Error):
                answered(Outcome(b"", value, False))
            elif request.method == READ:
                for item, (result, _) in zip(body[0], value, strict=True):
                    self.versions[item.chunk, item.offset] = result.version
                for part, (_, data) in zip(request.destinations, value, strict=True):
                    part.region.view[part.offset : part.offset + len(data)] = self._received(data)
                answered(Outcome(READ_RESULTS.pack([r for r, _ in value]), None, False))
            elif request.method == WRITE:
                for item, result in zip(body[0], value, strict=True):
                    if item.kind == Update.WRITE and not result.code:
                        self.versions[item.chunk, item.checksum] = result.version
                answered(Outcome(WRITE_RESULTS.pack(value), None, False))
            else:
                answered(Outcome(_encoded(value), None, False))

        world.network.call(self, receiver, method, body, call.timeout_s, reply)

    def _received(self, data: bytes) -> bytes:
        if self.world.network.damaged(data):
            self.world.coverage.count("damage")
            return data[:-1] + bytes((data[-1] ^ 128,))
        return data


def _settle(flying: Flying, outcome: Outcome) -> None:
    """Give a started call its outcome; one that was abandoned has it already.

    The bytes of an answer that nobody waits for land all the same, as they do over shm.
    """
    if flying.outcome is None:
        flying.outcome = outcome
        waiting, flying.handle = flying.handle, []
        for go_on in waiting:
            go_on()


def _encoded(value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, Routing):
        return _encoded_routing(value)
    return bytes(value.SerializeToString())


def _encoded_routing(routing: Routing) -> bytes:
    """Return the message of a routing, which many clients ask for."""
    known = _ENCODED.get(id(routing))
    if known is None or known[0] is not routing:
        _ENCODED.clear()
        message = convert.routing_to_message(routing).SerializeToString()
        known = _ENCODED[id(routing)] = routing, message
    return known[1]


_ENCODED: dict[int, tuple[Routing, bytes]] = {}


def _bytes(part: Part) -> bytes:
    return bytes(part.region.view[part.offset : part.offset + part.length])


def _translated(called: service.Method, message: Any) -> tuple[str, Any]:
    """Return a service's method and its request as the simulated processes know them."""
    if called is GET_ROUTING:
        return "get_routing", (message.known_version, message.wait_ms / 1000)
    if called is SYNC:
        return "sync", (message.chain, message.chain_version)
    return called.function, message
