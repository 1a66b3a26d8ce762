"""Home: one target on its node: the production lifecycle, replica and sync, effects carried out.

What ``storage/targets.py``, ``shell.py`` and ``resync.py`` do with tasks and threads is done here
with the scheduler; between any two effects the process may die.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from crc32c import crc32c

from hillfire.cluster import Chain, PublicState
from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage import lifecycle
from hillfire.storage.craq import effects, events
from hillfire.storage.craq.check import check
from hillfire.storage.craq.events import Outcome
from hillfire.storage.craq.operation import Operation
from hillfire.storage.craq.replica import Replica
from hillfire.storage.lifecycle import Lifecycle
from hillfire.storage.store.base import ChunkStore, Image, Update
from hillfire.types import ChainId, ChunkId, TargetId, Version
from tests.simulation import sending
from tests.simulation.syncing import Syncing

if TYPE_CHECKING:
    from tests.simulation.storage_node import StorageNode

RETRY_MIN_S = 0.01
RETRY_MAX_S = 0.2
REOPEN_S = 0.5
INLINE_BYTES = 16 * 1024
INLINE_ITEMS = 8

Done = Callable[[Sequence[Outcome]], None]


class Home:
    """A target through all its lives in one process."""

    def __init__(self, node: "StorageNode", target: TargetId, chain: ChainId) -> None:
        self.node = node
        self.world = node.world
        self.target = target
        self.chain_id = chain
        self.life = Lifecycle(target, on_rule=self.world.coverage.rule)
        self.replica: Replica | None = None
        self.store: ChunkStore | None = None
        self.used_bytes = 0
        self.wrong_memory = False
        """whether the bytes of the next forwarded write change before they are summed"""
        self._repairing: set[ChunkId] = set()
        self._looking = self._looked = False
        self._requests: dict[int, tuple[list[int], list[Outcome], Done]] = {}
        self._number = 0
        self._events: deque[events.Event] = deque()
        self._handling = False
        self._steps: deque[lifecycle.Event] = deque()
        self._stepping = False
        self._working: dict[Replica, int] = {}
        """jobs of each life that threads are at"""
        self._draining: Replica | None = None
        self._back_off_s = RETRY_MIN_S
        self._sync: Syncing | None = None

    def __repr__(self) -> str:
        return f"t{self.target}"

    @property
    def chain(self) -> Chain:
        return self.node.routing.chain(self.chain_id)

    @property
    def withdrawn(self) -> bool:
        """Whether an order of the manager's stands against it."""
        return self.node.routing.targets[self.target].withdrawn

    def tell(self, what: str) -> None:
        """Add a line to the world's story."""
        self.world.story.tell(repr(self), what)

    # ------------------------------------------------------------------ the lifecycle

    def advance(self, event: lifecycle.Event) -> None:
        """Give the lifecycle an event and carry out what it wants."""
        self._steps.append(event)
        if self._stepping:
            return
        self._stepping = True
        while self._steps:
            step = self._steps.popleft()
            for effect in self.life.handle(step):
                self.node.step()
                _LIFE[type(effect)](self, effect)
        self._stepping = False

    def routed(self) -> None:
        """Act on the newest routing; on the first by looking for the store."""
        if self._looked:
            self.advance(lifecycle.Routed(self.chain, self.withdrawn))
        elif not self._looking:
            self._looking = True
            self._look()

    def _look(self, effect: lifecycle.Look | None = None) -> None:
        def found() -> None:
            self._looked = True
            new = not self.node.disk.exists(self.target)
            self.advance(lifecycle.Found(new, self.chain, self.withdrawn))

        self.node.after(self.node.disk.delay_s(), found)

    def _open(self, effect: lifecycle.Open) -> None:
        def opened() -> None:
            try:
                self.store = self.node.disk.open(self.target)
            except Error as error:
                self.advance(lifecycle.OpenFailed(error.code, str(error)))
                return
            self.advance(lifecycle.Opened())

        self.node.after(self.node.disk.delay_s(), opened)

    def _begin(self, effect: lifecycle.Begin) -> None:
        store = self.store
        assert store is not None
        self._repairing = set()
        self.replica = Replica(
            self.target, store.get, store.pending(), store.tags(),
            inspect=check if self.world.inspect else None,
            on_rule=self.world.coverage.rule,
        )  # fmt: skip
        self._back_off_s = RETRY_MIN_S

    def _route(self, effect: lifecycle.Route) -> None:
        self._back_off_s = RETRY_MIN_S
        self.handle(events.RoutingChanged(effect.chain))

    def _start_sync(self, effect: lifecycle.Sync) -> None:
        self._end_sync(effect)
        self._sync = Syncing(self, effect.chain, effect.successor)
        self._sync.start()

    def _end_sync(self, effect: object) -> None:
        if self._sync is not None:
            self._sync.ended = True
            self._sync = None

    def _stop_replica(self, effect: lifecycle.StopReplica) -> None:
        self.handle(events.StoreFailed(effect.code, effect.reason))

    def _drain(self, effect: lifecycle.Drain) -> None:
        self._draining, self.replica = self.replica, None
        if self._draining is not None and not self._working.get(self._draining):
            self._drained()

    def _drained(self) -> None:
        self._draining = None
        self.node.after(0.0, lambda: self.advance(lifecycle.Drained()))

    def _look_later(self, effect: lifecycle.LookLater) -> None:
        self.node.after(REOPEN_S, lambda: self.advance(lifecycle.LookDue()))

    def _report(self, effect: lifecycle.Report) -> None:
        self.node.poke()

    def _alarm(self, effect: lifecycle.Alarm) -> None:
        self.tell(f"ALARM {Code(effect.code).name}: {effect.reason}")
        self.world.checks.alarm(self, Code(effect.code), effect.reason)

    # ------------------------------------------------------------------ the replica

    def request(self, count: int, done: Done) -> int:
        """Open a request to the replica; ``done`` is called with all outcomes."""
        self._number += 1
        self._requests[self._number] = [count], [Outcome(0)] * count, done
        return self._number

    def handle(self, event: events.Event) -> None:
        """Give the replica an event and carry out what it wants."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        while self._events:
            event = self._events.popleft()
            if self.replica is None:
                continue
            self.world.coverage.events += 1
            wanted = self.replica.handle(event)
            if self.world.story.verbose:
                self.tell(f"{shown(event)} => {'; '.join(map(shown, wanted)) or 'nothing'}")
            for effect in wanted:
                self.node.step()
                _REPLICA[type(effect)](self, effect)
        self._handling = False

    def work(self, job: Callable[[], Any], done: Callable[[Any], None], inline: bool) -> None:
        """Run a store's job here, or in a thread: then it begins and ends later."""
        replica, disk = self.replica, self.node.disk
        assert replica is not None
        if inline and not disk.slow:
            done(_guarded(job))
            return
        self._working[replica] = self._working.get(replica, 0) + 1

        def begin() -> None:
            result = _guarded(job)
            self.node.after(disk.delay_s(), lambda: end(result))

        def end(result: Any) -> None:
            self._working[replica] -= 1
            if self.replica is replica:
                done(result)
            if self._draining is replica and not self._working[replica]:
                self._drained()

        self.node.after(disk.delay_s(), begin)

    def _broken(self, what: str, error: Exception) -> None:
        if not isinstance(error, Error):
            raise error
        self.tell(f"{what} failed: {error.strerror}")
        self.handle(events.StoreFailed(error.code, f"{what}: {error.strerror}"))

    def _prepare(self, effect: effects.Prepare) -> None:
        operations, chain_version, store = effect.operations, effect.chain_version, self.store
        assert store is not None
        self.world.checks.beginning(self, operations, chain_version)

        def job() -> list[tuple[Operation, Image | int]]:
            updates = [
                Update(
                    o.chunk, Version(o.version), o.kind, o.offset, o.length,
                    *self._remembered(o), o.tag, o.epoch, chain_version, o.chunk_bytes,
                    o.source, Version(o.source_version),
                )
                for o in operations
            ]  # fmt: skip
            images = store.prepare(updates)
            return [(o, _coded(image)) for o, image in zip(operations, images, strict=True)]

        def done(result: Any) -> None:
            if isinstance(result, Exception):
                self._broken("prepare", result)
            else:
                self.handle(events.Prepared(result))

        total = sum(len(_payload(o)) for o in operations)
        self.work(job, done, total <= INLINE_BYTES and len(operations) <= INLINE_ITEMS)

    def _remembered(self, operation: Operation) -> tuple[memoryview, int]:
        """Return an update's bytes and their sum as this host's memory has them."""
        payload = _payload(operation)
        if not (self.wrong_memory and operation.forwarded and operation.kind == Kind.WRITE):
            return payload, operation.checksum
        self.wrong_memory = False
        self.tell(f"its memory changes a byte of {operation}")
        wrong = bytes(payload[:-1]) + bytes((payload[-1] ^ 1,))
        return memoryview(wrong), crc32c(wrong)

    def _commit(self, effect: effects.Commit) -> None:
        operations, chain_version, store = effect.operations, effect.chain_version, self.store
        assert store is not None

        def job() -> None:
            self.world.checks.committing(self, operations)
            store.commit([(o.chunk, Version(o.version), chain_version) for o in operations])

        def done(result: Any) -> None:
            if isinstance(result, Exception):
                self._broken("commit", result)
            else:
                self.handle(events.Committed(operations))

        self.work(job, done, len(operations) <= INLINE_ITEMS)

    def _discard(self, effect: effects.Discard) -> None:
        assert self.store is not None
        try:
            for chunk in effect.chunks:
                self.store.discard(chunk)
        except Error as error:
            self._broken("discard", error)

    def reached(self) -> None:
        """Note that the successor answers."""
        self._back_off_s = RETRY_MIN_S

    def _lost(self, effect: effects.Lost) -> None:
        for chunk in effect.chunks:
            self.tell(f"LOST: no good copy of {chunk.hex()} is left")
        self.world.checks.lost(self, effect.chunks)

    def _replies(self, effect: effects.Replies) -> None:
        for number, item, *outcome in effect.answers:
            left, results, done = self._requests[number]
            results[item] = Outcome(*outcome)
            left[0] -= 1
            assert left[0] >= 0, "an item was answered twice"
            if not left[0]:
                del self._requests[number]
                done(results)

    def _finish(self, effect: effects.Finish) -> None:
        pass

    def _retry_later(self, effect: effects.RetryLater) -> None:
        replica = self.replica

        def due() -> None:
            if self.replica is replica:
                self.handle(events.RetryDue())

        self.node.after(self._back_off_s, due)
        self._back_off_s = min(RETRY_MAX_S, self._back_off_s * 2)
        self.node.poke()

    def _stop(self, effect: effects.Stop) -> None:
        self.tell(f"stops: {Code(effect.code).name} {effect.reason}")
        self.world.checks.stopped(self, effect)
        self.advance(lifecycle.Stopped(effect.code, effect.reason))

    def read_failed(self, chunk: ChunkId, error: Error) -> None:
        """A read found its bytes damaged, or the disk broken."""
        if error.code is Code.IO:
            self.handle(events.StoreFailed(error.code, "a read failed"))
        elif error.code is Code.CORRUPT and chunk not in self._repairing:
            assert self.replica is not None
            self._repairing.add(chunk)
            self.tell(f"chunk {chunk.hex()} is damaged")

            def done(outcomes: Sequence[Outcome]) -> None:
                self._repairing.discard(chunk)
                self.tell(f"repair of {chunk.hex()}: {Code(outcomes[0].code).name}")

            number = self.request(1, done)
            self.handle(events.RepairArrived(number, self.replica.version, [chunk]))

    def scrub(self) -> None:
        """Verify every chunk, in a thread."""
        replica, store = self.replica, self.store
        if replica is None or store is None:
            return

        def done(result: Any) -> None:
            if isinstance(result, Error):
                self.tell(f"scrub failed: {result.strerror}")
                return
            for chunk in result.damaged:
                self.world.coverage.count("damaged chunks scrubbed")
                self.read_failed(chunk, Error(Code.CORRUPT, "found by the scrubber"))

        self.work(lambda: store.scrub(None, 1 << 40), done, inline=False)

    # ------------------------------------------------------------------ questions

    def serves(self) -> bool:
        """Whether it answers reads and acknowledges writes."""
        replica = self.replica
        return (
            replica is not None and replica.stopped is None and replica.state is PublicState.SERVING
        )

    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._requests and (self.replica is None or not self.replica.holders)

    def busy(self) -> str:
        """Say what is under way."""
        held = list(self.replica.holders.values()) if self.replica is not None else []
        return f"has {len(self._requests)} requests and holds {held}"


def shown(each: Any) -> str:
    """Return an event or an effect in a line."""
    fields = []
    for value in each:
        text = (
            repr([shown_item(v) for v in value]) if isinstance(value, list | tuple) else repr(value)
        )
        fields.append(text if len(text) < 400 else f"{text[:400]}...")
    return f"{type(each).__name__}({', '.join(fields)})"


def shown_item(item: Any) -> Any:
    """Leave out payloads."""
    if isinstance(item, memoryview):
        return f"{len(item)} bytes"
    return item


def _payload(operation: Operation) -> memoryview:
    return operation.payload or memoryview(b"")  # type: ignore[return-value]


def _guarded(job: Callable[[], Any]) -> Any:
    try:
        return job()
    except Error as error:
        return error


def _coded(image: Image | Exception) -> Image | int:
    if isinstance(image, Image):
        return image
    if not isinstance(image, Error):
        raise image
    return image.code


_LIFE: dict[type, Callable[[Home, Any], None]] = {
    lifecycle.Look: Home._look,
    lifecycle.Open: Home._open,
    lifecycle.Begin: Home._begin,
    lifecycle.Route: Home._route,
    lifecycle.Sync: Home._start_sync,
    lifecycle.EndSync: Home._end_sync,
    lifecycle.StopReplica: Home._stop_replica,
    lifecycle.Drain: Home._drain,
    lifecycle.LookLater: Home._look_later,
    lifecycle.Report: Home._report,
    lifecycle.Alarm: Home._alarm,
}

_REPLICA: dict[type, Callable[[Home, Any], None]] = {
    effects.Prepare: Home._prepare,
    effects.Forward: sending.forward,
    effects.Transfer: sending.transfer,
    effects.Fetch: sending.fetch,
    effects.Lost: Home._lost,
    effects.Commit: Home._commit,
    effects.Discard: Home._discard,
    effects.Replies: Home._replies,
    effects.Finish: Home._finish,
    effects.RetryLater: Home._retry_later,
    effects.Stop: Home._stop,
}
