"""What can happen to a manager, and what it wants done: the alphabet of :mod:`core`. Pure.

Events carry the manager's clock; ``request`` is a number that the shell gave to whoever asks, and
that the answering effect names again.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from hillfire.cluster import Decision, Endpoint, Node, Routing
from hillfire.errors import Code
from hillfire.meta.manager.decide import Status, Wish
from hillfire.types import ChainId, NodeId, TargetId

FOREVER = 1 << 62
"""A leader's lease where there is one manager only."""


class CommandKind(IntEnum):
    """What an operator can order."""

    TARGET_OFFLINE = 1
    TARGET_ONLINE = 2
    NODE_DRAIN = 3
    NODE_UNDRAIN = 4
    CHAIN_PREFER = 5
    CHAIN_ROTATE = 6
    CHAIN_ACCEPT_LOSS = 7
    CHAIN_MIN_SERVING = 8


class Command(NamedTuple):
    """An operator's order; each kind uses the fields that it names."""

    kind: CommandKind
    who: str
    why: str
    target: TargetId = TargetId(0)
    node: NodeId = NodeId(0)
    chain: ChainId = ChainId(0)
    order: tuple[TargetId, ...] = ()
    successor: TargetId = TargetId(0)
    min_serving: int = 0


# ---------------------------------------------------------------------- events


class Announced(NamedTuple):
    """Begin: the manager listens at ``endpoint``."""

    now_ns: int
    endpoint: Endpoint


class Led(NamedTuple):
    """The lease as leader was renewed, until ``until_ns`` on the own clock."""

    now_ns: int
    until_ns: int


class Tick(NamedTuple):
    """Time has passed."""

    now_ns: int


class Registered(NamedTuple):
    """A process announces itself; ``exclusive``: it holds the lock of its data directory."""

    now_ns: int
    request: int
    node: Node
    cluster: str
    exclusive: bool


class Heartbeat(NamedTuple):
    """A process lives, says how its targets are, and asks which idle clients' sessions ended."""

    now_ns: int
    request: int
    node: NodeId
    incarnation: int
    known_version: int
    said: Mapping[TargetId, Status]
    idle_clients: Sequence[int] = ()


class ExitAttested(NamedTuple):
    """A supervisor saw a process end."""

    now_ns: int
    request: int
    node: NodeId
    incarnation: int


class ChainsWanted(NamedTuple):
    """Somebody wants the cluster's chains placed."""

    now_ns: int
    request: int
    wish: Wish
    who: str
    wall_ms: int


class Planned(NamedTuple):
    """A ``Plan`` was carried out: what ``with_chains`` returned, or the error that it raised."""

    now_ns: int
    request: int
    routing: Routing | None
    code: Code = Code.OK
    text: str = ""


class Commanded(NamedTuple):
    """An operator orders something; ``wall_ms`` is for the record only."""

    now_ns: int
    request: int
    command: Command
    wall_ms: int


class SessionCame(NamedTuple):
    """A client lives, or says that it retries nothing any more."""

    now_ns: int
    request: int
    client: int
    end: bool


class Stored(NamedTuple):
    """A ``Save`` is on the disk."""

    now_ns: int
    save: int


class StoreFailed(NamedTuple):
    """A ``Save`` failed: it may be on the disk or not."""

    now_ns: int
    save: int
    code: Code
    text: str


Event = (
    Announced
    | Led
    | Tick
    | Registered
    | Heartbeat
    | ExitAttested
    | ChainsWanted
    | Planned
    | Commanded
    | SessionCame
    | Stored
    | StoreFailed
)

# ---------------------------------------------------------------------- effects


class Registration(NamedTuple):
    """Answers ``Registered``: take this routing; no lease yet."""

    routing: Routing


class Beat(NamedTuple):
    """Answers ``Heartbeat``: act on the routing, if there is one, then extend the lease."""

    routing: Routing | None
    ended_clients: tuple[int, ...]


class Done(NamedTuple):
    """Answers everything else; ``routing`` shows what was asked for as taken."""

    routing: Routing
    text: str = ""


class Answer(NamedTuple):
    """Tell whoever asked."""

    request: int
    reply: Registration | Beat | Done


class Refuse(NamedTuple):
    """Tell whoever asked that it cannot be, and why."""

    request: int
    code: Code
    text: str


class Save(NamedTuple):
    """Store durably, if this manager still leads; then say ``Stored`` or ``StoreFailed``."""

    save: int
    routing: Routing
    decisions: tuple[Decision, ...]


class Publish(NamedTuple):
    """Everybody may see this routing now."""

    routing: Routing


class Plan(NamedTuple):
    """Compute ``decide.with_chains(routing, wish)``, which may take long; then say ``Planned``."""

    request: int
    routing: Routing
    wish: Wish


class Log(NamedTuple):
    """Tell the operator; ``severe`` asks for a person."""

    text: str
    severe: bool = False


class Wake(NamedTuple):
    """Send a ``Tick`` soon: something waits to be decided."""


class Ended(NamedTuple):
    """Lead no more, for good."""

    code: Code
    text: str


Effect = Answer | Refuse | Save | Publish | Plan | Log | Wake | Ended
