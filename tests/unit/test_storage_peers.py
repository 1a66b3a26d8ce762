"""Connections between storage nodes: what went wrong once is tried again. Budget: 5 s."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from hillfire.cluster import Endpoint, Node, NodeKind
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Answer, Incoming, Request
from hillfire.proto.wire.frame import Role, hello
from hillfire.proto.wire.server import WireServer
from hillfire.storage.peers import Peers
from hillfire.types import NodeId

REQUEST = Request(1, b"hello?", (), ())


def answer(incoming: Incoming) -> Answer:
    return Answer(Code.OK, bytes(incoming.body))


def node_at(tcp: str) -> Node:
    return Node(NodeId(102), NodeKind.STORAGE, Endpoint("", tcp, "", ""), 1, True)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


@pytest.mark.parametrize("greeting", [b"", hello(Role.SERVER, 1)])
def test_a_peer_that_spoke_nonsense_once_is_asked_again(greeting: bytes) -> None:
    """Both while connecting and afterwards."""

    async def work() -> None:
        async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(greeting + b"\xff" * 256)
            await writer.drain()
            await reader.read()
            writer.close()

        broken = await asyncio.start_server(nonsense, "127.0.0.1", 0)
        host, port = broken.sockets[0].getsockname()
        peers, node = Peers(), node_at(f"{host}:{port}")
        with pytest.raises(Error) as caught:
            await peers.request(node, 0, REQUEST, 2.0)
        assert caught.value.code is not Code.CONNECTION, "the test shows nothing"
        broken.close()
        await broken.wait_closed()
        server = WireServer(answer, tcp=f"{host}:{port}", shm=None)
        await server.start()
        try:
            reply = await peers.request(node, 0, REQUEST, 2.0)
            assert reply.body == b"hello?"
        finally:
            await peers.close()
            await server.stop()

    run(work())
