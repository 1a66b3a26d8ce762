"""Messages to floor types and back: the only place that knows both."""

from dataclasses import asdict, fields

from hillfire import metrics
from hillfire.cluster import (
    Chain,
    ChainTable,
    Decision,
    Endpoint,
    LocalState,
    Node,
    NodeKind,
    Order,
    Progress,
    PublicState,
    Routing,
    Target,
)
from hillfire.errors import Code, Error
from hillfire.layout import Layout
from hillfire.proto import cluster_pb2, manager_pb2, meta_pb2, process_pb2
from hillfire.types import ChainId, NodeId, TargetId


def endpoint_to_message(endpoint: Endpoint) -> cluster_pb2.Endpoint:
    """Return the message of an endpoint."""
    return cluster_pb2.Endpoint(
        grpc=endpoint.grpc,
        tcp=endpoint.tcp,
        shm=endpoint.shm,
        host=endpoint.host,
        rdma=endpoint.rdma,
    )


def endpoint_from_message(message: cluster_pb2.Endpoint) -> Endpoint:
    """Return the endpoint of a message."""
    return Endpoint(message.grpc, message.tcp, message.shm, message.host, message.rdma)


def layout_to_message(layout: Layout) -> meta_pb2.FileLayout:
    """Return the message of a layout."""
    return meta_pb2.FileLayout(chunk_bytes=layout.chunk_bytes, chains=layout.chains)


def layout_from_message(message: meta_pb2.FileLayout) -> Layout:
    """Return the layout of a message.

    Raises:
        Error: PROTOCOL if no file can have it.
    """
    try:
        return Layout(message.chunk_bytes, tuple(ChainId(chain) for chain in message.chains))
    except ValueError as exc:
        raise Error(Code.PROTOCOL, f"not a layout: {exc}") from exc


def routing_to_message(routing: Routing) -> cluster_pb2.Routing:
    """Return the message of a routing."""
    message = cluster_pb2.Routing(cluster=routing.cluster, version=routing.version)
    if routing.manager is not None:
        message.manager.CopyFrom(endpoint_to_message(routing.manager))
    for node in routing.nodes.values():
        message.nodes.add(
            id=node.id,
            kind=cluster_pb2.NodeKind.ValueType(node.kind),
            endpoint=endpoint_to_message(node.endpoint),
            incarnation=node.incarnation,
            alive=node.alive,
            rack=node.rack,
            host=node.host,
            disks=node.disks,
            draining=node.draining,
        )
    for target in routing.targets.values():
        message.targets.add(
            id=target.id,
            node=target.node,
            chain=target.chain,
            disk=target.disk,
            state=cluster_pb2.PublicState.ValueType(target.state),
            local=cluster_pb2.LocalState.ValueType(target.local),
            used_bytes=target.used_bytes,
            capacity_bytes=target.capacity_bytes,
            device=target.device,
            reason=target.reason,
            order=cluster_pb2.Order.ValueType(target.order),
        )
    for chain in routing.chains.values():
        made = message.chains.add(
            id=chain.id,
            version=chain.version,
            min_serving=chain.min_serving,
            preferred=chain.preferred,
        )
        for member, state in chain.targets:
            made.targets.add(target=member, state=cluster_pb2.PublicState.ValueType(state))
    for table in routing.tables.values():
        message.tables.add(id=table.id, chains=table.chains)
    return message


def routing_from_message(message: cluster_pb2.Routing) -> Routing:
    """Return the routing of a message.

    Raises:
        Error: PROTOCOL for a state or kind that does not exist.
    """
    try:
        return Routing(
            cluster=message.cluster,
            version=message.version,
            manager=endpoint_from_message(message.manager) if message.HasField("manager") else None,
            nodes={NodeId(node.id): _node(node) for node in message.nodes},
            targets={TargetId(target.id): _target(target) for target in message.targets},
            chains={ChainId(chain.id): _chain(chain) for chain in message.chains},
            tables={
                table.id: ChainTable(table.id, tuple(ChainId(chain) for chain in table.chains))
                for table in message.tables
            },
        )
    except ValueError as exc:
        raise Error(Code.PROTOCOL, f"not a routing: {exc}") from exc


def _node(message: cluster_pb2.Node) -> Node:
    return Node(
        NodeId(message.id),
        NodeKind(message.kind),
        endpoint_from_message(message.endpoint),
        message.incarnation,
        message.alive,
        message.rack,
        message.host,
        message.disks or 1,
        message.draining,
    )


def _target(message: cluster_pb2.Target) -> Target:
    return Target(
        TargetId(message.id),
        NodeId(message.node),
        ChainId(message.chain),
        message.disk,
        PublicState(message.state),
        LocalState(message.local),
        message.used_bytes,
        message.capacity_bytes,
        message.device,
        message.reason,
        Order(message.order),
    )


def _chain(message: cluster_pb2.Chain) -> Chain:
    members = tuple((TargetId(each.target), PublicState(each.state)) for each in message.targets)
    preferred = tuple(TargetId(each) for each in message.preferred)
    min_serving = message.min_serving or 1
    return Chain(ChainId(message.id), message.version, members, min_serving, preferred)


def progress_to_message(progress: Progress) -> manager_pb2.SyncProgress:
    """Return the message of a sync's progress."""
    return manager_pb2.SyncProgress(
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
        chunks_done=progress.chunks_done,
        chunks_total=progress.chunks_total,
        bytes_per_s=progress.bytes_per_s,
    )


def progress_from_message(message: manager_pb2.SyncProgress) -> Progress:
    """Return the progress of a message."""
    return Progress(
        message.bytes_done,
        message.bytes_total,
        message.chunks_done,
        message.chunks_total,
        message.bytes_per_s,
    )


def decision_to_message(decision: Decision) -> manager_pb2.Decision:
    """Return the message of an operator's decision."""
    return manager_pb2.Decision(**asdict(decision))


def decision_from_message(message: manager_pb2.Decision) -> Decision:
    """Return the decision of a message."""
    return Decision(**{field.name: getattr(message, field.name) for field in fields(Decision)})


def metric_to_message(sample: metrics.Sample) -> process_pb2.Metric:
    """Return the message of a metric."""
    return process_pb2.Metric(
        name=sample.name,
        kind=process_pb2.MetricKind.ValueType(sample.kind),
        labels=[text for label in sample.labels for text in label],
        help=sample.help,
        value=sample.value,
        buckets=sample.times.counts.keys(),
        counts=sample.times.counts.values(),
        total_ns=sample.times.total_ns,
    )


def metric_from_message(message: process_pb2.Metric) -> metrics.Sample:
    """Return the metric of a message.

    Raises:
        Error: PROTOCOL if it is none.
    """
    texts = list(message.labels)
    try:
        labels = tuple(zip(texts[::2], texts[1::2], strict=True))
        counts = dict(zip(message.buckets, message.counts, strict=True))
        kind = metrics.Kind(message.kind)
    except ValueError as exc:
        raise Error(Code.PROTOCOL, f"not a metric: {exc}") from exc
    if any(bucket >= metrics.BUCKETS for bucket in counts):
        raise Error(Code.PROTOCOL, f"a bucket beyond the {metrics.BUCKETS} that there are")
    times = metrics.Times(counts, message.total_ns)
    return metrics.Sample(message.name, kind, labels, message.help, message.value, times)
