"""Manager: the cluster manager's mind as a pure machine, events in, effects out.

It holds what is published, who was heard of when, what they said, who asked for what and waits.
The shell (``service.py``) and the simulator drive this one class.

Everything that changes the routing goes through one place, :meth:`Manager._advance`: it takes all
that is known and all that was asked for together, makes one routing of it, has that stored, and
only then lets anybody see it. Between the decision that a node is dead and its publication the
node is *condemned*: none of its heartbeats is answered, so that it cannot gain a lease that
outlives its removal.

Source: design.md section 5, Leases and States; Gray & Cheriton, "Leases" (SOSP 1989).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from hillfire.cluster import Decision, Endpoint, Node, Order, PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.meta.manager import changes, commands, decide, orders
from hillfire.meta.manager import events as ev
from hillfire.meta.manager.chains import OnRow, Report
from hillfire.meta.manager.decide import Status
from hillfire.meta.manager.lease import Admission, Leases, admission
from hillfire.meta.manager.sessions import Sessions
from hillfire.types import ChainId, NodeId, TargetId

NS_PER_S = 1_000_000_000
MAX_ENDED = 64
"""Ended incarnations remembered a node, to refuse what they may have left in the network."""
MAX_WAITING = 10_000
"""Requests that wait for a decision."""
MAX_DECISIONS = 1_000
"""The latest operators' decisions, kept at hand."""
SPACE_INTERVAL_NS = 2 * NS_PER_S
"""How often the targets' use of space may be published anew."""
STORE_RETRY_NS = NS_PER_S
SETTLE_MARGIN_NS = 5 * NS_PER_S
"""How much longer than a lease a registration waits until its predecessor's death is stored."""
MAX_TICK_NS = 50_000_000
CALM_LEASES = 5
"""Chains are rotated by themselves once none has changed, but by that, for so many leases."""


class Settings(NamedTuple):
    """What the machine has to know of its configuration."""

    lease_ns: int
    session_ns: int = 600 * NS_PER_S
    name: str = "this manager"
    """for messages: where it keeps its data"""
    rotate: bool = True
    """bring preferred heads back by itself"""

    @property
    def tick_ns(self) -> int:
        """How often the shell has to send a ``Tick`` at least."""
        return min(MAX_TICK_NS, self.lease_ns // 8)


_Asked = ev.Registered | ev.Commanded | ev.ChainsWanted | ev.Planned
_REQUESTS = (
    ev.Registered,
    ev.Heartbeat,
    ev.ExitAttested,
    ev.ChainsWanted,
    ev.Planned,
    ev.Commanded,
    ev.SessionCame,
)


class _Waits(NamedTuple):
    """A request in the queue."""

    asked: _Asked
    until_ns: int


class _Draft:
    """The routing that is being made, and what follows once it is stored."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self.answers: list[ev.Answer] = []
        self.decisions: list[Decision] = []
        self.dead: set[NodeId] = set()
        """whom it declares dead"""
        self.registered: list[Node] = []
        self.attested: list[int] = []


class Manager:
    """One manager's mind. ``handle`` is the only way to change it."""

    routing: Routing
    """as it is published"""

    def __init__(
        self,
        settings: Settings,
        routing: Routing,
        decisions: tuple[Decision, ...],
        now_ns: int,
        led_until_ns: int = ev.FOREVER,
        on_row: OnRow = None,
        on_rule: Callable[[int], None] | None = None,
    ) -> None:
        """Begin with what the last manager stored, every node that was alive given a full lease.

        Nothing is answered before ``Announced``. ``on_row`` is told which rows of the state table
        decided something, ``on_rule`` which of ``rules.RULES``.
        """
        self._on_row = on_row
        self._on_rule = on_rule
        self.settings = settings
        self.routing = routing
        self.decisions = deque(decisions, maxlen=MAX_DECISIONS)
        self.said: dict[TargetId, Status] = {}
        """what each live node said last of its targets"""
        self.leases = Leases(settings.lease_ns, now_ns)
        self.sessions = Sessions(settings.session_ns, now_ns)
        self.ended: ev.Ended | None = None
        """why it leads no more"""
        self._now_ns = now_ns
        self._led_until_ns = led_until_ns
        self._announced = False
        self._endpoint: Endpoint | None = None
        self._condemned: frozenset[NodeId] = frozenset()
        self._gone: dict[NodeId, deque[int]] = {}
        self._ordered_ns: dict[TargetId, int] = {}
        self._waiting: deque[_Waits] = deque()
        self._attested: list[int] = []
        self._saving: _Draft | None = None
        self._saves = 0
        self._planning: dict[int, ev.ChainsWanted] = {}
        self._retry_ns = 0
        self._space_ns = 0
        self._changed_ns = now_ns
        self._rotating: set[ChainId] = set()
        self._evaluated: frozenset[NodeId] | None = None
        self._dirty = True
        self._out: list[ev.Effect] = []
        self._number = max((d.number for d in decisions), default=0)
        self._recall()

    def __repr__(self) -> str:
        """Tell how it stands."""
        state = "ended" if self.ended else "saving" if self._saving else "announced"
        return f"<Manager at {self.routing.version} {state} {self.leases!r}>"

    def leads(self, now_ns: int) -> bool:
        """Whether it may answer and decide at this moment."""
        return self.ended is None and self._announced and now_ns < self._led_until_ns

    def refusal(self, now_ns: int) -> Error | None:
        """Return why it may not answer at this moment; None if it may."""
        return None if self.leads(now_ns) else self._why_not()

    def handle(self, event: ev.Event) -> list[ev.Effect]:
        """Take an event; return what has to be done, in this order."""
        now_ns = self._now_ns = max(self._now_ns, event.now_ns)
        self._out = []
        if self.leases.look(now_ns):
            self._rule(64)
        if isinstance(event, _REQUESTS) and not self.leads(now_ns):
            if self._announced:
                self._rule(65)
            self._refuse(event.request, self._why_not())
        else:
            _DOES[type(event)](self, event)
        out, self._out = self._out, []
        return out

    # ------------------------------------------------------------------ leading

    def _on_announced(self, event: ev.Announced) -> None:
        self._endpoint = event.endpoint
        self._announced = True
        self._advance()

    def _on_led(self, event: ev.Led) -> None:
        lapsed = self._now_ns >= self._led_until_ns
        self._led_until_ns = max(self._led_until_ns, event.until_ns)
        if lapsed and self.ended is None:
            # Nobody was answered meanwhile: as after a pause, each has a full lease from now.
            self._out.append(ev.Log("event=lease_regained"))
            self._grant()
            self.sessions.forgive(self._now_ns)
            self._advance()

    def _on_tick(self, event: ev.Tick) -> None:
        self.sessions.sweep(self._now_ns)
        self._advance()

    def _why_not(self) -> Error:
        if self.ended is not None:
            return Error(Code.NOT_LEADER, self.ended.text)
        if not self._announced:
            return Error(Code.UNAVAILABLE, "the manager is starting: try again")
        return Error(Code.NOT_LEADER, "this manager's lease as leader is over: try again")

    def _end_for_good(self, code: Code, text: str) -> None:
        """Lead no more; whoever waits is told."""
        self.ended = ev.Ended(code, text)
        for each in self._waiting:
            self._refuse(each.asked.request, self._why_not())
        self._waiting.clear()
        self._out.append(self.ended)

    # ------------------------------------------------------------------ nodes

    def _on_registered(self, event: ev.Registered) -> None:
        """Enter a process; when it replaces another, that one's death is published with it."""
        node = event.node
        if event.cluster not in ("", self.routing.cluster):
            text = (
                f"node {node.id} belongs to cluster {event.cluster}, but the manager in "
                f"{self.settings.name} serves cluster {self.routing.cluster}: give it that "
                "cluster's manager, or a new directory"
            )
            return self._refuse(event.request, Error(Code.WRONG_CLUSTER, text))
        self._enqueue(event)

    def _on_heartbeat(self, event: ev.Heartbeat) -> None:
        """Extend a node's lease and note what it says of its targets."""
        id, routing = event.node, self.routing
        node = routing.nodes.get(id)
        if node is None:
            text = f"node {id} is not known in cluster {routing.cluster}: register first"
            return self._refuse(event.request, Error(Code.NOT_FOUND, text))
        if event.incarnation in self._gone.get(id, ()):
            return self._refuse(event.request, _stale(id))
        if node.incarnation != event.incarnation:
            text = f"another process is node {id}: register first"
            return self._refuse(event.request, Error(Code.NOT_FOUND, text))
        if id in self._condemned:
            self._rule(61)
            text = f"node {id} is being declared dead: try again"
            return self._refuse(event.request, Error(Code.UNAVAILABLE, text))
        self.leases.renew(id, self._now_ns)
        if self._note(event) or not node.alive:
            self._dirty = True
            self._out.append(ev.Wake())
        newer = routing if event.known_version < routing.version else None
        over = self.sessions.ended(event.idle_clients, self._now_ns)
        if over:
            self._rule(71)
        self._out.append(ev.Answer(event.request, ev.Beat(newer, over)))

    def _on_exit(self, event: ev.ExitAttested) -> None:
        """Take a supervisor's word that a process has ended; answered once that is published."""
        node = self.routing.nodes.get(event.node)
        if node is None:
            error = Error(Code.NOT_FOUND, f"node {event.node} is not known")
            return self._refuse(event.request, error)
        if node.incarnation != event.incarnation:
            self._out.append(ev.Answer(event.request, ev.Done(self.routing)))
            return
        log = f"event=exit_attested node={node.id} incarnation={node.incarnation}"
        self._out.append(ev.Log(log))
        self._end(node)
        self._attested.append(event.request)
        self._advance()

    def _note(self, event: ev.Heartbeat) -> bool:
        """Keep what a node says of its own targets; tell whether it may change a chain."""
        changed = False
        for id, status in event.said.items():
            target = self.routing.targets.get(id)
            if target is not None and target.node == event.node:
                known = self.said.get(id)
                changed = changed or known is None or _differs(known, status)
                self.said[id] = status
        return changed

    def _end(self, node: Node) -> None:
        """Note that a process has ended: what it said is void, what it may still say too."""
        gone = self._gone.setdefault(node.id, deque(maxlen=MAX_ENDED))
        if node.incarnation not in gone:
            gone.append(node.incarnation)
        self.leases.end(node.id)
        self._dirty = True
        self._forget_said({node.id})

    def _forget_said(self, nodes: frozenset[NodeId] | set[NodeId]) -> None:
        self.said = {
            id: status
            for id, status in self.said.items()
            if self.routing.targets[id].node not in nodes
        }

    def _recall(self) -> None:
        """Begin with what the last manager stored: who was alive, and in which state."""
        nodes = self.routing.nodes
        for target in self.routing.targets.values():
            if nodes[target.node].alive:
                space = (target.used_bytes, target.capacity_bytes, target.device, target.reason)
                self.said[target.id] = Status(Report(target.local, 0), *space)
            if target.withdrawn:
                self._ordered_ns[target.id] = self._now_ns
        self._grant()

    def _grant(self) -> None:
        """Give every node that is published as alive a full lease from now."""
        nodes = self.routing.nodes.values()
        alive = {n.id for n in nodes if n.alive and not self._is_gone(n)} - self._condemned
        holders = {t.node for t in self.routing.targets.values() if t.node in alive}
        self.leases.grant(holders, self._now_ns)
        for node in alive:
            self.leases.extend(node, self._now_ns)

    def _is_gone(self, node: Node) -> bool:
        return node.incarnation in self._gone.get(node.id, ())

    # ------------------------------------------------------------------ clients and operators

    def _on_session(self, event: ev.SessionCame) -> None:
        if event.end:
            self.sessions.end(event.client)
        else:
            try:
                self.sessions.renew(event.client, self._now_ns)
            except Error as error:
                return self._refuse(event.request, error)
        self._out.append(ev.Answer(event.request, ev.Done(self.routing)))

    def _on_chains_wanted(self, event: ev.ChainsWanted) -> None:
        self._enqueue(event)

    def _on_planned(self, event: ev.Planned) -> None:
        if event.request not in self._planning:
            return
        if event.code is not Code.OK:
            del self._planning[event.request]
            return self._refuse(event.request, Error(event.code, event.text))
        self._enqueue(event)

    def _on_commanded(self, event: ev.Commanded) -> None:
        self._enqueue(event)

    def _enqueue(self, asked: _Asked) -> None:
        if len(self._waiting) >= MAX_WAITING:
            text = f"{MAX_WAITING} requests wait for a decision"
            return self._refuse(asked.request, Error(Code.OVERLOADED, text))
        until_ns = self._now_ns + self.settings.lease_ns + SETTLE_MARGIN_NS
        self._waiting.append(_Waits(asked, until_ns))
        self._advance()

    # ------------------------------------------------------------------ the one place of change

    def _advance(self) -> None:
        """Make the next routing of all that is known and asked for, and have it stored."""
        now_ns = self._now_ns
        if not self.leads(now_ns):
            while self._waiting:
                self._refuse(self._waiting.popleft().asked.request, self._why_not())
            return
        if self._saving is not None or now_ns < self._retry_ns:
            return
        draft = _Draft(self.routing)
        if self._endpoint is not None and draft.routing.manager != self._endpoint:
            draft.routing = decide.with_manager(draft.routing, self._endpoint)
        self._evaluate(draft)
        waiting, self._waiting = self._waiting, deque()
        for each in waiting:
            self._apply(draft, each)
        draft.attested, self._attested = self._attested, []
        if draft.routing is self.routing:
            self._answer(draft)
            return
        self._condemned |= draft.dead
        self._saves += 1
        self._saving = draft
        self._out.append(ev.Save(self._saves, draft.routing, tuple(draft.decisions)))

    def _evaluate(self, draft: _Draft) -> None:
        """Apply deaths, returns and reports, and what follows for those that have to leave.

        A new leader declares nobody dead before it has heard of all, or has waited for a lease.
        """
        now_ns = self._now_ns
        if not self.leases.settled(now_ns):
            self._rule(63)
            return
        alive = self.leases.alive(now_ns) - self._condemned
        space = now_ns >= self._space_ns
        left = frozenset(
            t for t, ns in self._ordered_ns.items() if now_ns >= ns + self.settings.lease_ns
        )
        if not (self._dirty or space or left or alive != self._evaluated):
            return
        self._dirty = False
        self._evaluated = alive
        if space:
            self._space_ns = now_ns + SPACE_INTERVAL_NS
        if left:
            self._rule(67)
        new = orders.settled(draft.routing)
        if new is not draft.routing:
            self._rule(68)
        new = (
            decide.evaluate(new, alive, self.said, space=space, left=left, on_row=self._on_row)
            or new
        )
        new = orders.drained(orders.settled(new))
        if self.settings.rotate:
            calm_ns = CALM_LEASES * self.settings.lease_ns
            if now_ns >= self._changed_ns + calm_ns:
                new, before = orders.rotated(new), new
                if new is not before:
                    self._rule(69)
                    turned = (t for t in new.targets.values() if t.order is Order.ROTATE)
                    self._rotating |= {target.chain for target in turned}
        draft.routing = new
        published = self.routing.nodes.values()
        dead = {n.id for n in published if n.alive and not new.nodes[n.id].alive}
        if dead:
            self._rule(60)
        draft.dead |= dead

    def _apply(self, draft: _Draft, waits: _Waits) -> None:
        """Do what one request asks for, or leave it in the queue."""
        asked = waits.asked
        try:
            if isinstance(asked, ev.Registered):
                done = self._register(draft, asked)
            elif isinstance(asked, ev.Commanded):
                done = self._command(draft, asked)
            else:
                done = self._chains(draft, asked)
        except Error as error:
            return self._refuse(asked.request, error)
        if done:
            return
        if self._now_ns >= waits.until_ns:
            text = "the end of this node's last process cannot be stored: see the manager's disk"
            return self._refuse(asked.request, Error(Code.UNAVAILABLE, text))
        self._waiting.append(waits)

    def _register(self, draft: _Draft, event: ev.Registered) -> bool:
        """Enter a process; False as long as its predecessor's death cannot be decided."""
        node = event.node
        if self._is_gone(node):
            raise _stale(node.id)
        known = draft.routing.nodes.get(node.id)
        running = self.leases.running(node.id, self._now_ns)
        match admission(known, node.incarnation, event.exclusive, running):
            case Admission.TOO_EARLY:
                wait_ms = self.settings.lease_ns // 1_000_000
                raise Error(
                    Code.BUSY,
                    f"another process is node {node.id} and may be alive: stop it, or wait "
                    f"{wait_ms} ms",
                )
            case Admission.REPLACES:
                assert known is not None
                if known != self.routing.nodes.get(node.id) and known.alive:
                    raise Error(Code.BUSY, f"another process has just become node {node.id}")
                self._rule(62)
                self._end(known)
                self._evaluate(draft)
                if draft.routing.nodes[node.id].alive:
                    return False
        draft.routing = decide.with_node(draft.routing, node) or draft.routing
        self.leases.renew(node.id, self._now_ns)
        draft.registered.append(node)
        self._dirty = True
        draft.answers.append(ev.Answer(event.request, ev.Registration(draft.routing)))
        return True

    def _command(self, draft: _Draft, event: ev.Commanded) -> bool:
        taken = commands.apply(draft.routing, event.command)
        if taken.loss:
            self._rule(70)
        if taken.routing is not draft.routing:
            draft.routing = taken.routing
            decision = Decision(
                0, event.wall_ms, event.command.who, taken.what, event.command.why,
                taken.routing.version, taken.chain, taken.target, taken.node, taken.loss,
            )  # fmt: skip
            draft.decisions.append(self._numbered(decision))
            self._dirty = True
        draft.answers.append(ev.Answer(event.request, ev.Done(draft.routing, taken.text)))
        return True

    def _chains(self, draft: _Draft, event: ev.ChainsWanted | ev.Planned) -> bool:
        """Have chains planned outside, then take what was planned, unless there are any by now."""
        wanted = event if isinstance(event, ev.ChainsWanted) else self._planning.pop(event.request)
        if draft.routing.tables:
            decide.require_alike(draft.routing, wanted.wish)
        elif isinstance(event, ev.ChainsWanted):
            self._planning[event.request] = event
            self._out.append(ev.Plan(event.request, draft.routing, event.wish))
            return True
        elif event.routing is not None:
            draft.routing = replace(
                draft.routing,
                version=draft.routing.version + 1,
                chains=event.routing.chains,
                targets=event.routing.targets,
                tables=event.routing.tables,
            )
            what = f"chains created: {decide.describe(draft.routing)}"
            draft.decisions.append(
                self._numbered(
                    Decision(0, wanted.wall_ms, wanted.who, what, "", draft.routing.version)
                )
            )
            self._dirty = True
        draft.answers.append(ev.Answer(event.request, ev.Done(draft.routing)))
        return True

    def _numbered(self, decision: Decision) -> Decision:
        self._number += 1
        return replace(decision, number=self._number)

    # ------------------------------------------------------------------ the disk's answers

    def _on_stored(self, event: ev.Stored) -> None:
        """Let everybody see what is stored now."""
        draft = self._saving
        if draft is None or self._saves != event.save:
            return
        self._saving = None
        before, self.routing = self.routing, draft.routing
        if self._condemned:
            self._forget_said(self._condemned)
            self._condemned = frozenset()
        for node in draft.registered:
            if not self._is_gone(node):  # it hears only now that it is entered
                self.leases.renew(node.id, self._now_ns)
        self.decisions.extend(draft.decisions)
        self._rule(66)
        self._out.append(ev.Publish(self.routing))
        self._out += changes.told(before, self.routing)
        self._note_times(before)
        self._answer(draft)
        self._dirty = True
        self._advance()

    def _on_store_failed(self, event: ev.StoreFailed) -> None:
        """Refuse what was asked for; those who were declared dead stay condemned."""
        draft = self._saving
        if draft is None or self._saves != event.save:
            return
        self._saving = None
        error = Error(event.code, event.text)
        for request in [*(a.request for a in draft.answers), *draft.attested]:
            self._refuse(request, error)
        if event.code is Code.NOT_LEADER:
            return self._end_for_good(event.code, event.text)
        self._dirty = True
        self._retry_ns = self._now_ns + STORE_RETRY_NS
        text = f"event=cannot_store error={event.text!r} remedy='see the disk'"
        self._out.append(ev.Log(text, severe=True))

    def _answer(self, draft: _Draft) -> None:
        """Answer with the routing that is published: what was asked for, or newer."""
        for answer in draft.answers:
            reply = answer.reply
            if not isinstance(reply, ev.Beat):
                answer = answer._replace(reply=reply._replace(routing=self.routing))
            self._out.append(answer)
        self._out += [ev.Answer(each, ev.Done(self.routing)) for each in draft.attested]

    def _note_times(self, before: Routing) -> None:
        """Note since when orders are public, and when a chain changed last."""
        for id, chain in self.routing.chains.items():
            if chain == before.chains.get(id):
                continue
            if id not in self._rotating:
                self._changed_ns = self._now_ns
            elif len(chain.serving) == len(chain.targets):
                self._rotating.discard(id)
        for target in self.routing.targets.values():
            if not target.withdrawn or target.state is not PublicState.SERVING:
                self._ordered_ns.pop(target.id, None)
            else:
                self._ordered_ns.setdefault(target.id, self._now_ns)

    def _rule(self, number: int) -> None:
        if self._on_rule is not None:
            self._on_rule(number)

    def _refuse(self, request: int, error: Error) -> None:
        self._out.append(ev.Refuse(request, error.code, str(error.strerror)))


def _stale(node: NodeId) -> Error:
    text = f"this process was replaced, or reported as ended, as node {node}: start it anew"
    return Error(Code.STALE, text)


def _differs(before: Status, after: Status) -> bool:
    """Whether a report may change what is published, space apart."""
    return (
        before.report != after.report
        or before.reason != after.reason
        or before.device != after.device
    )


_DOES: dict[type, Callable[[Manager, Any], None]] = {
    ev.Announced: Manager._on_announced,
    ev.Led: Manager._on_led,
    ev.Tick: Manager._on_tick,
    ev.Registered: Manager._on_registered,
    ev.Heartbeat: Manager._on_heartbeat,
    ev.ExitAttested: Manager._on_exit,
    ev.ChainsWanted: Manager._on_chains_wanted,
    ev.Planned: Manager._on_planned,
    ev.Commanded: Manager._on_commanded,
    ev.SessionCame: Manager._on_session,
    ev.Stored: Manager._on_stored,
    ev.StoreFailed: Manager._on_store_failed,
}
