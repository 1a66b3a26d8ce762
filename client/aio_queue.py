"""A queue of batches on an event loop: ``queue.py`` for asyncio, where a batch is a task."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from hillfire import metrics
from hillfire.client import batches
from hillfire.client.actions import Operation
from hillfire.client.batches import Files, Order
from hillfire.client.results import Results
from hillfire.errors import Code, Error

if TYPE_CHECKING:
    from hillfire.client.aio import Client


class AsyncTransfer:
    """One submitted batch; await it for its results. ``tag`` is the submitter's."""

    def __init__(self, queue: "AsyncQueue", order: Order, operation: Operation[Results], tag: Any):
        """Use ``AsyncQueue.read`` and ``AsyncQueue.write``."""
        self.tag = tag
        self._queue = queue
        self._operation: Operation[Results] | None = operation
        self._size = len(order.offsets)
        self._submitted_ns = time.monotonic_ns()
        self._kind = metrics.WRITE if order.writing else metrics.READ
        self._task: asyncio.Task[Results] | None = None
        self._end: asyncio.Future[Results] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        """Tell its state."""
        state = "on its way" if self._task is not None else "waiting for its turn"
        return f"<AsyncTransfer of {len(self)} I/Os {self._end.result() if self.done else state}>"

    def __len__(self) -> int:
        """Return the number of I/Os."""
        return self._size

    def _leaves(self) -> None:
        """Take note that its requests are sent now."""
        self._kind.client_queue.observe(time.monotonic_ns() - self._submitted_ns)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._end.done()

    def __await__(self) -> Generator[Any, None, Results]:
        """Wait for the end and return what came of each I/O; who waits may be cancelled."""
        results = yield from asyncio.shield(self._end).__await__()
        self._queue._ended.pop(self, None)
        return results

    def cancel(self) -> None:
        """Give up what has not ended: it becomes CANCELLED. What is done is not undone.

        A server may still be at work, so the memory may be in quarantine for a while.
        """
        self._queue._give_up(self)


class AsyncQueue:
    """Batches on their way, of one event loop. Use ``AsyncFileSystem.queue``."""

    def __init__(self, client: "Client", depth: int) -> None:
        """Allow ``depth`` I/Os on their way; a larger batch goes alone."""
        if depth < 1:
            raise Error(Code.INVALID, f"a queue of depth {depth}")
        self.depth = depth
        self._client = client
        self._running: set[AsyncTransfer] = set()
        self._waiting: deque[AsyncTransfer] = deque()
        self._ended: dict[AsyncTransfer, None] = {}  # in order; not handed out yet
        self._on_their_way = 0
        self._closed = False
        self._news = asyncio.Event()

    def __repr__(self) -> str:
        """Tell how much is where."""
        return (
            f"<AsyncQueue {self._on_their_way} of {self.depth} I/Os on their way, "
            f"{len(self._waiting)} batches wait, {len(self._ended)} have ended>"
        )

    def __len__(self) -> int:
        """Return the number of batches that have not ended."""
        return len(self._running) + len(self._waiting)

    async def __aenter__(self) -> "AsyncQueue":
        """Return itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for everything; raise the first error that nobody has seen. Cancel on an error."""
        try:
            if kind is None:
                for transfer in await self.drain():
                    (await transfer).check()
        finally:
            await self.close()

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
    ) -> AsyncTransfer:
        """Begin to read; the arguments are those of ``AsyncFileSystem.read_many``."""
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
    ) -> AsyncTransfer:
        """Begin to write; do not change the memory before it has ended."""
        order = batches.order(file, offsets, source, lengths, places, which, True)
        return self._submit(order, deadline_s, tag)

    async def wait(self, at_least: int = 1, timeout_s: float | None = None) -> list[AsyncTransfer]:
        """Return the batches that have ended since, once there are ``at_least`` so many.

        Fewer come back when nothing else is on its way, or after ``timeout_s``. Each is handed
        out once, in the order of their ends.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while len(self._ended) < at_least and len(self):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        found, self._ended = list(self._ended), {}
        return found

    async def drain(self) -> list[AsyncTransfer]:
        """Wait for everything and return what was not handed out yet."""
        return await self.wait(len(self) + len(self._ended))

    async def __aiter__(self) -> AsyncIterator[AsyncTransfer]:
        """Yield batches as they end, until none is left; more may be submitted meanwhile."""
        while len(self) or self._ended:
            for transfer in await self.wait():
                yield transfer

    async def close(self) -> None:
        """Cancel what has not ended."""
        self._closed = True
        tasks = [each._task for each in self._running if each._task is not None]
        for transfer in [*self._waiting, *self._running]:
            self._give_up(transfer)
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the work

    def _submit(self, order: Order, deadline_s: float | None, tag: Any) -> AsyncTransfer:
        if self._closed:
            raise Error(Code.INVALID, "this queue is closed")
        core = self._client.core
        operation = batches.carry_out(core, order, core.deadline(deadline_s))
        transfer = AsyncTransfer(self, order, operation, tag)
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
            self._running.add(transfer)
            transfer._task = asyncio.ensure_future(self._client.run(operation))
            transfer._task.add_done_callback(partial(self._over, transfer))

    def _over(self, transfer: AsyncTransfer, task: "asyncio.Task[Results]") -> None:
        """Take note of the end of a task."""
        self._running.discard(transfer)
        self._on_their_way -= len(transfer)
        if task.cancelled():
            self._settle(transfer, Error(Code.CANCELLED, "the transfer was cancelled"))
        elif (failure := task.exception()) is None:
            self._settle(transfer, task.result())
        else:
            self._settle(transfer, failure)
        self._feed()

    def _settle(self, transfer: AsyncTransfer, end: Results | BaseException) -> None:
        if not transfer.done:
            if isinstance(end, Error):
                end = Results([end] * len(transfer))
            if isinstance(end, Results):
                transfer._end.set_result(end)
            else:
                transfer._end.set_exception(end)
            self._ended[transfer] = None
        self._news.set()

    def _give_up(self, transfer: AsyncTransfer) -> None:
        if transfer.done:
            return
        if transfer._task is not None:
            transfer._task.cancel()
        else:
            self._waiting.remove(transfer)
        self._settle(transfer, Error(Code.CANCELLED, "the transfer was cancelled"))
