"""An operator's commands: from one routing to the next, with what to tell. Pure.

Each is refused where data would be out of reach or lost by it, but for one, which is there to give
up data: :func:`_accept_loss`. All are recorded with who gave them and why (:mod:`core`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from hillfire.cluster import Chain, NodeKind, Order, PublicState, Routing, Target
from hillfire.errors import Code, Error
from hillfire.meta.manager import chains, orders
from hillfire.meta.manager.events import Command, CommandKind
from hillfire.types import ChainId, NodeId, TargetId

SERVING = PublicState.SERVING
LAST_SERVING = PublicState.LAST_SERVING
OFFLINE = PublicState.OFFLINE

MAX_TEXT = 500
"""Characters of who, and of why."""


class Taken(NamedTuple):
    """A command that was taken."""

    routing: Routing
    """the same object if there was nothing to change"""
    what: str
    """for the record"""
    text: str
    """for the operator: what follows"""
    chain: int = 0
    target: int = 0
    node: int = 0
    loss: bool = False


def apply(routing: Routing, command: Command) -> Taken:
    """Carry a command out on a routing.

    Raises:
        Error: NOT_FOUND for what does not exist; CONFIGURATION for what must not be, with why.
    """
    if not command.who or len(command.who) > MAX_TEXT or len(command.why) > MAX_TEXT:
        raise Error(Code.INVALID, f"who and why have 1 to {MAX_TEXT} characters")
    return _DOES[command.kind](routing, command)


def _target_offline(routing: Routing, command: Command) -> Taken:
    target = _target(routing, command.target)
    what = f"target {target.id} offline"
    if target.order is Order.OFFLINE:
        return _taken(routing, what, f"target {target.id} is offline by command already", target)
    _require_not_last(routing, target)
    new = orders.with_orders(routing, {target.id: Order.OFFLINE})
    text = f"target {target.id} leaves chain {target.chain}"
    return _taken(new, what, text, target)


def _target_online(routing: Routing, command: Command) -> Taken:
    target = _target(routing, command.target)
    what = f"target {target.id} online"
    if target.order is Order.DRAIN:
        raise Error(
            Code.CONFIGURATION,
            f"target {target.id} is out because node {target.node} is drained: "
            f"`hillfire node undrain {target.node}` brings it back",
        )
    new = orders.with_orders(routing, {target.id: Order.NONE})
    text = f"target {target.id} comes back to chain {target.chain} through a sync"
    if new is routing:
        text = f"no command keeps target {target.id} offline"
        if target.reason:
            text += f"; its node says: {target.reason}"
    return _taken(new, what, text, target)


def _drain(routing: Routing, command: Command) -> Taken:
    return _draining(routing, command.node, True)


def _undrain(routing: Routing, command: Command) -> Taken:
    return _draining(routing, command.node, False)


def _draining(routing: Routing, id: NodeId, wanted: bool) -> Taken:
    node = routing.nodes.get(id)
    if node is None or node.kind is not NodeKind.STORAGE:
        known = ", ".join(str(n.id) for n in routing.nodes.values() if n.kind is NodeKind.STORAGE)
        raise Error(Code.NOT_FOUND, f"{id} is no storage node; there are {known or 'none yet'}")
    held = [t for t in routing.targets.values() if t.node == id]
    what = f"node {id} {'drain' if wanted else 'undrain'}"
    if node.draining is wanted:
        text = f"node {id} is {'drained already' if wanted else 'not drained'}"
        return Taken(routing, what, text, node=id)
    nodes = {**routing.nodes, id: replace(node, draining=wanted)}
    routing = replace(routing, version=routing.version + 1, nodes=nodes)
    text = f"{len(held)} targets of node {id} leave service, one chain at a time"
    if not wanted:
        back = {t.id: Order.NONE for t in held if t.order is Order.DRAIN}
        routing = orders.with_orders(routing, back)
        text = f"{len(back)} targets of node {id} come back, each through a sync"
    return Taken(routing, what, text, node=id)


def _prefer(routing: Routing, command: Command) -> Taken:
    chain = _chain(routing, command.chain)
    members = {target for target, _ in chain.targets}
    if set(command.order) != members or len(command.order) != len(members):
        named = " ".join(str(t) for t, _ in chain.targets)
        text = f"name each target of chain {chain.id} once, head first; it has {named}"
        raise Error(Code.CONFIGURATION, text)
    what = f"chain {chain.id} prefer {' '.join(map(str, command.order))}"
    text = f"chain {chain.id} prefers this order"
    if chain.serving[:1] != command.order[:1]:
        text += f"; `hillfire chain rotate {chain.id}` makes {command.order[0]} its head"
    return _with_chain(routing, replace(chain, preferred=command.order), what, text)


def _rotate(routing: Routing, command: Command) -> Taken:
    chain = _chain(routing, command.chain)
    what = f"chain {chain.id} rotate"
    if not chain.preferred or chain.serving[:1] == chain.preferred[:1]:
        return Taken(routing, what, f"chain {chain.id} has the head that it prefers", chain.id)
    head = orders.to_rotate(routing, chain, 2)
    if head is None:
        raise Error(
            Code.CONFIGURATION,
            f"chain {chain.id} cannot spare its head now: all of its targets have to serve, and "
            f"more than {max(1, chain.min_serving)}",
        )
    new = orders.with_orders(routing, {head: Order.ROTATE})
    text = f"target {head} leaves chain {chain.id}'s head and comes back at its tail"
    return Taken(new, what, text, chain.id, head)


def _min_serving(routing: Routing, command: Command) -> Taken:
    chain = _chain(routing, command.chain)
    if not 1 <= command.min_serving <= len(chain.targets):
        text = f"min_serving = {command.min_serving}: choose 1 to {len(chain.targets)}"
        raise Error(Code.CONFIGURATION, text)
    what = f"chain {chain.id} min-serving {command.min_serving}"
    text = f"chain {chain.id} takes writes while {command.min_serving} of its targets serve"
    if chain.min_serving == command.min_serving:
        return Taken(routing, what, text, chain.id)
    # A new version, so that every replica acts on it; a chain that has never served has none yet.
    grows = chain.version != chains.NEW_CHAIN_VERSION
    changed = replace(chain, version=chain.version + grows, min_serving=command.min_serving)
    return _with_chain(routing, changed, what, text)


def _accept_loss(routing: Routing, command: Command) -> Taken:
    """Give up a last-serving target (R70): what only it has is lost, and another one serves.

    Source: design.md section 5 ("Giving up on a last-serving target is an explicit, recorded
    command").
    """
    chain = _chain(routing, command.chain)
    state = dict(chain.targets).get(command.target)
    if state is not LAST_SERVING:
        holders = [str(t) for t, s in chain.targets if s is LAST_SERVING]
        has = f"its last-serving targets are {', '.join(holders)}" if holders else "it serves"
        raise Error(
            Code.CONFIGURATION,
            f"target {command.target} is not last-serving in chain {chain.id}: {has}, "
            "so there is nothing to give up",
        )
    states = dict(chain.targets)
    states[command.target] = OFFLINE
    others = [t for t, s in states.items() if s is LAST_SERVING]
    what = f"chain {chain.id} accept-loss: target {command.target} given up"
    if command.successor or not others:
        successor = command.successor or _most_recent(routing, chain, command.target)
        if successor not in states or successor == command.target:
            text = f"target {successor} cannot serve chain {chain.id} instead"
            raise Error(Code.CONFIGURATION, text)
        states[successor] = LAST_SERVING
        others.append(successor)
        what += f", {successor} serves instead"
    members = tuple(sorted(states.items(), key=lambda member: member[1]))
    changed = replace(chain, version=chain.version + 1, targets=members)
    chains.check(changed)
    text = (
        f"target {command.target} is given up; chain {chain.id} serves with what "
        f"{' or '.join(map(str, others))} has, once it is there"
    )
    taken = _with_chain(routing, changed, what, text)
    return taken._replace(target=command.target, loss=True)


def _most_recent(routing: Routing, chain: Chain, lost: TargetId) -> TargetId:
    """Choose who serves instead: who was nearest to being up to date, rather one that lives."""
    others = [(t, s) for t, s in chain.targets if t != lost]
    if not others:
        raise Error(
            Code.CONFIGURATION,
            f"chain {chain.id} has no other target: its data is on target {lost} only, bring that "
            "one's disk back",
        )

    def alive(target: TargetId) -> bool:
        node = routing.nodes.get(routing.targets[target].node)
        return node is not None and node.alive

    return min(others, key=lambda member: (not alive(member[0]), member[1]))[0]


def _require_not_last(routing: Routing, target: Target) -> None:
    """Refuse to take away the last target of a chain that serves, or that has the data."""
    chain = routing.chains[target.chain]
    state = chain.state_of(target.id)
    if state is LAST_SERVING:
        raise Error(
            Code.CONFIGURATION,
            f"target {target.id} alone has the newest data of chain {chain.id}; to give it up: "
            f"`hillfire chain accept-loss {chain.id} --target {target.id}`",
        )
    if state is not SERVING or target.withdrawn:
        return
    left = orders.spare(routing, chain) - 1
    if left < 0:
        need = max(1, chain.min_serving)
        raise Error(
            Code.CONFIGURATION,
            f"chain {chain.id} would serve no more, or take no writes: it needs {need} serving "
            f"and has {need + left + 1}; wait until another target serves",
        )


def _target(routing: Routing, id: TargetId) -> Target:
    target = routing.targets.get(id)
    if target is None:
        raise Error(Code.NOT_FOUND, f"there is no target {id}; see `hillfire chain list`")
    return target


def _chain(routing: Routing, id: ChainId) -> Chain:
    chain = routing.chains.get(id)
    if chain is None:
        raise Error(Code.NOT_FOUND, f"there is no chain {id}; see `hillfire chain list`")
    return chain


def _taken(routing: Routing, what: str, text: str, target: Target) -> Taken:
    return Taken(routing, what, text, target.chain, target.id, target.node)


def _with_chain(routing: Routing, chain: Chain, what: str, text: str) -> Taken:
    if routing.chains[chain.id] == chain:
        return Taken(routing, what, text, chain.id)
    changed = {**routing.chains, chain.id: chain}
    targets = {
        t: replace(routing.targets[t], state=state)
        for t, state in chain.targets
        if routing.targets[t].state is not state
    }
    new = replace(
        routing,
        version=routing.version + 1,
        chains=changed,
        targets={**routing.targets, **targets},
    )
    return Taken(new, what, text, chain.id)


_DOES: dict[CommandKind, Callable[[Routing, Command], Taken]] = {
    CommandKind.TARGET_OFFLINE: _target_offline,
    CommandKind.TARGET_ONLINE: _target_online,
    CommandKind.NODE_DRAIN: _drain,
    CommandKind.NODE_UNDRAIN: _undrain,
    CommandKind.CHAIN_PREFER: _prefer,
    CommandKind.CHAIN_ROTATE: _rotate,
    CommandKind.CHAIN_MIN_SERVING: _min_serving,
    CommandKind.CHAIN_ACCEPT_LOSS: _accept_loss,
}
