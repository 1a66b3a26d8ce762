"""Clients of the model: production's own reads, run by a shell that knows only virtual time."""

from collections.abc import Callable
from random import Random
from typing import Any

from hillfire.client import reading
from hillfire.client.actions import (
    Abandon,
    Await,
    Call,
    Exchange,
    Flying,
    Operation,
    Outcome,
    Pause,
    Start,
)
from hillfire.client.core import Core
from hillfire.client.plan import Extent
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Part
from hillfire.proto.wire.chunks import READ_ITEMS, READ_RESULTS, ReadResult
from hillfire.proto.wire.rdma_window import Waiter, Window
from hillfire.region import Region
from tests.model.fabric import MIB, Clock, Link, StorageNode

GRANTED_BYTES = 6 * MIB
"""A quarter of a millisecond of a client's link."""
CANCELLED = Outcome(b"", Error(Code.CANCELLED, "abandoned"), True)


class Run:
    """One operation under way."""

    def __init__(
        self, reader: "Reader", operation: Operation[Any], done: Callable[[Any], None]
    ) -> None:
        self._reader = reader
        self._operation = operation
        self._done = done
        self._waiting: set[Flying] = set()
        self._all: list[Flying] | None = None
        self._turn = 0
        self._step(None)

    def _step(self, value: Any) -> None:
        """Advance as far as nothing must be waited for."""
        self._turn += 1
        self._waiting, self._all = set(), None
        while True:
            try:
                action = self._operation.send(value)
            except StopIteration as stop:
                self._done(stop.value)
                return
            value = None
            if isinstance(action, Exchange):
                flying = self._start(action.calls)
                self._all, self._waiting = flying, set(flying)
                return
            if isinstance(action, Start):
                value = self._start(list(action.calls))
            elif isinstance(action, Await):
                waiting = {each for each in action.flying if each.outcome is None}
                if waiting:
                    self._waiting = waiting
                    self._alarm(action.timeout_s)
                    return
            elif isinstance(action, Abandon):
                for each in action.flying:
                    each.outcome = each.outcome or CANCELLED
            else:
                assert isinstance(action, Pause), action
                self._alarm(action.seconds)
                return

    def _start(self, calls: list[Call]) -> list[Flying]:
        started = []
        for call in calls:
            flying = Flying(call)
            self._reader.send(call, lambda outcome, one=flying: self._arrived(one, outcome))  # type: ignore[misc]
            started.append(flying)
        return started

    def _alarm(self, seconds: float) -> None:
        clock = self._reader.clock
        clock.at(clock.now + seconds, self._rings, self._turn)

    def _rings(self, turn: int) -> None:
        if turn == self._turn:
            self._step(None)

    def _arrived(self, flying: Flying, outcome: Outcome) -> None:
        if flying.outcome is not None:
            return
        flying.outcome = outcome
        self._reader.moved += sum(part.length for part in flying.call.request.destinations)
        if flying not in self._waiting:
            return
        self._waiting.discard(flying)
        if self._all is None:
            self._step(None)
        elif not self._waiting:
            self._step([each.outcome for each in self._all])


class Reader:
    """A client that keeps ``depth`` batches of random reads on their way."""

    def __init__(
        self,
        clock: Clock,
        core: Core,
        link: Link,
        places: dict[tuple[int, str], tuple[StorageNode, int]],
        number: int,
        granted_bytes: int,
    ) -> None:
        """``places``: the node and disk of a chain's target, by chain and address of the node."""
        self.clock = clock
        self.core = core
        self.latencies: list[float] = []
        """of batches"""
        self.waits: list[float] = []
        """of requests"""
        self.moved = 0
        """bytes that arrived and were not abandoned"""
        self.grants = Window(granted_bytes) if granted_bytes else None
        """request-to-send: what may be on its way out of nodes; None: all of it"""
        self._link = link
        self._places = places
        self._number = number
        self._chance = Random(number)

    def begin(self, files: list[Extent], entries: int, n_bytes: int, memory: Region) -> None:
        """Read ``entries`` random aligned ranges of random files; when they are there, again."""
        chance, batch = self._chance, []
        for _ in range(entries):
            extent = chance.choice(files)
            offset = chance.randrange(extent.length // n_bytes) * n_bytes
            batch.append((extent, offset, Part(memory, 0, n_bytes)))
        began = self.clock.now

        def done(results: list[Any]) -> None:
            for result in results:
                if isinstance(result, Error):
                    raise result
            self.latencies.append(self.clock.now - began)
            self.begin(files, entries, n_bytes, memory)

        Run(self, reading.read_batch(self.core, batch), done)

    def send(self, call: Call, answered: Callable[[Outcome], None]) -> None:
        """Send a request; ``answered`` once all of its bytes are there."""
        clock, way_s = self.clock, self._link.hardware.way_s
        sent, parts = clock.now, call.request.destinations
        lengths = [part.length for part in parts]
        total = sum(lengths)
        pieces = []
        for (_, chain, *_), length in zip(
            READ_ITEMS.tuples(call.request.body), lengths, strict=True
        ):
            node, disk = self._places[chain, call.endpoint.tcp]
            pieces.append((disk, length))
        port = node.ports[(self._number + int(call.endpoint.grpc)) % len(node.ports)]

        def arrived() -> None:
            self.waits.append(clock.now - sent)
            if self.grants is not None:
                for waiter in self.grants.give(total):
                    waiter.wake()
            body = READ_RESULTS.pack([ReadResult(0, length, 0, 1) for length in lengths])
            answered(Outcome(body, None, True))

        def deliver() -> None:
            port.send(total, self._link, arrived)

        def granted() -> None:
            if self.grants is not None and self.grants.retry(waiter):
                clock.at(clock.now + way_s, deliver)

        def wait() -> None:
            assert self.grants is not None
            self.grants.wait(waiter)
            granted()

        waiter = Waiter(total, granted)
        if self.grants is None or self.grants.take(total):
            ready = deliver
        else:
            ready = lambda: clock.at(clock.now + way_s, wait)  # noqa: E731
        clock.at(sent + way_s, node.read, pieces, ready)
