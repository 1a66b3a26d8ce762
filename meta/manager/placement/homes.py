"""What placement is given: nodes with their disks, hosts and racks; and which numbers make a table.

Pure. A *unit* is what a chain has at most one target of, whatever else is asked for: a host where
the cluster has enough hosts, else a node. A *domain* is what may take replicas down together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.meta.manager.placement.shares import shares
from hillfire.types import NodeId

MAX_TARGETS_PER_NODE = 999
MAX_REPLICAS = 16
MAX_NODES = 4096
MAX_TARGETS = 1 << 16


class Domain(IntEnum):
    """What may fail as a whole; the wider, the safer."""

    NODE = 1
    HOST = 2
    RACK = 3


class Home(NamedTuple):
    """A storage node; without a label it is a host, or a rack, of its own."""

    node: NodeId
    disks: int = 1
    host: str = ""
    rack: str = ""

    def within(self, domain: Domain) -> tuple[str, int]:
        """Name the domain of a level that this node is in."""
        label = {Domain.NODE: "", Domain.HOST: self.host, Domain.RACK: self.rack}[domain]
        if domain is Domain.RACK and not label:
            return self.within(Domain.HOST)
        return (label, 0) if label else ("", self.node)


class Place(NamedTuple):
    """Where a target lies."""

    node: NodeId
    disk: int


def require(nodes: int, targets_per_node: int, replicas: int) -> None:
    """Refuse numbers that make no chain.

    Raises:
        Error: CONFIGURATION, naming what would do.
    """
    limits = (
        ("replicas", replicas, MAX_REPLICAS),
        ("targets_per_node", targets_per_node, MAX_TARGETS_PER_NODE),
        ("nodes", nodes, MAX_NODES),
        ("nodes x targets_per_node", nodes * targets_per_node, MAX_TARGETS),
    )
    for name, value, most in limits:
        if not 1 <= value <= most:
            raise Error(Code.CONFIGURATION, f"{name} = {value}: choose 1 to {most}")
    if nodes < replicas:
        raise Error(
            Code.CONFIGURATION,
            f"{replicas} replicas need {replicas} storage nodes, there are {nodes}: "
            f"start {replicas - nodes} more or ask for fewer replicas",
        )


@dataclass(frozen=True, slots=True)
class Levels:
    """What is kept apart: chains take one target of a unit, and ``most`` of a domain."""

    domain: Domain
    most: int
    units: tuple[tuple[Home, ...], ...]
    domain_of: tuple[int, ...]
    """of each unit, numbered from 0"""
    chains: int
    used: tuple[int, ...]
    """places of each unit that chains take"""


def levels(
    homes: Sequence[Home], targets_per_disk: int, replicas: int, domain: Domain | None
) -> Levels:
    """Choose what is kept apart: ``domain`` strictly, or as much as leaves no place empty.

    Without a ``domain`` racks are kept apart, else at most as many replicas as must be are in one
    rack; else hosts; else nodes. The first of these is taken that gives as many chains as nodes
    alone would.

    Raises:
        Error: CONFIGURATION if a chain would need more domains than there are.
    """
    if domain is not None:
        found = _levels(homes, targets_per_disk, replicas, domain, 1)
        names = {home.within(domain) for home in homes}
        if len(names) < replicas:
            word = domain.name.lower()
            shown = ", ".join(sorted(label or f"that of node {node}" for label, node in names))
            raise Error(
                Code.CONFIGURATION,
                f"{replicas} replicas on different {word}s need {replicas} {word}s, there are "
                f"{len(names)} ({shown}): add or label some, ask for fewer replicas, or keep "
                f"only {Domain(domain - 1).name.lower()}s apart",
            )
        return found
    nodes = _levels(homes, targets_per_disk, replicas, Domain.NODE, 1)
    racks = len({home.within(Domain.RACK) for home in homes})
    hosts = len({home.within(Domain.HOST) for home in homes})
    wishes = [(Domain.RACK, 1), (Domain.RACK, -(-replicas // racks)), (Domain.HOST, 1)]
    labelled = racks > 1 and any(home.rack for home in homes)
    for wish, most in wishes if labelled else wishes[2:]:
        if hosts >= replicas:
            found = _levels(homes, targets_per_disk, replicas, wish, most)
            if found.chains == nodes.chains:
                return found
    return nodes


def _levels(
    homes: Sequence[Home], targets_per_disk: int, replicas: int, domain: Domain, most: int
) -> Levels:
    unit = Domain.NODE if domain is Domain.NODE else Domain.HOST
    units: dict[tuple[str, int], list[Home]] = {}
    for home in homes:
        members = units.setdefault(home.within(unit), [])
        members.append(home)
        if home.rack != members[0].rack:
            raise Error(
                Code.CONFIGURATION,
                f"nodes {members[0].node} and {home.node} are on host {home.host} but in racks "
                f"{members[0].rack!r} and {home.rack!r}: give them the same `rack`",
            )
    numbers: dict[tuple[str, int], int] = {}
    domain_of = [
        numbers.setdefault(members[0].within(domain), len(numbers)) for members in units.values()
    ]
    room = [sum(home.disks for home in members) * targets_per_disk for members in units.values()]
    chains, used = shares(room, domain_of, most, replicas)
    return Levels(
        domain,
        most,
        tuple(tuple(members) for members in units.values()),
        tuple(domain_of),
        chains,
        tuple(used),
    )
