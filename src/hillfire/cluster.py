"""The cluster as plain data: nodes, targets, chains and the routing that everyone holds a copy of.

The manager decides these values, everyone else only reads them. They stand apart from the
protobuf messages that carry them (``proto/convert.py`` translates), so that the pure cores know
no message.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from hillfire.errors import Code, Error
from hillfire.types import ChainId, NodeId, TargetId


class NodeKind(IntEnum):
    """What a process serves."""

    META = 1
    STORAGE = 2


class PublicState(IntEnum):
    """A target's state as the manager publishes it, in the order that a chain lists its targets."""

    SERVING = 1
    LAST_SERVING = 2
    SYNCING = 3
    WAITING = 4
    OFFLINE = 5


class LocalState(IntEnum):
    """A target's state as its node reports it."""

    UP_TO_DATE = 1
    ONLINE = 2
    OFFLINE = 3


class Order(IntEnum):
    """Why the manager orders a target to leave service."""

    NONE = 0
    OFFLINE = 1
    """by an operator, until told otherwise"""
    DRAIN = 2
    """its node is drained"""
    ROTATE = 3
    """it comes back at its chain's tail, so that another one is head"""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a process listens."""

    grpc: str
    """``host:port``"""
    tcp: str
    """``host:port`` of the wire"""
    shm: str
    """path of the wire's UNIX socket, empty if there is none"""
    host: str
    """the boot id of the host, by which a peer knows that shared memory will do"""
    rdma: str = ""
    """``host:port`` where connections over RDMA are made, empty if there is no device"""


@dataclass(frozen=True, slots=True)
class Node:
    """One process. ``incarnation`` is a new number at each start."""

    id: NodeId
    kind: NodeKind
    endpoint: Endpoint
    incarnation: int
    alive: bool
    rack: str = ""
    """failure domain, as configured"""
    host: str = ""
    """the machine's name: failure domain"""
    disks: int = 1
    """over which its targets may be spread"""
    draining: bool = False
    """by an operator's command: its targets leave service, one chain at a time"""


@dataclass(frozen=True, slots=True)
class Target:
    """One replica's place on a disk: always the same node, always the same chain."""

    id: TargetId
    node: NodeId
    chain: ChainId
    disk: int
    state: PublicState
    local: LocalState
    used_bytes: int = 0
    capacity_bytes: int = 0
    device: int = 0
    """the file system that it lies on, unique on its host; 0: unknown"""
    reason: str = ""
    """why it does not serve, in words; empty if there is none to tell"""
    order: Order = Order.NONE
    """other than NONE: its node stops it at once, and reports it offline as long as that stands"""

    @property
    def withdrawn(self) -> bool:
        """Whether it has to leave service."""
        return self.order is not Order.NONE


@dataclass(frozen=True, slots=True)
class Chain:
    """An ordered list of targets, head first, with the version of the order and the states."""

    id: ChainId
    version: int
    targets: tuple[tuple[TargetId, PublicState], ...]
    min_serving: int = 1
    """how many replicas must serve for a write to be taken"""
    preferred: tuple[TargetId, ...] = ()
    """the order to come back to, head first; empty: any will do"""

    @property
    def serving(self) -> tuple[TargetId, ...]:
        """The targets that answer reads and acknowledge writes, head first."""
        return tuple(t for t, state in self.targets if state is PublicState.SERVING)

    @property
    def writable(self) -> tuple[TargetId, ...]:
        """The targets that a write passes through: the serving ones, then a syncing one."""
        through = (PublicState.SERVING, PublicState.SYNCING)
        return tuple(t for t, state in self.targets if state in through)

    def state_of(self, target: TargetId) -> PublicState:
        """Return a member's state; one that is not a member counts as offline."""
        return dict(self.targets).get(target, PublicState.OFFLINE)

    def successor(self, target: TargetId) -> TargetId | None:
        """Return the target that ``target`` forwards writes to, None for the last."""
        line = self.writable
        if target not in line or line.index(target) + 1 == len(line):
            return None
        return line[line.index(target) + 1]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sync is; totals are estimates until all of the source's records were compared."""

    bytes_done: int = 0
    bytes_total: int = 0
    chunks_done: int = 0
    chunks_total: int = 0
    bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing that an operator ordered: the manager keeps all of them."""

    number: int
    wall_ms: int
    """since 1970, by the manager's wall clock"""
    who: str
    what: str
    why: str
    version: int
    """of the routing that it led to"""
    chain: int = 0
    target: int = 0
    node: int = 0
    loss: bool = False
    """data may have been given up"""


@dataclass(frozen=True, slots=True)
class ChainTable:
    """The chains that new files choose theirs from."""

    id: int
    chains: tuple[ChainId, ...]


@dataclass(frozen=True, slots=True)
class Routing:
    """Everything that a client or a node needs in order to find data; versions only grow."""

    cluster: str
    version: int
    manager: Endpoint | None = None
    nodes: Mapping[NodeId, Node] = field(default_factory=dict)
    targets: Mapping[TargetId, Target] = field(default_factory=dict)
    chains: Mapping[ChainId, Chain] = field(default_factory=dict)
    tables: Mapping[int, ChainTable] = field(default_factory=dict)

    def chain(self, chain: ChainId) -> Chain:
        """Return a chain.

        Raises:
            Error: UNAVAILABLE if this routing does not know it (yet).
        """
        found = self.chains.get(chain)
        if found is None:
            raise Error(Code.UNAVAILABLE, f"chain {chain} is unknown at routing {self.version}")
        return found

    def node_of(self, target: TargetId) -> Node:
        """Return the node that holds a target.

        Raises:
            Error: UNAVAILABLE if this routing does not know it (yet).
        """
        found = self.targets.get(target)
        node = self.nodes.get(found.node) if found else None
        if node is None:
            raise Error(Code.UNAVAILABLE, f"no node of target {target} at routing {self.version}")
        return node

    def meta(self) -> Node:
        """Return a live metadata service.

        Raises:
            Error: UNAVAILABLE if none is known to live.
        """
        for node in self.nodes.values():
            if node.kind is NodeKind.META and node.alive:
                return node
        raise Error(Code.UNAVAILABLE, "no metadata service is up; see `hillfire status`")
