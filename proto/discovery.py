"""Finding the manager: its wire address is what people type, its gRPC address it tells itself.

The gRPC port may change whenever the manager starts, so it is asked for anew after each failure.
Where several managers were started the address lists them all, with commas: one of them leads, the
others say that they do not, and one that is paused says nothing; so all are asked at once.
"""

import asyncio

from hillfire.cluster import Endpoint
from hillfire.errors import Code, Error
from hillfire.proto import cluster_pb2, service
from hillfire.proto import manager_pb2 as pb
from hillfire.proto.wire.base import BlockingConnection
from hillfire.proto.wire.pick import connect_async, connect_blocking

TIMEOUT_S = 1.0
MAX_MANAGERS = 16

_GET_ROUTING = service.method("Manager", "GetRouting")


def addresses(text: str) -> list[str]:
    """Return the wire addresses of a list such as "10.0.0.1:9700,10.0.0.2:9700".

    Raises:
        Error: CONFIGURATION if one is not host:port.
    """
    found = [each.strip() for each in text.split(",")]
    for each in found:
        host, _, port = each.rpartition(":")
        if not host or not port.isdigit():
            raise Error(Code.CONFIGURATION, f"address {each!r} is not host:port of a manager")
    if len(found) > MAX_MANAGERS:
        raise Error(Code.CONFIGURATION, f"{len(found)} managers: name at most {MAX_MANAGERS}")
    return found


async def find_manager(address: str, cluster: str, who: str) -> str:
    """Return the gRPC address of the manager that leads, of those whose addresses are listed.

    ``cluster``: the id that it must serve, empty for any; ``who`` asks, for the message.

    Raises:
        Error: WRONG_CLUSTER; NOT_LEADER, CONNECTION or TIMED_OUT when none answers that leads.
    """
    asked = [asyncio.create_task(_ask(each, cluster, who)) for each in addresses(address)]
    try:
        failure: Error | None = None
        for done in asyncio.as_completed(asked):
            try:
                return await done
            except Error as error:
                if failure is None or error.code in (Code.NOT_LEADER, Code.WRONG_CLUSTER):
                    failure = error
        assert failure is not None
        raise failure
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


def connect_leader(address: str, timeout_s: float) -> BlockingConnection:
    """Connect to the manager that leads, of those whose addresses are listed, in their order.

    Raises:
        Error: what the last one failed with.
    """
    listed = addresses(address)
    failure: Error | None = None
    for each in listed:
        connection = None
        try:
            endpoint = Endpoint("", each, "", "")
            connection = connect_blocking(endpoint, timeout_s, transport="tcp")
            if len(listed) > 1:
                request = service.encode(_GET_ROUTING, pb.GetRoutingRequest())
                connection.finish(connection.start(request, TIMEOUT_S), TIMEOUT_S)
            return connection
        except Error as error:
            failure = error
            if connection is not None:
                connection.close()
    assert failure is not None
    raise failure


async def _ask(address: str, cluster: str, who: str) -> str:
    """Return the gRPC address of the manager at one address, if it leads."""
    connection = await connect_async(Endpoint("", address, "", ""), TIMEOUT_S, transport="tcp")
    try:
        request = service.encode(_GET_ROUTING, pb.GetRoutingRequest())
        message: cluster_pb2.Routing
        message = service.decode(_GET_ROUTING, await connection.request(request, TIMEOUT_S))
    finally:
        connection.close()
    if cluster and message.cluster != cluster:
        raise Error(
            Code.WRONG_CLUSTER,
            f"{who} belongs to cluster {cluster}, but the manager at {address} serves cluster "
            f"{message.cluster}: give it its own cluster's manager, or a new directory",
        )
    return reachable(message.manager.grpc, address)


def reachable(grpc: str, address: str) -> str:
    """Return a gRPC address, on the manager's known host if it listens on all of its addresses."""
    host, _, port = grpc.rpartition(":")
    return f"{address.rpartition(':')[0]}:{port}" if host in ("0.0.0.0", "[::]", "") else grpc
