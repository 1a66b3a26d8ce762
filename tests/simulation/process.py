"""Process: what the operating system makes of a program: a clock, pauses, deaths, restarts.

Time inside a process is its host's clock, which runs up to 10 % fast or slow, and goes on while
the process is paused: what came meanwhile is handled on waking, in any order.
"""

from collections.abc import Callable
from typing import Any

from hillfire.clock import Clock
from tests.simulation.scheduler import NS_PER_S, Action, Scheduler
from tests.simulation.story import Story

Reply = Callable[[Any], None]
"""Takes an answer, or an ``Error``."""


class Died(BaseException):
    """The process ended between two effects. Nothing may catch it but ``Process.run``."""


class Process:
    """One process of a host of its own. ``life`` counts its starts."""

    def __init__(self, name: str, scheduler: Scheduler, story: Story, rate: float) -> None:
        self.name = name
        self.scheduler = scheduler
        self.story = story
        self.rate = rate
        self.alive = False
        self.paused = False
        self.life = 0
        self.doom = 0
        """steps until it dies in the middle of what it is doing; 0: it does not"""
        self.on_death: list[Callable[[Process], None]] = []
        self._offset_ns = scheduler.random.randrange(NS_PER_S)
        self._asleep: list[Action] = []
        self.clock = Clock(self.boot_ns, lambda: scheduler.now_ns)

    def __repr__(self) -> str:
        return self.name

    def boot_ns(self) -> int:
        """CLOCK_BOOTTIME of its host."""
        return self._offset_ns + int(self.scheduler.now_ns * self.rate)

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin a life."""
        assert not self.alive, f"{self} is up already"
        self.life += 1
        self.alive, self.paused, self.doom = True, False, 0
        if self.story.on:
            self.story.tell(self.name, "starts")
        self.run(self.boot)

    def kill(self, why: str = "is killed") -> None:
        """End, at once and without a word; the page cache and the disk stay."""
        if not self.alive:
            return
        if self.story.on:
            self.story.tell(self.name, why)
        self.alive = False
        self._asleep.clear()
        self.dead()
        for tell in self.on_death:
            tell(self)

    def boot(self) -> None:
        """Do what the program does first."""

    def dead(self) -> None:
        """Drop what was in memory."""

    def serve(self, method: str, body: Any, reply: Reply) -> None:
        """Handle a request; those that only ask are sent none."""
        raise AssertionError(f"{method} was sent to somebody who serves nothing")

    def pause(self) -> None:
        """SIGSTOP."""
        if self.alive and not self.paused:
            self.paused = True
            self.story.tell(self.name, "is stopped (SIGSTOP)")

    def resume(self) -> None:
        """SIGCONT: what waited is handled now."""
        if not self.alive or not self.paused:
            return
        self.paused = False
        self.story.tell(self.name, "goes on (SIGCONT)")
        waiting, self._asleep = self._asleep, []
        self.scheduler.random.shuffle(waiting)
        for action in waiting:
            self.scheduler.later(0.0, action)

    # ------------------------------------------------------------------ what it does

    def after(self, seconds: float, action: Action) -> None:
        """Call ``action`` once ``seconds`` have passed on its clock, if it still lives."""
        self.scheduler.later(seconds / self.rate, self.bound(action))

    def bound(self, action: Action) -> Action:
        """Return ``action`` as it happens in this life: never after its end, not in a pause."""
        life = self.life

        def due() -> None:
            if self.life != life or not self.alive:
                return
            if self.paused:
                self._asleep.append(due)
            else:
                self.run(action)

        return due

    def run(self, action: Action) -> None:
        """Do something that may be the last."""
        try:
            action()
        except Died:
            self.kill("dies between two effects")

    def step(self) -> None:
        """Mark a point between two effects: a process may die at each.

        Raises:
            Died: if this is the one.
        """
        if self.doom:
            self.doom -= 1
            if not self.doom:
                raise Died
