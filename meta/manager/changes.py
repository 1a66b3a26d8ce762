"""What an operator's log says of a new routing: who came and went, which chains changed. Pure."""

from collections.abc import Iterator

from hillfire.cluster import NodeKind, Order, Routing
from hillfire.meta.manager.events import Log


def told(before: Routing, after: Routing) -> Iterator[Log]:
    """Describe each difference; what asks for a person is severe."""
    for node in after.nodes.values():
        known = before.nodes.get(node.id)
        if known is None or known.alive is not node.alive:
            state = "up" if node.alive else "dead"
            yield Log(f"event={state} kind={NodeKind(node.kind).name.lower()} node={node.id}")
        elif known.incarnation != node.incarnation:
            yield Log(f"event=replaced node={node.id} incarnation={node.incarnation}")
    for chain in after.chains.values():
        if before.chains.get(chain.id) != chain:
            states = " ".join(f"{t}:{s.name.lower()}" for t, s in chain.targets)
            text = f"event=chain chain={chain.id} version={chain.version} targets='{states}'"
            yield Log(text, severe=chain.version > 1 and not chain.serving)
    for target in after.targets.values():
        old = before.targets.get(target.id)
        if target.order is not (Order.NONE if old is None else old.order):
            yield Log(f"event=order target={target.id} order={target.order.name.lower()}")
