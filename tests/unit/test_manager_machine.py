"""The manager's machine under anything that nodes, operators, its disk and its clock may do.

The nodes here say whatever hypothesis wants, late and forged; the manager keeps its word.
Budget: 15 s.
"""

from collections.abc import Callable
from functools import cache

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hillfire.cluster import (
    Decision,
    Endpoint,
    LocalState,
    Node,
    NodeKind,
    Order,
    PublicState,
    Routing,
)
from hillfire.errors import Code, Error
from hillfire.meta.manager import decide
from hillfire.meta.manager import events as ev
from hillfire.meta.manager.chains import Report, check
from hillfire.meta.manager.core import SETTLE_MARGIN_NS, Manager, Settings
from hillfire.meta.manager.decide import Status, Wish
from hillfire.meta.manager.events import Command, CommandKind
from hillfire.meta.manager.placement import Home, Place, make_plan
from hillfire.types import ChainId, NodeId, TargetId

MS = 1_000_000
L = 2000 * MS
NODES = st.sampled_from((101, 102, 103, 104))
CHAINS = st.sampled_from((1, 2, 3, 4))
PLACES = st.integers(0, 3)
LOCALS = st.sampled_from(LocalState)
HERE = Endpoint("m:1", "m:2", "", "host")
SERVING = PublicState.SERVING
HAS_SERVED = (SERVING, PublicState.LAST_SERVING)


@cache
def places(nodes: int, targets_per_node: int, replicas: int) -> tuple[tuple[Place, ...], ...]:
    """Plan once, not once an example."""
    homes = [Home(NodeId(101 + n), 1, f"host{n}", "") for n in range(nodes)]
    return tuple(make_plan(homes, targets_per_node, replicas, None).chains)


def planned_once(routing: Routing, wish: Wish) -> Routing | None:
    table = places(wish.nodes, wish.targets_per_node, wish.replicas)
    return decide.with_chains(routing, wish._replace(chains=table))


class ManagerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 10 * L
        self.led_until_ns = ev.FOREVER
        self.disk: Routing = decide.first_routing("c")
        self.decisions: tuple[Decision, ...] = ()
        self.saving: ev.Save | None = None
        self.published: Routing = self.disk
        self.asked: dict[int, str] = {}
        self.number = 0
        self.incarnation = dict.fromkeys((101, 102, 103, 104), 1)
        self.heard_ns: dict[int, int] = {}
        self.answered = False
        self.condemned: set[NodeId] = set()
        """declared dead by a routing that is not public"""
        self.gone: set[tuple[NodeId, int]] = set()
        """processes that are known to have ended: node and incarnation"""
        self.stopped: set[TargetId] = set()
        """targets that were reported offline since they served last"""
        self.ordered_ns: dict[TargetId, int] = {}
        self.begin()

    def begin(self) -> None:
        """A new leader takes over what is stored."""
        self.core = Manager(
            Settings(L, session_ns=10 * L),
            self.disk,
            self.decisions,
            self.now_ns,
            self.led_until_ns,
        )
        self.saving = None
        self.condemned = set()
        self.asked.clear()  # their callers ask again
        self.published = self.disk
        for node in self.disk.nodes.values():
            if node.alive:
                self.heard_ns[int(node.id)] = self.now_ns
        self.ordered_ns = {t: self.now_ns for t in self.ordered_ns}
        self.do(ev.Announced(self.now_ns, HERE))

    # ------------------------------------------------------------------ its two sides

    def do(self, event: ev.Event) -> None:
        leads = self.now_ns < self.led_until_ns
        before = self.core.routing
        for effect in self.core.handle(event):
            match effect:
                case ev.Answer() | ev.Refuse():
                    kind = self.asked.pop(effect.request)  # each is answered once at most
                    if isinstance(effect, ev.Answer) and isinstance(event, ev.Heartbeat):
                        self.answered = True
                        assert leads, f"{kind} was answered after the leader's lease"
                        assert event.node not in self.condemned, "it would outlive its removal"
                case ev.Save():
                    assert leads and self.saving is None
                    self.check_step(before, effect.routing)
                    self.saving = effect
                    nodes = effect.routing.nodes
                    self.condemned |= {
                        n.id for n in before.nodes.values() if n.alive and not nodes[n.id].alive
                    }
                case ev.Publish():
                    assert effect.routing == self.disk and effect.routing is self.core.routing
                    assert effect.routing.version > self.published.version
                    self.condemned = set()
                    self.note(effect.routing)
                    before = effect.routing
                case ev.Plan():
                    try:
                        made = planned_once(effect.routing, effect.wish)
                        planned = ev.Planned(self.now_ns, effect.request, made)
                    except Error as error:
                        text = str(error)
                        planned = ev.Planned(self.now_ns, effect.request, None, error.code, text)
                    self.do(planned)
                case ev.Ended():
                    raise AssertionError("nobody else leads")

    def check_step(self, before: Routing, after: Routing) -> None:
        """From the routing that is public to the one that is decided now."""
        assert after.version > before.version
        for node in before.nodes.values():
            if node.alive and not after.nodes[node.id].alive:
                silent = self.now_ns - self.heard_ns.get(int(node.id), 0) >= L
                assert silent or (node.id, node.incarnation) in self.gone, (
                    f"{node} was taken for dead too early"
                )
        for chain in after.chains.values():
            check(chain)
            known = before.chains.get(chain.id)
            if known is None:
                continue
            assert chain.version >= known.version
            changed = chain.targets != known.targets
            assert (chain.version > known.version) == changed or (
                chain.min_serving != known.min_serving
            )
            for target in known.serving:
                if target in chain.serving:
                    continue
                holder = before.nodes[before.targets[target].node]
                silent = self.now_ns - self.heard_ns.get(int(holder.id), 0) >= L
                dead = silent or (holder.id, holder.incarnation) in self.gone
                left = self.now_ns >= self.ordered_ns.get(target, ev.FOREVER) + L
                assert dead or left or target in self.stopped, f"{target} still acts"

    def note(self, routing: Routing) -> None:
        """Remember what is public now."""
        known = self.published.targets
        begun = {
            t.id
            for t in routing.targets.values()
            if t.state is SERVING and (t.id not in known or known[t.id].state is not SERVING)
        }
        self.stopped -= begun
        self.published = routing
        for target in routing.targets.values():
            if target.order is Order.NONE:
                self.ordered_ns.pop(target.id, None)
            else:
                self.ordered_ns.setdefault(target.id, self.now_ns)

    def ask(self, kind: str, make: Callable[[int], ev.Event]) -> None:
        self.number += 1
        self.asked[self.number] = kind
        self.do(make(self.number))

    # ------------------------------------------------------------------ what can happen

    @initialize()
    def grow(self) -> None:
        for node in (101, 102, 103, 104):
            self.register(node, True)
            self.stored()
        wish = Wish(4, 3, 3)
        self.ask("chains", lambda n: ev.ChainsWanted(self.now_ns, n, wish, "me", 1))
        self.stored()
        for node in (101, 102, 103, 104):
            self.beat(node, [LocalState.UP_TO_DATE] * 4, 0)
        self.tick()
        self.stored()

    @rule(eighths=st.integers(1, 3))
    def pass_time(self, eighths: int) -> None:
        """Time goes by in which the manager looks at its clock."""
        for _ in range(eighths):
            self.now_ns += L // 8
            self.tick()

    @rule(eighths=st.integers(1, 24))
    def pause(self, eighths: int) -> None:
        """The manager's process stops for a while; nobody is heard meanwhile."""
        running = self.core.leases.alive(self.now_ns)
        self.now_ns += eighths * L // 8
        if eighths > 2:  # it notices, and starts every running lease anew
            self.forgive({int(node) for node in running})

    @rule()
    def tick(self) -> None:
        self.do(ev.Tick(self.now_ns))

    @rule(node=NODES, locals_=st.lists(LOCALS, min_size=4, max_size=4), behind=st.integers(0, 2))
    def beat(self, node: int, locals_: list[LocalState], behind: int) -> None:
        self.say(node, self.incarnation[node], locals_, behind)

    @rule(node=NODES)
    def good_beat(self, node: int) -> None:
        """Say what a node that does as it should would say."""
        locals_ = []
        for target in (t for t in self.core.routing.targets.values() if t.node == node):
            serves = target.state in (SERVING, PublicState.SYNCING)
            state = LocalState.UP_TO_DATE if serves else LocalState.ONLINE
            locals_.append(LocalState.OFFLINE if target.withdrawn else state)
        self.say(node, self.incarnation[node], [*locals_, *[LocalState.ONLINE] * 4], 0)

    def say(self, node: int, incarnation: int, locals_: list[LocalState], behind: int) -> None:
        routing = self.core.routing
        targets = [t for t in routing.targets.values() if t.node == node]
        said = {
            t.id: Status(
                Report(local, max(0, routing.chains[t.chain].version - behind)), 0, 1 << 30
            )
            for t, local in zip(targets, locals_, strict=False)
        }
        self.answered = False
        self.ask(
            "beat",
            lambda n: ev.Heartbeat(self.now_ns, n, NodeId(node), incarnation, 0, said, (5,)),
        )
        if self.answered:
            self.heard_ns[node] = self.now_ns
            self.stopped |= {t for t, s in said.items() if s.report.local is LocalState.OFFLINE}

    @rule(node=NODES, exclusive=st.booleans())
    def register(self, node: int, exclusive: bool) -> None:
        """The same process registers again, or for the first time."""
        at = Endpoint(f"n{node}:1", f"n{node}:2", "", f"host{node}")
        made = Node(NodeId(node), NodeKind.STORAGE, at, self.incarnation[node], True)
        self.ask("register", lambda n: ev.Registered(self.now_ns, n, made, "", exclusive))
        self.heard_ns.setdefault(node, self.now_ns)

    @rule(node=NODES)
    def restart(self, node: int) -> None:
        """A new process of the node registers."""
        self.gone.add((NodeId(node), self.incarnation[node]))
        self.incarnation[node] += 1
        self.register(node, True)

    @rule(node=NODES)
    def attest(self, node: int) -> None:
        incarnation = self.incarnation[node]
        self.gone.add((NodeId(node), incarnation))
        self.incarnation[node] += 1  # it will be another process
        self.ask("exit", lambda n: ev.ExitAttested(self.now_ns, n, NodeId(node), incarnation))

    @rule(
        kind=st.sampled_from(CommandKind),
        node=NODES,
        chain=CHAINS,
        place=PLACES,
        other=PLACES,
        order=st.permutations(range(3)),
    )
    def command(
        self, kind: CommandKind, node: int, chain: int, place: int, other: int, order: list[int]
    ) -> None:
        known = self.core.routing.chains.get(ChainId(chain))
        members = [t for t, _ in known.targets] if known else [TargetId(1)] * 3
        members.append(TargetId(77))
        given = Command(
            kind, "me", "", members[place], NodeId(node), ChainId(chain),
            tuple(members[i] for i in order), members[other] if other else TargetId(0), place,
        )  # fmt: skip
        self.ask("command", lambda n: ev.Commanded(self.now_ns, n, given, 1))

    @rule()
    def stored(self) -> None:
        if self.saving is not None:
            save, self.saving = self.saving, None
            self.disk = save.routing
            self.decisions = (*self.decisions, *save.decisions)
            self.do(ev.Stored(self.now_ns, save.save))

    @rule(kept=st.booleans())
    def store_failed(self, kept: bool) -> None:
        if self.saving is not None:
            save, self.saving = self.saving, None
            self.do(ev.StoreFailed(self.now_ns, save.save, Code.NO_SPACE, "full"))

    @rule()
    def wake_the_disk(self) -> None:
        """Let a second go by, so that a store that failed is tried again."""
        self.pass_time(5)

    @rule()
    def lose_lease(self) -> None:
        """It is not renewed, until ``renew``."""
        self.led_until_ns = self.core._led_until_ns = self.now_ns

    @rule()
    def renew(self) -> None:
        lapsed = self.now_ns >= self.led_until_ns
        self.led_until_ns = ev.FOREVER
        self.do(ev.Led(self.now_ns, ev.FOREVER))
        if lapsed:
            self.forgive(set(self.heard_ns))

    def forgive(self, nodes: set[int]) -> None:
        """Count leases anew, but of those whose death is decided and could not be stored."""
        for node in nodes:
            if NodeId(node) not in self.condemned:
                self.heard_ns[node] = self.now_ns

    @rule(stored=st.booleans())
    def take_over(self, stored: bool) -> None:
        """Another manager leads from what is on the disk, where the last save may have come to."""
        if self.saving is not None and stored:
            self.disk = self.saving.routing
            self.decisions = (*self.decisions, *self.saving.decisions)
        self.led_until_ns = ev.FOREVER
        self.begin()

    # ------------------------------------------------------------------ what holds

    @invariant()
    def all_is_in_order(self) -> None:
        routing = self.core.routing
        for target in routing.targets.values():
            state = routing.chains[target.chain].state_of(target.id)
            assert target.state is state
            if target.withdrawn:  # an order never keeps a chain from serving
                assert state is not PublicState.LAST_SERVING
        numbers = [d.number for d in self.decisions]
        assert numbers == sorted(set(numbers))
        latest = [d.number for d in self.core.decisions]
        assert latest == numbers[-len(latest) :] if latest else not numbers

    def settle(self) -> None:
        while self.saving is not None:
            self.stored()

    def teardown(self) -> None:
        """When all is well again, all who wait are answered, and all chains serve."""
        self.renew()
        self.wake_the_disk()
        self.settle()
        drained = [n.id for n in self.core.routing.nodes.values() if n.draining]
        for drained_node in drained:
            given = Command(CommandKind.NODE_UNDRAIN, "me", "", node=drained_node)
            self.ask("command", lambda n, g=given: ev.Commanded(self.now_ns, n, g, 1))  # type: ignore[misc]
            self.settle()
        for target in list(self.core.routing.targets.values()):
            if target.order is Order.OFFLINE:
                given = Command(CommandKind.TARGET_ONLINE, "me", "", target=target.id)
                self.ask("command", lambda n, g=given: ev.Commanded(self.now_ns, n, g, 1))  # type: ignore[misc]
                self.settle()
        for step in range(400):
            if step % 8 == 0:
                for node in (101, 102, 103, 104):
                    self.register(node, True)
            for node in (101, 102, 103, 104):
                self.good_beat(node)
            self.now_ns += L // 16
            self.tick()
            self.settle()
            chains = self.core.routing.chains.values()
            if not self.asked and all(len(c.serving) == len(c.targets) for c in chains):
                break
        else:
            raise AssertionError(f"not well: {self.asked} {list(chains)}")
        assert SETTLE_MARGIN_NS < 400 * L // 16


TestManagerMachine = ManagerMachine.TestCase
TestManagerMachine.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)
