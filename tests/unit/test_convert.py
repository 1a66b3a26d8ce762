"""Messages and floor types: there and back. Budget: 1 s."""

import pytest

from hillfire.cluster import (
    Chain,
    ChainTable,
    Endpoint,
    LocalState,
    Node,
    NodeKind,
    PublicState,
    Routing,
    Target,
)
from hillfire.errors import Code, Error
from hillfire.layout import Layout
from hillfire.proto import cluster_pb2, convert, meta_pb2
from hillfire.types import ChainId, NodeId, TargetId

HERE = Endpoint("a:1", "b:2", "/c", "d")
ROUTING = Routing(
    cluster="c",
    version=2**40,
    manager=HERE,
    nodes={
        NodeId(1): Node(NodeId(1), NodeKind.META, HERE, 2**63, True),
        NodeId(101): Node(NodeId(101), NodeKind.STORAGE, Endpoint("", "", "", ""), 0, False),
    },
    targets={
        TargetId(state): Target(
            TargetId(state), NodeId(101), ChainId(7), 3, state, LocalState.ONLINE, 2**40, 2**50
        )
        for state in PublicState
    },
    chains={
        ChainId(7): Chain(ChainId(7), 9, tuple((TargetId(state), state) for state in PublicState)),
        ChainId(8): Chain(ChainId(8), 1, ()),
    },
    tables={1: ChainTable(1, (ChainId(7), ChainId(8)))},
)


@pytest.mark.parametrize("routing", [ROUTING, Routing("", 0)])
def test_routing(routing: Routing) -> None:
    body = convert.routing_to_message(routing).SerializeToString()
    back = convert.routing_from_message(cluster_pb2.Routing.FromString(body))
    assert back == routing
    assert all(type(target.state) is PublicState for target in back.targets.values())


def test_layout_and_endpoint() -> None:
    layout = Layout(65536, (ChainId(3), ChainId(1)))
    assert convert.layout_from_message(convert.layout_to_message(layout)) == layout
    assert convert.endpoint_from_message(convert.endpoint_to_message(HERE)) == HERE


def test_what_cannot_be_is_a_protocol_error() -> None:
    for message in (
        cluster_pb2.Routing(nodes=[cluster_pb2.Node()]),
        cluster_pb2.Routing(targets=[cluster_pb2.Target()]),
        cluster_pb2.Routing(chains=[cluster_pb2.Chain(targets=[cluster_pb2.ChainMember()])]),
    ):
        with pytest.raises(Error) as caught:
            convert.routing_from_message(message)
        assert caught.value.code is Code.PROTOCOL
    for layout in (meta_pb2.FileLayout(), meta_pb2.FileLayout(chunk_bytes=65537, chains=[1])):
        with pytest.raises(Error) as caught:
            convert.layout_from_message(layout)
        assert caught.value.code is Code.PROTOCOL
