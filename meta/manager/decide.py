"""What the manager makes of the cluster: from one routing to the next. Pure.

Each function takes the routing as it is published and returns the one to publish instead, its
version one higher, or None where nothing changes. The shell stores it before anyone sees it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import NamedTuple

from hillfire.cluster import (
    Chain,
    ChainTable,
    Endpoint,
    LocalState,
    Node,
    NodeKind,
    Progress,
    PublicState,
    Routing,
    Target,
)
from hillfire.errors import Code, Error
from hillfire.meta.manager.chains import LOST, OnRow, Report, new_chain, next_chain
from hillfire.meta.manager.placement import (
    MAX_TARGETS_PER_NODE,
    Domain,
    Home,
    Place,
    check,
    make_plan,
    require,
)
from hillfire.types import ChainId, NodeId, TargetId

TABLE = 1
"""The chain table that new files use."""
MAX_NODE = 4_000_000
"""So that target ids, which begin with their node's, fit 32 bits."""
SEARCH_STEPS = 20_000
"""How long the manager itself looks for a better table: a second or so. An operator's command has
all the time it wants, and hands in what it found."""
_NOTABLE = 64
"""A target's use of space is published anew when it changed by a 64th of its disk."""


class Status(NamedTuple):
    """What a node last said of one of its targets."""

    report: Report
    used_bytes: int
    capacity_bytes: int
    device: int = 0
    reason: str = ""
    progress: Progress | None = None


class Wish(NamedTuple):
    """What chains somebody wants."""

    nodes: int
    """how many storage nodes have to be up"""
    targets_per_node: int
    replicas: int
    min_serving: int = 1
    domain: Domain | None = None
    """what two targets of a chain never share; None: as wide as leaves no place empty"""
    chains: tuple[tuple[Place, ...], ...] = ()
    """a table that was made elsewhere, maybe by a solver; none: it is made here"""


def first_routing(cluster: str) -> Routing:
    """Return the routing of a cluster without nodes."""
    return Routing(cluster, 0)


def with_manager(routing: Routing, endpoint: Endpoint) -> Routing:
    """Announce where the manager listens."""
    return replace(routing, version=routing.version + 1, manager=endpoint)


def with_node(routing: Routing, node: Node) -> Routing | None:
    """Enter a node that registered; whoever it replaces has been evaluated as dead before."""
    known = routing.nodes.get(node.id)
    if known is not None:
        node = replace(node, draining=known.draining)
    if known == node:
        return None
    if known is not None and known.kind is not node.kind:
        raise Error(
            Code.CONFIGURATION,
            f"node {node.id} is a {known.kind.name.lower()} node of this cluster already: "
            f"give the {node.kind.name.lower()} service another number",
        )
    return replace(routing, version=routing.version + 1, nodes={**routing.nodes, node.id: node})


def evaluate(
    routing: Routing,
    alive: Set[NodeId],
    said: Mapping[TargetId, Status],
    *,
    space: bool = False,
    left: Set[TargetId] = frozenset(),
    on_row: OnRow = None,
) -> Routing | None:
    """Apply everything that is known at this moment: deaths, returns, reports.

    ``alive``: the nodes whose lease runs; ``said``: what they have said since they registered;
    ``space``: publish the use of space too, if it changed notably; ``left``: the targets that were
    ordered to leave service so long ago that they have.
    """
    nodes = {n.id: replace(n, alive=n.id in alive) for n in routing.nodes.values()}
    reports: dict[TargetId, Report] = {}
    for target in routing.targets.values():
        serves = target.state in (PublicState.SERVING, PublicState.LAST_SERVING)
        if target.node not in alive or (target.withdrawn and (target.id in left or not serves)):
            reports[target.id] = LOST
        elif target.id in said:
            reports[target.id] = said[target.id].report
    chains = {c.id: next_chain(c, reports, on_row) or c for c in routing.chains.values()}
    targets = {
        t.id: _updated(t, chains[t.chain], reports.get(t.id, LOST).local, said.get(t.id))
        for t in routing.targets.values()
    }
    changed = nodes != routing.nodes or chains != routing.chains
    for before, after in zip(routing.targets.values(), targets.values(), strict=True):
        changed = changed or _differs(before, after) or (space and _notable(before, after))
    if not changed:
        return None
    return replace(
        routing, version=routing.version + 1, nodes=nodes, chains=chains, targets=targets
    )


def with_chains(routing: Routing, wish: Wish) -> Routing | None:
    """Create all chains over the storage nodes, once; None if the same were created before.

    Raises:
        Error: CONFIGURATION if the numbers make no chain; UNAVAILABLE until enough nodes are up;
            EXISTS if there are chains made of other numbers.
    """
    up = sorted(n.id for n in routing.nodes.values() if n.kind is NodeKind.STORAGE and n.alive)
    if routing.tables:
        require_alike(routing, wish)
        return None
    require(wish.nodes, wish.targets_per_node, wish.replicas)
    if not 1 <= wish.min_serving <= wish.replicas:
        text = f"min_serving = {wish.min_serving}: choose 1 to the {wish.replicas} replicas"
        raise Error(Code.CONFIGURATION, text)
    if len(up) < wish.nodes:
        raise Error(
            Code.UNAVAILABLE, f"{len(up)} of {wish.nodes} storage nodes are up: wait or start them"
        )
    homes = homes_of(routing, wish.nodes)
    targets_per_disk = per_disk(homes, wish.targets_per_node)
    if wish.chains:
        check(homes, wish.chains, targets_per_disk, wish.replicas, wish.domain)
        return _with_chains(routing, wish.chains, wish)
    plan = make_plan(homes, targets_per_disk, wish.replicas, wish.domain, steps=SEARCH_STEPS)
    return _with_chains(routing, plan.chains, wish)


def homes_of(routing: Routing, nodes: int) -> list[Home]:
    """Return the first so many live storage nodes, as placement sees them."""
    up = (n for n in routing.nodes.values() if n.kind is NodeKind.STORAGE and n.alive)
    return sorted(home_of(node) for node in up)[:nodes]


def home_of(node: Node) -> Home:
    """Return a node as placement sees it."""
    return Home(node.id, node.disks, node.host or node.endpoint.host, node.rack)


def per_disk(homes: Sequence[Home], targets_per_node: int) -> int:
    """Return how many targets go on each disk, if those with most disks have so many in all.

    Raises:
        Error: CONFIGURATION if that is no whole number.
    """
    disks = max(home.disks for home in homes)
    if targets_per_node % disks:
        text = f"targets_per_node = {targets_per_node}: choose a multiple of a node's {disks} disks"
        raise Error(Code.CONFIGURATION, text)
    return targets_per_node // disks


def require_alike(routing: Routing, wish: Wish) -> None:
    """Refuse a wish for other chains than there are.

    Raises:
        Error: EXISTS.
    """
    if not _is_made_of(routing, wish):
        raise Error(
            Code.EXISTS,
            f"this cluster's chains were created before, as {describe(routing)}: "
            "give the same numbers, or use a new directory",
        )


def describe(routing: Routing) -> str:
    """Tell what chains there are."""
    nodes = {t.node for t in routing.targets.values()}
    replicas = {len(c.targets) for c in routing.chains.values()}
    return (
        f"{len(routing.chains)} chains of {'/'.join(map(str, sorted(replicas)))} targets "
        f"on {len(nodes)} nodes"
    )


def _with_chains(routing: Routing, table: Sequence[Sequence[Place]], wish: Wish) -> Routing:
    chains: dict[ChainId, Chain] = {}
    targets: dict[TargetId, Target] = {}
    placed: Counter[NodeId] = Counter()
    for number, members in enumerate(table, 1):
        ids = []
        for node, disk in members:
            placed[node] += 1
            target = TargetId(node * (MAX_TARGETS_PER_NODE + 1) + placed[node])
            targets[target] = Target(
                target, node, ChainId(number), disk, PublicState.OFFLINE, LocalState.OFFLINE
            )
            ids.append(target)
        chains[ChainId(number)] = new_chain(ChainId(number), tuple(ids), wish.min_serving)
    tables = {TABLE: ChainTable(TABLE, tuple(chains))}
    return replace(
        routing,
        version=routing.version + 1,
        chains=chains,
        targets=dict(sorted(targets.items())),
        tables=tables,
    )


def _is_made_of(routing: Routing, wish: Wish) -> bool:
    """Whether the chains that exist are what these numbers make."""
    on = Counter(t.node for t in routing.targets.values())
    unused = wish.nodes * wish.targets_per_node - len(routing.targets)
    return (
        (len(on) == wish.nodes or 0 <= unused < wish.replicas)
        and max(on.values()) == wish.targets_per_node
        and all(len(c.targets) == wish.replicas for c in routing.chains.values())
    )


def _updated(target: Target, chain: Chain, local: LocalState, said: Status | None) -> Target:
    """Return a target with its chain's view of it and its node's."""
    state = chain.state_of(target.id)
    if said is None:
        return replace(target, state=state, local=local)
    return replace(
        target,
        state=state,
        local=local,
        used_bytes=said.used_bytes,
        capacity_bytes=said.capacity_bytes,
        device=said.device or target.device,
        reason=said.reason,
    )


def _differs(before: Target, after: Target) -> bool:
    """Whether what everyone should know of a target changed."""
    return (
        before.local is not after.local
        or before.device != after.device
        or before.reason != after.reason
    )


def _notable(before: Target, after: Target) -> bool:
    """Whether the use of space changed by enough to tell everyone."""
    if before.capacity_bytes != after.capacity_bytes:
        return True
    changed = abs(before.used_bytes - after.used_bytes)
    return changed > 0 and changed * _NOTABLE >= after.capacity_bytes
