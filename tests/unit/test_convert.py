"""Messages and floor types: there and back. Budget: 1 s."""

import pytest

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
from hillfire.proto import cluster_pb2, convert, meta_pb2
from hillfire.types import ChainId, NodeId, TargetId

HERE = Endpoint("a:1", "b:2", "/c", "d")
ROUTING = Routing(
    cluster="c",
    version=2**40,
    manager=HERE,
    nodes={
        NodeId(1): Node(NodeId(1), NodeKind.META, HERE, 2**63, True),
        NodeId(101): Node(
            NodeId(101), NodeKind.STORAGE, Endpoint("", "", "", ""), 0, False, "r1", "h", 16, True
        ),
    },
    targets={
        TargetId(state): Target(
            TargetId(state),
            NodeId(101),
            ChainId(7),
            3,
            state,
            LocalState.ONLINE,
            2**40,
            2**50,
            2**63,
            "disk gone",
            Order.DRAIN,
        )
        for state in PublicState
    },
    chains={
        ChainId(7): Chain(ChainId(7), 9, tuple((TargetId(state), state) for state in PublicState)),
        ChainId(8): Chain(ChainId(8), 1, (), 2, (TargetId(2), TargetId(1))),
    },
    tables={1: ChainTable(1, (ChainId(7), ChainId(8)))},
)


@pytest.mark.parametrize("routing", [ROUTING, Routing("", 0)])
def test_routing(routing: Routing) -> None:
    body = convert.routing_to_message(routing).SerializeToString()
    back = convert.routing_from_message(cluster_pb2.Routing.FromString(body))
    assert back == routing
    assert all(type(target.state) is PublicState for target in back.targets.values())


def test_progress_and_decision() -> None:
    progress = Progress(1, 2**40, 3, 4, 2**33)
    assert convert.progress_from_message(convert.progress_to_message(progress)) == progress
    decision = Decision(7, 2**41, "me@here", "gave up", "disk lost", 2**40, 1, 2, 3, True)
    assert convert.decision_from_message(convert.decision_to_message(decision)) == decision


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
