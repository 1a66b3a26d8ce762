"""ManagerNode: a cluster manager's process: the production machine, its effects carried out.

Several may run over one directory: one leads by an epoch and a lease, the others stand by, as
``meta/manager/leadership.py`` does it with files. What an epoch stored outlives its process; the
next leader claims an epoch of its own and copies the newest complete one.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hillfire.cluster import Decision, Endpoint, Routing
from hillfire.errors import Code, Error
from hillfire.meta.manager import decide, events
from hillfire.meta.manager.core import Manager, Settings
from hillfire.meta.manager.leadership import BEATS_A_LEASE
from tests.simulation.process import Process, Reply

if TYPE_CHECKING:
    from tests.simulation.world import World

SAVE_S = 0.004
COPY_S = 0.01
WAKE_S = 0.001


class Epoch:
    """One claimed epoch: who claimed it, whether it goes on, and what it has stored."""

    def __init__(self, number: int, holder: Process | None, routing: Routing) -> None:
        self.number = number
        self.beats = 0
        self.ready = False
        self.routing = routing
        self.decisions: tuple[Decision, ...] = ()
        self._holder = holder
        self._life = holder.life if holder is not None else 0

    @property
    def held(self) -> bool:
        """Whether the process that claimed it lives, paused or not."""
        holder = self._holder
        return holder is not None and holder.alive and holder.life == self._life


class ManagerDirectory:
    """The managers' directory."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing
        """the newest that a leader may have published"""
        self.full = False
        first = Epoch(0, None, routing)
        first.ready = True
        self.epochs = [first]

    @property
    def newest(self) -> Epoch:
        return self.epochs[-1]

    def claim(self, holder: Process) -> Epoch:
        """Begin the next epoch."""
        self.epochs.append(Epoch(self.newest.number + 1, holder, self.routing))
        return self.newest

    def source(self, epoch: Epoch) -> Epoch:
        """Return the newest complete epoch before one."""
        return next(e for e in reversed(self.epochs) if e.number < epoch.number and e.ready)


class ManagerNode(Process):
    """A manager: it leads, or it stands by."""

    def __init__(self, world: "World", name: str, directory: ManagerDirectory) -> None:
        super().__init__(name, world.scheduler, world.story, world.rate())
        self.world = world
        self.directory = directory
        self.endpoint = Endpoint(name, name, "", f"host-{name}")
        self.routing = directory.routing
        """as it has published it"""
        self._machine: Manager | None = None
        self._epoch: Epoch | None = None
        self._led_until_ns = 0
        self._asking: dict[int, Reply] = {}
        self._requests = 0
        self._woken = False
        self._polls: list[tuple[int, Reply]] = []
        self._seen = (0, 0)
        self._seen_ns = 0

    # ------------------------------------------------------------------ who leads

    def boot(self) -> None:
        self._seen, self._seen_ns = (0, 0), self.boot_ns()
        self._stand_by()

    def dead(self) -> None:
        self._end()

    def _end(self) -> None:
        """Lead no more; who waits is not answered."""
        self._machine = self._epoch = None
        self._asking, self._polls, self._woken = {}, [], False

    def _stand_by(self) -> None:
        """Watch the newest epoch; claim the next when its leader is gone or silent for a lease."""
        newest, now_ns = self.directory.newest, self.boot_ns()
        if (newest.number, newest.beats) != self._seen:
            self._seen, self._seen_ns = (newest.number, newest.beats), now_ns
        silent = now_ns - self._seen_ns >= self._lease_ns
        if newest.held and not silent:
            self.after(self._lease_ns / 1e9 / BEATS_A_LEASE, self._stand_by)
            return
        epoch = self._epoch = self.directory.claim(self)
        self.world.coverage.count("epochs")
        self.world.story.tell(self.name, f"claims epoch {epoch.number}")
        self._renew(epoch)
        self.after(self.scheduler.random.random() * COPY_S, lambda: self._lead(epoch))

    @property
    def _lease_ns(self) -> int:
        return self.world.plan.lease_ms * 1_000_000

    def _renew(self, epoch: Epoch) -> None:
        """Raise the epoch's counter, for as long as it is the newest."""
        if self._epoch is not epoch:
            return
        began_ns = self.boot_ns()
        epoch.beats += 1

        def check() -> None:
            if self._epoch is not epoch:
                return
            if self.directory.newest is not epoch:
                self._outdated()
                return
            self._led_until_ns = began_ns + self._lease_ns // 2
            if self._machine is not None:
                self.handle(events.Led(self.boot_ns(), self._led_until_ns))
            self.after(self._lease_ns / 1e9 / BEATS_A_LEASE, lambda: self._renew(epoch))

        self.after(self.scheduler.random.random() * SAVE_S, check)

    def _outdated(self) -> None:
        self.world.story.tell(self.name, "leads no more")
        self._end()
        self._stand_by()

    def _lead(self, epoch: Epoch) -> None:
        """Take over what the last leader stored, and decide from now on."""
        if self._epoch is not epoch:
            return
        source = self.directory.source(epoch)
        epoch.routing, epoch.decisions, epoch.ready = source.routing, source.decisions, True
        self.routing = epoch.routing
        self._machine = Manager(
            Settings(lease_ns=self._lease_ns), epoch.routing, epoch.decisions, self.boot_ns(),
            self._led_until_ns, on_row=self.world.coverage.row,
            on_rule=self.world.coverage.rule,
        )  # fmt: skip
        self.handle(events.Announced(self.boot_ns(), self.endpoint))
        self._tick(epoch)

    def _tick(self, epoch: Epoch) -> None:
        machine = self._machine
        if self._epoch is epoch and machine is not None:
            self.handle(events.Tick(self.boot_ns()))
            self.after(machine.settings.tick_ns / 1e9, lambda: self._tick(epoch))

    def handle(self, event: events.Event) -> None:
        """Give the machine an event and carry out what it wants."""
        machine = self._machine
        assert machine is not None
        for effect in machine.handle(event):
            self.step()
            if self._machine is machine:
                _CARRY[type(effect)](self, effect)

    # ------------------------------------------------------------------ effects

    def _answer(self, effect: events.Answer) -> None:
        self._asking.pop(effect.request)(effect.reply)

    def _refuse(self, effect: events.Refuse) -> None:
        self._asking.pop(effect.request)(Error(effect.code, effect.text))

    def _save(self, effect: events.Save) -> None:
        """Make it durable in this epoch's database, then look for a newer claim."""
        epoch, directory, random = self._epoch, self.directory, self.scheduler.random
        assert epoch is not None

        def write() -> None:
            if directory.full:
                told(Code.NO_SPACE)
                return
            epoch.routing, epoch.decisions = effect.routing, effect.decisions
            self.after(random.random() * SAVE_S, check)
            self.step()

        def check() -> None:
            if directory.newest is not epoch:
                told(Code.NOT_LEADER)
                return
            self.world.checks.stored(directory.routing, effect.routing)
            directory.routing = effect.routing
            self.after(random.random() * SAVE_S, lambda: told(Code.OK))

        def told(code: Code) -> None:
            if self._epoch is not epoch:
                return
            now_ns = self.boot_ns()
            if code is Code.OK:
                self.handle(events.Stored(now_ns, effect.save))
            else:
                self.handle(events.StoreFailed(now_ns, effect.save, code, "simulated"))

        self.after(random.random() * SAVE_S, write)

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
        if self._woken:
            return
        self._woken = True
        epoch = self._epoch

        def tick() -> None:
            if self._epoch is epoch and self._machine is not None:
                self._woken = False
                self.handle(events.Tick(self.boot_ns()))

        self.after(WAKE_S, tick)

    def _ended(self, effect: events.Ended) -> None:
        self.after(0.0, self._outdated)

    # ------------------------------------------------------------------ requests

    def serve(self, method: str, body: Any, reply: Reply) -> None:
        if self._machine is None:
            reply(Error(Code.NOT_LEADER, "this manager stands by"))
        elif method == "get_routing":
            known, wait_s = body
            self._get_routing(known, wait_s, reply)
        else:
            self._requests += 1
            self._asking[self._requests] = reply
            if self.story.verbose and method == "heartbeat":
                self.story.tell(self.name, f"heartbeat of n{body[0]}: {said(body[3])}")
            self.handle(_EVENTS[method](self.boot_ns(), self._requests, *body))

    def _get_routing(self, known: int, wait_s: float, reply: Reply) -> None:
        assert self._machine is not None
        if (refusal := self._machine.refusal(self.boot_ns())) is not None:
            reply(refusal)
            return
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


def said(statuses: Any) -> str:
    """Return what a heartbeat says, in a line."""
    reports = ((target, status.report) for target, status in statuses.items())
    return ", ".join(f"t{t} {report.local.name} at {report.chain_version}" for t, report in reports)


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
