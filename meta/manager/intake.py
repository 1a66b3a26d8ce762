"""What a message from outside has to be before the manager believes its numbers."""

from hillfire.cluster import Endpoint, LocalState, Node, NodeKind
from hillfire.errors import Code, Error
from hillfire.meta.manager.chains import Report
from hillfire.meta.manager.decide import MAX_NODE, Status, Wish
from hillfire.meta.manager.events import Command, CommandKind
from hillfire.meta.manager.placement import MAX_TARGETS_PER_NODE, Domain, Place
from hillfire.proto import cluster_pb2 as cluster
from hillfire.proto import manager_pb2 as manager
from hillfire.proto.convert import progress_from_message, progress_to_message
from hillfire.types import ChainId, NodeId, TargetId

MAX_ADDRESS_BYTES = 256
MAX_LABEL = 128
MAX_REASON = 200
MAX_IDLE_CLIENTS = 4096
"""Asked about in one heartbeat."""
_SHOWN = 64


def node_of(request: manager.RegisterRequest) -> Node:
    """Return the node that a registration describes.

    Raises:
        Error: INVALID, naming the field that cannot be.
    """
    if not 1 <= request.node <= MAX_NODE:
        raise Error(Code.INVALID, f"node number {request.node}: choose 1 to {MAX_NODE}")
    if int(request.kind) not in tuple(NodeKind):
        raise Error(Code.INVALID, f"node {request.node} is of no known kind: {request.kind}")
    if request.incarnation == 0:
        raise Error(Code.INVALID, f"node {request.node} has no incarnation")
    at = request.endpoint
    for name in ("grpc", "tcp", "shm", "host", "rdma"):
        value = getattr(at, name)
        if len(value) > MAX_ADDRESS_BYTES:
            text = f"{name} address of {len(value)} characters: at most {MAX_ADDRESS_BYTES}"
            raise Error(Code.INVALID, text)
    if not at.grpc or not at.tcp:
        raise Error(Code.INVALID, f"node {request.node} does not say where it listens")
    endpoint = Endpoint(at.grpc, at.tcp, at.shm, at.host, at.rdma)
    for name, label in (("rack", request.rack), ("host", request.host)):
        if len(label) > MAX_LABEL or not label.isprintable():
            text = f"{name} = '{shown(label)}': use at most {MAX_LABEL} printable characters"
            raise Error(Code.INVALID, text)
    if request.disks > MAX_TARGETS_PER_NODE:
        raise Error(Code.INVALID, f"{request.disks} disks: at most {MAX_TARGETS_PER_NODE}")
    return Node(
        NodeId(request.node),
        NodeKind(request.kind),
        endpoint,
        request.incarnation,
        True,
        request.rack,
        request.host,
        request.disks or 1,
    )


def statuses_of(request: manager.HeartbeatRequest) -> dict[TargetId, Status]:
    """Return what a heartbeat says of each target.

    Raises:
        Error: INVALID for a state that does not exist, or more targets than a node can have.
    """
    if len(request.targets) > MAX_TARGETS_PER_NODE:
        text = f"{len(request.targets)} targets: a node has at most {MAX_TARGETS_PER_NODE}"
        raise Error(Code.INVALID, text)
    try:
        return {
            TargetId(said.target): Status(
                Report(LocalState(said.local), said.chain_version),
                said.used_bytes,
                said.capacity_bytes,
                said.device,
                said.reason[:MAX_REASON],
                progress_from_message(said.progress) if said.HasField("progress") else None,
            )
            for said in request.targets
        }
    except ValueError as exc:
        raise Error(Code.INVALID, f"node {request.node} reports an unknown state: {exc}") from exc


def wish_of(request: manager.CreateChainsRequest) -> Wish:
    """Return what chains somebody wants.

    Raises:
        Error: INVALID for a failure domain that does not exist.
    """
    try:
        domain = Domain(request.domain) if request.domain else None
    except ValueError as exc:
        text = f"this manager knows no failure domain {request.domain}: is its hillfire older?"
        raise Error(Code.INVALID, text) from exc
    return Wish(
        request.nodes,
        request.targets_per_node,
        request.replicas,
        request.min_serving or 1,
        domain,
        tuple(
            tuple(Place(NodeId(place.node), place.disk) for place in chain.places)
            for chain in request.chains
        ),
    )


def command_of(request: manager.CommandRequest) -> Command:
    """Return an operator's command.

    Raises:
        Error: INVALID for one that does not exist.
    """
    try:
        kind = CommandKind(request.kind)
    except ValueError as exc:
        text = f"this manager knows no command {request.kind}: is its hillfire older than yours?"
        raise Error(Code.INVALID, text) from exc
    return Command(
        kind,
        request.who,
        request.why,
        TargetId(request.target),
        NodeId(request.node),
        ChainId(request.chain),
        tuple(TargetId(each) for each in request.order),
        TargetId(request.successor),
        request.min_serving,
    )


def report_of(target: TargetId, said: Status) -> manager.TargetReport:
    """Return what a node said of a target as it said it."""
    return manager.TargetReport(
        target=target,
        local=cluster.LocalState.ValueType(said.report.local),
        used_bytes=said.used_bytes,
        capacity_bytes=said.capacity_bytes,
        chain_version=said.report.chain_version,
        device=said.device,
        reason=said.reason,
        progress=None if said.progress is None else progress_to_message(said.progress),
    )


def shown(text: str) -> str:
    """Return text from outside fit for a message."""
    return ascii(text[:_SHOWN])[1:-1]
