"""Which targets have to leave service, and when: operators' orders, drains, rotations. Pure.

A target leaves in two steps. First its *order* is published; its node stops it as soon as it reads
that, and reports it offline. The manager takes it out of its chain once it is reported offline,
or a full lease after the order was published: by then its node has either read the order, since
a heartbeat's answer brings the routing before it extends the lease, or has no lease. So nobody
reads from a target that its chain no longer knows.

Nothing here takes away the last serving target of a chain, and an order that came to stand on the
only one that still has the data is void.

Source: design.md section 5, Leases ("waits the full L before it publishes a removal, by command
too"); 3FS's preferred target order.
"""

from dataclasses import replace

from hillfire.cluster import Chain, Order, PublicState, Routing, Target
from hillfire.types import NodeId, TargetId

SERVING = PublicState.SERVING
LAST_SERVING = PublicState.LAST_SERVING

ROTATION_REPLICAS = 3
"""A chain is rotated by itself only if so many serve: two are left meanwhile."""


def with_orders(routing: Routing, orders: dict[TargetId, Order]) -> Routing:
    """Return the routing with these targets' orders."""
    if all(routing.targets[target].order is order for target, order in orders.items()):
        return routing
    changed = {t: replace(routing.targets[t], order=order) for t, order in orders.items()}
    return replace(routing, version=routing.version + 1, targets={**routing.targets, **changed})


def leaving(routing: Routing) -> tuple[Target, ...]:
    """Return the targets that have to leave and serve yet."""
    return tuple(t for t in routing.targets.values() if t.withdrawn and t.state is SERVING)


def spare(routing: Routing, chain: Chain) -> int:
    """Return how many more targets of a chain may leave service before its writes stop."""
    staying = sum(not routing.targets[t].withdrawn for t in chain.serving)
    return staying - max(1, chain.min_serving)


def settled(routing: Routing) -> Routing:
    """Take back the orders that are done, or that would keep a chain from serving (R68)."""
    orders: dict[TargetId, Order] = {}
    for target in routing.targets.values():
        if not target.withdrawn:
            continue
        rotated = target.order is Order.ROTATE and target.state is not SERVING
        alone = target.state is SERVING and len(routing.chains[target.chain].serving) == 1
        if rotated or alone or target.state is LAST_SERVING:
            orders[target.id] = Order.NONE
    return with_orders(routing, orders)


def drained(routing: Routing) -> Routing:
    """Order the next target of the nodes that are drained to leave, one serving one at a time."""
    orders: dict[TargetId, Order] = {}
    busy = bool(leaving(routing))
    for target in routing.targets.values():
        node = routing.nodes.get(target.node)
        if node is None or not node.draining or target.withdrawn:
            continue
        if target.state is LAST_SERVING:
            continue
        if target.state is SERVING:
            if busy or spare(routing, routing.chains[target.chain]) < 1:
                continue
            busy = True
        orders[target.id] = Order.DRAIN
    return with_orders(routing, orders)


def to_rotate(routing: Routing, chain: Chain, least: int) -> TargetId | None:
    """Return the head that has to go to the tail so that the preferred one becomes head (R69).

    Only when all members serve and at least ``least`` of them do. The order among targets that
    serve is never changed otherwise: each must have everything that its successors have.
    """
    serving = chain.serving
    if not chain.preferred or len(serving) != len(chain.targets) or len(serving) < least:
        return None
    wanted = next((t for t in chain.preferred if t in serving), None)
    if wanted is None or serving[0] == wanted or spare(routing, chain) < 1:
        return None
    if any(routing.targets[t].withdrawn for t in serving):
        return None
    return serving[0]


def rotated(routing: Routing) -> Routing:
    """Order heads to their chains' tails, of chains whose nodes have nothing else under way."""
    if any(n.draining for n in routing.nodes.values()):
        return routing

    def nodes_of(chain: Chain) -> set[NodeId]:
        return {routing.targets[target].node for target, _ in chain.targets}

    busy: set[NodeId] = set()
    for chain in routing.chains.values():
        ordered = any(routing.targets[target].withdrawn for target, _ in chain.targets)
        if ordered or len(chain.serving) != len(chain.targets):
            busy |= nodes_of(chain)
    heads: dict[TargetId, Order] = {}
    for chain in routing.chains.values():
        head = to_rotate(routing, chain, ROTATION_REPLICAS)
        if head is not None and not busy & nodes_of(chain):
            heads[head] = Order.ROTATE
            busy |= nodes_of(chain)
    return with_orders(routing, heads)
