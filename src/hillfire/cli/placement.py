"""``hillfire placement``: a chain table before there is a cluster, or before it has chains.

Here, in a person's own process, the solver may be loaded; the manager never does that.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hillfire.errors import Code, Error
from hillfire.meta.manager.placement import Domain, Home, Place, Plan, make_plan
from hillfire.meta.manager.placement.evenness import Evenness, evenness
from hillfire.meta.manager.placement.solver import available
from hillfire.types import NodeId

FIRST_NODE = 101
"""The number of a previewed cluster's first node; `hillfire up` begins there too."""


@dataclass(frozen=True, slots=True)
class Made:
    """A plan, how long it took and how good it is."""

    plan: Plan
    seconds: float
    evenness: Evenness
    solver: bool
    """whether there was one to ask"""


def domain_of(apart: str | None) -> Domain | None:
    """Return the failure domain of that name."""
    return None if apart is None else Domain[apart.upper()]


def made(
    homes: Sequence[Home],
    targets_per_disk: int,
    replicas: int,
    domain: Domain | None,
    *,
    solver: bool = True,
) -> Made:
    """Plan a table, with the solver if one is installed and wanted."""
    solve = available() if solver else None
    began = time.monotonic()
    plan = make_plan(homes, targets_per_disk, replicas, domain, solve=solve)
    return Made(plan, time.monotonic() - began, evenness(plan), solve is not None)


def run_placement(
    nodes: int,
    disks: int,
    targets_per_disk: int,
    replicas: int,
    racks: int,
    nodes_per_host: int,
    apart: str | None,
    *,
    solver: bool,
    as_json: bool,
) -> None:
    """Print the chain table that a cluster of these numbers would get, and how even it is."""
    homes = preview(nodes, disks, racks, nodes_per_host)
    table = made(homes, targets_per_disk, replicas, domain_of(apart), solver=solver)
    if as_json:
        json.dump(as_data(table), sys.stdout)
        print()
        return
    from hillfire.cli.placement_view import show

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


def as_data(table: Made) -> dict[str, Any]:
    """Return a table as JSON has it; ``create-chains --table`` reads ``chains`` of it."""
    plan = table.plan
    return {
        "nodes": len(plan.homes),
        "targets_per_disk": plan.targets_per_disk,
        "replicas": plan.replicas,
        "apart": plan.domain.name.lower(),
        "replicas_within_one": plan.most,
        "seconds": round(table.seconds, 3),
        "method": plan.method,
        "optimal": plan.optimal,
        "unused": plan.unused,
        "evenness": asdict(table.evenness),
        "homes": [home._asdict() for home in plan.homes],
        "chains": [[[place.node, place.disk] for place in chain] for chain in plan.chains],
    }


def read_table(path: Path) -> tuple[tuple[Place, ...], ...]:
    """Return the chains of a file that ``hillfire placement --json`` wrote.

    Raises:
        Error: CONFIGURATION if it is none.
    """
    try:
        chains = json.loads(path.read_text())["chains"]
        return tuple(
            tuple(Place(NodeId(int(node)), int(disk)) for node, disk in chain) for chain in chains
        )
    except OSError as error:
        raise Error(Code.CONFIGURATION, f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError) as error:
        raise Error(
            Code.CONFIGURATION,
            f"{path}: is no chain table: write one with `hillfire placement --json > {path}`",
        ) from error
