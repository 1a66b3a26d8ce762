"""Which storage nodes keep a copy of the metadata's log. Pure."""

from collections.abc import Collection, Mapping

from hillfire.cluster import Node, NodeKind
from hillfire.types import NodeId


def choose(
    nodes: Mapping[NodeId, Node], kept: Collection[NodeId], wanted: int, own_host: str
) -> list[NodeId]:
    """Return up to ``wanted`` storage nodes, those in ``kept`` before any other.

    Of the rest, living nodes on hosts that have no copy yet, and not on the metadata service's
    own, come first, then those in racks that have none: a copy is for the day on which a host is
    gone.
    """
    chosen = [node for node in kept if node in nodes][:wanted]
    hosts = {own_host, *(nodes[node].endpoint.host for node in chosen)}
    racks = {nodes[node].rack for node in chosen}
    left = sorted(
        node.id
        for node in nodes.values()
        if node.kind is NodeKind.STORAGE and node.alive and node.id not in chosen
    )
    while left and len(chosen) < wanted:
        best = min(
            left,
            key=lambda node: (nodes[node].endpoint.host in hosts, nodes[node].rack in racks, node),
        )
        left.remove(best)
        chosen.append(best)
        hosts.add(nodes[best].endpoint.host)
        racks.add(nodes[best].rack)
    return chosen
