"""Threads: blocking store calls off the event loop, counted, so that one can wait for their end."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from hillfire import metrics

T = TypeVar("T")

_WAIT = metrics.histogram(
    "hillfire_thread_wait_seconds", "How long jobs waited for a thread: long if io_threads are few."
)


class Threads:
    """One user's jobs in a pool of threads that it shares."""

    def __init__(self, executor: Executor) -> None:
        """Belongs to the running event loop."""
        self.executor = executor
        self.loop = asyncio.get_running_loop()
        self._jobs = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, work: Callable[[], object], done: Callable[[object], None]) -> None:
        """Run ``work`` in a thread, then ``done(result or exception)`` on the event loop."""
        self.hold()
        finished, later = self._finished, self.loop.call_soon_threadsafe
        submitted_ns = time.monotonic_ns()

        def run() -> None:
            _WAIT.observe(time.monotonic_ns() - submitted_ns)
            result: object
            try:
                result = work()
            except BaseException as exc:
                result = exc
            later(finished, done, result)

        self.executor.submit(run)

    def _finished(self, done: Callable[[object], None], result: object) -> None:
        self.drop()
        done(result)

    def hold(self) -> None:
        """Count a job that runs elsewhere as one of ours: ``idle`` waits for its ``drop``."""
        self._jobs += 1
        self._idle.clear()

    def drop(self) -> None:
        """End ``hold``."""
        self._jobs -= 1
        if not self._jobs:
            self._idle.set()

    async def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread and return its result.

        The thread goes on when the caller is cancelled; ``idle`` waits for it.
        """
        future: asyncio.Future[T] = self.loop.create_future()

        def done(result: object) -> None:
            if future.done():
                return
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        self.submit(work, done)
        return await future

    async def idle(self) -> None:
        """Wait until no job is at work."""
        await self._idle.wait()


class Group:
    """A job that many ask for and that counts for all who asked before it began: group commit.

    One thread works for them. Who asks while it works has the next turn, together with all others
    who came meanwhile.
    """

    def __init__(self, threads: Threads, work: Callable[[], None]) -> None:
        """Run ``work`` in one of ``threads``."""
        self._threads = threads
        self._work = work
        self._next: asyncio.Future[None] | None = None
        self._at_work = False

    async def join(self) -> None:
        """Wait for a run that begins after this call.

        Raises:
            Error: what ``work`` raised.
        """
        if self._next is None:
            self._next = self._threads.loop.create_future()
        waiting = self._next
        if not self._at_work:
            self._begin()
        await asyncio.shield(waiting)

    def _begin(self) -> None:
        waiting, self._next = self._next, None
        if waiting is None:
            return
        self._at_work = True

        def done(result: object) -> None:
            self._at_work = False
            if isinstance(result, BaseException):
                waiting.set_exception(result)
                waiting.exception()  # nobody may be waiting any more
            else:
                waiting.set_result(None)
            self._begin()

        self._threads.submit(self._work, done)


async def to_the_end(future: "asyncio.Future[T]") -> T:
    """Await what uses the request's memory: a cancellation has to wait for its end."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
