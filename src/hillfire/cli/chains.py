"""``hillfire create-chains``: the one step that services started one by one cannot do themselves.

Which nodes belong to a cluster from the start is a person's decision: a manager that placed chains
over the first node that came would place them over that one alone.
"""

import time
from pathlib import Path

from hillfire.cli.connect import connect_manager, fetch_routing, last_cluster
from hillfire.cli.placement_table import domain_of, made, read_table
from hillfire.cli.placement_view import headline, kept_apart
from hillfire.cluster import Routing
from hillfire.meta.manager.decide import describe, homes_of, per_disk
from hillfire.meta.manager.placement import Domain, require
from hillfire.proto.convert import routing_from_message
from hillfire.proto.manager_pb2 import (
    CreateChainsRequest,
    FailureDomain,
    PlannedPlace,
)
from hillfire.proto.service import decode, encode, method
from hillfire.proto.wire.base import BlockingConnection

CALL_TIMEOUT_S = 30.0
WAIT_MS = 500
_DOMAINS = {
    None: FailureDomain.WIDEST,
    Domain.NODE: FailureDomain.APART_BY_NODE,
    Domain.HOST: FailureDomain.APART_BY_HOST,
    Domain.RACK: FailureDomain.APART_BY_RACK,
}
_CREATE_CHAINS = method("Manager", "CreateChains")


def run_create_chains(
    address: str | None,
    nodes: int,
    replicas: int,
    targets_per_node: int,
    wait_s: float,
    *,
    min_serving: int = 1,
    apart: str | None = None,
    table: Path | None = None,
) -> None:
    """Place chains over ``nodes`` storage nodes, for which it waits up to ``wait_s``.

    The table is made here, where a solver may be loaded and nobody waits for an answer, and checked
    by the manager.
    """
    where = address or last_cluster()
    given = read_table(table) if table is not None else None
    domain = domain_of(apart)
    connection = connect_manager(where)
    try:
        routing = _with_nodes(connection, nodes, time.monotonic() + wait_s)
        request = CreateChainsRequest(
            nodes=nodes,
            replicas=replicas,
            targets_per_node=targets_per_node,
            min_serving=min_serving,
            domain=_DOMAINS[domain],
        )
        if not routing.tables:
            require(nodes, targets_per_node, replicas)
            homes = homes_of(routing, nodes)
            if given is None and len(homes) == nodes:
                plan = made(homes, per_disk(homes, targets_per_node), replicas, domain)
                given = plan.plan.chains
                print(f"{headline(plan)}; {kept_apart(plan.plan)}")
            for chain in given or ():
                places = [PlannedPlace(node=place.node, disk=place.disk) for place in chain]
                request.chains.add(places=places)
        ticket = connection.start(encode(_CREATE_CHAINS, request), CALL_TIMEOUT_S)
        reply = connection.finish(ticket, CALL_TIMEOUT_S)
    finally:
        connection.close()
    print(f"{describe(routing_from_message(decode(_CREATE_CHAINS, reply)))}, in routing of {where}")
    print(f"  next  hillfire status --address {where} --wait 60")


def _with_nodes(connection: BlockingConnection, nodes: int, deadline: float) -> Routing:
    """Return the routing once it has so many live storage nodes, or when the time is over."""
    known = 0
    while True:
        routing = fetch_routing(connection, known, WAIT_MS if known else 0)
        if len(homes_of(routing, nodes)) == nodes or time.monotonic() > deadline:
            return routing
        known = routing.version
