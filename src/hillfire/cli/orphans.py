"""``hillfire meta orphans``: chunks whose file is unknown, as a restore may leave them."""

import random
from collections import Counter
from typing import Any

from hillfire.cli.connect import connect_manager, last_cluster
from hillfire.cluster import Chain, Endpoint, NodeKind, Routing
from hillfire.config import format_size
from hillfire.errors import Code, Error
from hillfire.proto.convert import routing_from_message
from hillfire.proto.manager_pb2 import GetRoutingRequest
from hillfire.proto.meta_pb2 import StatRequest
from hillfire.proto.service import Method, decode, encode, method
from hillfire.proto.storage_pb2 import ListChunksRequest, TruncateChunksRequest
from hillfire.proto.wire.base import BlockingConnection
from hillfire.proto.wire.pick import connect_blocking
from hillfire.types import ChunkId, split_chunk_id

CALL_TIMEOUT_S = 10.0
PAGE = 4096
LAST_EPOCH = (1 << 32) - 1
"""No file comes to it: a removal in this epoch takes whatever was written."""
CHUNK_BYTES = 1 << 20
"""Any size will do for a removal of all."""

_GET_ROUTING = method("Manager", "GetRouting")
_LIST = method("Storage", "ListChunks")
_TRUNCATE = method("Storage", "Truncate")
_STAT = method("Meta", "Stat")


class Connections:
    """Connections to the processes of a cluster, each made once."""

    def __init__(self) -> None:
        """Begin with none."""
        self._open: dict[str, BlockingConnection] = {}

    def call(self, endpoint: Endpoint, called: Method, message: Any) -> Any:
        """Call a method and return its reply."""
        connection = self._open.get(endpoint.tcp)
        if connection is None:
            connection = connect_blocking(endpoint, CALL_TIMEOUT_S, transport="tcp")
            self._open[endpoint.tcp] = connection
        ticket = connection.start(encode(called, message), CALL_TIMEOUT_S)
        return decode(called, connection.finish(ticket, CALL_TIMEOUT_S))

    def close(self) -> None:
        """Close them all."""
        for connection in self._open.values():
            connection.close()


def run_orphans(address: str | None, *, remove: bool) -> None:
    """Print which inodes' chunks belong to no file, and take them away if asked to."""
    manager = connect_manager(address or last_cluster())
    try:
        ticket = manager.start(encode(_GET_ROUTING, GetRoutingRequest()), CALL_TIMEOUT_S)
        routing = routing_from_message(decode(_GET_ROUTING, manager.finish(ticket, CALL_TIMEOUT_S)))
    finally:
        manager.close()
    connections = Connections()
    try:
        sizes, chains = _inodes(connections, routing)
        orphans = [inode for inode in sorted(sizes) if not _known(connections, routing, inode)]
        for inode in orphans:
            print(f"inode {inode}: {format_size(sizes[inode])} on {len(chains[inode])} chains")
            if remove:
                for chain in chains[inode]:
                    _remove(connections, routing, chain, inode)
        total = format_size(sum(sizes[inode] for inode in orphans))
        done = "removed" if remove else "found; --remove takes them away"
        print(f"{len(orphans)} of {len(sizes)} inodes with chunks are orphans, {total}: {done}")
    finally:
        connections.close()


def _inodes(
    connections: Connections, routing: Routing
) -> tuple[Counter[int], dict[int, list[Chain]]]:
    """Return the bytes of each inode that has chunks, and on which chains they are."""
    sizes: Counter[int] = Counter()
    chains: dict[int, list[Chain]] = {}
    for chain in routing.chains.values():
        endpoint, after = _head(routing, chain), b""
        while True:
            request = ListChunksRequest(
                chain=chain.id, chain_version=chain.version, after=after, limit=PAGE
            )
            reply = connections.call(endpoint, _LIST, request)
            for record in reply.chunks:
                after = record.id
                if record.removed:
                    continue
                inode = int(split_chunk_id(ChunkId(record.id))[0])
                sizes[inode] += record.length
                held = chains.setdefault(inode, [])
                if not held or held[-1] is not chain:
                    held.append(chain)
            if reply.end:
                break
    return sizes, chains


def _head(routing: Routing, chain: Chain) -> Endpoint:
    if not chain.serving:
        raise Error(Code.UNAVAILABLE, f"chain {chain.id} does not serve: wait until it does")
    return routing.node_of(chain.serving[0]).endpoint


def _known(connections: Connections, routing: Routing, inode: int) -> bool:
    meta = next((n for n in routing.nodes.values() if n.kind is NodeKind.META and n.alive), None)
    if meta is None:
        raise Error(Code.UNAVAILABLE, "no metadata service is alive: nobody knows what is orphaned")
    try:
        connections.call(meta.endpoint, _STAT, StatRequest(inode=inode))
    except Error as error:
        if error.code in (Code.STALE, Code.NOT_FOUND):
            return False
        raise
    return True


def _remove(connections: Connections, routing: Routing, chain: Chain, inode: int) -> None:
    request = TruncateChunksRequest(
        chain=chain.id,
        chain_version=chain.version,
        inode=inode,
        epoch=LAST_EPOCH,
        chunk_bytes=CHUNK_BYTES,
        remove=True,
        client=random.getrandbits(63) | 1,
        sequence=1,
    )
    connections.call(_head(routing, chain), _TRUNCATE, request)
