"""A queue of batches on the caller's own thread: submit many, wait for some.

``read`` and ``write`` send their requests and return; servers work while the program does
something else. Answers are taken in, and what failed is tried again, while the program waits:
there is no thread behind it. Of more than ``depth`` I/Os the rest wait here for their turn.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hillfire import metrics
from hillfire.client import batches
from hillfire.client.actions import Operation
from hillfire.client.batches import Files, Order
from hillfire.client.flight import Flight
from hillfire.client.lanes import LOOK_S, Lanes
from hillfire.client.results import Results
from hillfire.errors import Code, Error

if TYPE_CHECKING:
    from hillfire.client.sync import Shell

DEFAULT_DEPTH = 4096
"""I/Os on their way at once."""


class Transfer:
    """One submitted batch. ``tag`` is the submitter's, whatever it is."""

    def __init__(self, queue: "Queue", order: Order, operation: Operation[Results], tag: Any):
        """Use ``Queue.read`` and ``Queue.write``."""
        self.tag = tag
        self._queue = queue
        self._operation: Operation[Results] | None = operation
        self._flight: Flight | None = None
        self._results: Results | None = None
        self._size = len(order.offsets)
        self._submitted_ns = time.monotonic_ns()
        self._kind = metrics.WRITE if order.writing else metrics.READ

    def __repr__(self) -> str:
        """Tell its state."""
        state = "on its way" if self._flight is not None else "waiting for its turn"
        return f"<Transfer of {len(self)} I/Os {self._results if self.done else state}>"

    def __len__(self) -> int:
        """Return the number of I/Os."""
        return self._size

    def _leaves(self) -> None:
        """Take note that its requests are sent now."""
        self._kind.client_queue.observe(time.monotonic_ns() - self._submitted_ns)

    @property
    def done(self) -> bool:
        """Whether it has ended, as far as the queue has looked."""
        return self._results is not None

    def result(self, timeout_s: float | None = None) -> Results:
        """Wait for the end and return what came of each I/O.

        Raises:
            Error: TIMED_OUT if it takes longer; it goes on.
        """
        return self._queue._finish(self, timeout_s)

    def cancel(self) -> None:
        """Give up what has not ended: it becomes CANCELLED. What is done is not undone.

        A server may still be at work, so the memory may be in quarantine for a while.
        """
        self._queue._cancel(self)


class Queue:
    """Batches on their way, of one thread at a time. Use ``FileSystem.queue``."""

    def __init__(self, shell: "Shell", depth: int) -> None:
        """Allow ``depth`` I/Os on their way; a larger batch goes alone."""
        if depth < 1:
            raise Error(Code.INVALID, f"a queue of depth {depth}")
        self.depth = depth
        self._shell = shell
        self._generation = shell.generation
        self._lanes = Lanes(shell.wires)
        self._running: dict[Flight, Transfer] = {}
        self._timed: set[Flight] = set()
        self._waiting: deque[Transfer] = deque()
        self._ended: dict[Transfer, None] = {}  # in order; not handed out yet
        self._on_their_way = 0
        self._closed = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Tell how much is where."""
        return (
            f"<Queue {self._on_their_way} of {self.depth} I/Os on their way, "
            f"{len(self._waiting)} batches wait, {len(self._ended)} have ended>"
        )

    def __len__(self) -> int:
        """Return the number of batches that have not ended."""
        return len(self._running) + len(self._waiting)

    def __enter__(self) -> "Queue":
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for everything; raise the first error that nobody has seen. Cancel on an error."""
        try:
            if kind is None:
                for transfer in self.drain():
                    transfer.result().check()
        finally:
            self.close()

    def read(
        self,
        file: Files,
        offsets: Any,
        into: Any,
        *,
        lengths: Any = None,
        places: Any = None,
        which: Any = None,
        deadline_s: float | None = None,
        tag: Any = None,
    ) -> Transfer:
        """Begin to read; the arguments are those of ``FileSystem.read_many``."""
        order = batches.order(file, offsets, into, lengths, places, which, False)
        return self._submit(order, deadline_s, tag)

    def write(
        self,
        file: Files,
        offsets: Any,
        source: Any,
        *,
        lengths: Any = None,
        places: Any = None,
        which: Any = None,
        deadline_s: float | None = None,
        tag: Any = None,
    ) -> Transfer:
        """Begin to write; do not change the memory before it has ended."""
        order = batches.order(file, offsets, source, lengths, places, which, True)
        return self._submit(order, deadline_s, tag)

    def wait(self, at_least: int = 1, timeout_s: float | None = None) -> list[Transfer]:
        """Return the batches that have ended since, once there are ``at_least`` so many.

        Fewer come back when nothing else is on its way, or after ``timeout_s``. Each is handed
        out once, in the order of their ends.
        """
        with self._alone():
            self._until(lambda: len(self._ended) >= at_least, timeout_s)
            found, self._ended = list(self._ended), {}
        return found

    def drain(self) -> list[Transfer]:
        """Wait for everything and return what was not handed out yet."""
        return self.wait(len(self) + len(self._ended))

    def __iter__(self) -> Iterator[Transfer]:
        """Yield batches as they end, until none is left; more may be submitted meanwhile."""
        while len(self) or self._ended:
            yield from self.wait()

    def close(self) -> None:
        """Cancel what has not ended and give the connections back."""
        if self._closed:
            return
        self._closed = True
        if self._generation == self._shell.generation:
            with self._alone():
                for transfer in [*self._waiting, *self._running.values()]:
                    self._give_up(transfer)
                self._lanes.close()

    # --- the work

    def _submit(self, order: Order, deadline_s: float | None, tag: Any) -> Transfer:
        core = self._shell.core
        operation = batches.carry_out(core, order, core.deadline(deadline_s))
        with self._alone():
            if self._closed:
                raise Error(Code.INVALID, "this queue is closed")
            transfer = Transfer(self, order, operation, tag)
            self._waiting.append(transfer)
            self._feed()
        return transfer

    def _feed(self) -> None:
        """Begin what the depth allows, in order."""
        waiting = self._waiting
        while waiting and (not self._running or self._on_their_way + len(waiting[0]) <= self.depth):
            transfer = waiting.popleft()
            operation, transfer._operation = transfer._operation, None
            assert operation is not None
            self._on_their_way += len(transfer)
            transfer._leaves()
            flight = transfer._flight = Flight(self._shell.wires, operation, self._lanes)
            self._running[flight] = transfer
            self._look(flight)

    def _look(self, flight: Flight) -> None:
        """Take note of where a flight is now."""
        if flight.ended:
            self._timed.discard(flight)
            transfer = self._running.pop(flight, None)
            if transfer is not None:
                self._on_their_way -= len(transfer)
                self._end(transfer, flight)
        elif flight.until is not None:
            self._timed.add(flight)
        else:
            self._timed.discard(flight)

    def _end(self, transfer: Transfer, flight: Flight | None) -> None:
        error: Error | None = None
        if flight is None:
            error = Error(Code.CANCELLED, "the transfer was cancelled")
        else:
            try:
                transfer._results = flight.result()
            except Error as exc:
                error = exc
        if error is not None:
            transfer._results = Results([error] * len(transfer))
        transfer._flight = transfer._operation = None
        self._ended[transfer] = None

    def _progress(self, timeout_s: float) -> None:
        """Take in what arrives within a time and move on what it moves."""
        now = time.monotonic()
        for flight in self._timed:
            if flight.until is not None:
                timeout_s = min(timeout_s, flight.until - now)
        moved = {flying.handle.owner for flying in self._lanes.progress(timeout_s)}
        for flight in [*moved, *self._timed]:
            flight.poke()
            self._look(flight)
        self._feed()

    def _until(self, holds: Callable[[], bool], timeout_s: float | None) -> bool:
        """Work until something holds, nothing is left to do, or the time is up."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not holds():
            if not len(self):
                return False
            left = LOOK_S if end is None else end - time.monotonic()
            self._progress(left)
            if left <= 0:
                return holds()
        return True

    def _finish(self, transfer: Transfer, timeout_s: float | None) -> Results:
        with self._alone():
            if not self._until(lambda: transfer.done, timeout_s):
                raise Error(Code.TIMED_OUT, f"the transfer takes longer than {timeout_s} s")
            self._ended.pop(transfer, None)
        assert transfer._results is not None
        return transfer._results

    def _cancel(self, transfer: Transfer) -> None:
        with self._alone():
            self._give_up(transfer)
            self._feed()

    def _give_up(self, transfer: Transfer) -> None:
        if transfer.done:
            return
        flight = transfer._flight
        if flight is not None:
            flight.cancel()
            self._look(flight)
        else:
            self._waiting.remove(transfer)
            self._end(transfer, None)

    def _alone(self) -> "_Alone":
        if self._generation != self._shell.generation:
            raise Error(Code.INVALID, "this queue is of the process before the fork: make another")
        return _Alone(self._lock)


class _Alone:
    """Holds a lock that nobody else may want: a queue is of one thread at a time."""

    __slots__ = ("_lock",)

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise Error(Code.BUSY, "another thread is using this queue: make one a thread")

    def __exit__(self, *_: object) -> None:
        self._lock.release()
