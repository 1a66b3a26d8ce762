"""A manager and three storage nodes as processes, and a raw client that speaks to their chains."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from crc32c import crc32c

from hillfire.cluster import Chain, Endpoint, PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.proto import manager_pb2 as pb
from hillfire.proto import service
from hillfire.proto.convert import routing_from_message
from hillfire.proto.wire.base import BlockingConnection, Part, Request
from hillfire.proto.wire.chunks import (
    READ,
    READ_ITEMS,
    READ_RESULTS,
    WRITE,
    WRITE_ITEMS,
    WRITE_RESULTS,
    Kind,
    ReadItem,
    ReadResult,
    WriteItem,
    WriteResult,
)
from hillfire.proto.wire.pick import connect_blocking
from hillfire.region import Region
from hillfire.types import ChainId, ChunkId, NodeId

HERE = Path(__file__).parent
LEASE_MS = 1000
NODES = (101, 102, 103)
_GET = service.method("Manager", "GetRouting")
_CREATE = service.method("Manager", "CreateChains")


class Cluster:
    """Processes, by name: ``manager`` and node numbers. Ended by pid."""

    def __init__(
        self,
        directory: Path,
        *,
        targets_per_node: int = 1,
        lease_ms: int = LEASE_MS,
        storage: str = "",
        manager: str = "",
    ) -> None:
        """``storage``, ``manager``: their TOML; ``settings`` may hold more for one node."""
        self.manager = manager
        self.directory = directory
        self.storage = storage
        self.settings: dict[int, str] = {}
        self.address = "127.0.0.1:0"
        self.lease_ms = lease_ms
        self.targets_per_node = targets_per_node
        self.processes: dict[object, subprocess.Popen[str]] = {}
        self.log = open(directory / "log", "ab")  # noqa: SIM115

    def __enter__(self) -> "Cluster":
        self.start_manager()
        self.start(*NODES)
        message = pb.CreateChainsRequest(
            replicas=3, targets_per_node=self.targets_per_node, nodes=3
        )
        self.call(_CREATE, message)
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
            if process.stdout:
                process.stdout.close()
        self.log.close()

    def start_manager(self) -> None:
        arguments = [str(HERE / "manager_child.py"), str(self.directory / "manager"), self.address]
        self.address = self._spawn("manager", [*arguments, str(self.lease_ms), self.manager])

    def start(self, *nodes: int) -> None:
        starting = []
        for node in nodes:
            arguments = [str(HERE / "storage_child.py"), str(node), str(self.directory / str(node))]
            settings = f"{self.storage}\n{self.settings.get(node, '')}"
            starting.append(self._popen(node, [*arguments, self.address, settings]))
        for process in starting:
            assert process.stdout is not None
            assert process.stdout.readline(), (self.directory / "log").read_text()[-4000:]

    def _popen(self, name: object, arguments: Sequence[str]) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.processes[name] = process
        return process

    def _spawn(self, name: object, arguments: Sequence[str]) -> str:
        process = self._popen(name, arguments)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def kill(self, *names: object, number: int = signal.SIGKILL) -> None:
        for name in names:
            self.processes[name].send_signal(number)
        if number == signal.SIGKILL:
            for name in names:
                process = self.processes.pop(name)
                process.wait()
                if process.stdout:
                    process.stdout.close()

    def stop(self, *names: object) -> None:
        for name in names:
            self.processes[name].terminate()
        for name in names:
            process = self.processes.pop(name)
            assert process.wait(15) == 0, f"{name}: {process.returncode}"
            if process.stdout:
                process.stdout.close()

    def call(self, called: service.Method, message: Any, timeout_s: float = 20) -> Any:
        connection = connect_blocking(Endpoint("", self.address, "", ""), 5, transport="tcp")
        try:
            ticket = connection.start(service.encode(called, message), timeout_s)
            return service.decode(called, connection.finish(ticket, timeout_s))
        finally:
            connection.close()

    def routing(self, known: int = 0, wait_ms: int = 0) -> Routing:
        deadline = time.monotonic() + 20
        while True:
            try:
                request = pb.GetRoutingRequest(known_version=known, wait_ms=wait_ms)
                return routing_from_message(self.call(_GET, request))
            except Error as error:  # a busy machine: a leader's lease ran out
                if not error.retry or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def wait(self, serving: int = 3, timeout_s: float = 30) -> Routing:
        """Wait until every chain has that many serving targets."""
        deadline, known = time.monotonic() + timeout_s, 0
        while True:
            routing = self.routing(known, 500)
            known = routing.version
            chains = routing.chains.values()
            if chains and all(len(chain.serving) == serving for chain in chains):
                return routing
            assert time.monotonic() < deadline, (
                f"{list(chains)}\n{(self.directory / 'log').read_text()[-6000:]}"
            )


class Client:
    """Reads and writes chunks over raw connections, retrying as a client does."""

    def __init__(self, cluster: Cluster, *, transport: str | None = None) -> None:
        self.cluster = cluster
        self.transport = transport
        self.number = random.getrandbits(63) | 1
        self.sequence = 0
        self.routing = cluster.routing()
        self.region = Region.allocate(8 << 20)
        self.retries = 0
        self.number_of_chain: ChainId | None = None
        """where it reads and writes; the first if None"""
        self._connections: dict[NodeId, tuple[Endpoint, BlockingConnection]] = {}

    def close(self) -> None:
        for _, connection in self._connections.values():
            connection.close()

    def connection(self, target: int) -> BlockingConnection:
        node = self.routing.node_of(target)  # type: ignore[arg-type]
        known = self._connections.get(node.id)
        if known is None or known[0] != node.endpoint:
            if known is not None:
                known[1].close()
                del self._connections[node.id]
            made = connect_blocking(node.endpoint, 2, transport=self.transport)
            known = self._connections[node.id] = node.endpoint, made
        return known[1]

    def drop(self, target: int) -> None:
        node = self.routing.node_of(target)  # type: ignore[arg-type]
        known = self._connections.pop(node.id, None)
        if known is not None:
            known[1].close()

    def chain(self) -> Chain:
        if self.number_of_chain is None:
            return next(iter(self.routing.chains.values()))
        return self.routing.chain(self.number_of_chain)

    def write_once(
        self, items: Iterable[tuple[ChunkId, int, bytes]], sequence: int, kind: Kind = Kind.WRITE,
        epoch: int = 1,
    ) -> list[WriteResult]:  # fmt: skip
        chain = self.chain()
        records, parts, at = [], [], 0
        for channel, (chunk, offset, data) in enumerate(items):
            self.region.view[at : at + len(data)] = data
            records.append(
                WriteItem(
                    chunk, chain.id, chain.version, kind, offset, len(data), crc32c(data), epoch,
                    1 << 20, self.number, channel, sequence,
                )
            )  # fmt: skip
            parts.append(Part(self.region, at, len(data)))
            at += len(data)
        head = chain.serving[0] if chain.serving else None
        if head is None:
            raise Error(Code.UNAVAILABLE, "no head")
        try:
            connection = self.connection(head)
            request = Request(WRITE, WRITE_ITEMS.pack(records), parts)
            ticket = connection.start(request, 5)
            return WRITE_RESULTS.unpack(connection.finish(ticket, 5).body)
        except Error as error:
            if error.code in (Code.CONNECTION, Code.TIMED_OUT):
                self.drop(head)
                self.region = Region.allocate(8 << 20)
            raise

    def write(
        self, items: Sequence[tuple[ChunkId, int, bytes]], kind: Kind = Kind.WRITE, epoch: int = 1
    ) -> list[WriteResult]:
        """Write until all is acknowledged, with the same tags."""
        self.sequence += 1
        deadline = time.monotonic() + 60
        while True:
            try:
                results = self.write_once(items, self.sequence, kind, epoch)
                bad = [Code(result.code) for result in results if result.code]
                if not bad:
                    return results
                for code in bad:
                    if not Error(code).retry:
                        raise Error(code)
            except Error as error:
                if not error.retry:
                    raise
            assert time.monotonic() < deadline, "no answer in time"
            self.retries += 1
            time.sleep(0.01)
            self.routing = self.cluster.routing(self.routing.version, 100)

    def read_from(
        self, target: int, items: Sequence[tuple[ChunkId, int, int]], flags: int = 0
    ) -> list[tuple[ReadResult, bytes]]:
        chain = self.chain()
        records, parts, at = [], [], 0
        for chunk, offset, length in items:
            records.append(ReadItem(chunk, chain.id, chain.version, offset, flags))
            parts.append(Part(self.region, at, length))
            at += length
        try:
            connection = self.connection(target)
            ticket = connection.start(Request(READ, READ_ITEMS.pack(records), (), parts), 5)
            results = READ_RESULTS.unpack(connection.finish(ticket, 5).body)
        except Error as error:
            if error.code in (Code.CONNECTION, Code.TIMED_OUT):
                self.drop(target)
                self.region = Region.allocate(8 << 20)
            raise
        found = []
        for result, part in zip(results, parts, strict=True):
            data = bytes(self.region.view[part.offset : part.offset + result.filled])
            if not result.code:
                assert crc32c(data) == result.checksum
            found.append((result, data))
        return found

    def read_at(self, target: int, chunk: ChunkId, length: int) -> tuple[ReadResult, bytes]:
        """Read from one target, which may hear of the present chain a little later than we."""
        deadline = time.monotonic() + 10
        while True:
            try:
                found = self.read_from(target, [(chunk, 0, length)])[0]
                if found[0].code not in (Code.WRONG_CHAIN_VERSION, Code.NOT_SERVING):
                    return found
            except Error as error:
                if not error.retry:  # a busy machine: leases run out, answers are late
                    raise
            assert time.monotonic() < deadline, "no answer in time"
            self.routing = self.cluster.routing(self.routing.version, 50)

    def read(self, chunk: ChunkId, length: int = 1 << 20) -> bytes:
        """Read from any serving target, from the tail when a version is pending there."""
        deadline = time.monotonic() + 60
        tail = False
        while True:
            try:
                serving = self.chain().serving
                if serving:
                    target = serving[-1] if tail else random.choice(serving)
                    result, data = self.read_from(target, [(chunk, 0, length)])[0]
                    if not result.code:
                        return data
                    tail = result.code == Code.NOT_COMMITTED
                    assert Error(Code(result.code)).retry, Code(result.code)
            except Error as error:
                if not error.retry:
                    raise
            assert time.monotonic() < deadline, "no answer in time"
            self.retries += 1
            if not tail:
                self.routing = self.cluster.routing(self.routing.version, 100)


def states(chain: Chain) -> list[PublicState]:
    return [state for _, state in chain.targets]


__all__ = ["NODES", "Client", "Cluster", "os", "states"]
