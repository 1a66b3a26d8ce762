"""What the operator's commands do: order it, wait until the routing shows it, tell.

The manager decides and refuses; here is only what a person needs: who asks, a question before data
is at stake, progress, and what to do next.
"""

import getpass
import json
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer

from hillfire.cli.connect import connect_manager, last_cluster
from hillfire.cli.decisions import MAX_DECISIONS, fetch_decisions, line
from hillfire.cli.report import node_name
from hillfire.cluster import Chain, NodeKind, Order, PublicState, Routing, Target
from hillfire.errors import Code, Error
from hillfire.local.directory import ClusterDirectory
from hillfire.proto import convert
from hillfire.proto import manager_pb2 as pb
from hillfire.proto.service import decode, encode, method
from hillfire.proto.wire.base import BlockingConnection
from hillfire.types import ChainId, NodeId, TargetId

CALL_TIMEOUT_S = 10.0
POLL_MS = 1000
SHOWN_DECISIONS = 5
UNFINISHED = 2
"""Exit status when what was ordered is not done in time."""

_GET_ROUTING = method("Manager", "GetRouting")
_COMMAND = method("Manager", "Command")

SERVING, SYNCING = PublicState.SERVING, PublicState.SYNCING


class Place(NamedTuple):
    """Which cluster, and how to answer."""

    directory: Path | None
    address: str | None
    json: bool

    @property
    def where(self) -> str:
        """The manager's address.

        Raises:
            Error: NOT_FOUND, CONFIGURATION if there is no such cluster.
        """
        if self.directory is not None:
            return ClusterDirectory(self.directory).shape().address
        return self.address or last_cluster()


class Session:
    """One command's talk with the manager."""

    def __init__(self, place: Place) -> None:
        """Connect."""
        self.place = place
        self.connection: BlockingConnection = connect_manager(place.where)

    def __enter__(self) -> "Session":
        """Return itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the connection."""
        self.connection.close()

    def call(self, called: Any, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Call an rpc."""
        ticket = self.connection.start(encode(called, request), timeout_s)
        return decode(called, self.connection.finish(ticket, timeout_s))

    def routing(self, known: int = 0) -> Routing:
        """Return the routing, once it is newer than ``known`` or a second has passed."""
        request = pb.GetRoutingRequest(known_version=known, wait_ms=POLL_MS if known else 0)
        return convert.routing_from_message(self.call(_GET_ROUTING, request))

    def order(self, kind: "pb.CommandKind.ValueType", why: str, **fields: Any) -> str:
        """Give a command; return what the manager says of it."""
        request = pb.CommandRequest(kind=kind, who=who(), why=why, **fields)
        reply = self.call(_COMMAND, request)
        text: str = reply.text
        if not self.place.json:
            print(text)
        return text

    def follow(
        self, wait_s: float, done: Callable[[Routing], bool], progress: Callable[[Routing], str]
    ) -> tuple[Routing, bool]:
        """Wait until the routing shows it; print how far it is whenever that changes."""
        deadline = time.monotonic() + wait_s
        routing, told = self.routing(), ""
        while not done(routing) and time.monotonic() < deadline:
            if not self.place.json and (text := progress(routing)) != told:
                print(f"  {text}", flush=True)
                told = text
            routing = self.routing(routing.version)
        return routing, done(routing)

    def decisions(self, count: int) -> list[dict[str, Any]]:
        """Return the latest of the operators' decisions."""
        return fetch_decisions(self.connection, count)


def who() -> str:
    """Return who gives the command."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def complete(directory: Path | None, address: str | None, what: str, begun: str) -> list[str]:
    """Return numbers or names of chains, targets or nodes that begin so; on trouble none."""
    try:
        with Session(Place(directory, address, True)) as session:
            routing = session.routing()
    except (Error, OSError):
        return []
    names = {
        "targets": [str(target) for target in routing.targets],
        "chains": [str(chain) for chain in routing.chains],
        "nodes": [
            node_name(n.kind, n.id) for n in routing.nodes.values() if n.kind is NodeKind.STORAGE
        ],
    }
    return [name for name in names[what] if name.startswith(begun)]


# ---------------------------------------------------------------------- targets


def run_target(
    place: Place, target: int, online: bool, why: str, *, yes: bool, wait_s: float
) -> None:
    """Take a target out of service, or back."""
    id = TargetId(target)
    with Session(place) as session:
        routing = session.routing()
        if not online:
            _confirm_offline(routing, id, yes)
        kind = pb.TARGET_ONLINE if online else pb.TARGET_OFFLINE
        text = session.order(kind, why, target=target)

        def done(routing: Routing) -> bool:
            state = routing.targets[id].state
            return state is SERVING if online else state not in (SERVING, SYNCING)

        def progress(routing: Routing) -> str:
            found = routing.targets[id]
            reason = f": {found.reason}" if found.reason and online else ""
            return f"target {id} is {_word(found.state)}{reason}"

        routing, finished = session.follow(wait_s, done, progress)
        _tell(
            place, text, finished or not wait_s, [_target(routing.targets[id])], progress(routing)
        )


def _confirm_offline(routing: Routing, id: TargetId, yes: bool) -> None:
    target = routing.targets.get(id)
    if target is None or target.state is not SERVING:
        return
    left = len(routing.chains[target.chain].serving) - 1
    if left == 1:
        _confirm(
            f"Only one replica of chain {target.chain} serves then: what is written meanwhile "
            "is on one disk. Take the target offline?",
            yes,
        )


# ---------------------------------------------------------------------- nodes


def run_drain(place: Place, node: str, why: str, *, wait_s: float) -> None:
    """Drain a node, and show how its targets leave."""
    id = _node_number(node)
    with Session(place) as session:
        text = session.order(pb.NODE_DRAIN, why, node=id)

        def left(routing: Routing) -> list[Target]:
            held = (t for t in routing.targets.values() if t.node == id)
            return [t for t in held if t.state is not PublicState.OFFLINE]

        def progress(routing: Routing) -> str:
            held = sum(t.node == id for t in routing.targets.values())
            staying = left(routing)
            if not staying:
                return f"all {held} targets are out: the node may be stopped"
            said = f"{held - len(staying)} of {held} targets are out"
            if not any(t.withdrawn for t in staying):
                said += "; " + _waits_for(routing, staying[0])
            return said

        routing, finished = session.follow(wait_s, lambda r: not left(r), progress)
        held = [_target(t) for t in routing.targets.values() if t.node == id]
        _tell(place, text, finished or not wait_s, held, progress(routing))


def run_undrain(place: Place, node: str, why: str, *, wait_s: float) -> None:
    """Bring a drained node back."""
    id = _node_number(node)
    with Session(place) as session:
        text = session.order(pb.NODE_UNDRAIN, why, node=id)

        def out(routing: Routing) -> list[Target]:
            held = (t for t in routing.targets.values() if t.node == id)
            return [t for t in held if t.state is not SERVING]

        def progress(routing: Routing) -> str:
            held = sum(t.node == id for t in routing.targets.values())
            node = routing.nodes.get(NodeId(id))
            if node is not None and not node.alive:
                return f"the node is down: start it, its {held} targets then come back"
            return f"{held - len(out(routing))} of {held} targets serve"

        routing, finished = session.follow(wait_s, lambda r: not out(r), progress)
        held = [_target(t) for t in routing.targets.values() if t.node == id]
        _tell(place, text, finished or not wait_s, held, progress(routing))


def _waits_for(routing: Routing, target: Target) -> str:
    chain = routing.chains[target.chain]
    others = len(chain.serving) - (target.state is SERVING)
    need = max(1, chain.min_serving)
    if others < need:
        return f"chain {chain.id} has {others} other serving targets and needs {need}: waiting"
    return f"target {target.id} is next"


def _node_number(name: str) -> int:
    number = name.removeprefix("storage-")
    if not number.isdigit():
        text = f"{name!r} is no storage node: name it like storage-102, or 102"
        raise Error(Code.CONFIGURATION, text)
    return int(number)


# ---------------------------------------------------------------------- chains


def run_chain_list(place: Place, only: int | None) -> None:
    """Print all chains, or one with all that is known of it."""
    with Session(place) as session:
        routing = session.routing()
        chains = sorted(routing.chains.values(), key=lambda chain: chain.id)
        if only is None:
            found = [_chain(routing, chain) for chain in chains]
            print(json.dumps(found, indent=2)) if place.json else _print_chains(found)
            return
        chain = routing.chains.get(ChainId(only))
        if chain is None:
            raise Error(Code.NOT_FOUND, f"there is no chain {only}; see `hillfire chain list`")
        one = _chain(routing, chain)
        held = {target["id"] for target in one["targets"]}
        one["decisions"] = [
            decision
            for decision in session.decisions(MAX_DECISIONS)
            if decision["chain"] == only or decision["target"] in held
        ]
        print(json.dumps(one, indent=2)) if place.json else _print_chain(one)


def run_prefer(place: Place, chain: int, targets: Sequence[int], why: str) -> None:
    """Choose a chain's preferred order."""
    with Session(place) as session:
        text = session.order(pb.CHAIN_PREFER, why, chain=chain, order=targets)
        _tell(place, text, True, [_chain(session.routing(), _found(session, chain))], "")


def run_rotate(place: Place, chain: int, why: str, *, wait_s: float) -> None:
    """Send a chain's head to its tail."""
    with Session(place) as session:
        before = _found(session, chain)
        text = session.order(pb.CHAIN_ROTATE, why, chain=chain)
        moved = before.serving[0] if before.serving else None

        def done(routing: Routing) -> bool:
            now = routing.chains[before.id]
            return (
                now.serving[:1] == before.preferred[:1]
                or (moved is not None and now.serving[-1:] == (moved,))
            ) and len(now.serving) == len(now.targets)

        def progress(routing: Routing) -> str:
            states = (f"{t} {_word(s)}" for t, s in routing.chains[before.id].targets)
            return f"chain {chain}: {', '.join(states)}"

        routing, finished = session.follow(wait_s, done, progress)
        shown = [_chain(routing, routing.chains[before.id])]
        _tell(place, text, finished or not wait_s, shown, progress(routing))


def run_min_serving(place: Place, chain: int, replicas: int, why: str) -> None:
    """Choose how many replicas a chain's writes need."""
    with Session(place) as session:
        text = session.order(pb.CHAIN_MIN_SERVING, why, chain=chain, min_serving=replicas)
        _tell(place, text, True, [_chain(session.routing(), _found(session, chain))], "")


def run_accept_loss(
    place: Place, chain: int, target: int, serve: int, why: str, *, yes: bool
) -> None:
    """Give up a last-serving target, once the operator has said so twice."""
    with Session(place) as session:
        found = _found(session, chain)
        if dict(found.targets).get(TargetId(target)) is PublicState.LAST_SERVING:
            _confirm(
                f"Target {target} alone has the newest data of chain {chain}. Giving it up loses "
                "acknowledged writes, for good. Give it up?",
                yes,
            )
        text = session.order(pb.CHAIN_ACCEPT_LOSS, why, chain=chain, target=target, successor=serve)
        _tell(place, text, True, [_chain(session.routing(), _found(session, chain))], "")


def run_log(place: Place, count: int) -> None:
    """Print the latest decisions."""
    with Session(place) as session:
        found = session.decisions(count)
    if place.json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print("no operator has ordered anything yet")
    for decision in found:
        print(line(decision))


# ---------------------------------------------------------------------- shown


def _tell(place: Place, text: str, finished: bool, shown: list[dict[str, Any]], last: str) -> None:
    """Print the end of a command; exit 2 if what was ordered is not done yet."""
    if place.json:
        print(json.dumps({"said": text, "done": finished, "now": shown}, indent=2))
    elif last:
        print(last)
    if not finished:
        if not place.json:
            print("not done yet; it goes on by itself: `hillfire status` shows it", file=sys.stderr)
        sys.exit(UNFINISHED)


def _confirm(question: str, yes: bool) -> None:
    """Ask a person; refuse if there is none and nobody has said yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Error(Code.CONFIGURATION, f"{question} Say so with --yes")
    typer.confirm(question, abort=True)


def _found(session: Session, chain: int) -> Chain:
    routing = session.routing()
    found = routing.chains.get(ChainId(chain))
    if found is None:
        raise Error(Code.NOT_FOUND, f"there is no chain {chain}; see `hillfire chain list`")
    return found


def _word(state: PublicState) -> str:
    return state.name.lower().replace("_", "-")


def _target(target: Target) -> dict[str, Any]:
    return {
        "id": int(target.id),
        "node": int(target.node),
        "chain": int(target.chain),
        "state": _word(target.state),
        "ordered": None if target.order is Order.NONE else target.order.name.lower(),
        "reason": target.reason,
    }


def _chain(routing: Routing, chain: Chain) -> dict[str, Any]:
    return {
        "id": int(chain.id),
        "version": chain.version,
        "min_serving": chain.min_serving,
        "preferred": [int(target) for target in chain.preferred],
        "targets": [_target(routing.targets[target]) for target, _ in chain.targets],
    }


def _print_chains(chains: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("chain", "version", "targets, head first (target@node)"):
        table.add_column(column)
    for chain in chains:
        members = (f"{t['id']}@{t['node']} {t['state']}{_mark(t)}" for t in chain["targets"])
        table.add_row(str(chain["id"]), str(chain["version"]), "  ".join(members))
    Console().print(table)


def _mark(target: dict[str, Any]) -> str:
    return f" ({target['ordered']})" if target["ordered"] else ""


def _print_chain(chain: dict[str, Any]) -> None:
    print(f"chain {chain['id']}, version {chain['version']}")
    print(f"writes need {chain['min_serving']} serving")
    print(f"preferred order: {' '.join(map(str, chain['preferred'])) or 'any'}")
    for target in chain["targets"]:
        by = f", ordered: {target['ordered']}" if target["ordered"] else ""
        reason = f": {target['reason']}" if target["reason"] else ""
        print(f"  {target['id']} on node {target['node']}  {target['state']}{by}{reason}")
    for decision in chain["decisions"][-SHOWN_DECISIONS:]:
        print(f"  {line(decision)}")
