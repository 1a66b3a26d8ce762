"""The data plane's handler: READ, WRITE and FORWARD as they arrive on the wire.

Here is what all of them share, and the updates; ``reads.py`` serves READ and FETCH.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from hillfire import metrics
from hillfire.errors import Code, Error
from hillfire.layout import MAX_CHUNK_BYTES
from hillfire.proto.wire import copies
from hillfire.proto.wire.base import Answer, Incoming
from hillfire.proto.wire.chunks import (
    FETCH,
    FORWARD,
    FORWARD_ITEMS,
    READ,
    WRITE,
    WRITE_ITEMS,
    WRITE_RESULTS,
    ForwardItem,
    Kind,
    WriteItem,
    WriteResult,
)
from hillfire.storage.craq import events
from hillfire.storage.pool import Holder, Pool, Span
from hillfire.storage.reads import Reads
from hillfire.storage.requests import Payload
from hillfire.storage.shell import TargetShell
from hillfire.storage.threads import to_the_end
from hillfire.storage.throttle import Meter

_CLIENT_KINDS = frozenset((Kind.WRITE, Kind.TRUNCATE, Kind.REMOVE, Kind.CLONE))
_FORWARD_KINDS = frozenset(Kind)
_RECOVERY_KINDS = (Kind.REPLACE, Kind.LOST)
"""What a sync sends: no foreground that it would have to make way for."""
_PAYLOAD_KINDS = frozenset((Kind.WRITE, Kind.REPLACE))
_NOT_SERVING = WriteResult(Code.NOT_SERVING, 0, 0, 0)

Arrival = type[events.WritesArrived] | type[events.ForwardsArrived]


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
        self._reads = Reads(shell_of, lease_valid, meter)

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
            return self._reads.read(incoming)
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
            return self._reads.fetch(incoming)
        raise Error(Code.NOT_SUPPORTED, f"no method {incoming.method} here")

    # ------------------------------------------------------------------ updates

    async def _update(
        self, items: Sequence[WriteItem | ForwardItem], incoming: Incoming, event: Arrival
    ) -> Answer:
        """Bring a request's updates before the replicas of their chains, all at once."""
        sources, timeout_s = incoming.sources, incoming.timeout_s
        groups: dict[int, list[int]] = {}
        for position, item in enumerate(items):
            group = groups.get(item.chain)
            if group is None:
                groups[item.chain] = [position]
            else:
                group.append(position)
        if len(groups) == 1:
            results = await self.update(items[0].chain, items, sources, event, timeout_s)
            return Answer(Code.OK, WRITE_RESULTS.pack(results))
        begun = [
            self._begin(chain, [items[p] for p in where], [sources[p] for p in where], event)
            for chain, where in groups.items()
        ]
        merged: list[WriteResult] = [_NOT_SERVING] * len(items)
        failure: Error | asyncio.CancelledError | None = None
        for work, where in zip(begun, groups.values(), strict=True):
            try:
                for position, result in zip(where, await work.results(timeout_s), strict=True):
                    merged[position] = result
            except (Error, asyncio.CancelledError) as exc:
                failure = exc  # the others use the request's memory still
        if failure is not None:
            raise failure
        return Answer(Code.OK, WRITE_RESULTS.pack(merged))

    async def update(
        self,
        chain: int,
        items: Sequence[WriteItem | ForwardItem],
        sources: Sequence[memoryview],
        event: Arrival,
        timeout_s: float,
    ) -> Sequence[WriteResult]:
        """Bring updates of one chain before its replica and wait for what becomes of them.

        Raises:
            Error: OVERLOADED when memory stays short, TOO_LARGE, LEASE_EXPIRED.
        """
        return await self._begin(chain, items, sources, event).results(timeout_s)

    def _begin(
        self,
        chain: int,
        items: Sequence[WriteItem | ForwardItem],
        sources: Sequence[memoryview],
        event: Arrival,
    ) -> "_Work":
        """Begin updates of one chain, at once if there is memory for them."""
        work = _Work(self._shell_of(chain), items, sources, event, self._lease_valid, self._meter)
        work.begin()
        return work


class _Work:
    """Updates of one chain out of a request, from their arrival to their results.

    The head copies payloads into memory of its own, since the client may change its memory at
    any time; so does everyone with a successor, for forwarding. A tail uses the predecessor's
    memory, which does not change until it is answered.
    """

    __slots__ = (
        "_event", "_future", "_items", "_lease_valid", "_meter", "_pool", "_shell", "_sources",
        "_span", "_total",
    )  # fmt: skip

    def __init__(
        self,
        shell: TargetShell | None,
        items: Sequence[WriteItem | ForwardItem],
        sources: Sequence[memoryview],
        event: Arrival,
        lease_valid: Callable[[], bool],
        meter: Meter,
    ) -> None:
        """Nothing is done yet."""
        self._shell = shell
        self._items = items
        self._sources = sources
        self._event = event
        self._lease_valid = lease_valid
        foreground = bool(items) and items[0].kind not in _RECOVERY_KINDS
        self._meter = meter if foreground else None
        self._span: Span | None = None
        self._future: asyncio.Future[Sequence[WriteResult]] | None = None
        self._pool: Pool | None = None
        self._total = sum(map(len, sources))
        if shell is None or not self._total:
            return
        if event is events.WritesArrived or shell.replica.successor is not None:
            self._pool = shell.pools.at(shell.position)

    def begin(self) -> None:
        """Hand the updates to the replica, unless they have to wait for memory."""
        if self._shell is None:
            return
        if self._pool is not None:
            self._span = self._pool.take_now(self._total)
            if self._span is None:
                return
        self._hand_in(self._shell)

    def _hand_in(self, shell: TargetShell) -> None:
        number, batch, self._future = shell.requests.open(len(self._items))
        payloads = _payloads(self._span, batch, self._sources)
        if self._span is not None:
            copies.MEMORY.value += self._total
        done = metrics.WRITE if self._event is events.WritesArrived else metrics.FORWARD
        done.items.value += len(self._items)
        done.bytes.value += self._total
        if self._meter is not None:
            self._meter.enter(time.monotonic_ns())
        shell.handle(self._event(number, self._items, payloads))  # type: ignore[arg-type]

    async def results(self, timeout_s: float) -> Sequence[WriteResult]:
        """Wait for the results.

        Raises:
            Error: OVERLOADED when memory stays short, TOO_LARGE, LEASE_EXPIRED.
        """
        if self._shell is None:
            return [_NOT_SERVING] * len(self._items)
        if self._future is None:
            assert self._pool is not None, "what needs no memory was begun"
            began = time.monotonic_ns()
            self._span = await self._pool.take(self._total, timeout_s)
            done = metrics.WRITE if self._event is events.WritesArrived else metrics.FORWARD
            done.memory.observe(time.monotonic_ns() - began)
            if not self._lease_valid():
                self._span.drop()
                raise Error(Code.LEASE_EXPIRED, "the lease ended while memory was short")
            self._hand_in(self._shell)
            assert self._future is not None
        try:
            return await to_the_end(self._future)
        finally:
            if self._meter is not None:
                self._meter.leave(time.monotonic_ns())
            if self._span is not None:
                self._span.drop()


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
