"""Which cluster a command means, and the way to its manager."""

from hillfire.cluster import Routing
from hillfire.errors import Code, Error
from hillfire.local.control import ask
from hillfire.local.directory import ClusterDirectory, last_cluster_path, last_directory
from hillfire.proto.convert import routing_from_message
from hillfire.proto.discovery import connect_leader
from hillfire.proto.manager_pb2 import GetRoutingRequest
from hillfire.proto.service import decode, encode, method
from hillfire.proto.wire.base import BlockingConnection

CALL_TIMEOUT_S = 5.0
_GET_ROUTING = method("Manager", "GetRouting")


def connect_manager(address: str) -> BlockingConnection:
    """Connect to a cluster's manager.

    Raises:
        Error: what the connection failed with, in words of what to do.
    """
    try:
        return connect_leader(address, CALL_TIMEOUT_S)
    except Error as error:
        raise Error(
            error.code,
            f"no cluster manager answers at {address} ({error.strerror}): start the cluster with "
            f"`hillfire up{_directory_option(address)}`, or name another one with --address",
        ) from error


def fetch_routing(connection: BlockingConnection, known: int = 0, wait_ms: int = 0) -> Routing:
    """Return the routing, once it is newer than ``known`` or ``wait_ms`` have passed."""
    request = GetRoutingRequest(known_version=known, wait_ms=wait_ms)
    timeout_s = CALL_TIMEOUT_S + wait_ms / 1000
    ticket = connection.start(encode(_GET_ROUTING, request), timeout_s)
    return routing_from_message(decode(_GET_ROUTING, connection.finish(ticket, timeout_s)))


def _directory_option(address: str) -> str:
    """Return " --dir DIR" for the cluster started last, for a command to be typed."""
    try:
        directory = ClusterDirectory(last_directory())
        return f" --dir {directory.path}" if directory.shape().address == address else ""
    except Error:
        return ""


def last_cluster() -> str:
    """Return the address of the cluster that this user started last.

    Raises:
        Error: CONFIGURATION if there was none.
    """
    try:
        return last_cluster_path().read_text().strip()
    except OSError:
        raise Error(
            Code.CONFIGURATION,
            "which cluster? Name it with --dir or --address, or start one with `hillfire up`",
        ) from None


def last_local(address: str | None) -> ClusterDirectory | None:
    """Return the directory of the cluster started last, if it is the one asked for and it runs."""
    try:
        directory = ClusterDirectory(last_directory())
        if address not in (None, directory.shape().address):
            return None
        ask(directory.control_path, {"do": "status"}, CALL_TIMEOUT_S)
    except Error:
        return None
    return directory
