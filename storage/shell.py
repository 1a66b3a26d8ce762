"""TargetShell: carries a replica's effects out, on one target's store and towards its successor.

Everything here runs on the event loop's thread except the store's calls, which a pool of threads
makes, one job a batch; small batches are prepared and committed at once, because a thread's hop
costs more than they do.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor

from hillfire import metrics
from hillfire.cluster import Chain, Routing
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import MAX_DATA_BYTES, MAX_PARTS, Part, Request
from hillfire.proto.wire.chunks import (
    FORWARD,
    FORWARD_ITEMS,
    NO_CHUNK,
    WRITE_RESULTS,
    FetchItem,
    ForwardItem,
)
from hillfire.storage.copies import ask_copy
from hillfire.storage.craq import effects, events
from hillfire.storage.craq.events import Outcome
from hillfire.storage.craq.operation import Operation
from hillfire.storage.craq.replica import Replica
from hillfire.storage.peers import Peers
from hillfire.storage.pool import Holder, Pools, Span
from hillfire.storage.requests import Payload, Requests
from hillfire.storage.store.base import ChunkStore
from hillfire.storage.storing import Prepared, Storing
from hillfire.storage.threads import Group, Threads
from hillfire.storage.transfers import read_pending, read_whole
from hillfire.types import ChunkId, TargetId

log = logging.getLogger(__name__)
_NO_SOURCE = (None, 0)
_new = tuple.__new__  # half the price of calling a NamedTuple

FORWARD_TIMEOUT_S = 10.0
"""Longer than any lease: a successor that is dead has left the chain by then."""
RETRY_MIN_S = 0.01
RETRY_MAX_S = 0.2
QUIET_S = 1.0
"""Between two lines of the log on failed forwards, which are sent again many times a second."""


class TargetShell:
    """One life of one target: from the opening of its store until its replica stops."""

    def __init__(
        self,
        target: TargetId,
        store: ChunkStore,
        *,
        peers: Peers,
        pools: Pools,
        executor: Executor,
        routing: Callable[[], Routing],
        stopped: Callable[["TargetShell", effects.Stop], None],
        poke: Callable[[], None],
        damaged: Callable[[ChunkId, str], None] = lambda chunk, why: None,
        inline: bool = True,
    ) -> None:
        """Restore the replica from the store.

        ``stopped`` is called once if it stops, ``damaged`` for each chunk whose bytes failed.
        ``inline``: small updates are prepared and committed without a thread.
        """
        self.damaged = damaged
        self.target = target
        self.store = store
        self.replica = Replica(target, store.get, store.pending(), store.tags())
        self.chain: Chain | None = None
        self.position = 0
        """in the chain, as pools are counted"""
        self.requests = Requests()
        self.pools = pools
        self._peers = peers
        self.threads = Threads(executor)
        self._storing = Storing(store, self.threads, inline, lambda: self._stages)
        self.syncs = Group(self.threads, store.sync)
        """makes everything durable that was acknowledged before"""
        self._routing = routing
        self._stopped = stopped
        self._poke = poke
        self._loop = asyncio.get_running_loop()
        self._events: deque[events.Event] = deque()
        self._handling = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._back_off_s = RETRY_MIN_S
        self._failures = 0
        self._quiet_until = 0.0

    # ------------------------------------------------------------------ events

    def handle(self, event: events.Event) -> None:
        """Give the replica an event and carry out what it wants.

        A defect, here or in the core, ends this life: nobody waits for an answer that cannot come.
        """
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        wanted: Sequence[effects.Effect] = ()
        try:
            while self._events:
                wanted = self.replica.handle(self._events.popleft())
                for effect in wanted:
                    _CARRY[type(effect)](self, effect)
        except Exception as exc:
            self._defect(exc, wanted)
        finally:
            self._handling = False

    def _defect(self, exc: Exception, wanted: Sequence[effects.Effect]) -> None:
        """End this life after an exception that should not be."""
        log.critical("event=defect target=%d", self.target, exc_info=exc)
        self._events.clear()
        stop, left = self.replica.give_up(f"a defect: {exc!r}")
        for effect in (*wanted, effects.Finish(left)):
            if isinstance(effect, effects.Finish):
                self._finish(effect)
        self.requests.fail(Code.NOT_SERVING)
        self._stopped(self, stop)

    def routing_changed(self, chain: Chain) -> None:
        """Act on a newer view of the chain."""
        if chain.version <= self.replica.version:
            return
        self.chain = chain
        line = chain.writable
        self.position = line.index(self.target) if self.target in line else len(line)
        self._back_off_s = RETRY_MIN_S
        self.handle(events.RoutingChanged(chain))

    def fail(self, error: Error) -> None:
        """Stop, because the store failed."""
        self.handle(events.StoreFailed(error.code, error.strerror or error.code.name))

    async def forget_idle(self) -> None:
        """Drop the tags of clients of whom nothing was done since the last call but one.

        Raises:
            Error: IO.
        """
        idle = self.replica.channels.turn()
        if idle and self.replica.stopped is None:
            self.handle(events.SessionsEnded(idle))
            await self.threads.call(lambda: self.store.forget_clients(idle))

    async def drained(self) -> None:
        """Wait until no thread and no forward works for this life any more."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.threads.idle()

    @property
    def _stages(self) -> metrics.Operation:
        """Where the time of this target's updates is noted: at the head they are clients'."""
        return metrics.WRITE if self.position == 0 else metrics.FORWARD

    # ------------------------------------------------------------------ the store's effects

    def _prepare(self, effect: effects.Prepare) -> None:
        self._storing.prepare(effect.operations, effect.chain_version, self._prepared)

    def _prepared(self, result: Prepared | BaseException) -> None:
        if isinstance(result, BaseException):
            self._broken("prepare", result)
        else:
            self.handle(events.Prepared(result))

    def _commit(self, effect: effects.Commit) -> None:
        operations = effect.operations

        def done(result: object) -> None:
            if isinstance(result, BaseException):
                self._broken("commit", result)
            else:
                self.handle(events.Committed(operations))

        self._storing.commit(operations, effect.chain_version, done)

    def _broken(self, what: str, exc: BaseException) -> None:
        """Stop after a failed store call: this target can go on no longer, the node can."""
        if not isinstance(exc, Error):
            log.error("event=store_failed target=%d call=%s", self.target, what, exc_info=exc)
            exc = Error(Code.IO, f"{what}: {type(exc).__name__}: {exc}")
        self.fail(exc)

    def _discard(self, effect: effects.Discard) -> None:
        try:
            for chunk in effect.chunks:
                self.store.discard(chunk)
        except Error as exc:
            self._broken("discard", exc)

    # ------------------------------------------------------------------ the successor

    def _forward(self, effect: effects.Forward) -> None:
        for portion in self._portions(effect.operations, _payload_bytes):
            self._spawn(self._send_forward(effect.target, effect.chain_version, portion))

    def _transfer(self, effect: effects.Transfer) -> None:
        for portion in self._portions(effect.operations, self._chunk_bytes):
            self._spawn(self._send_transfer(effect.target, effect.chain_version, portion))

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _chunk_bytes(self, operation: Operation) -> int:
        meta = self.store.get(operation.chunk)
        return 0 if meta is None else meta.length

    def _portions(
        self, operations: Sequence[tuple[Operation, int]], size_of: Callable[[Operation], int]
    ) -> list[list[tuple[Operation, int]]]:
        """Cut a batch so that each part fits one request and a share of the pool."""
        limit = min(MAX_DATA_BYTES, self.pools.n_bytes // 4)
        portions: list[list[tuple[Operation, int]]] = [[]]
        total = 0
        for pair in operations:
            size = size_of(pair[0])
            if portions[-1] and (total + size > limit or len(portions[-1]) >= MAX_PARTS):
                portions.append([])
                total = 0
            portions[-1].append(pair)
            total += size
        return portions

    async def _send_forward(
        self, target: TargetId, chain_version: int, operations: Sequence[tuple[Operation, int]]
    ) -> None:
        memories: list[Holder] = []
        try:
            old = [operation for operation, _ in operations if operation.payload is None]
            parts_of: dict[Operation, Part] = {}
            for operation, _ in operations:
                payload = operation.payload
                if isinstance(payload, Payload):
                    if not memories or payload.memory is not memories[-1]:
                        payload.memory.hold()
                        memories.append(payload.memory)
                    parts_of[operation] = payload.part()
            if old:
                span, found = await read_pending(
                    self.threads, self.store, self.pools.at(Pools.TRANSFERS), old
                )
                memories.append(span)
                parts_of.update(zip(old, found, strict=True))
            chain = self.chain.id if self.chain is not None else 0
            items = [forward_item(o, n, chain, chain_version) for o, n in operations]
            parts = [parts_of[operation] for operation, _ in operations]
            await self._send(target, operations, items, parts, self.position)
        except Exception as exc:  # a defect too: an update must not wait for ever
            self._not_sent(operations, exc)
        finally:
            for memory in memories:
                memory.drop()

    async def _send_transfer(
        self, target: TargetId, chain_version: int, operations: Sequence[tuple[Operation, int]]
    ) -> None:
        try:
            chain = self.chain.id if self.chain is not None else 0
            pool = self.pools.at(Pools.TRANSFERS)
            whole = await read_whole(
                self.threads, self.store, pool, operations, chain, chain_version
            )
            try:
                if whole.damaged:
                    self.handle(events.Unreadable(whole.damaged))
                if operations := whole.operations:
                    await self._send(target, operations, whole.items, whole.parts, Pools.TRANSFERS)
            finally:
                whole.span.drop()
        except Exception as exc:
            self._not_sent(operations, exc)

    def _fetch(self, effect: effects.Fetch) -> None:
        for operation, attempt in effect.operations:
            self._spawn(self._ask_copy(effect.target, effect.chain_version, operation, attempt))

    async def _ask_copy(
        self, target: TargetId, chain_version: int, operation: Operation, attempt: int
    ) -> None:
        """Ask another target for its copy of a chunk and hand it in, with the memory it is in."""
        span: Span | None = None
        copy: events.Copy | int
        try:
            chain = self.chain.id if self.chain is not None else 0
            meta = self.store.get(operation.chunk)
            span, copy = await ask_copy(
                self._peers,
                self._routing().node_of(target),
                self.pools.at(Pools.TRANSFERS),
                FetchItem(operation.chunk, chain, chain_version),
                meta.length if meta is not None else 0,
            )
        except Error as exc:
            copy = exc.code
        except Exception as exc:  # a defect too: the chunk's lock must not be held for ever
            log.error("event=fetch_failed target=%d", self.target, exc_info=exc)
            copy = Code.INTERNAL
        try:
            self.handle(events.Fetched([(operation, attempt, copy)]))
        finally:
            if span is not None:
                span.drop()

    def _lost(self, effect: effects.Lost) -> None:
        for chunk in effect.chunks:
            log.critical("event=chunk_lost target=%d chunk=%s remedy=%r", self.target, chunk.hex(),
                         "no replica has a good copy; restore its file")  # fmt: skip

    async def _send(
        self,
        target: TargetId,
        operations: Sequence[tuple[Operation, int]],
        items: Sequence[ForwardItem],
        parts: Sequence[Part],
        lane: int,
    ) -> None:
        """Send one FORWARD and hand its answers in.

        Raises:
            Error: whatever kept it from being answered.
        """
        node = self._routing().node_of(target)
        request = Request(FORWARD, FORWARD_ITEMS.pack(items), parts)
        began = time.monotonic_ns()
        reply = await self._peers.request(node, lane, request, FORWARD_TIMEOUT_S)
        self._stages.forward.observe(time.monotonic_ns() - began)
        results = WRITE_RESULTS.tuples(reply.body)
        if len(results) != len(operations):
            text = f"{len(results)} answers to {len(operations)} forwards"
            raise Error(Code.PROTOCOL, text)
        self._back_off_s = RETRY_MIN_S
        self.handle(
            events.Forwarded(
                [
                    (operation, attempt, _new(Outcome, result))
                    for (operation, attempt), result in zip(operations, results, strict=True)
                ]
            )
        )

    def _not_sent(self, operations: Sequence[tuple[Operation, int]], cause: Exception) -> None:
        self._failures += 1
        if self._loop.time() >= self._quiet_until:
            self._quiet_until = self._loop.time() + QUIET_S
            known = isinstance(cause, Error)
            log.log(
                logging.INFO if known else logging.ERROR,
                "event=forward_failed target=%d items=%d failures=%d cause=%r",
                self.target, len(operations), self._failures, cause,
                exc_info=None if known else cause,
            )  # fmt: skip
            self._failures = 0
        # Whatever befell the request as a whole, the updates are sent again; a sync's are asked
        # for again by whoever runs it.
        outcome = Outcome(Code.CONNECTION)
        self.handle(events.Forwarded([(o, attempt, outcome) for o, attempt in operations]))

    # ------------------------------------------------------------------ the rest

    def _replies(self, effect: effects.Replies) -> None:
        self.requests.answer(effect.answers)

    def _finish(self, effect: effects.Finish) -> None:
        for operation in effect.operations:
            if operation.payload is not None:
                operation.payload.let_go()  # type: ignore[attr-defined]

    def _retry_later(self, effect: effects.RetryLater) -> None:
        self._loop.call_later(self._back_off_s, self.handle, events.RetryDue())
        self._back_off_s = min(RETRY_MAX_S, self._back_off_s * 2)
        self._poke()

    def _stop(self, effect: effects.Stop) -> None:
        self._stopped(self, effect)


_CARRY: dict[type, Callable[..., None]] = {
    effects.Prepare: TargetShell._prepare,
    effects.Forward: TargetShell._forward,
    effects.Transfer: TargetShell._transfer,
    effects.Fetch: TargetShell._fetch,
    effects.Lost: TargetShell._lost,
    effects.Commit: TargetShell._commit,
    effects.Discard: TargetShell._discard,
    effects.Replies: TargetShell._replies,
    effects.Finish: TargetShell._finish,
    effects.RetryLater: TargetShell._retry_later,
    effects.Stop: TargetShell._stop,
}


def forward_item(o: Operation, attempt: int, chain: int, chain_version: int) -> ForwardItem:
    """Return an operation as the successor is told of it."""
    image, partner = o.image, o.partner
    assert image is not None, o
    client, channel, sequence = o.tag
    source, source_version = NO_CHUNK, 0
    if partner is not None:
        source, source_version = partner.chunk, partner.version
    record = (
        o.chunk, chain, chain_version, o.kind, o.offset, o.length, o.checksum, o.epoch,
        o.chunk_bytes, client, channel, sequence, o.version, image[0], image[1], source,
        source_version, attempt,
    )  # fmt: skip
    return _new(ForwardItem, record)


def _payload_bytes(operation: Operation) -> int:
    payload = operation.payload
    return len(payload.view) if isinstance(payload, Payload) else operation.chunk_bytes
