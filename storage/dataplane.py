"""The data plane's handler: READ, WRITE and FORWARD as they arrive on the wire.

A read of cached bytes is answered in the callback that received it: no task, no thread, straight
into the client's destination. Everything else of a batch goes to a thread in one job.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from hillfire.errors import Code, Error
from hillfire.layout import MAX_CHUNK_BYTES
from hillfire.proto.wire.base import Answer, Incoming
from hillfire.proto.wire.chunks import (
    FETCH,
    FETCH_ITEMS,
    FETCH_RESULTS,
    FORWARD,
    FORWARD_ITEMS,
    READ,
    READ_ITEMS,
    READ_RESULTS,
    RELAXED,
    WRITE,
    WRITE_ITEMS,
    WRITE_RESULTS,
    FetchItem,
    FetchResult,
    ForwardItem,
    Kind,
    ReadItem,
    ReadResult,
    WriteItem,
    WriteResult,
)
from hillfire.storage.copies import read_copy
from hillfire.storage.craq import events
from hillfire.storage.pool import Holder, Span
from hillfire.storage.requests import Payload
from hillfire.storage.shell import TargetShell
from hillfire.storage.throttle import Meter

T = TypeVar("T")

INLINE_READ_BYTES = 1024 * 1024
"""A batch that asks for more is read in a thread, so that heartbeats are not held up."""

_CLIENT_KINDS = frozenset((Kind.WRITE, Kind.TRUNCATE, Kind.REMOVE, Kind.CLONE))
_FORWARD_KINDS = frozenset(Kind)
_RECOVERY_KINDS = (Kind.REPLACE, Kind.LOST)
"""What a sync sends: no foreground that it would have to make way for."""
_PAYLOAD_KINDS = frozenset((Kind.WRITE, Kind.REPLACE))


class DataPlane:
    """Serves chunk I/O for the targets of one node."""

    def __init__(
        self,
        shell_of: Callable[[int], TargetShell | None],
        lease_valid: Callable[[], bool],
        meter: Meter,
    ) -> None:
        """``shell_of`` finds this node's target of a chain, None if it is not up.

        ``meter`` is told when clients' requests come and go, and the forwards that they cause.
        """
        self._shell_of = shell_of
        self._lease_valid = lease_valid
        self._meter = meter

    def handle(self, incoming: Incoming) -> Answer | Awaitable[Answer]:
        """Serve one request of the data plane.

        Raises:
            Error: LEASE_EXPIRED, PROTOCOL, INVALID.
        """
        # The lease is checked as the request is dequeued: a process that was paused wakes with
        # requests already queued. Source: design.md 5, Leases.
        if not self._lease_valid():
            raise Error(Code.LEASE_EXPIRED, "this node has lost touch with the manager")
        now_ns = time.monotonic_ns
        self._meter.enter(now_ns())
        try:
            answer = self._serve(incoming)
        finally:
            self._meter.leave(now_ns())
        return answer

    def _serve(self, incoming: Incoming) -> Answer | Awaitable[Answer]:
        if incoming.method == READ:
            return self._read(incoming)
        if incoming.method == WRITE:
            items = WRITE_ITEMS.unpack(incoming.body)
            _check(items, incoming.sources, _CLIENT_KINDS)
            return self._update(items, incoming, events.WritesArrived)
        if incoming.method == FORWARD:
            forwards = FORWARD_ITEMS.unpack(incoming.body)
            _check(forwards, incoming.sources, _FORWARD_KINDS)
            _check_forwards(forwards)
            return self._update(forwards, incoming, events.ForwardsArrived)
        if incoming.method == FETCH:
            return self._fetch(incoming)
        raise Error(Code.NOT_SUPPORTED, f"no method {incoming.method} here")

    # ------------------------------------------------------------------ reads

    def _read(self, incoming: Incoming) -> Answer | Awaitable[Answer]:
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
            await _to_the_end(asyncio.gather(*reading))
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

    async def _fetch(self, incoming: Incoming) -> Answer:
        """Answer another target that repairs its own copies with ours, as they are committed."""
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
        result = await _to_the_end(task)
        if result.code == Code.IO:
            shell.fail(Error(Code.IO, f"a read failed: {item.chunk.hex()}"))
        elif result.code == Code.CORRUPT:
            shell.damaged(item.chunk, "found by another target's repair")
        return result

    # ------------------------------------------------------------------ updates

    async def _update(
        self,
        items: Sequence[WriteItem | ForwardItem],
        incoming: Incoming,
        event: type[events.WritesArrived] | type[events.ForwardsArrived],
    ) -> Answer:
        chain = items[0].chain if items else 0
        timeout_s = incoming.timeout_s
        if all(item.chain == chain for item in items):
            results = await self.update(chain, items, incoming.sources, event, timeout_s)
            return Answer(Code.OK, WRITE_RESULTS.pack(results))
        groups: dict[int, list[int]] = {}
        for position, item in enumerate(items):
            groups.setdefault(item.chain, []).append(position)
        parts = await asyncio.gather(
            *(
                self.update(
                    number,
                    [items[p] for p in positions],
                    [incoming.sources[p] for p in positions],
                    event,
                    timeout_s,
                )
                for number, positions in groups.items()
            )
        )
        merged: dict[int, WriteResult] = {}
        for positions, part in zip(groups.values(), parts, strict=True):
            merged.update(zip(positions, part, strict=True))
        return Answer(Code.OK, WRITE_RESULTS.pack(merged[p] for p in range(len(items))))

    async def update(
        self,
        chain: int,
        items: Sequence[WriteItem | ForwardItem],
        sources: Sequence[memoryview],
        event: type[events.WritesArrived] | type[events.ForwardsArrived],
        timeout_s: float,
    ) -> Sequence[WriteResult]:
        """Bring updates of one chain before its replica and wait for what becomes of them.

        The head copies payloads into memory of its own, since the client may change its memory
        at any time; so does everyone with a successor, for forwarding. A tail uses the
        predecessor's memory, which does not change until it is answered.

        Raises:
            Error: OVERLOADED when memory stays short, TOO_LARGE.
        """
        shell = self._shell_of(chain)
        if shell is None:
            return [WriteResult(Code.NOT_SERVING, 0, 0, 0)] * len(items)
        total = sum(map(len, sources))
        span: Span | None = None
        if total and (event is events.WritesArrived or shell.replica.successor is not None):
            pool = shell.pools.at(shell.position)
            span = pool.take_now(total)
            if span is None:
                span = await pool.take(total, timeout_s)
                if not self._lease_valid():
                    span.drop()
                    raise Error(Code.LEASE_EXPIRED, "the lease ended while memory was short")
        number, batch, future = shell.requests.open(len(items))
        payloads = _payloads(span, batch, sources)
        foreground = bool(items) and items[0].kind not in _RECOVERY_KINDS
        if foreground:
            self._meter.enter(time.monotonic_ns())
        try:
            shell.handle(event(number, items, payloads))  # type: ignore[arg-type]
            return await _to_the_end(future)
        finally:
            if foreground:
                self._meter.leave(time.monotonic_ns())
            if span is not None:
                span.drop()


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


async def _to_the_end(future: "asyncio.Future[T]") -> T:
    """Await what uses the request's memory: a cancellation has to wait for its end."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def _payloads(span: Span | None, batch: Holder, sources: Sequence[memoryview]) -> list[Payload]:
    if span is None:
        return [Payload(batch, source, 0, None) for source in sources]
    payloads, at = [], 0
    for source in sources:
        length = len(source)
        payloads.append(Payload(span, span.view[at : at + length], span.offset + at, source))
        at += length
    return payloads


def _check(
    items: Sequence[WriteItem | ForwardItem],
    sources: Sequence[memoryview],
    kinds: frozenset[Kind],
) -> None:
    """Verify what the core and the store rely on.

    Raises:
        Error: PROTOCOL, INVALID.
    """
    if len(items) != len(sources):
        raise Error(Code.PROTOCOL, f"{len(items)} updates, {len(sources)} payloads")
    for item, source in zip(items, sources, strict=True):
        kind, length = item.kind, item.length
        if kind not in kinds:
            raise Error(Code.INVALID, f"no update of kind {kind} here")
        if len(source) != (length if kind in _PAYLOAD_KINDS else 0):
            raise Error(Code.INVALID, f"a payload of {len(source)} bytes for {length}")
        if item.chunk_bytes > MAX_CHUNK_BYTES or item.offset + length > item.chunk_bytes:
            text = f"[{item.offset}, {item.offset + length}) of a chunk of {item.chunk_bytes}"
            raise Error(Code.TOO_LARGE, text)


def _check_forwards(items: Sequence[ForwardItem]) -> None:
    """Verify what only a predecessor says: a target must not stop over what can never be.

    Raises:
        Error: INVALID.
    """
    for item in items:
        kind = item.kind
        if not item.version and kind != Kind.REMOVE:  # of what was never there
            raise Error(Code.INVALID, "no update makes version 0")
        if kind in (Kind.REPLACE, Kind.LOST) and (item.offset or item.post_length != item.length):
            raise Error(Code.INVALID, f"{item.length} bytes at {item.offset} are no whole chunk")


_NOT_SERVING = ReadResult(Code.NOT_SERVING, 0, 0, 0)
