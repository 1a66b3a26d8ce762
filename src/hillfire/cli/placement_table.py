"""A chain table made in a person's own process, and as a file.

Here the solver may be loaded and take its time; the manager never does that, it checks the table.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hillfire.cluster import Routing
from hillfire.errors import Code, Error
from hillfire.meta.manager.decide import home_of
from hillfire.meta.manager.placement import Domain, Home, Place, Plan, make_plan
from hillfire.meta.manager.placement.evenness import Evenness, evenness
from hillfire.meta.manager.placement.solver import available
from hillfire.types import NodeId


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


def existing(routing: Routing) -> Made:
    """Return the table that a cluster has, judged; its chains in their preferred order.

    Raises:
        Error: NOT_FOUND if it has none.
    """
    if not routing.chains:
        raise Error(
            Code.NOT_FOUND,
            "this cluster has no chains yet: `hillfire create-chains` makes them, and without "
            "--address this command shows what they would be",
        )
    targets = routing.targets
    nodes = sorted({target.node for target in targets.values()})
    homes = tuple(home_of(routing.nodes[node]) for node in nodes)
    chains = tuple(
        tuple(
            Place(targets[target].node, targets[target].disk)
            for target in chain.preferred or [target for target, _ in chain.targets]
        )
        for _, chain in sorted(routing.chains.items())
    )
    count = Counter(place for chain in chains for place in chain)
    domain = max(level for level in Domain if level is Domain.NODE or _apart(homes, chains, level))
    replicas = max(map(len, chains))
    plan = Plan(homes, max(count.values()), replicas, domain, 1, chains, "", False)
    return Made(plan, 0.0, evenness(plan), True)


def _apart(homes: Sequence[Home], chains: Sequence[Sequence[Place]], level: Domain) -> bool:
    """Whether every chain keeps its replicas apart by a level (racks count if they are named)."""
    if level is Domain.RACK and not any(home.rack for home in homes):
        return False
    within = {home.node: home.within(level) for home in homes}
    return all(len({within[place.node] for place in chain}) == len(chain) for chain in chains)


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
