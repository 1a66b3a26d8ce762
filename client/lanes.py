"""Calls that one thread has under way: started, waited for together, abandoned.

The synchronous shell's plain exchange needs none of this. Hedged reads and queues do: they have
calls on several connections at once and act on whichever answers first. A lane is a connection
taken from its node's pool for as long as calls are under way on it.
"""

import math
import select
import time
from collections.abc import Sequence
from typing import NamedTuple

from hillfire.client.actions import Call, Flying, Outcome
from hillfire.client.connections import BROKEN, TCP_CALLS, TCP_CONNECTIONS, Connections
from hillfire.cluster import Endpoint
from hillfire.errors import Code, Error
from hillfire.proto.wire.blocking import BlockingConnection

LOOK_S = 0.05
"""How often calls are looked through for those whose time is up."""


class Lane:
    """A connection, and the calls under way on it by their tickets."""

    __slots__ = ("calls", "cause", "connection", "endpoint")

    def __init__(self, endpoint: Endpoint, connection: BlockingConnection) -> None:
        """Nothing is under way yet."""
        self.endpoint = endpoint
        self.connection = connection
        self.calls: dict[int, Flying] = {}
        self.cause: Error | None = None
        """why it takes no more calls"""


class Handle(NamedTuple):
    """What a call that was started here knows of itself."""

    lane: Lane
    ticket: int
    until: float
    owner: object
    """who started it"""


class Lanes:
    """One thread's lanes: one to a node that takes calls, or a few where that is over tcp."""

    __slots__ = ("_by_fd", "_failed", "_lanes", "_next_look", "_poll", "_wires")

    def __init__(self, wires: Connections) -> None:
        """Take connections from ``wires``."""
        self._wires = wires
        self._lanes: list[Lane] = []
        self._poll: select.poll | None = None
        """of all lanes, if it is not out of date"""
        self._by_fd: dict[int, Lane] = {}
        self._next_look = 0.0
        self._failed: list[Flying] = []
        """calls that ended with their lane while another was sent"""

    def __repr__(self) -> str:
        """Tell how much is under way."""
        calls = sum(len(lane.calls) for lane in self._lanes)
        return f"<Lanes {calls} calls on {len(self._lanes)} connections>"

    def start(self, calls: Sequence[Call], owner: object = None) -> list[Flying]:
        """Send requests; one that cannot be sent has its outcome at once."""
        now = time.monotonic()
        if not self._lanes:
            self._next_look = now + LOOK_S
        started = []
        for call in calls:
            flying = Flying(call)
            started.append(flying)
            endpoint, request, timeout_s = call
            lane = None
            try:
                lane = self._lane(endpoint)
                ticket = lane.connection.start(request, timeout_s)
            except Error as exc:
                flying.outcome = Outcome(b"", exc, True)
                if lane is not None:
                    self._refused(lane, exc)
            else:
                lane.calls[ticket] = flying
                flying.handle = Handle(lane, ticket, now + timeout_s, owner)
        return started

    def wait(self, flying: Sequence[Flying], timeout_s: float) -> None:
        """Return once any of ``flying`` that had no outcome has one, or after ``timeout_s``."""
        waiting = [each for each in flying if each.outcome is None]
        end = time.monotonic() + timeout_s
        while waiting:
            self.progress(timeout_s)
            for each in waiting:
                if each.outcome is not None:
                    return
            timeout_s = end - time.monotonic()
            if timeout_s <= 0:
                return

    def progress(self, timeout_s: float) -> list[Flying]:
        """Wait until something arrives, at most ``timeout_s``; return what has its outcome now.

        It may return early with nothing.
        """
        done, self._failed = self._failed, []
        lanes = self._lanes
        for lane in lanes if len(lanes) == 1 else lanes.copy():
            if lane.connection.arrived:  # while something was sent
                self._take(lane, done)
        if not done:
            wait_ms = math.ceil(max(0.0, min(timeout_s, LOOK_S)) * 1000)
            if len(lanes) == 1:
                if lanes[0].connection.readable(wait_ms):
                    self._take(lanes[0], done)
            else:
                self._poll_all(wait_ms, done)
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._expire(now, done)
        return done

    def _poll_all(self, wait_ms: int, done: list[Flying]) -> None:
        if self._poll is None:
            self._poll = select.poll()
            self._by_fd = {lane.connection.fileno(): lane for lane in self._lanes}
            gone = self._by_fd.pop(-1, None)
            if gone is not None:  # ended by another thread, which saw it first
                self._take(gone, done)
                self._poll = None
                return
            for fd in self._by_fd:
                self._poll.register(fd, select.POLLIN)
        for fd, _ in self._poll.poll(wait_ms):
            lane = self._by_fd[fd]
            if lane in self._lanes:
                self._take(lane, done)

    def abandon(self, flying: Sequence[Flying]) -> None:
        """Want some answers no more."""
        for each in flying:
            if each.outcome is None:
                self._give_up(each, Error(Code.CANCELLED, "nobody waits for this answer any more"))

    def close(self) -> None:
        """Abandon everything."""
        for lane in self._lanes.copy():
            self.abandon(list(lane.calls.values()))

    def _lane(self, endpoint: Endpoint) -> Lane:
        """Return the lane to a node that has least to do, a new one if there is none to take calls.

        Raises:
            Error: what connecting raises.
        """
        least: Lane | None = None
        count = 0
        for lane in self._lanes:
            if lane.cause is None and lane.endpoint == endpoint:
                count += 1
                if least is None or len(lane.calls) < len(least.calls):
                    least = lane
        if least is not None and (
            len(least.calls) < TCP_CALLS
            or count >= TCP_CONNECTIONS
            or least.connection.kind != "tcp"
        ):
            return least
        lane = Lane(endpoint, self._wires.take(endpoint))
        self._lanes.append(lane)
        self._poll = None
        return lane

    def _leave(self, lane: Lane) -> None:
        """Give a lane's connection back, or close it if it is broken."""
        self._lanes.remove(lane)
        self._poll = None
        if lane.cause is None:
            self._wires.give(lane.endpoint, lane.connection)
        else:
            self._wires.drop(lane.endpoint, lane.connection, lane.cause)

    def _refused(self, lane: Lane, cause: Error) -> None:
        """Take note that a lane did not take a call."""
        if cause.code in BROKEN:
            lane.cause = lane.cause or cause
        if cause.code in (Code.CONNECTION, Code.PROTOCOL):
            for flying in lane.calls.values():
                flying.outcome = Outcome(b"", cause, True)
                self._failed.append(flying)
            lane.calls.clear()
        if not lane.calls:
            self._leave(lane)

    def _take(self, lane: Lane, done: list[Flying]) -> None:
        """Take in the answers that have arrived."""
        calls = lane.calls
        try:
            replies = lane.connection.collect()
        except Error as exc:
            lane.cause = exc
            for flying in calls.values():
                flying.outcome = Outcome(b"", exc, True)
                done.append(flying)
            calls.clear()
        else:
            verified = lane.connection.kind == "shm"
            for ticket, reply in replies:
                answered = calls.pop(ticket, None)
                if answered is None:
                    continue
                if isinstance(reply, Error):
                    answered.outcome = Outcome(b"", reply, True)
                else:
                    answered.outcome = Outcome(reply.body, None, verified)
                done.append(answered)
        if not calls:
            self._leave(lane)

    def _expire(self, now: float, done: list[Flying]) -> None:
        """End the calls whose time is up; what served them is not used again."""
        for lane in self._lanes.copy():
            if lane.connection.fileno() < 0:  # ended by another thread, which saw it first
                self._take(lane, done)
                continue
            for flying in [each for each in lane.calls.values() if each.handle.until <= now]:
                late = Error(Code.TIMED_OUT, "no answer from the server in time")
                lane.cause = lane.cause or late
                self._give_up(flying, late)
                done.append(flying)

    def _give_up(self, flying: Flying, error: Error) -> None:
        lane, ticket, _, _ = flying.handle
        flying.outcome = Outcome(b"", error, True)
        if lane.calls.pop(ticket, None) is not None:
            lane.connection.forget(ticket)
            if not lane.calls:
                self._leave(lane)
