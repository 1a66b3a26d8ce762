"""Connections to other storage nodes, kept and remade: for forwards one a lane, one for gRPC.

Forwards never queue behind client writes. A *lane* is the sender's position in the chain: what
is sent at position p only waits for what is sent at p + 1, and on one connection for both, which
takes a limited number of requests, chains in opposite orders could stop each other.
"""

import asyncio
import contextlib
import logging

from hillfire.cluster import Endpoint, Node, Routing
from hillfire.errors import Code, Error
from hillfire.proto.service import GrpcClient
from hillfire.proto.wire.base import AsyncConnection, Reply, Request
from hillfire.proto.wire.pick import connect_async
from hillfire.types import NodeId

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2.0
_BROKEN = (Code.CONNECTION, Code.TIMED_OUT, Code.PROTOCOL)
"""After these a connection is not used again; one that never came about is not, whatever it was."""


class Peers:
    """The other nodes, as this one reaches them."""

    def __init__(self) -> None:
        """Start without connections."""
        self._wires: dict[tuple[NodeId, int], tuple[Endpoint, asyncio.Task[AsyncConnection]]] = {}
        self._grpc: dict[NodeId, tuple[str, GrpcClient]] = {}

    async def request(self, node: Node, lane: int, request: Request, timeout_s: float) -> Reply:
        """Send a request to a node over the wire on a lane, connecting if need be.

        Raises:
            Error: CONNECTION, TIMED_OUT, or the peer's.
        """
        key = node.id, lane
        known = self._wires.get(key)
        if known is None or known[0] != node.endpoint:
            self._drop(key)
            known = (
                node.endpoint,
                asyncio.create_task(connect_async(node.endpoint, CONNECT_TIMEOUT_S)),
            )
            self._wires[key] = known
        try:
            connection = known[1].result() if known[1].done() else await asyncio.shield(known[1])
            return await connection.request(request, timeout_s)
        except Error as error:
            usable = known[1].done() and known[1].exception() is None
            if (not usable or error.code in _BROKEN) and self._wires.get(key) is known:
                self._drop(key)
            raise

    def grpc(self, node: Node) -> GrpcClient:
        """Return a client for a node's gRPC services."""
        known = self._grpc.get(node.id)
        if known is None or known[0] != node.endpoint.grpc:
            known = node.endpoint.grpc, GrpcClient(node.endpoint.grpc)
            self._grpc[node.id] = known
        return known[1]

    def routing(self, routing: Routing) -> None:
        """Close connections to nodes that are dead: what waits for them fails now."""
        for key in list(self._wires):
            node = routing.nodes.get(key[0])
            if node is None or not node.alive or node.endpoint != self._wires[key][0]:
                self._drop(key)

    def _drop(self, key: tuple[NodeId, int]) -> None:
        known = self._wires.pop(key, None)
        if known is not None:
            known[1].add_done_callback(_close)

    async def close(self) -> None:
        """Close all."""
        for key in list(self._wires):
            task = self._wires[key][1]
            self._drop(key)
            with contextlib.suppress(Error):
                await task
        for _, client in self._grpc.values():
            await client.close()
        self._grpc.clear()


def _close(task: "asyncio.Task[AsyncConnection]") -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
