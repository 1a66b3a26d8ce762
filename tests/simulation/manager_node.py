"""ManagerNode: the cluster manager's process: the production machine, its effects carried out.

What is stored outlives it: a new process goes on with the routing saved last, and raises the
epoch, after which an older one can store nothing.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hillfire.cluster import Decision, Routing
from hillfire.errors import Code, Error
from hillfire.meta.manager import decide, events
from hillfire.meta.manager.core import Manager, Settings
from tests.simulation.process import Process, Reply

if TYPE_CHECKING:
    from tests.simulation.world import World

SAVE_S = 0.004
WAKE_S = 0.001


class ManagerStore:
    """The manager's database, as far as it is durable."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        self.decisions: tuple[Decision, ...] = ()
        self.epoch = 0
        self.broken = False
        """whether saves fail: its disk is full"""


class ManagerNode(Process):
    """A manager; one leads at a time, whoever opened the store last."""

    def __init__(self, world: "World", name: str, store: ManagerStore) -> None:
        super().__init__(name, world.scheduler, world.story, world.rate())
        self.world = world
        self.store = store
        self.routing = store.routing
        """as it is published"""
        self._machine: Manager
        self._asking: dict[int, Reply] = {}
        self._requests = 0
        self._epoch = 0
        self._woken = False
        self._polls: list[tuple[int, Reply]] = []

    # ------------------------------------------------------------------ life

    def boot(self) -> None:
        self.store.epoch += 1
        self._epoch = self.store.epoch
        self.routing = self.store.routing
        self._asking, self._polls, self._woken = {}, [], False
        plan = self.world.plan
        settings = Settings(lease_ns=plan.lease_ms * 1_000_000)
        self._machine = Manager(
            settings, self.store.routing, self.store.decisions, self.boot_ns(),
            on_row=self.world.coverage.row,
        )  # fmt: skip
        self.handle(events.Announced(self.boot_ns(), self.world.manager_endpoint))
        self._tick()

    def dead(self) -> None:
        self._asking, self._polls = {}, []

    def _tick(self) -> None:
        self.handle(events.Tick(self.boot_ns()))
        self.after(self._machine.settings.tick_ns / 1e9, self._tick)

    def handle(self, event: events.Event) -> None:
        """Give the machine an event and carry out what it wants."""
        for effect in self._machine.handle(event):
            self.step()
            _CARRY[type(effect)](self, effect)

    # ------------------------------------------------------------------ effects

    def _answer(self, effect: events.Answer) -> None:
        self._asking.pop(effect.request)(effect.reply)

    def _refuse(self, effect: events.Refuse) -> None:
        self._asking.pop(effect.request)(Error(effect.code, effect.text))

    def _save(self, effect: events.Save) -> None:
        def write() -> None:
            store = self.store
            if store.epoch != self._epoch:
                done(Code.NOT_LEADER)
            elif store.broken:
                done(Code.NO_SPACE)
            else:
                self.world.checks.stored(store.routing, effect.routing)
                store.routing, store.decisions = effect.routing, effect.decisions
                done(Code.OK)

        def done(code: Code) -> None:
            self.step()
            self.after(self.world.scheduler.random.random() * SAVE_S, lambda: told(code))

        def told(code: Code) -> None:
            if code is Code.OK:
                self.handle(events.Stored(self.boot_ns(), effect.save))
            else:
                text = "simulated"
                self.handle(events.StoreFailed(self.boot_ns(), effect.save, code, text))

        self.after(self.world.scheduler.random.random() * SAVE_S, write)

    def _publish(self, effect: events.Publish) -> None:
        before, self.routing = self.routing, effect.routing
        self.world.published(before, effect.routing)
        polls, self._polls = self._polls, []
        for _, reply in polls:
            reply(effect.routing)

    def _plan(self, effect: events.Plan) -> None:
        try:
            found, code, text = decide.with_chains(effect.routing, effect.wish), Code.OK, ""
        except Error as error:
            found, code, text = None, error.code, str(error.strerror)
        planned = events.Planned(self.boot_ns(), effect.request, found, code, text)
        self.after(0.0, lambda: self.handle(planned._replace(now_ns=self.boot_ns())))

    def _log(self, effect: events.Log) -> None:
        self.world.story.tell(self.name, effect.text)

    def _wake(self, effect: events.Wake) -> None:
        if not self._woken:
            self._woken = True

            def tick() -> None:
                self._woken = False
                self.handle(events.Tick(self.boot_ns()))

            self.after(WAKE_S, tick)

    def _ended(self, effect: events.Ended) -> None:
        self.kill(f"ends: {effect.text}")

    # ------------------------------------------------------------------ requests

    def serve(self, method: str, body: Any, reply: Reply) -> None:
        if method == "get_routing":
            known, wait_s = body
            self._get_routing(known, wait_s, reply)
            return
        if self.world.story.verbose and method == "heartbeat":
            said = ", ".join(f"t{t} {s.report.local.name} at {s.report.chain_version}"
                             for t, s in body[3].items())  # fmt: skip
            self.world.story.tell(self.name, f"heartbeat of n{body[0]}: {said}")
        self._requests += 1
        self._asking[self._requests] = reply
        self.handle(_EVENTS[method](self.boot_ns(), self._requests, *body))

    def _get_routing(self, known: int, wait_s: float, reply: Reply) -> None:
        if self.routing.version > known or not wait_s:
            reply(self.routing)
            return
        waiting = known, reply
        self._polls.append(waiting)

        def over() -> None:
            if waiting in self._polls:
                self._polls.remove(waiting)
                reply(self.routing)

        self.after(wait_s, over)


_EVENTS: dict[str, Callable[..., events.Event]] = {
    "register": events.Registered,
    "heartbeat": events.Heartbeat,
    "attest_exit": events.ExitAttested,
    "create_chains": events.ChainsWanted,
    "command": events.Commanded,
    "session": events.SessionCame,
}

_CARRY: dict[type, Callable[[ManagerNode, Any], None]] = {
    events.Answer: ManagerNode._answer,
    events.Refuse: ManagerNode._refuse,
    events.Save: ManagerNode._save,
    events.Publish: ManagerNode._publish,
    events.Plan: ManagerNode._plan,
    events.Log: ManagerNode._log,
    events.Wake: ManagerNode._wake,
    events.Ended: ManagerNode._ended,
}
