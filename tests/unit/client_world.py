"""A scripted world for the client's generators: chunk servers and a metadata service in a dict.

It answers actions as the real shells do, without any I/O: pure cores may be tested so. Faults are
given as a function that sees each chunk item and may answer with a code instead.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from crc32c import crc32c

from hillfire.client.actions import (
    Abandon,
    Await,
    Call,
    Exchange,
    Flying,
    Join,
    Operation,
    Outcome,
    Pause,
    Spawn,
    Start,
)
from hillfire.client.core import Core
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
from hillfire.errors import Code, Error
from hillfire.proto import convert, meta_pb2, service
from hillfire.proto.wire import chunks
from hillfire.types import ChainId, NodeId, TargetId

CHUNK = 64 * 1024
CHAINS = 4
Fault = Callable[[int, Any], Code | None]


def endpoint(name: str, host: str = "here") -> Endpoint:
    return Endpoint(grpc="", tcp=f"{name}:1", shm=f"/{name}", host=host)


def make_routing(version: int = 1, nodes: int = 3, hosts: Sequence[str] = ()) -> Routing:
    """``CHAINS`` chains of one target a node; chain i begins at node i modulo ``nodes``."""
    known = {NodeId(1): Node(NodeId(1), NodeKind.META, endpoint("meta"), 1, True)}
    for n in range(nodes):
        where = endpoint(f"n{n}", hosts[n] if hosts else "here")
        known[NodeId(101 + n)] = Node(NodeId(101 + n), NodeKind.STORAGE, where, 1, True)
    targets, chains = {}, {}
    for c in range(1, CHAINS + 1):
        members = []
        for i in range(nodes):
            node = 101 + (c + i) % nodes
            target = TargetId(c * 100 + i)
            members.append((target, PublicState.SERVING))
            targets[target] = Target(
                target, NodeId(node), ChainId(c), 0, PublicState.SERVING, LocalState.UP_TO_DATE
            )
        chains[ChainId(c)] = Chain(ChainId(c), version, tuple(members))
    table = ChainTable(1, tuple(chains))
    return Routing("test", version, endpoint("manager"), known, targets, chains, {1: table})


class World:
    def __init__(self, routing: Routing | None = None, seed: int = 0) -> None:
        self.routing = routing or make_routing()
        self.chunks: dict[bytes, bytearray] = {}
        self.inodes: dict[int, meta_pb2.Inode] = {}
        self.now = 100.0
        self.fault: Fault = lambda node, item: None
        self.down: set[str] = set()
        self.delays: dict[str, float] = {}
        """how long a node takes to answer what was started, by its name"""
        self.abandoned: list[Call] = []
        self.seen: list[tuple[str, Any]] = []
        self.tags: dict[tuple[int, int], tuple[int, Any]] = {}
        self.meta_calls: list[tuple[str, Any]] = []
        self.pauses: list[float] = []
        self._random = random.Random(seed)
        self._flights: dict[int, Operation[Any]] = {}
        self.core = Core(
            endpoint("manager"),
            7,
            clock=lambda: self.now,
            wall_ns=lambda: 1,
            host="here",
        )
        self.run(self.core.first_routing())

    def inode(self, number: int = 5, length: int = 0) -> meta_pb2.Inode:
        layout = meta_pb2.FileLayout(chunk_bytes=CHUNK, chains=range(1, CHAINS + 1))
        inode = meta_pb2.Inode(
            id=number, type=meta_pb2.REGULAR, mode=0o644, links=1, length=length, layout=layout
        )
        self.inodes[number] = inode
        return self.copy(number)

    def copy(self, number: int) -> meta_pb2.Inode:
        made = meta_pb2.Inode()
        made.CopyFrom(self.inodes[number])
        return made

    # --- the driver

    def run(self, operation: Operation[Any]) -> Any:
        value: Any = None
        error: Error | None = None
        while True:
            try:
                action = operation.throw(error) if error else operation.send(value)
            except StopIteration as stop:
                return stop.value
            value, error = None, None
            if isinstance(action, Exchange):
                assert action.calls, "an empty exchange"
                value = [self._answer(call) for call in action.calls]
            elif isinstance(action, Start):
                value = [self._start(call) for call in action.calls]
            elif isinstance(action, Await):
                self._await(action)
            elif isinstance(action, Abandon):
                for flying in action.flying:
                    if flying.outcome is None:
                        self.abandoned.append(flying.call)
                        flying.outcome = Outcome(b"", Error(Code.CANCELLED), True)
            elif isinstance(action, Pause):
                self.now += action.seconds
                self.pauses.append(action.seconds)
            elif isinstance(action, Spawn):
                # It ends at any time before it is joined: here, or there.
                key = len(self._flights)
                self._flights[key] = action.operation
                value = [key, None]
                if self._random.random() < 0.5:
                    value[1] = self.run(action.operation)
            else:
                assert isinstance(action, Join)
                key, result = action.handle
                try:
                    value = result if result is not None else self.run(self._flights[key])
                except Error as exc:
                    error = exc

    def _start(self, call: Call) -> Flying:
        flying = Flying(call)
        name = call.endpoint.tcp.split(":")[0]
        flying.handle = self.now + min(self.delays.get(name, 0.0), call.timeout_s)
        return flying

    def _await(self, action: Await) -> None:
        """Let time pass until the first answer, or the end of the wait."""
        waiting = [each for each in action.flying if each.outcome is None]
        if not waiting:
            return
        first = min(each.handle for each in waiting)
        self.now = max(self.now, min(first, self.now + action.timeout_s))
        for flying in waiting:
            if flying.handle <= self.now:
                late = self.delays.get(flying.call.endpoint.tcp.split(":")[0], 0.0)
                flying.outcome = (
                    self._answer(flying.call)
                    if late < flying.call.timeout_s
                    else Outcome(b"", Error(Code.TIMED_OUT), True)
                )

    def _answer(self, call: Call) -> Outcome:
        name = call.endpoint.tcp.split(":")[0]
        self.now += 0.0001
        if name in self.down:
            return Outcome(b"", Error(Code.CONNECTION, f"{name} is down"), True)
        try:
            return Outcome(self._serve(name, call), None, True)
        except Error as exc:
            return Outcome(b"", exc, True)

    def _serve(self, name: str, call: Call) -> bytes:
        request = call.request
        if request.method == chunks.READ:
            items = chunks.READ_ITEMS.unpack(request.body)
            results = [
                self._read(name, item, part)
                for item, part in zip(items, request.destinations, strict=True)
            ]
            return chunks.READ_RESULTS.pack(results)
        if request.method == chunks.WRITE:
            updates = chunks.WRITE_ITEMS.unpack(request.body)
            for i, one in enumerate(updates):
                for other in updates[i + 1 :]:
                    before = one.offset + one.length <= other.offset
                    after = other.offset + other.length <= one.offset
                    assert one.chunk != other.chunk or before or after
            outcomes = [
                self._write(name, item, part)
                for item, part in zip(updates, request.sources, strict=True)
            ]
            return chunks.WRITE_RESULTS.pack(outcomes)
        return self._service(name, request)

    def _check(self, name: str, item: Any) -> Code:
        self.seen.append((name, item))
        chain = self.routing.chains[ChainId(item.chain)]
        if item.chain_version != chain.version:
            return Code.WRONG_CHAIN_VERSION
        nodes = [self.routing.node_of(t).endpoint.tcp.split(":")[0] for t in chain.serving]
        if name not in nodes:
            return Code.NOT_SERVING
        if isinstance(item, chunks.WriteItem) and name != nodes[0]:
            return Code.NOT_SERVING
        return self.fault(101 + int(name[1:]), item) or Code.OK

    def _read(self, name: str, item: chunks.ReadItem, part: Any) -> chunks.ReadResult:
        code = self._check(name, item)
        region, place, length = part
        if code:
            return chunks.ReadResult(code, 0, 0, 0)
        data = bytes(self.chunks.get(item.chunk, b"")[item.offset : item.offset + length])
        region.view[place : place + length] = data + b"\xee" * (length - len(data))
        return chunks.ReadResult(0, len(data), crc32c(data), 1)

    def _write(self, name: str, item: chunks.WriteItem, part: Any) -> chunks.WriteResult:
        code = self._check(name, item)
        lost = code is Code.TIMED_OUT  # it was done, and the answer was lost
        if code and not lost:
            return chunks.WriteResult(code, 0, 0, 0)
        sequence, known = self.tags.get((item.client, item.channel), (0, None))
        if sequence == item.sequence:
            assert known[:6] == item[:1] + item[3:8]
        else:
            assert item.sequence > sequence, "a channel's sequence grows"
            region, place, length = part
            payload = bytes(region.view[place : place + length])
            assert length == item.length and crc32c(payload) == item.checksum
            assert item.offset + length <= CHUNK == item.chunk_bytes
            data = self.chunks.setdefault(item.chunk, bytearray())
            data.extend(bytes(max(0, item.offset - len(data))))
            data[item.offset : item.offset + length] = payload
            self.tags[item.client, item.channel] = (item.sequence, item[:1] + item[3:8])
        return chunks.WriteResult(code, 1, 0, 0)

    def _service(self, name: str, request: Any) -> bytes:
        if name == "manager":
            routing = convert.routing_to_message(self.routing)
            return bytes(routing.SerializeToString())
        for method_name in ("Stat", "Settle", "Truncate", "ReserveAppend", "Session"):
            method = service.method("Meta", method_name)
            if method.id == request.method:
                message = method.request_type.FromString(request.body)
                self.meta_calls.append((method_name, message))
                reply = getattr(self, method_name.lower())(message)
                return bytes(reply.SerializeToString())
        sync = service.method("Storage", "Sync")
        assert request.method == sync.id
        syncing: Any = sync.request_type.FromString(request.body)
        self.seen.append((name, syncing))
        chain = self.routing.chains[ChainId(syncing.chain)]
        if syncing.chain_version != chain.version:
            raise Error(Code.WRONG_CHAIN_VERSION)
        return b""

    # --- the metadata service

    def stat(self, request: Any) -> meta_pb2.Inode:
        return self.copy(request.inode)

    def settle(self, request: Any) -> meta_pb2.Inode:
        inode = self.inodes[request.inode]
        if request.HasField("length") and request.epoch >= inode.epoch:
            inode.length = max(inode.length, request.length)
        return self.copy(request.inode)

    def truncate(self, request: Any) -> meta_pb2.Inode:
        inode = self.inodes[request.inode]
        inode.length, inode.epoch = request.length, inode.epoch + 1
        for name, data in self.chunks.items():
            index = int.from_bytes(name[12:])
            if int.from_bytes(name[2:10]) == request.inode:
                del data[max(0, request.length - index * CHUNK) :]
        return self.copy(request.inode)

    def reserveappend(self, request: Any) -> meta_pb2.ReserveAppendReply:
        inode = self.inodes[request.inode]
        offset = inode.length
        inode.length += request.length
        return meta_pb2.ReserveAppendReply(offset=offset, inode=self.copy(request.inode))

    def session(self, request: Any) -> meta_pb2.SessionReply:
        return meta_pb2.SessionReply(lease_ms=9000, seen=request.seen + 1, orphans=[5, 6])
