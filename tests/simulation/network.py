"""Network: requests and answers between processes, and everything that befalls them.

Each message is delayed on its own, so that messages overtake one another; it may be lost, come
twice, or come damaged. A link may be blocked in one direction or in both; what meets a block is
lost, or comes when the block ends, as TCP would send it again. The end of a process breaks its
connections: whoever waits for it learns so. The end of its host does not.
"""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from hillfire.errors import Code, Error
from tests.simulation.process import Process
from tests.simulation.scheduler import Action, Scheduler

LATE_COPY_S = 2.0


class Weather:
    """How bad the network is; a seed draws it, the end of a seed clears it."""

    delay_s = 0.0005
    spread = 2.0
    loss = 0.0
    twice = 0.0
    damage = 0.0
    late = 0.0
    """share of messages that take ``late_s`` more"""
    late_s = 1.0

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self.loss = self.twice = self.damage = self.late = 0.0


class Call:
    """A request that was sent and not answered yet."""

    __slots__ = ("answered", "life", "open", "receiver", "receiver_life", "sender")

    def __init__(self, sender: Process, receiver: Process, answered: Callable[[Any], None]) -> None:
        self.sender = sender
        self.receiver = receiver
        self.life = sender.life
        self.receiver_life = receiver.life
        self.answered = answered
        self.open = True


class Network:
    """All links."""

    def __init__(self, scheduler: Scheduler, weather: Weather) -> None:
        self.scheduler = scheduler
        self.weather = weather
        self.blocked: dict[tuple[str, str], list[Action]] = {}
        """links that let nothing through, with what comes when they are open again"""
        self.sent = 0
        self._random: Random = scheduler.random
        self._open: dict[Process, dict[Call, None]] = {}

    # ------------------------------------------------------------------ requests

    def call(
        self,
        sender: Process,
        receiver: Process,
        method: str,
        body: Any,
        timeout_s: float,
        answered: Callable[[Any], None],
    ) -> None:
        """Send a request; ``answered`` is called once, at the sender, if it still lives then.

        With the answer, or an ``Error``: the receiver's, CONNECTION, or TIMED_OUT.
        """
        call = Call(sender, receiver, answered)
        self._open.setdefault(receiver, {})[call] = None
        text = f"{receiver} has not answered {method} within {timeout_s:.3f} s"
        sender.after(timeout_s, lambda: self._end(call, Error(Code.TIMED_OUT, text)))
        # The timer runs in the sender's life; the leg of the answer checks it as well.
        self._leg(sender, receiver, lambda: self._arrive(call, method, body))

    def _arrive(self, call: Call, method: str, body: Any) -> None:
        receiver, sender = call.receiver, call.sender
        if not receiver.alive:
            self._leg(receiver, sender, lambda: self._broken(call))
            return

        def reply(value: Any) -> None:
            self._leg(receiver, sender, lambda: self._back(call, value))

        receiver.bound(lambda: receiver.serve(method, body, reply))()

    def _back(self, call: Call, value: Any) -> None:
        if call.sender.life == call.life:
            call.sender.bound(lambda: self._end(call, value))()

    def _broken(self, call: Call) -> None:
        self._back(call, Error(Code.CONNECTION, f"the connection to {call.receiver} broke"))

    def _end(self, call: Call, value: Any) -> None:
        if call.open:
            call.open = False
            self._open[call.receiver].pop(call, None)
            call.answered(value)

    # ------------------------------------------------------------------ links

    def _leg(self, sender: Process, receiver: Process, deliver: Action) -> None:
        """Carry one message one way."""
        self.sent += 1
        held = self.blocked.get((sender.name, receiver.name))
        if held is not None:
            if self._random.random() < 0.5:
                held.append(deliver)
            return
        weather, chance = self.weather, self._random.random
        if weather.loss and chance() < weather.loss:
            return
        self.scheduler.later(self._delay_s(), deliver)
        if weather.twice and chance() < weather.twice:
            # Mostly soon; sometimes so late that much has happened since.
            self.scheduler.later(self._delay_s() + chance() ** 3 * LATE_COPY_S, deliver)

    def _delay_s(self) -> float:
        weather, chance = self.weather, self._random.random
        delay_s = weather.delay_s * (1 + chance() * weather.spread)
        if weather.late and chance() < weather.late:
            delay_s += chance() * weather.late_s
        return delay_s

    def damaged(self, data: bytes | bytearray | memoryview) -> bool:
        """Tell whether these bytes shall arrive with a flipped bit."""
        return bool(
            self.weather.damage and len(data) and self._random.random() < self.weather.damage
        )

    def block(self, sender: str, receiver: str) -> None:
        """Let nothing through from one process to another."""
        self.blocked.setdefault((sender, receiver), [])

    def unblock(self, sender: str, receiver: str) -> None:
        """Open a link again; what was held comes now."""
        for deliver in self.blocked.pop((sender, receiver), []):
            self.scheduler.later(self._delay_s(), deliver)

    def died(self, process: Process) -> None:
        """Break the connections of a process that has ended while its host goes on."""
        for call in list(self._open.get(process, ())):
            self._leg(process, call.sender, partial(self._broken, call))

    def drop(self, sender: Process, receiver: Process) -> None:
        """Close the sender's connections to a receiver: what waits for it fails now."""
        for call in list(self._open.get(receiver, ())):
            if call.sender is sender and call.life == sender.life:
                self._end(call, Error(Code.CONNECTION, f"the connection to {receiver} was closed"))

    def cut(self, one: Process, other: Process) -> None:
        """Break all connections between two processes that live."""
        for sender, receiver in ((one, other), (other, one)):
            for call in list(self._open.get(receiver, ())):
                if call.sender is sender:
                    self._back(call, Error(Code.CONNECTION, f"connection to {receiver} reset"))
