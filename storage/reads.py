"""READ and FETCH as they arrive on the wire.

A read of cached bytes is answered in the callback that received it: no task, no thread, straight
into the client's destination. Everything else of a batch goes to a thread in one job.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Answer, Incoming
from hillfire.proto.wire.chunks import (
    FETCH_ITEMS,
    FETCH_RESULTS,
    READ_ITEMS,
    READ_RESULTS,
    RELAXED,
    FetchItem,
    FetchResult,
    ReadItem,
    ReadResult,
)
from hillfire.storage.copies import read_copy
from hillfire.storage.shell import TargetShell
from hillfire.storage.threads import to_the_end
from hillfire.storage.throttle import Meter

INLINE_READ_BYTES = 1024 * 1024
"""A batch that asks for more is read in a thread, so that heartbeats are not held up."""


class Reads:
    """Serves reads of the targets of one node. The caller has checked the lease."""

    def __init__(
        self,
        shell_of: Callable[[int], TargetShell | None],
        lease_valid: Callable[[], bool],
        meter: Meter,
    ) -> None:
        """See ``DataPlane``."""
        self._shell_of = shell_of
        self._lease_valid = lease_valid
        self._meter = meter

    def read(self, incoming: Incoming) -> Answer | Awaitable[Answer]:
        """Answer READ, at once where all that is asked for is in memory.

        Raises:
            Error: PROTOCOL, LEASE_EXPIRED.
        """
        items, into = READ_ITEMS.unpack(incoming.body), incoming.destinations
        if len(items) != len(into):
            raise Error(Code.PROTOCOL, f"{len(items)} reads, {len(into)} destinations")
        results: list[ReadResult] = []
        slow: list[tuple[int, TargetShell]] = []
        cached = len(items) == 1 or sum(map(len, into)) <= INLINE_READ_BYTES
        chain, shell = -1, None
        for position, item in enumerate(items):
            if item[1] != chain:
                chain = item[1]
                shell = self._shell_of(chain)
            if shell is None:
                results.append(_NOT_SERVING)
                continue
            code = shell.replica.refuse_read(item[0], item[2], bool(item[4] & RELAXED))
            if code:
                results.append(ReadResult(code, 0, 0, 0))
                continue
            if cached:
                try:
                    found = shell.store.read_cached(item[0], item[3], into[position])
                except Error:
                    found = None  # the thorough read will say what is wrong
                if found is not None:
                    results.append(ReadResult(0, found[0], found[1], found[2]))
                    continue
            slow.append((position, shell))
            results.append(_NOT_SERVING)
        if slow:
            return self._read_slowly(items, into, results, slow)
        return Answer(Code.OK, READ_RESULTS.pack(results), [result[1] for result in results])

    async def _read_slowly(
        self,
        items: Sequence[ReadItem],
        into: Sequence[memoryview],
        results: list[ReadResult],
        slow: Sequence[tuple[int, TargetShell]],
    ) -> Answer:
        # One job a disk: a disk that hangs must not keep from the others' threads.
        jobs: dict[Executor, list[tuple[int, TargetShell]]] = {}
        for each in slow:
            jobs.setdefault(each[1].threads.executor, []).append(each)
        self._meter.enter(time.monotonic_ns())
        try:
            # The destinations are used until the threads have ended, whoever is cancelled.
            reading = [_read_job(items, into, job) for job in jobs.values()]
            await to_the_end(asyncio.gather(*reading))
        finally:
            self._meter.leave(time.monotonic_ns())
        if not self._lease_valid():
            raise Error(Code.LEASE_EXPIRED, "the lease ended during the read")
        found = [result for task in reading for result in task.result()]
        order = [each for job in jobs.values() for each in job]
        for (position, shell), result in zip(order, found, strict=True):
            results[position] = result
            if result.code == Code.IO:
                shell.fail(Error(Code.IO, f"a read failed: {items[position].chunk.hex()}"))
            elif result.code == Code.CORRUPT:
                shell.damaged(items[position].chunk, "found by a read")
        return Answer(Code.OK, READ_RESULTS.pack(results), [result[1] for result in results])

    async def fetch(self, incoming: Incoming) -> Answer:
        """Answer another target that repairs its own copies with ours, as they are committed.

        Raises:
            Error: PROTOCOL, LEASE_EXPIRED.
        """
        items, into = FETCH_ITEMS.unpack(incoming.body), incoming.destinations
        if len(items) != len(into):
            raise Error(Code.PROTOCOL, f"{len(items)} copies, {len(into)} destinations")
        results = []
        for item, view in zip(items, into, strict=True):
            results.append(await self._copy(item, view))
        if not self._lease_valid():
            raise Error(Code.LEASE_EXPIRED, "the lease ended during the read")
        filled = [0 if each.code or each.removed else each.length for each in results]
        return Answer(Code.OK, FETCH_RESULTS.pack(results), filled)

    async def _copy(self, item: FetchItem, into: memoryview) -> FetchResult:
        shell = self._shell_of(item.chain)
        if shell is None or shell.replica.stopped is not None:
            return FetchResult(Code.NOT_SERVING, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        if shell.replica.version != item.chain_version:
            return FetchResult(Code.WRONG_CHAIN_VERSION, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        task = asyncio.ensure_future(
            shell.threads.call(lambda: read_copy(shell.store, item.chunk, into))
        )
        result = await to_the_end(task)
        if result.code == Code.IO:
            shell.fail(Error(Code.IO, f"a read failed: {item.chunk.hex()}"))
        elif result.code == Code.CORRUPT:
            shell.damaged(item.chunk, "found by another target's repair")
        return result


def _read_job(
    items: Sequence[ReadItem],
    into: Sequence[memoryview],
    job: Sequence[tuple[int, TargetShell]],
) -> "asyncio.Task[list[ReadResult]]":
    """Read from the stores of one disk in one thread."""

    def work() -> list[ReadResult]:
        done = []
        for position, shell in job:
            item = items[position]
            try:
                found = shell.store.read(item.chunk, item.offset, into[position])
                done.append(ReadResult(0, *found))
            except Error as exc:
                done.append(ReadResult(exc.code, 0, 0, 0))
        return done

    threads = {shell.threads for _, shell in job}
    for each in threads:  # no store is closed while it is read
        each.hold()

    def ended(_: object) -> None:
        for each in threads:
            each.drop()

    task = asyncio.ensure_future(job[0][1].threads.call(work))
    task.add_done_callback(ended)
    return task


_NOT_SERVING = ReadResult(Code.NOT_SERVING, 0, 0, 0)
