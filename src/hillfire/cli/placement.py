"""``hillfire placement``: the chain table of a cluster that does not exist yet."""

import json
import sys

from hillfire.cli.connect import connect_manager, fetch_routing
from hillfire.cli.placement_table import as_data, domain_of, existing, made
from hillfire.cli.placement_view import show
from hillfire.errors import Code, Error
from hillfire.meta.manager.placement import Home
from hillfire.types import NodeId

FIRST_NODE = 101
"""The number of a previewed cluster's first node; `hillfire up` begins there too."""


def run_placement(
    nodes: int,
    disks: int,
    targets_per_disk: int,
    replicas: int,
    racks: int,
    nodes_per_host: int,
    apart: str | None,
    *,
    address: str | None,
    solver: bool,
    as_json: bool,
) -> None:
    """Print the chain table that a cluster of these numbers would get, and how even it is.

    With an ``address`` the table that the cluster there has.
    """
    if address is not None:
        connection = connect_manager(address)
        try:
            table = existing(fetch_routing(connection))
        finally:
            connection.close()
    else:
        homes = preview(nodes, disks, racks, nodes_per_host)
        table = made(homes, targets_per_disk, replicas, domain_of(apart), solver=solver)
    if as_json:
        json.dump(as_data(table), sys.stdout)
        print()
        return
    show(table)


def preview(nodes: int, disks: int, racks: int, nodes_per_host: int) -> list[Home]:
    """Return so many nodes: consecutive ones share a host, hosts take turns over the racks.

    Raises:
        Error: CONFIGURATION for numbers below one, or more racks than hosts.
    """
    hosts = -(-nodes // max(nodes_per_host, 1))
    limits = (("nodes", nodes, 1), ("disks", disks, 1), ("nodes-per-host", nodes_per_host, 1))
    for name, value, least in (*limits, ("racks", racks, 0)):
        if value < least:
            raise Error(Code.CONFIGURATION, f"--{name} {value}: choose {least} or more")
    if racks > hosts:
        raise Error(Code.CONFIGURATION, f"--racks {racks}: there are only {hosts} hosts")
    return [
        Home(
            NodeId(FIRST_NODE + n),
            disks,
            f"host-{n // nodes_per_host + 1}",
            f"rack-{n // nodes_per_host % racks + 1}" if racks else "",
        )
        for n in range(nodes)
    ]
