"""Finding the manager: its wire address is what people type, its gRPC address it tells itself.

The gRPC port may change whenever the manager starts, so it is asked for anew after each failure.
"""

from hillfire.cluster import Endpoint
from hillfire.errors import Code, Error
from hillfire.proto import manager_pb2 as pb
from hillfire.proto import service
from hillfire.proto.wire.pick import connect_async

TIMEOUT_S = 1.0

_GET_ROUTING = service.method("Manager", "GetRouting")


async def find_manager(address: str, cluster: str, who: str) -> str:
    """Return the gRPC address of the manager whose wire address is ``address``.

    ``cluster``: the id that it must serve, empty for any; ``who`` asks, for the message.

    Raises:
        Error: WRONG_CLUSTER; CONNECTION or TIMED_OUT when it does not answer.
    """
    connection = await connect_async(Endpoint("", address, "", ""), TIMEOUT_S, transport="tcp")
    try:
        request = service.encode(_GET_ROUTING, pb.GetRoutingRequest())
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
