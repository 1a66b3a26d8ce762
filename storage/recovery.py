"""Recovery: one resync of a successor, from the first page compared to the last tag told. Pure.

``Sync`` is a machine as the replica is: events in, effects out; ``storage/resync.py`` and the
simulator carry its effects out. What differs is said by ``comparison.py``; what is sent is the
replica's affair, under the chunks' locks (``SyncArrived``).

Source: design.md 5, Recovery; 3FS, its resync worker: pages, batches of 16, sync-done.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hillfire.errors import Code
from hillfire.storage.comparison import Decision, Remote, Verdict, compare
from hillfire.storage.store.base import ChunkMeta
from hillfire.types import ChunkId

PAGE = 2048
"""Records of the successor listed at once."""
BATCH_CHUNKS = 16
"""Chunks sent under their locks at once: the sync's share of the bandwidth, besides memory."""
BATCH_BYTES = 16 * 1024 * 1024
"""Payload of a batch; a chunk that is larger goes alone."""
IN_FLIGHT = 2
"""Batches on their way."""
LOW_CHUNKS = 2 * BATCH_CHUNKS
"""With fewer left to send the next page is asked for."""
TOLD = 16
"""Names of chunks in a message for an operator."""


class Listed(NamedTuple):
    """The successor's page: its records; ``last`` is the last id that it covers, None for all."""

    records: Mapping[ChunkId, Remote]
    last: ChunkId | None


class Scanned(NamedTuple):
    """Our own records of the same range, read after the successor's.

    ``held``: chunks with an update under way, as it was before our records were read. What the
    successor has newer of these may be that very update, which it was sent in an earlier life.
    """

    records: Mapping[ChunkId, ChunkMeta]
    held: Collection[ChunkId] = ()


class BatchDone(NamedTuple):
    """The replica's outcomes of a batch, a code a chunk in the order sent."""

    number: int
    codes: Sequence[int]


class Completed(NamedTuple):
    """The replica's answer to ``Complete``."""

    code: int


class Told(NamedTuple):
    """A ``TellTags`` or a ``Refuse`` was done."""


class StepFailed(NamedTuple):
    """A ``List``, ``Scan``, ``TellTags`` or ``Refuse`` failed; it is done again later."""

    code: int
    reason: str


class RetryDue(NamedTuple):
    """The time that a ``Wait`` asked for has passed."""


Event = Listed | Scanned | BatchDone | Completed | Told | StepFailed | RetryDue


class List(NamedTuple):
    """Ask the successor for the records behind ``after``; then ``Listed``."""

    after: bytes
    limit: int


class Scan(NamedTuple):
    """Read our own records behind ``after`` up to ``last`` (None: all); then ``Scanned``."""

    after: bytes
    last: ChunkId | None


class SendBatch(NamedTuple):
    """Hand the replica a ``SyncArrived`` of these chunks; then ``BatchDone``."""

    number: int
    chunks: Sequence[ChunkId]
    n_bytes: int


class Complete(NamedTuple):
    """Hand the replica a ``SyncCompleting``; then ``Completed``."""


class TellTags(NamedTuple):
    """Tell the successor the store's table of channels and, with it, that it is equal."""


class Refuse(NamedTuple):
    """Tell the successor that it must stop, and why."""

    chunks: Sequence[ChunkId]
    reason: str


class Wait(NamedTuple):
    """Say ``RetryDue`` after a back-off that grows with ``attempt``, which begins at 1."""

    attempt: int
    reason: str


class Finished(NamedTuple):
    """The sync is over: the successor is equal, or it was refused."""

    equal: bool


Effect = List | Scan | SendBatch | Complete | TellTags | Refuse | Wait | Finished


@dataclass(slots=True)
class Progress:
    """How far a sync is, for ``status``; counts only grow."""

    total_chunks: int = 0
    """here, as it began"""
    total_bytes: int = 0
    compared_chunks: int = 0
    compared_bytes: int = 0
    to_send_chunks: int = 0
    to_send_bytes: int = 0
    sent_chunks: int = 0
    sent_bytes: int = 0
    failed_chunks: int = 0
    """attempts that were not taken; each is sent again"""
    compared_all: bool = False

    def left_bytes(self) -> int:
        """Estimate what is still to be sent: what is known, and as much of the rest as so far."""
        known = self.to_send_bytes - self.sent_bytes
        unseen = 0 if self.compared_all else max(0, self.total_bytes - self.compared_bytes)
        return known + unseen * self.to_send_bytes // max(1, self.compared_bytes)


class Sync:
    """One resync of one successor under one chain version: events in, effects out.

    What the successor has already costs a comparison and is not sent, so a sync that a change of
    the chain ended is resumed by the next one. Behind the comparison's place nothing can become
    unequal: every update of a chunk keeps its lock until the successor has it.
    """

    def __init__(
        self,
        chain_version: int,
        *,
        total_chunks: int = 0,
        total_bytes: int = 0,
        in_flight: int = IN_FLIGHT,
        batch_chunks: int = BATCH_CHUNKS,
        on_rule: Callable[[int], None] | None = None,
    ) -> None:
        """``start`` begins; the totals are our own store's, for the estimate."""
        self.chain_version = chain_version
        self.progress = Progress(total_chunks, total_bytes)
        self.finished = False
        self.in_flight = in_flight
        self._batch_chunks = batch_chunks
        """batches on their way at once; may be changed at any time"""
        self._on_rule = on_rule
        self._after = b""
        self._page: Listed | None = None
        self._step: Effect | None = None
        """the one call under way or to be made again, besides batches"""
        self._queue: deque[tuple[ChunkId, int]] = deque()
        self._again: list[tuple[ChunkId, int]] = []
        self._flying: dict[int, list[tuple[ChunkId, int]]] = {}
        self._batches = 0
        self._failed = False
        """whether the step failed and waits for the retry"""
        self._waiting = False
        self._attempt = 0
        self._why = ""
        self._out: list[Effect] = []

    def __repr__(self) -> str:
        """Tell how far it is."""
        return f"<Sync at {self.chain_version} {self._step} flying={len(self._flying)}>"

    def start(self) -> list[Effect]:
        """Begin; return what must be done first."""
        self._out = []
        self._go()
        return self._out

    def handle(self, event: Event) -> list[Effect]:
        """Take one event and return what must be done about it."""
        self._out = []
        if not self.finished:
            _HANDLERS[type(event)](self, event)
            if not self.finished:
                self._go()
        return self._out

    def _rule(self, number: int) -> None:
        if self._on_rule is not None:
            self._on_rule(number)

    # ------------------------------------------------------------------ comparing

    def _listed(self, event: Listed) -> None:
        self._page = event
        self._make(Scan(self._after, event.last))

    def _scanned(self, event: Scanned) -> None:
        page, self._page, self._step = self._page, None, None
        assert page is not None, "our own records are read after the successor's"
        self._attempt = 0
        progress = self.progress
        progress.compared_chunks += len(event.records.keys() | page.records.keys())
        progress.compared_bytes += sum(meta.length for meta in event.records.values())
        conflicts = []
        wanted: list[tuple[ChunkId, int]] = []
        if not event.records.keys().isdisjoint(page.records):
            self._rule(34)  # R34
        for found in compare(event.records, page.records):
            if found.verdict is Verdict.CONFLICT and found.chunk not in event.held:
                conflicts.append(found)
                continue
            meta = event.records.get(found.chunk)
            n_bytes = 0 if meta is None else meta.length
            wanted.append((found.chunk, n_bytes))
            progress.to_send_chunks += 1
            progress.to_send_bytes += n_bytes
        # What frees space goes first: the successor's disk may have become full.
        self._queue.extend(sorted(wanted, key=lambda each: each[1] > 0))
        if conflicts:
            self._conflict(conflicts)
        elif page.last is None:
            progress.compared_all = True
        else:
            self._after = page.last

    def _conflict(self, found: Sequence[Decision]) -> None:
        """Stop the successor: what it has newer than a serving target, nobody may throw away.

        R35. Source: 3FS, the fatal rows of its sync worker's comparison.
        """
        self._rule(35)
        self._queue.clear()
        self._again.clear()
        named = ", ".join(f"{each.chunk.hex()}: {each.reason}" for each in found[:TOLD])
        self._make(
            Refuse(
                [each.chunk for each in found],
                f"{len(found)} chunks are newer here than at the serving targets ({named}); "
                "decide which side holds, then remove the other's target directory",
            )
        )

    # ------------------------------------------------------------------ sending

    def _batch_done(self, event: BatchDone) -> None:
        batch = self._flying.pop(event.number)
        for (chunk, n_bytes), code in zip(batch, event.codes, strict=True):
            if code == Code.OK:
                self.progress.sent_chunks += 1
                self.progress.sent_bytes += n_bytes
                self._attempt = 0
            else:
                self.progress.failed_chunks += 1
                self._again.append((chunk, n_bytes))
                self._why = f"a chunk was not taken: {Code(code).name}"

    def _completed(self, event: Completed) -> None:
        if event.code == Code.OK:
            self._make(TellTags())
        else:
            self._later(f"completing: {Code(event.code).name}")

    def _told(self, event: Told) -> None:
        self.finished = True
        self._out.append(Finished(isinstance(self._step, TellTags)))

    # ------------------------------------------------------------------ what comes next

    def _go(self) -> None:
        while self._queue and len(self._flying) < self.in_flight and not self._refusing:
            self._send()
        if self._again and not self._flying and not self._queue:
            self._wait()
        if self._step is not None:
            return
        if not self.progress.compared_all:
            if len(self._queue) < max(LOW_CHUNKS, 2 * self._batch_chunks):
                self._make(List(self._after, PAGE))
        elif not self._queue and not self._flying and not self._again:
            self._make(Complete())

    @property
    def _refusing(self) -> bool:
        return isinstance(self._step, Refuse)

    def _send(self) -> None:
        batch: list[tuple[ChunkId, int]] = []
        n_bytes = 0
        while self._queue and len(batch) < self._batch_chunks:
            if batch and n_bytes + self._queue[0][1] > BATCH_BYTES:
                break
            batch.append(self._queue.popleft())
            n_bytes += batch[-1][1]
        # R33: what is sent is decided again under the chunks' locks, by the replica.
        self._rule(33)
        self._batches += 1
        self._flying[self._batches] = batch
        self._out.append(SendBatch(self._batches, [chunk for chunk, _ in batch], n_bytes))

    def _make(self, step: Effect) -> None:
        self._step = step
        self._out.append(step)

    def _step_failed(self, event: StepFailed) -> None:
        self._later(f"{type(self._step).__name__}: {Code(event.code).name} {event.reason}")

    def _later(self, reason: str) -> None:
        self._failed = True
        self._why = reason
        self._wait()

    def _wait(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._attempt += 1
            self._out.append(Wait(self._attempt, self._why))

    def _retry(self, event: RetryDue) -> None:
        self._waiting = False
        if not self._refusing:
            self._queue.extend(self._again)
        self._again.clear()
        if self._failed:
            self._failed = False
            # A completing that failed is tried anew: the page or the chain may have changed.
            assert self._step is not None
            self._make(self._step)


_HANDLERS: dict[type, Callable[[Sync, Any], None]] = {
    Listed: Sync._listed,
    Scanned: Sync._scanned,
    BatchDone: Sync._batch_done,
    Completed: Sync._completed,
    Told: Sync._told,
    StepFailed: Sync._step_failed,
    RetryDue: Sync._retry,
}
