"""The dispatcher over both of its bindings: the wire and gRPC.

Budget: 20 s.
"""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from hillfire.cluster import Endpoint
from hillfire.errors import TABLE, Code, Error
from hillfire.proto import cluster_pb2, meta_pb2, storage_pb2
from hillfire.proto.dispatch import methods
from hillfire.proto.service import (
    CallContext,
    Dispatcher,
    GrpcClient,
    Method,
    decode,
    encode,
    method,
    serve_grpc,
)
from hillfire.proto.wire.base import FIRST_SERVICE_METHOD, Request
from hillfire.proto.wire.pick import connect_async, host_id
from hillfire.proto.wire.server import WireServer

Call = Callable[[Method, Message, float], Awaitable[Any]]


class Storage:
    """Answers what the tests want; only names and types are the real service's."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.contexts: list[CallContext] = []

    def last_byte(
        self, request: storage_pb2.LastByteRequest, context: CallContext
    ) -> storage_pb2.LastByteReply:
        """Answer at once, or raise what the request names."""
        self.contexts.append(context)
        if request.chain:
            raise Error(Code(request.chain), f"inode {request.inode}: ü")
        return storage_pb2.LastByteReply(length=request.inode)

    async def truncate(
        self, request: storage_pb2.TruncateChunksRequest, context: CallContext
    ) -> storage_pb2.TruncateChunksReply:
        """Answer after a turn of the loop, or raise."""
        await asyncio.sleep(0)
        if request.chain:
            raise Error(Code(request.chain), f"inode {request.inode}: ü")
        return storage_pb2.TruncateChunksReply(chunks=7)

    async def sync(
        self, request: storage_pb2.SyncRequest, context: CallContext
    ) -> cluster_pb2.Empty:
        """Wait for the gate."""
        try:
            async with asyncio.timeout(60):
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return cluster_pb2.Empty()

    async def list_chunks(
        self, request: storage_pb2.ListChunksRequest, context: CallContext
    ) -> storage_pb2.ListChunksReply:
        """Fail in a way that nobody foresaw."""
        raise KeyError("a defect")

    def sync_done(
        self, request: storage_pb2.SyncDoneRequest, context: CallContext
    ) -> cluster_pb2.Empty:
        """Fail likewise, at once."""
        raise KeyError("a defect")

    def load(self, request: object, context: CallContext) -> object:
        """Not called here, like the two that follow."""
        raise AssertionError

    get_records = scrub = load


@pytest.fixture(params=["shm", "tcp", "grpc"])
def over(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[[Callable[[Call, Storage], Coroutine[Any, Any, None]]], None]:
    """Run a test's coroutine against a served dispatcher."""

    async def main(test: Callable[[Call, Storage], Coroutine[Any, Any, None]]) -> None:
        storage = Storage()
        dispatcher = Dispatcher()
        dispatcher.add("Storage", storage)
        async with AsyncExitStack() as stack:
            call: Call
            if request.param == "grpc":
                served = await serve_grpc(dispatcher, "127.0.0.1:0")
                stack.push_async_callback(served.stop, 0)
                client = GrpcClient(served.address)
                stack.push_async_callback(client.close)
                call = client.call
            else:
                path = str(tmp_path / "wire.sock")
                server = WireServer(dispatcher.handle, tcp="127.0.0.1:0", shm=path)
                await server.start()
                stack.push_async_callback(server.stop)
                endpoint = Endpoint("", server.tcp_address, path, host_id())
                connection = await connect_async(endpoint, 5, transport=request.param)
                stack.callback(connection.close)

                async def call(called: Method, message: Message, timeout_s: float) -> Any:
                    reply = await connection.request(encode(called, message), timeout_s)
                    return decode(called, reply)

            await test(call, storage)

    return lambda test: asyncio.run(main(test))


LAST_BYTE = method("Storage", "LastByte")
TRUNCATE = method("Storage", "Truncate")
SYNC = method("Storage", "Sync")


async def refusal(answer: Awaitable[Any]) -> Error:
    with pytest.raises(Error) as caught:
        await answer
    return caught.value


def test_calls(over: Any) -> None:
    async def test(call: Call, storage: Storage) -> None:
        reply = await call(LAST_BYTE, storage_pb2.LastByteRequest(inode=2**63), 5)
        assert reply == storage_pb2.LastByteReply(length=2**63)
        reply = await call(TRUNCATE, storage_pb2.TruncateChunksRequest(), 5)
        assert reply == storage_pb2.TruncateChunksReply(chunks=7)
        assert 4 < storage.contexts[0].timeout_s < 6
        assert storage.contexts[0].peer

    over(test)


def test_many_at_once(over: Any) -> None:
    async def test(call: Call, storage: Storage) -> None:
        storage_calls = [
            call(LAST_BYTE, storage_pb2.LastByteRequest(inode=k), 5) for k in range(100)
        ]
        replies = await asyncio.gather(*storage_calls)
        assert [reply.length for reply in replies] == list(range(100))

    over(test)


@pytest.mark.parametrize("called", [LAST_BYTE, TRUNCATE], ids=["plain", "coroutine"])
def test_every_error_code_arrives_as_it_was(over: Any, called: Method) -> None:
    async def test(call: Call, storage: Storage) -> None:
        for code in TABLE:
            if code is Code.OK:
                continue
            error = await refusal(call(called, called.request_type(chain=code, inode=5), 5))
            assert (error.code, error.strerror) == (code, "inode 5: ü")

    over(test)


def test_a_defect_is_internal_and_logged(over: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def test(call: Call, storage: Storage) -> None:
        for name in ("ListChunks", "SyncDone"):
            called = method("Storage", name)
            error = await refusal(call(called, called.request_type(), 5))
            assert error.code is Code.INTERNAL

    with caplog.at_level(logging.ERROR):
        over(test)
    assert sum("a defect" in str(record.exc_info) for record in caplog.records) == 2


def test_deadlines_reach_both_sides(over: Any) -> None:
    async def test(call: Call, storage: Storage) -> None:
        error = await refusal(call(SYNC, storage_pb2.SyncRequest(), 0.05))
        assert error.code is Code.TIMED_OUT
        async with asyncio.timeout(5):
            await storage.cancelled.wait()
        later = asyncio.ensure_future(call(SYNC, storage_pb2.SyncRequest(), 5))
        storage.gate.set()
        assert await later == cluster_pb2.Empty()

    over(test)


def test_an_unknown_method_is_not_supported(over: Any) -> None:
    async def test(call: Call, storage: Storage) -> None:
        error = await refusal(call(method("Meta", "Stat"), meta_pb2.StatRequest(), 5))
        assert error.code is Code.NOT_SUPPORTED

    over(test)


def test_a_malformed_message_is_a_protocol_error(over: Any) -> None:
    class Garbage:
        def SerializeToString(self) -> bytes:
            return b"\xff" * 10

    async def test(call: Call, storage: Storage) -> None:
        error = await refusal(call(LAST_BYTE, Garbage(), 5))  # type: ignore[arg-type]
        assert error.code is Code.PROTOCOL

    over(test)


def test_grpc_without_a_server() -> None:
    async def main() -> None:
        dispatcher = Dispatcher()
        dispatcher.add("Storage", Storage())
        served = await serve_grpc(dispatcher, "127.0.0.1:0")
        with pytest.raises(Error) as caught:
            await serve_grpc(dispatcher, served.address)
        assert caught.value.code is Code.CONFIGURATION
        client = GrpcClient(served.address)
        assert (await client.call(LAST_BYTE, storage_pb2.LastByteRequest(inode=1), 5)).length == 1
        await served.stop(0)
        error = await refusal(client.call(LAST_BYTE, storage_pb2.LastByteRequest(), 5))
        assert error.code is Code.CONNECTION
        again = await serve_grpc(dispatcher, served.address)  # the client comes back by itself
        async with asyncio.timeout(10):
            while True:
                try:
                    await client.call(LAST_BYTE, storage_pb2.LastByteRequest(), 1)
                    break
                except Error as exc:
                    assert exc.code is Code.CONNECTION
                    await asyncio.sleep(0.01)
        await client.close()
        await again.stop(0)

    asyncio.run(main())


def test_methods() -> None:
    stat = method("Meta", "StatFileSystem")
    assert (stat.path, stat.function) == ("/hillfire.Meta/StatFileSystem", "stat_file_system")
    assert stat.request_type is cluster_pb2.Empty
    assert stat.reply_type is meta_pb2.FileSystemStatus
    every = [found for name in ("Meta", "MetaLog", "Manager", "Storage") for found in methods(name)]
    assert len({found.id for found in every}) == len(every)
    assert min(found.id for found in every) >= FIRST_SERVICE_METHOD
    assert encode(stat, cluster_pb2.Empty()) == Request(stat.id, b"")


def test_method_numbers_never_change() -> None:
    """They are on the wire: a changed hash would be a new version of it."""
    assert method("Meta", "Lookup").id == LOOKUP
    assert method("Manager", "GetRouting").id == GET_ROUTING


LOOKUP = 2227262263
GET_ROUTING = 3548201728


def test_a_service_without_one_of_its_functions_is_refused() -> None:
    with pytest.raises(AttributeError, match="lookup"):
        Dispatcher().add("Meta", Storage())


@pytest.mark.parametrize(
    "module", ["hillfire.proto.service", "hillfire.proto.convert", "hillfire.proto.wire.pick"]
)
def test_clients_of_the_wire_never_import_grpc(module: str) -> None:
    code = f"import sys, {module}; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
