"""READ and FETCH as they arrive on the wire.

A read of cached bytes is answered in the callback that received it: no task, no thread, straight
into the client's destination. Everything else of a batch goes to a thread in one job.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor

from hillfire import metrics
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Answer, Incoming
from hillfire.proto.wire.chunks import (
    FETCH_ITEMS,
    FETCH_RESULTS,
    NO_CHUNK,
    RELAXED,
    FetchItem,
    FetchResult,
)
from hillfire.storage.copies import read_copy
from hillfire.storage.shell import TargetShell
from hillfire.storage.store.base import Direct
from hillfire.storage.store.batch import Batch, Target
from hillfire.storage.threads import to_the_end
from hillfire.storage.throttle import Meter

MIB = 1024 * 1024
FEW_CORES = 4
INLINE_READ_BYTES = (4 if (os.cpu_count() or 1) <= FEW_CORES else 1) * MIB
"""A batch that asks for more is read in a thread, so that heartbeats are not held up.

4 MiB take the event loop 0.3 ms; where cores are few, a thread would only take one from whoever
waits for the answer, and costs 0.1 ms itself. Where there are many, they read beside each other.
"""
DIRECT_PARTS = 4
"""Of a disk's share of a request, read beside each other."""


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
        into = incoming.destinations
        batch = Batch(incoming.body, into)
        cached = batch.n_bytes <= INLINE_READ_BYTES
        slow: list[tuple[int, TargetShell]] = []
        left: Sequence[int]
        if cached:
            left, cold = self._read_at_once(batch)
            for position in cold:
                shell = self._shell_of(batch.item(position).chain)
                assert shell is not None, "a moment ago it was there"
                slow.append((position, shell))
        else:
            left = batch.leave_all()
        for position in left:
            chunk, chain, version, offset, flags = batch.item(position)
            shell = self._shell_of(chain)
            if shell is None:
                batch.put(position, Code.NOT_SERVING, 0, 0, 0)
                continue
            code = shell.replica.refuse_read(chunk, version, bool(flags & RELAXED))
            if code:
                batch.put(position, code, 0, 0, 0)
                continue
            if cached:
                try:
                    found = shell.store.read_cached(chunk, offset, into[position])
                except Error:
                    found = None  # the thorough read will say what is wrong
                if found is not None:
                    batch.put(position, 0, *found)
                    continue
            slow.append((position, shell))
        if slow:
            return self._read_slowly(batch, slow)
        return _answer(batch)

    def _read_at_once(self, batch: Batch) -> tuple[Sequence[int], Sequence[int]]:
        """Answer what needs no second look; returns the positions of what is left, and cold."""
        inside: list[tuple[Direct, int]] = []

        def look(chain: int, version: int) -> Code | Target | None:
            shell = self._shell_of(chain)
            if shell is None:
                return Code.NOT_SERVING
            replica = shell.replica
            code = replica.refuse_read(NO_CHUNK, version, True)
            if code:
                return code
            direct = shell.store.direct()
            if direct is None:
                return None
            inside.append((direct, direct.enter()))
            return Target(direct.records, replica.holders, direct.files)

        try:
            return batch.read(look, wait=False)
        finally:
            for direct, number in inside:
                direct.leave(number)

    async def _read_slowly(self, batch: Batch, slow: Sequence[tuple[int, TargetShell]]) -> Answer:
        jobs = _share_out(slow)
        self._meter.enter(time.monotonic_ns())
        try:
            # The destinations are used until the threads have ended, whoever is cancelled.
            reading = [_read_job(batch, job) for job in jobs]
            await to_the_end(asyncio.gather(*reading))
        finally:
            self._meter.leave(time.monotonic_ns())
        if not self._lease_valid():
            raise Error(Code.LEASE_EXPIRED, "the lease ended during the read")
        for job, task in zip(jobs, reading, strict=True):
            part, failed = task.result()
            batch.take([position for position, _ in job], part)
            metrics.READ.errors.value += len(failed)
            for position, shell, code in failed:
                if code == Code.IO:
                    shell.fail(Error(Code.IO, f"a read failed: {batch.item(position).chunk.hex()}"))
                elif code == Code.CORRUPT:
                    shell.damaged(batch.item(position).chunk, "found by a read")
        return _answer(batch)

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


def _share_out(slow: Sequence[tuple[int, TargetShell]]) -> list[list[tuple[int, TargetShell]]]:
    """Make jobs for threads: one a disk, so that one that hangs keeps from its own only.

    Several where reads go past the page cache, since nobody reads ahead for them.
    """
    disks: dict[Executor, list[tuple[int, TargetShell]]] = {}
    for each in slow:
        disks.setdefault(each[1].threads.executor, []).append(each)
    jobs = []
    for share in disks.values():
        direct = share[0][1].store.direct()
        parts = DIRECT_PARTS if direct is not None and direct.files[2] else 1
        jobs += [share[first::parts] for first in range(min(parts, len(share)))]
    return jobs


def _answer(batch: Batch) -> Answer:
    if batch.disk_ns:
        metrics.READ.disk.observe(batch.disk_ns)
        metrics.READ.checksum.observe(batch.checksum_ns)
    metrics.READ.items.value += len(batch.into)
    metrics.READ.bytes.value += batch.n_bytes
    return Answer(Code.OK, bytes(batch.results), batch.filled)


def _read_job(
    batch: Batch, job: Sequence[tuple[int, TargetShell]]
) -> "asyncio.Task[tuple[Batch, list[tuple[int, TargetShell, Code]]]]":
    """Read from the stores of one disk in one thread. See ``_read_thoroughly``."""
    threads = {shell.threads for _, shell in job}
    for each in threads:  # no store is closed while it is read
        each.hold()

    def ended(_: object) -> None:
        for each in threads:
            each.drop()

    submitted_ns = time.monotonic_ns()

    def work() -> tuple[Batch, list[tuple[int, TargetShell, Code]]]:
        metrics.READ.server_queue.observe(time.monotonic_ns() - submitted_ns)
        return _read_thoroughly(batch, job)

    task = asyncio.ensure_future(job[0][1].threads.call(work))
    task.add_done_callback(ended)
    return task


def _read_thoroughly(
    batch: Batch, job: Sequence[tuple[int, TargetShell]]
) -> tuple[Batch, list[tuple[int, TargetShell, Code]]]:
    """Read items that were admitted, the simple ones in one go; returns them, and what failed."""
    stores = {batch.item(position).chain: shell.store for position, shell in job}
    inside: list[tuple[Direct, int]] = []

    def look(chain: int, version: int) -> Target | None:
        direct = stores[chain].direct()
        if direct is None:
            return None
        inside.append((direct, direct.enter()))
        return Target(direct.records, {}, direct.files)

    part = batch.part([position for position, _ in job])
    failed = []
    try:
        left, damaged = part.read(look, wait=True)
    finally:
        for direct, number in inside:
            direct.leave(number)
    for index in (*left, *damaged):
        position, shell = job[index]
        item = part.item(index)
        try:
            part.put(index, 0, *shell.store.read(item.chunk, item.offset, part.into[index]))
        except Error as exc:
            part.put(index, exc.code, 0, 0, 0)
            failed.append((position, shell, exc.code))
    return part, failed
