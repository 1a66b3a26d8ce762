"""What ``hillfire status`` asks for besides the routing: progress of syncs, findings, connections.

The manager tells what nodes said last of their targets; each storage node tells what its scrubber
and its reads found, and every process who is connected to it by which transport. A node that does
not answer in time is left out.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hillfire.cli.gather import ask_metrics
from hillfire.cli.report import node_name
from hillfire.cluster import Node, NodeKind, Progress, Routing
from hillfire.errors import Error
from hillfire.proto.convert import progress_from_message
from hillfire.proto.manager_pb2 import DescribeRequest
from hillfire.proto.service import decode, encode, method
from hillfire.proto.storage_pb2 import ScrubReply, ScrubRequest
from hillfire.proto.wire.base import BlockingConnection
from hillfire.proto.wire.pick import connect_blocking

CALL_TIMEOUT_S = 5.0
NODE_TIMEOUT_S = 2.0
AT_ONCE = 16
"""Nodes asked at a time."""

_DESCRIBE = method("Manager", "Describe")
_SCRUB = method("Storage", "Scrub")


def fetch_progress(connection: BlockingConnection) -> dict[int, Progress]:
    """Return by target how far the sync is that it makes of its successor.

    Raises:
        Error: if the manager does not answer.
    """
    ticket = connection.start(encode(_DESCRIBE, DescribeRequest()), CALL_TIMEOUT_S)
    described = decode(_DESCRIBE, connection.finish(ticket, CALL_TIMEOUT_S))
    return {
        report.target: progress_from_message(report.progress)
        for report in described.targets
        if report.HasField("progress")
    }


def ask_node(node: Node, request: ScrubRequest) -> ScrubReply:
    """Start a node's scrub, or ask how it stands.

    Raises:
        Error: if it does not answer.
    """
    connection = connect_blocking(node.endpoint, NODE_TIMEOUT_S)
    try:
        ticket = connection.start(encode(_SCRUB, request), NODE_TIMEOUT_S)
        reply: ScrubReply = decode(_SCRUB, connection.finish(ticket, NODE_TIMEOUT_S))
        return reply
    finally:
        connection.close()


def fetch_connections(routing: Routing) -> dict[int, dict[str, Any]]:
    """Return by node how many clients it has by transport, and how it reaches other nodes."""
    names = {n.endpoint.tcp: node_name(n.kind, n.id) for n in routing.nodes.values()}

    def ask(node: Node) -> dict[str, Any] | None:
        try:
            connection = connect_blocking(node.endpoint, NODE_TIMEOUT_S)
            try:
                samples = ask_metrics(connection)
            finally:
                connection.close()
        except Error:
            return None
        clients: dict[str, int] = {}
        peers: dict[str, dict[str, int]] = {}
        for sample in samples:
            if sample.name != "hillfire_connections":
                continue
            transport, count = sample.label("transport"), int(sample.value)
            if sample.label("side") == "server":
                # Ours, through which we ask, is none that anybody would look for.
                clients[transport] = count - (transport == connection.kind)
            else:
                where = sample.label("peer")
                peers.setdefault(names.get(where, "manager"), {})[transport] = count
        return {"clients": {k: n for k, n in clients.items() if n}, "peers": peers}

    nodes = [node for node in routing.nodes.values() if node.alive]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = zip((int(node.id) for node in nodes), threads.map(ask, nodes), strict=True)
        return {node: told for node, told in found if told is not None}


def ask_nodes(routing: Routing, request: Callable[[Node], ScrubRequest]) -> dict[int, Any]:
    """Ask all live storage nodes side by side; returns replies, or the errors, by node."""

    def ask(node: Node) -> ScrubReply | Error:
        try:
            return ask_node(node, request(node))
        except Error as error:
            return error

    nodes = [n for n in routing.nodes.values() if n.kind is NodeKind.STORAGE and n.alive]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return dict(zip((int(n.id) for n in nodes), threads.map(ask, nodes), strict=True))


def fetch_checks(routing: Routing) -> dict[int, dict[str, Any]]:
    """Return by node what was checked and found since its process was started."""
    found: dict[int, dict[str, Any]] = {}
    for node, reply in ask_nodes(routing, lambda node: ScrubRequest()).items():
        if not isinstance(reply, ScrubReply):
            continue
        found[node] = {
            name: sum(getattr(state, name) for state in reply.targets)
            for name in ("passes", "bytes_done", "bytes_total", *FINDINGS)
        }
        found[node]["findings"] = [line for state in reply.targets for line in state.findings]
    return found


FINDINGS = ("damaged", "behind", "odd", "repaired", "lost")
"""What can be wrong with chunks, and what became of it."""
