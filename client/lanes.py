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
from hillfire.client.connections import BROKEN, Connections
from hillfire.cluster import Endpoint
from hillfire.errors import Code, Error
from hillfire.proto.wire.blocking import BlockingConnection

LOOK_S = 0.05
"""How often calls are looked through for those whose time is up."""


class Lane:
    """A connection, and the calls under way on it by their tickets."""

    __slots__ = ("calls", "cause", "connection", "endpoint", "fd")

    def __init__(self, endpoint: Endpoint, connection: BlockingConnection) -> None:
        """Nothing is under way yet."""
        self.endpoint = endpoint
        self.connection = connection
        self.fd = connection.fileno()
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
    """One thread's lanes, at most one to a node that takes calls."""

    def __init__(self, wires: Connections) -> None:
        """Take connections from ``wires``."""
        self._wires = wires
        self._open: dict[Endpoint, Lane] = {}
        self._by_fd: dict[int, Lane] = {}
        self._poll = select.poll()
        self._next_look = 0.0
        self._failed: list[Flying] = []
        """calls that ended with their lane while another was sent"""

    def __repr__(self) -> str:
        """Tell how much is under way."""
        calls = sum(len(lane.calls) for lane in self._by_fd.values())
        return f"<Lanes {calls} calls on {len(self._by_fd)} connections>"

    def start(self, calls: Sequence[Call], owner: object = None) -> list[Flying]:
        """Send requests; one that cannot be sent has its outcome at once."""
        now = time.monotonic()
        started = []
        for call in calls:
            flying = Flying(call)
            started.append(flying)
            endpoint, request, timeout_s = call
            lane = self._open.get(endpoint)
            try:
                if lane is None:
                    lane = self._enter(endpoint)
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
        while waiting and all(each.outcome is None for each in waiting):
            left = end - time.monotonic()
            self.progress(left)
            if left <= 0:
                return

    def progress(self, timeout_s: float) -> list[Flying]:
        """Wait until something arrives, at most ``timeout_s``; return what has its outcome now.

        It may return early with nothing.
        """
        done, self._failed = self._failed, []
        for lane in list(self._by_fd.values()):  # answers that came in while something was sent
            if lane.connection.arrived:
                self._take(lane, done)
        wait_ms = 0 if done else math.ceil(max(0.0, min(timeout_s, LOOK_S)) * 1000)
        for fd, _ in self._poll.poll(wait_ms):
            arrived = self._by_fd.get(fd)
            if arrived is not None:
                self._take(arrived, done)
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._expire(now, done)
        return done

    def abandon(self, flying: Sequence[Flying]) -> None:
        """Want some answers no more."""
        for each in flying:
            if each.outcome is None:
                self._give_up(each, Error(Code.CANCELLED, "nobody waits for this answer any more"))

    def close(self) -> None:
        """Abandon everything."""
        for lane in list(self._by_fd.values()):
            self.abandon(list(lane.calls.values()))

    def _enter(self, endpoint: Endpoint) -> Lane:
        """Open a lane.

        Raises:
            Error: what connecting raises, or CONNECTION for a connection that has just ended.
        """
        lane = Lane(endpoint, self._wires.take(endpoint))
        if lane.fd < 0:
            gone = Error(Code.CONNECTION, "the server is gone")
            self._wires.drop(endpoint, lane.connection, gone)
            raise gone
        stale = self._by_fd.get(lane.fd)  # another thread saw the end of its connection
        if stale is not None:
            self._take(stale, self._failed)
        self._open[endpoint] = self._by_fd[lane.fd] = lane
        self._poll.register(lane.fd, select.POLLIN)
        return lane

    def _leave(self, lane: Lane) -> None:
        """Give a lane's connection back, or close it if it is broken."""
        del self._by_fd[lane.fd]
        self._poll.unregister(lane.fd)
        if self._open.get(lane.endpoint) is lane:
            del self._open[lane.endpoint]
        if lane.cause is None:
            self._wires.give(lane.endpoint, lane.connection)
        else:
            self._wires.drop(lane.endpoint, lane.connection, lane.cause)

    def _refused(self, lane: Lane, cause: Error) -> None:
        """Take note that a lane did not take a call."""
        if cause.code in BROKEN:
            self._shut(lane, cause)
        if cause.code in (Code.CONNECTION, Code.PROTOCOL):
            for flying in lane.calls.values():
                flying.outcome = Outcome(b"", cause, True)
                self._failed.append(flying)
            lane.calls.clear()
        if not lane.calls:
            self._leave(lane)

    def _shut(self, lane: Lane, cause: Error) -> None:
        """Send nothing more by a lane."""
        lane.cause = lane.cause or cause
        if self._open.get(lane.endpoint) is lane:
            del self._open[lane.endpoint]

    def _take(self, lane: Lane, done: list[Flying]) -> None:
        """Take in the answers that have arrived."""
        calls = lane.calls
        try:
            replies = lane.connection.collect()
        except Error as exc:
            self._shut(lane, exc)
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
        for lane in list(self._by_fd.values()):
            for flying in [each for each in lane.calls.values() if each.handle.until <= now]:
                late = Error(Code.TIMED_OUT, "no answer from the server in time")
                self._shut(lane, late)
                self._give_up(flying, late)
                done.append(flying)

    def _give_up(self, flying: Flying, error: Error) -> None:
        lane, ticket, _, _ = flying.handle
        flying.outcome = Outcome(b"", error, True)
        if lane.calls.pop(ticket, None) is not None:
            lane.connection.forget(ticket)
            if not lane.calls:
                self._leave(lane)
