"""The manager as a pure machine: what it answers, stores and publishes, in which order.

Time is a number here, and the disk answers when the test says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import pytest

from hillfire.cluster import (
    Chain,
    Endpoint,
    LocalState,
    Node,
    NodeKind,
    Order,
    PublicState,
    Routing,
    Target,
)
from hillfire.errors import Code, Error
from hillfire.meta.manager import decide, orders
from hillfire.meta.manager import events as ev
from hillfire.meta.manager.chains import Report, check
from hillfire.meta.manager.core import CALM_LEASES, MAX_WAITING, Manager, Settings
from hillfire.meta.manager.decide import Status, Wish
from hillfire.meta.manager.events import Command, CommandKind
from hillfire.meta.manager.placement import Place
from hillfire.types import ChainId, NodeId, TargetId

MS = 1_000_000
L = 2000 * MS
HERE = Endpoint("m:1", "m:2", "", "host")
SERVING, LAST, OFFLINE = PublicState.SERVING, PublicState.LAST_SERVING, PublicState.OFFLINE
SYNCING = PublicState.SYNCING
FRESH, ONLINE, DEAD = LocalState.UP_TO_DATE, LocalState.ONLINE, LocalState.OFFLINE
E = TypeVar("E", bound=ev.Effect)


class World:
    """A manager, a disk that stores at once unless it is ``slow``, and nodes that do as told."""

    def __init__(self, nodes: int = 3, targets: int = 1, replicas: int = 3) -> None:
        self.now_ns = 10 * L
        self.slow = False
        self.waiting: list[ev.Save] = []
        self.effects: list[ev.Effect] = []
        self.number = 0
        self.local: dict[TargetId, LocalState] = {}
        self.core = self.manager(decide.first_routing("c"))
        self.do(ev.Announced(self.now_ns, HERE))
        for node in range(101, 101 + nodes):
            self.register(node)
        if targets:
            wish = Wish(nodes, targets, replicas)
            self.ask(lambda n: ev.ChainsWanted(self.now_ns, n, wish, "me", 5))
            self.beats()
            self.tick()

    def manager(self, routing: Routing) -> Manager:
        return Manager(Settings(L, session_ns=10 * L), routing, (), self.now_ns)

    def do(self, event: ev.Event) -> list[ev.Effect]:
        """Hand an event in; the disk and the planner answer at once, unless they are slow."""
        queue, all_effects = list(self.core.handle(event)), []
        while queue:
            effect = queue.pop(0)
            all_effects.append(effect)
            if isinstance(effect, ev.Save):
                if self.slow:
                    self.waiting.append(effect)
                else:
                    queue += self.core.handle(ev.Stored(self.now_ns, effect.save))
            elif isinstance(effect, ev.Plan):
                planned = decide.with_chains(effect.routing, effect.wish)
                queue += self.core.handle(ev.Planned(self.now_ns, effect.request, planned))
        self.effects = all_effects
        return all_effects

    def ask(self, make: Callable[[int], ev.Event]) -> ev.Done | ev.Registration | ev.Beat | None:
        """Hand a request in; return its answer, None if it waits.

        Raises:
            Error: if it is refused.
        """
        self.number += 1
        return answer_to(self.number, self.do(make(self.number)))

    def register(self, node: int, incarnation: int = 1, exclusive: bool = True) -> object:
        at = Endpoint(f"n{node}:1", f"n{node}:2", "", "host")
        made = Node(NodeId(node), NodeKind.STORAGE, at, incarnation, True)
        return self.ask(lambda n: ev.Registered(self.now_ns, n, made, "", exclusive))

    def beat(self, node: int, incarnation: int = 1, clients: Sequence[int] = ()) -> ev.Beat:
        said = {
            t.id: Status(
                Report(self.local.get(t.id, FRESH), self.chain(t.chain).version), 0, 1 << 30
            )
            for t in self.targets(node)
        }
        beat = self.ask(
            lambda n: ev.Heartbeat(self.now_ns, n, NodeId(node), incarnation, 0, said, clients)
        )
        assert isinstance(beat, ev.Beat)
        return beat

    def beats(self, *nodes: int) -> None:
        for node in nodes or [int(n) for n in self.core.routing.nodes]:
            self.beat(node)

    def tick(self) -> list[ev.Effect]:
        return self.do(ev.Tick(self.now_ns))

    def pass_time(self, ns: int, *alive: int) -> None:
        """Let time go by, in which these nodes speak."""
        end = self.now_ns + ns
        while self.now_ns < end:
            self.now_ns = min(end, self.now_ns + L // 16)
            for node in alive:
                self.beat(node)
            self.tick()

    def command(self, kind: CommandKind, **fields: object) -> ev.Done | None:
        command = Command(kind, "me@here", "because", **fields)  # type: ignore[arg-type]
        done = self.ask(lambda n: ev.Commanded(self.now_ns, n, command, 7))
        assert done is None or isinstance(done, ev.Done)
        return done

    def attest(self, node: int, incarnation: int = 1) -> object:
        return self.ask(lambda n: ev.ExitAttested(self.now_ns, n, NodeId(node), incarnation))

    def chain(self, chain: int = 1) -> Chain:
        return self.core.routing.chains[ChainId(chain)]

    def targets(self, node: int) -> list[Target]:
        return [t for t in self.core.routing.targets.values() if t.node == node]

    def target(self, node: int) -> Target:
        return self.targets(node)[0]

    def made(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]


def answer_to(
    number: int, effects: Sequence[ev.Effect]
) -> ev.Done | ev.Registration | ev.Beat | None:
    found = [e for e in effects if isinstance(e, ev.Answer | ev.Refuse) and e.request == number]
    assert len(found) <= 1, f"{found}: answered twice"
    if not found:
        return None
    if isinstance(found[0], ev.Refuse):
        raise Error(found[0].code, found[0].text)
    return found[0].reply


def refused(work: Callable[[], object], code: Code) -> str:
    with pytest.raises(Error) as caught:
        work()
    assert caught.value.code is code
    return str(caught.value)


def test_nothing_is_answered_before_it_is_announced() -> None:
    world = World(targets=0)
    world.core = world.manager(world.core.routing)
    assert "starting" in refused(lambda: world.beat(101), Code.UNAVAILABLE)
    refused(lambda: world.register(101), Code.UNAVAILABLE)
    world.do(ev.Announced(world.now_ns, HERE))
    world.beat(101)


def test_what_is_asked_for_together_is_stored_together() -> None:
    world = World(nodes=0, targets=0)
    world.slow = True
    assert world.register(101) is None
    assert [type(e) for e in world.effects] == [ev.Save]
    before = world.core.routing
    for node in (102, 103, 104):
        assert world.register(node) is None
        assert world.effects == []  # one save at a time
    assert world.core.routing is before
    refused(lambda: world.beat(101), Code.NOT_FOUND)  # nobody sees what is not stored
    effects = world.do(ev.Stored(world.now_ns, world.waiting[0].save))
    assert isinstance(effects[0], ev.Publish)
    assert isinstance(answer_to(1, effects), ev.Registration)
    assert len(world.waiting) == 2 and len(world.waiting[1].routing.nodes) == 4
    effects = world.do(ev.Stored(world.now_ns, world.waiting[1].save))
    for number in (2, 3, 4):
        reply = answer_to(number, effects)
        assert isinstance(reply, ev.Registration) and len(reply.routing.nodes) == 4
    world.beat(104)


def test_an_answer_of_the_disk_to_another_save_is_ignored() -> None:
    world = World()
    world.slow = True
    world.attest(101)
    (save,) = world.waiting
    assert world.do(ev.Stored(world.now_ns, save.save - 1)) == []
    assert world.do(ev.StoreFailed(world.now_ns, save.save + 1, Code.IO, "")) == []
    world.do(ev.Stored(world.now_ns, save.save))
    assert world.target(101).state is OFFLINE
    assert world.do(ev.Stored(world.now_ns, save.save)) == []


def test_a_death_waits_a_lease_and_is_condemned_until_it_is_public() -> None:
    world = World()
    world.pass_time(L - L // 16, 102, 103)
    assert world.chain().serving == tuple(t for t, _ in world.chain().targets)
    world.slow = True
    world.pass_time(L // 16, 102, 103)
    assert world.core.routing.nodes[NodeId(101)].alive
    assert "declared dead" in refused(lambda: world.beat(101), Code.UNAVAILABLE)
    world.beats(102, 103)
    world.slow = False
    effects = world.do(ev.Stored(world.now_ns, world.waiting[-1].save))
    (published,) = [e for e in effects if isinstance(e, ev.Publish)]
    assert not published.routing.nodes[NodeId(101)].alive
    assert world.target(101).state is OFFLINE
    assert world.target(101).id not in world.core.said
    beat = world.beat(101)  # now it may hear of it
    assert beat.routing is world.core.routing


def test_a_leader_whose_lease_is_over_answers_nobody_and_decides_nothing() -> None:
    world = World()
    world.do(ev.Led(world.now_ns, world.now_ns + L // 2))
    world.core._led_until_ns = world.now_ns + L // 2  # until now it was the only one
    world.pass_time(L // 2 - 1, 101, 102, 103)
    world.now_ns += 1
    version = world.core.routing.version
    for work in (
        lambda: world.beat(101),
        lambda: world.register(104),
        lambda: world.attest(101),
        lambda: world.command(CommandKind.NODE_DRAIN, node=NodeId(101)),
        lambda: world.ask(lambda n: ev.SessionCame(world.now_ns, n, 5, False)),
    ):
        refused(work, Code.NOT_LEADER)
    world.pass_time(2 * L)
    assert world.core.routing.version == version
    # It regains its lease: nobody was answered meanwhile, so everybody has a full one.
    world.do(ev.Led(world.now_ns, world.now_ns + 100 * L))
    world.pass_time(L - L // 16, 102)
    assert all(n.alive for n in world.core.routing.nodes.values())
    world.beats(101, 102)
    world.pass_time(L // 16, 102)
    assert [n.id for n in world.core.routing.nodes.values() if not n.alive] == [103]


def test_who_waits_is_told_when_the_lease_runs_out() -> None:
    world = World()
    world.core = world.manager(world.core.routing)  # unsettled: nobody was heard of
    world.core._led_until_ns = world.now_ns + L // 2
    world.do(ev.Announced(world.now_ns, HERE))
    assert world.register(101, incarnation=2) is None
    number = world.number
    world.now_ns += L // 2
    refused(lambda: answer_to(number, world.tick()), Code.NOT_LEADER)


def test_a_newer_leader_ends_it() -> None:
    world = World()
    world.slow = True
    world.attest(101)
    number = world.number
    world.register(104)
    effects = world.do(
        ev.StoreFailed(world.now_ns, world.waiting[0].save, Code.NOT_LEADER, "another leads")
    )
    for asked in (number, number + 1):
        refused(lambda asked=asked: answer_to(asked, effects), Code.NOT_LEADER)  # type: ignore[misc]
    assert isinstance(effects[-1], ev.Ended)
    refused(lambda: world.beat(102), Code.NOT_LEADER)
    world.pass_time(2 * L)
    world.do(ev.Led(world.now_ns, world.now_ns + L))
    refused(lambda: world.beat(102), Code.NOT_LEADER)
    assert len(world.waiting) == 1


def test_a_full_disk_is_tried_again_after_a_second() -> None:
    world = World()
    world.slow = True
    world.command(CommandKind.NODE_DRAIN, node=NodeId(101))
    number, (save,) = world.number, world.waiting
    effects = world.do(ev.StoreFailed(world.now_ns, save.save, Code.NO_SPACE, "full"))
    refused(lambda: answer_to(number, effects), Code.NO_SPACE)
    assert any(isinstance(e, ev.Log) and e.severe for e in effects)
    assert len(world.core.decisions) == 1  # the chains'
    assert not world.core.routing.nodes[NodeId(101)].draining
    world.pass_time(900 * MS, 101, 102, 103)
    assert len(world.waiting) == 1
    world.slow = False
    world.attest(102)
    world.pass_time(200 * MS, 101, 103)
    assert world.target(102).state is OFFLINE


def test_a_registration_whose_predecessors_end_cannot_be_decided_gives_up() -> None:
    world = World()
    world.core = world.manager(world.core.routing)
    world.do(ev.Announced(world.now_ns, HERE))
    world.core.leases._hold_until_ns = 1 << 62  # never settled
    assert world.register(101, incarnation=2) is None
    number = world.number
    for _ in range(200):
        world.now_ns += L // 16
        world.beats(102)
        if any(isinstance(e, ev.Refuse) and e.request == number for e in world.tick()):
            break
    else:
        raise AssertionError("it waits for ever")


def test_the_queue_is_bounded() -> None:
    world = World()
    world.slow = True
    world.attest(103)
    node = world.core.routing.nodes[NodeId(101)]
    for number in range(1000, 1000 + MAX_WAITING):
        assert world.core.handle(ev.Registered(world.now_ns, number, node, "", True)) == []
    refused(lambda: world.register(101), Code.OVERLOADED)


def test_an_attested_end_is_answered_once_it_is_public() -> None:
    world = World()
    assert isinstance(world.attest(101, incarnation=9), ev.Done)  # of a process long gone
    assert world.target(101).state is SERVING
    world.slow = True
    assert world.attest(101) is None
    number = world.number
    effects = world.do(ev.Stored(world.now_ns, world.waiting[0].save))
    assert isinstance(answer_to(number, effects), ev.Done)
    refused(lambda: world.attest(199), Code.NOT_FOUND)


# ------------------------------------------------------------------ chains


def test_chains_are_planned_outside_and_taken_once() -> None:
    world = World(targets=0)
    wishes = [ev.ChainsWanted(world.now_ns, 70 + n, Wish(3, n, 3), "me", 5) for n in (1, 1, 2)]
    plans = [e for wish in wishes for e in world.core.handle(wish)]
    assert all(isinstance(plan, ev.Plan) for plan in plans)
    answers: list[ev.Effect] = []
    for plan in plans:  # nodes come and go meanwhile, then all three arrive
        assert isinstance(plan, ev.Plan)
        if plan.request == 71:
            world.register(104)
        made = decide.with_chains(plan.routing, plan.wish)
        answers += world.do(ev.Planned(world.now_ns, plan.request, made))
    assert len(world.core.routing.chains) == 1 and len(world.core.routing.nodes) == 4
    refusals = [e for e in answers if isinstance(e, ev.Refuse)]
    assert [(r.request, r.code) for r in refusals] == [(72, Code.EXISTS)]
    assert [d.what for d in world.core.decisions] == [
        "chains created: 1 chains of 3 targets on 3 nodes"
    ]
    failed = ev.Planned(world.now_ns, 71, None, Code.INTERNAL, "late")
    assert world.core.handle(failed) == []  # asked for by nobody any more


def test_a_plan_that_fails_is_refused() -> None:
    world = World(nodes=2, targets=0)
    event = ev.ChainsWanted(world.now_ns, 7, Wish(3, 1, 3), "me", 5)
    (plan,) = world.core.handle(event)
    assert isinstance(plan, ev.Plan)
    effects = world.do(ev.Planned(world.now_ns, 7, None, Code.UNAVAILABLE, "2 of 3 are up"))
    refused(lambda: answer_to(7, effects), Code.UNAVAILABLE)


# ------------------------------------------------------------------ orders


def test_an_ordered_target_leaves_once_its_node_says_so() -> None:
    world = World()
    head = world.chain().serving[0]
    world.command(CommandKind.TARGET_OFFLINE, target=head)
    assert world.core.routing.targets[head].order is Order.OFFLINE
    assert world.chain().serving[0] == head  # until its node has stopped it
    world.local[head] = DEAD
    world.beats()
    world.tick()
    assert world.chain().state_of(head) is OFFLINE and world.chain().serving[0] != head
    world.local[head] = ONLINE  # whatever it says, as long as the order stands
    world.beats()
    world.pass_time(L // 2, 101, 102, 103)
    assert world.chain().state_of(head) is OFFLINE
    world.command(CommandKind.TARGET_ONLINE, target=head)
    world.beats()
    world.tick()
    assert world.chain().state_of(head) is SYNCING


def test_an_ordered_target_that_says_nothing_leaves_after_a_full_lease() -> None:
    world = World()
    head = world.chain().serving[0]
    ordered = world.now_ns
    world.command(CommandKind.TARGET_OFFLINE, target=head)
    while head in world.chain().serving:
        world.pass_time(L // 16, 101, 102, 103)
        assert world.now_ns <= ordered + 2 * L
    assert world.now_ns - ordered >= L


def test_the_lease_of_an_order_counts_from_its_publication() -> None:
    world = World()
    head = world.chain().serving[0]
    world.slow = True
    world.command(CommandKind.TARGET_OFFLINE, target=head)
    world.pass_time(L // 2, 101, 102, 103)
    world.slow = False
    world.do(ev.Stored(world.now_ns, world.waiting[0].save))
    public = world.now_ns
    while head in world.chain().serving:
        world.pass_time(L // 16, 101, 102, 103)
    assert world.now_ns - public >= L


def test_a_new_leader_waits_the_full_lease_again() -> None:
    world = World()
    head = world.chain().serving[0]
    world.command(CommandKind.TARGET_OFFLINE, target=head)
    world.pass_time(L - L // 8, 101, 102, 103)
    world.core = world.manager(world.core.routing)
    world.do(ev.Announced(world.now_ns, HERE))
    began = world.now_ns
    while head in world.chain().serving:
        world.pass_time(L // 16, 101, 102, 103)
    assert world.now_ns - began >= L


def test_an_order_is_void_when_the_others_die() -> None:
    world = World()
    first, second, third = world.chain().serving
    node = int(world.core.routing.targets[first].node)
    others = [int(world.core.routing.targets[t].node) for t in (second, third)]
    world.command(CommandKind.TARGET_OFFLINE, target=first)
    for other in others:
        world.attest(other)
    target = world.core.routing.targets[first]
    assert target.order is Order.NONE and world.chain().serving == (first,)
    world.pass_time(2 * L, node)
    assert world.chain().serving == (first,)


def test_an_order_is_void_for_who_stopped_last() -> None:
    """It has stopped by the order already when the others die: it must come back."""
    world = World()
    first, second, third = world.chain().serving
    node = int(world.core.routing.targets[first].node)
    world.command(CommandKind.TARGET_OFFLINE, target=first)
    world.slow = True
    world.attest(int(world.core.routing.targets[second].node))
    world.local[first] = DEAD
    world.beat(node)
    world.slow = False
    world.attest(int(world.core.routing.targets[third].node))
    world.do(ev.Stored(world.now_ns, world.waiting[0].save))
    check(world.chain())
    world.pass_time(L // 4, node)
    target = world.core.routing.targets[first]
    assert world.chain().serving == () and target.order is Order.NONE and target.state is LAST
    world.local[first] = ONLINE
    world.pass_time(L // 4, node)
    assert world.chain().serving == (first,)


def test_an_order_is_void_for_who_died_with_all_others() -> None:
    world = World()
    first = world.chain().serving[0]
    world.command(CommandKind.TARGET_OFFLINE, target=first)
    world.pass_time(2 * L)
    assert [s for _, s in world.chain().targets] == [LAST, LAST, LAST]
    assert world.core.routing.targets[first].order is Order.NONE


def obey(world: World) -> None:
    """Let nodes do as ordered, and syncs end at once."""
    for target in world.core.routing.targets.values():
        if target.withdrawn:
            world.local[target.id] = DEAD
        elif target.state in (SERVING, SYNCING):
            world.local[target.id] = FRESH
        else:
            world.local[target.id] = ONLINE


def test_a_drain_takes_one_serving_target_at_a_time() -> None:
    world = World(nodes=4, targets=3)
    world.command(CommandKind.NODE_DRAIN, node=NodeId(102))
    seen: list[int] = []
    for _ in range(50):
        leaving = [t for t in world.core.routing.targets.values() if t.withdrawn]
        assert sum(t.state is SERVING for t in leaving) <= 1
        assert all(t.node == 102 for t in leaving)
        assert all(len(c.serving) >= 2 for c in world.core.routing.chains.values())
        seen.append(len(leaving))
        if all(t.state is OFFLINE for t in world.targets(102)):
            break
        obey(world)
        world.pass_time(L // 16, 101, 102, 103, 104)
    assert seen[-1] == 3 and sorted(set(seen)) == [1, 2, 3]
    world.register(102, incarnation=2)  # a drained node that is started again stays out
    world.pass_time(L, 101, 103, 104)
    assert world.core.routing.nodes[NodeId(102)].draining
    world.command(CommandKind.NODE_UNDRAIN, node=NodeId(102))
    for _ in range(50):
        obey(world)
        world.beat(102, incarnation=2)
        world.pass_time(L // 16, 101, 103, 104)
    assert all(t.state is SERVING for t in world.targets(102))


def test_two_drains_never_take_a_chains_last() -> None:
    world = World(nodes=3, targets=1)
    for node in (101, 102, 103):
        world.command(CommandKind.NODE_DRAIN, node=NodeId(node))
    for _ in range(50):
        obey(world)
        world.pass_time(L // 16, 101, 102, 103)
        assert world.chain().serving
    assert len(world.chain().serving) == 1


def test_the_preferred_head_comes_back_when_all_is_calm() -> None:
    world = World()
    preferred = world.chain().preferred
    head = int(world.core.routing.targets[preferred[0]].node)
    world.attest(head)
    world.register(head, incarnation=2)
    alive = [n for n in (101, 102, 103) if n != head]

    def live(ns: int) -> None:
        end = world.now_ns + ns
        while world.now_ns < end:
            obey(world)
            world.beat(head, incarnation=2)
            world.pass_time(L // 16, *alive)

    live(L // 2)
    assert world.chain().serving[-1] == preferred[0]  # back, at the tail
    changed = world.now_ns
    live(CALM_LEASES * L - L)
    assert not any(t.withdrawn for t in world.core.routing.targets.values())
    for _ in range(20):
        live(L)
        assert len(world.chain().serving) >= 2
    assert world.chain().serving == preferred
    assert world.now_ns > changed
    version = world.core.routing.version
    live(10 * L)
    assert world.core.routing.version == version  # and stays


def test_a_single_chain_at_a_time_is_rotated() -> None:
    world = World(nodes=3, targets=3)
    for chain in list(world.core.routing.chains.values()):
        wanted = (*chain.serving[1:], chain.serving[0])
        world.command(CommandKind.CHAIN_PREFER, chain=chain.id, order=wanted)
    for _ in range(400):
        obey(world)
        world.pass_time(L // 16, 101, 102, 103)
        short = [c for c in world.core.routing.chains.values() if len(c.serving) < 3]
        assert len(short) <= 1
    assert all(c.serving[0] == c.preferred[0] for c in world.core.routing.chains.values())


def test_chains_without_a_node_in_common_are_rotated_together() -> None:
    world = World(nodes=6, targets=0)
    table = tuple(
        tuple(Place(NodeId(node), 0) for node in line)
        for line in ((101, 102, 103), (104, 105, 106), (103, 104, 101))
    )
    chains, targets = {}, {}
    for number, line in enumerate(table, 1):
        ids = tuple(TargetId(place.node * 1000 + number) for place in line)
        members = tuple((t, SERVING) for t in (*ids[1:], ids[0]))
        chains[ChainId(number)] = Chain(ChainId(number), 5, members, 1, ids)
        for target, place in zip(ids, line, strict=True):
            targets[target] = Target(target, place.node, ChainId(number), 0, SERVING, FRESH)
    routing = replace(world.core.routing, chains=chains, targets=targets)
    turned = orders.rotated(routing)
    assert [t.id for t in turned.targets.values() if t.withdrawn] == [102001, 105002]
    assert orders.rotated(turned) is turned


# ------------------------------------------------------------------ commands


def dead_chain(world: World) -> tuple[TargetId, TargetId, TargetId]:
    """Kill all, one after the other; return who is given up, and who died first and second."""
    first, second, third = world.chain().serving
    for target in (first, second, third):
        world.attest(int(world.core.routing.targets[target].node))
    assert world.chain().state_of(third) is LAST
    return third, first, second


def test_loss_is_accepted_for_a_last_serving_target_only() -> None:
    world = World()
    lost, first, second = dead_chain(world)
    accept = CommandKind.CHAIN_ACCEPT_LOSS
    for fields in (
        {"chain": ChainId(1), "target": first},
        {"chain": ChainId(1), "target": TargetId(5)},
        {"chain": ChainId(1), "target": lost, "successor": lost},
        {"chain": ChainId(1), "target": lost, "successor": TargetId(5)},
    ):
        refused(lambda fields=fields: world.command(accept, **fields), Code.CONFIGURATION)  # type: ignore[misc]
    refused(lambda: world.command(accept, chain=ChainId(9), target=lost), Code.NOT_FOUND)
    world.register(int(world.core.routing.targets[second].node), incarnation=2)
    done = world.command(accept, chain=ChainId(1), target=lost)
    assert done is not None and str(second) in done.text  # it lives: rather than the other
    assert world.chain().state_of(lost) is OFFLINE and world.chain().state_of(second) is LAST
    check(world.chain())
    (decision,) = [d for d in world.core.decisions if d.loss]
    assert (decision.who, decision.why, decision.target) == ("me@here", "because", lost)
    assert decision.version == world.core.routing.version and decision.wall_ms == 7
    world.local[second] = ONLINE
    world.beat(int(world.core.routing.targets[second].node), incarnation=2)
    world.tick()
    assert world.chain().serving == (second,)
    # The lost one comes back: it is not believed, but brought up to date.
    node = int(world.core.routing.targets[lost].node)
    world.register(node, incarnation=2)
    world.local[lost] = ONLINE
    world.beat(node, incarnation=2)
    world.tick()
    assert world.chain().state_of(lost) is SYNCING


def test_loss_leaves_the_other_candidates() -> None:
    world = World()
    first, second, third = world.chain().serving
    world.pass_time(2 * L)  # all die together: each has everything
    assert [s for _, s in world.chain().targets] == [LAST, LAST, LAST]
    world.command(CommandKind.CHAIN_ACCEPT_LOSS, chain=ChainId(1), target=first)
    assert [world.chain().state_of(t) for t in (first, second, third)] == [OFFLINE, LAST, LAST]


def test_a_single_replica_cannot_be_given_up() -> None:
    world = World(nodes=1, targets=1, replicas=1)
    (only,) = world.chain().serving
    world.attest(101)
    accept = CommandKind.CHAIN_ACCEPT_LOSS
    text = refused(lambda: world.command(accept, chain=ChainId(1), target=only), Code.CONFIGURATION)
    assert "bring that one's disk back" in text


def test_writes_quorum_is_told_to_every_replica_by_a_new_version() -> None:
    world = World()
    version = world.chain().version
    command = CommandKind.CHAIN_MIN_SERVING
    refused(lambda: world.command(command, chain=ChainId(1), min_serving=4), Code.CONFIGURATION)
    refused(lambda: world.command(command, chain=ChainId(1), min_serving=0), Code.CONFIGURATION)
    world.command(command, chain=ChainId(1), min_serving=2)
    assert (world.chain().min_serving, world.chain().version) == (2, version + 1)
    world.command(command, chain=ChainId(1), min_serving=2)
    assert world.chain().version == version + 1 and len(world.core.decisions) == 2
    first, second, _ = world.chain().serving
    offline = CommandKind.TARGET_OFFLINE
    world.command(offline, target=first)
    text = refused(lambda: world.command(offline, target=second), Code.CONFIGURATION)
    assert "needs 2 serving and has 2" in text


def test_commands_name_what_does_not_exist_and_who_asks() -> None:
    world = World()
    kind = CommandKind
    refused(lambda: world.command(kind.TARGET_OFFLINE, target=TargetId(7)), Code.NOT_FOUND)
    refused(lambda: world.command(kind.TARGET_ONLINE, target=TargetId(7)), Code.NOT_FOUND)
    refused(lambda: world.command(kind.NODE_DRAIN, node=NodeId(7)), Code.NOT_FOUND)
    refused(lambda: world.command(kind.CHAIN_ROTATE, chain=ChainId(7)), Code.NOT_FOUND)
    order = world.chain().serving
    for wrong in (order[:2], (*order, order[0]), (*order[:2], TargetId(9))):
        refused(
            lambda wrong=wrong: world.command(  # type: ignore[misc]
                kind.CHAIN_PREFER, chain=ChainId(1), order=wrong
            ),
            Code.CONFIGURATION,
        )
    nobody = Command(kind.NODE_DRAIN, "", "", node=NodeId(101))
    refused(lambda: world.ask(lambda n: ev.Commanded(world.now_ns, n, nobody, 1)), Code.INVALID)
    assert len(world.core.decisions) == 1  # of these none was taken


# ------------------------------------------------------------------ clients


def test_sessions_end_by_word_by_time_and_not_in_the_time_of_grace() -> None:
    world = World()

    def session(client: int, end: bool = False) -> None:
        world.ask(lambda n: ev.SessionCame(world.now_ns, n, client, end))

    session(7)
    assert world.beat(101, clients=(7, 8)).ended_clients == ()  # a new manager knows nobody yet
    world.pass_time(9 * L, 101, 102, 103)
    session(7)
    session(9)
    world.pass_time(L, 101, 102, 103)
    assert world.beat(101, clients=(7, 8, 9)).ended_clients == (8,)
    session(9, end=True)
    assert world.beat(101, clients=(7, 8, 9)).ended_clients == (8, 9)
    world.pass_time(9 * L, 101, 102, 103)
    assert world.beat(102, clients=(7,)).ended_clients == (7,)
    world.pass_time(10 * L, 101, 102, 103)
    assert len(world.core.sessions) == 0  # what is over is forgotten
    session(7)
    assert world.beat(102, clients=(7,)).ended_clients == ()
