"""Table: a replica's state, its chunks' locks and who waits for them, and how it all ends.

The lowest layer of the replica: ``locking`` gives the locks out, ``passing`` takes updates down
and up the chain, ``healing`` repairs, ``replica`` takes the events. The layers are one machine
over this one table, cut up by idea to be read; each leans on the ones below it, and on the few
methods named at the end here.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from hillfire.cluster import PublicState
from hillfire.errors import Code
from hillfire.storage.craq.batch import Batch
from hillfire.storage.craq.channels import INTERNAL, Channels
from hillfire.storage.craq.effects import Reply, Stop
from hillfire.storage.craq.events import Outcome
from hillfire.storage.craq.operation import (
    CLONE,
    COMMITTING,
    HOLD,
    LOCKED,
    PENDING,
    Kind,
    Operation,
)
from hillfire.storage.craq.repair import Sources
from hillfire.storage.store.base import ChunkMeta, Image, Pending, Tag
from hillfire.types import ChunkId, TargetId, Version

STORY_LINES = 256
_new = tuple.__new__  # half the price of calling a NamedTuple

SERVING, SYNCING = PublicState.SERVING, PublicState.SYNCING
ACTIVE = (SERVING, SYNCING)
NO_TAG = Tag(INTERNAL, 0, 0)


class Table(ABC):
    """One target's part in its chain, at rest."""

    def __init__(
        self,
        target: TargetId,
        lookup: Callable[[ChunkId], ChunkMeta | None],
        pending: Iterable[tuple[ChunkId, Pending]] = (),
        tags: Iterable[tuple[Tag, ChunkId, Version]] = (),
        *,
        inspect: Callable[[Any], None] | None = None,
        on_rule: Callable[[int], None] | None = None,
    ) -> None:
        """Restore from the store's records; ``inspect`` (check.check) runs after every event.

        ``on_rule`` is told the number of every rule that decides something.
        """
        self.target = target
        self.version = 0
        """of the chain, as this target acts on it"""
        self.state = PublicState.OFFLINE
        self.head = False
        self.successor: TargetId | None = None
        self.waits = False
        """whether a commit waits for the successor: it serves, or was told that it is equal"""
        self.stopped: Stop | None = None
        self.holders: dict[ChunkId, Operation] = {}
        self.waiting: dict[ChunkId, deque[Operation]] = {}
        self.channels = Channels(tags, lookup)
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self._lookup = lookup
        self._out = Batch()
        self._syncing = False
        """whether the successor is syncing"""
        self._quorum = True
        """whether as many targets serve as a write needs"""
        self._sources = Sources()
        self._completing: int | None = None
        self._retry_asked = False
        self._attempts = 0
        self._refused = 0
        """serial of the latest forward of this chain version that was refused for good"""
        self._inspect = inspect
        self._rule = on_rule
        for chunk, record in pending:
            self._restore(chunk, record)

    def _restore(self, chunk: ChunkId, record: Pending) -> None:
        operation = Operation(
            chunk, record.kind, record.offset, record.payload_length, record.payload_checksum,
            record.epoch, 0, record.tag, 0, None,
        )  # fmt: skip
        if record.kind == Kind.TRUNCATE:
            operation.length = record.length
        operation.version = record.version
        operation.image = Image(record.length, record.checksum)
        operation.stage = PENDING
        operation.exposed = True
        self.holders[chunk] = operation
        if record.kind == CLONE and record.source is not None:
            hold = self._hold(operation, record.source)
            hold.version, hold.stage = record.source_version, LOCKED
            self.holders[record.source] = hold
        if operation.tag.client != INTERNAL:
            self.channels.flying[operation.tag] = operation

    def _hold(self, clone: Operation, source: ChunkId) -> Operation:
        """Make what keeps a clone's source as it is."""
        hold = Operation(source, HOLD, 0, 0, 0, 0, 0, NO_TAG, clone.chain_version, None)
        hold.forwarded = clone.forwarded
        hold.partner, clone.partner = clone, hold
        return hold

    # ------------------------------------------------------------------ what it says

    def refuse_read(self, chunk: ChunkId, chain_version: int, relaxed: bool) -> Code:
        """Tell whether a chunk may be read now: OK, or why not. Changes nothing.

        R25, R26: with a version pending here a reader could be given what a later read of the
        successor outdates, so it asks the tail, where what is committed is what was acknowledged.
        Until this target forwards, no other can have committed the update. R27: a tail reads past
        what it is about to commit, unless it became the tail with it: then the old tail may have
        committed and shown it (found by the simulator, seed 2111). R28: relaxed reads may.

        Source: Terrace & Freedman, section 2.3 ("dirty" objects ask the tail).
        """
        if chain_version != self.version or self.state is not SERVING or self.stopped is not None:
            if self._rule is not None:
                self._rule(25)
            wrong = chain_version != self.version
            return Code.WRONG_CHAIN_VERSION if wrong else Code.NOT_SERVING
        holder = self.holders.get(chunk)
        if (
            holder is not None
            and PENDING <= holder.stage <= COMMITTING
            and (self.waits or holder.exposed)
        ):
            if self._rule is not None:
                self._rule(28 if relaxed else 26 if self.waits else 27)
            return Code.OK if relaxed else Code.NOT_COMMITTED
        return Code.OK

    def committed(self, chunk: ChunkId) -> int:
        """Return a chunk's committed version, 0 if it was never written."""
        meta = self._lookup(chunk)
        return 0 if meta is None else meta.version

    def _refuse(self, request: int, index: int, code: Code) -> None:
        self._out.answers.append(Reply(request, index, code, 0, 0, 0))

    def _answer_done(self, operation: Operation) -> None:
        if not self._quorum and self.head:
            if self._rule is not None:
                self._rule(6)
            self._answer(operation, Outcome(Code.UNAVAILABLE))
            return
        image = operation.image
        assert image is not None, operation
        self._answer(operation, _new(Outcome, (0, operation.version, image[0], image[1])))

    def _answer(self, operation: Operation, outcome: Outcome) -> None:
        for request, index in operation.waiters:
            self._out.answers.append(_new(Reply, (request, index, *outcome)))
        operation.waiters = []

    def _tell(self, line: str) -> None:
        self.story.append(line)

    # ------------------------------------------------------------------ the end

    def _stop(self, code: Code, reason: str) -> None:
        """Answer everyone and never work again: this target comes back through a resync.

        What is pending stays in the store: if this was the last serving target, its next life
        re-drives it.
        """
        if self.stopped is not None:
            return
        self._tell(f"stop: {reason}")
        self.stopped = self._out.stop = Stop(code, reason, "\n".join(self.story))
        for operation in self._all():
            self._answer(operation, Outcome(Code.NOT_SERVING))
            self._out.finish.append(operation)
            if operation.repair is not None:
                self._out.finish.append(operation.repair)
        self.holders.clear()
        self.waiting.clear()
        self.channels.flying.clear()
        if self._completing is not None:
            self._refuse(self._completing, 0, Code.NOT_SERVING)
            self._completing = None

    def _all(self) -> list[Operation]:
        """List who holds a lock or stands in line; a clone may do so by its HOLD only."""
        lines = [operation for line in self.waiting.values() for operation in line]
        found = [*self.holders.values(), *lines]
        found += [operation.partner for operation in found if operation.partner is not None]
        return list(dict.fromkeys(found))

    def give_up(self, reason: str) -> tuple[Stop, list[Operation]]:
        """Stop after a defect, in whatever state; the shell answers who waits.

        Returns why, and the operations whose memory may be used again.
        """
        out = self._out
        left = [*self._all(), *out.prepare, *out.finish]
        left += [operation.repair for operation in left if operation.repair is not None]
        if self.stopped is None:
            self._tell(f"stop: {reason}")
            self.stopped = Stop(Code.INTERNAL, reason, "\n".join(self.story))
        self.holders.clear()
        self.waiting.clear()
        self.channels.flying.clear()
        self._completing = None
        return self.stopped, left

    # ------------------------------------------------------------------ of the layers above

    @abstractmethod
    def _transfer(self, operation: Operation) -> None:
        """Send the successor the whole chunk (``passing``)."""

    @abstractmethod
    def _repair(self, operation: Operation) -> None:
        """Make the bytes that an operation builds upon good first (``healing``)."""

    @abstractmethod
    def _repair_prepared(self, repair: Operation, image: Image | int) -> None:
        """Go on with a repair whose copy is stored (``healing``)."""

    @abstractmethod
    def _repair_committed(self, repair: Operation) -> None:
        """Go on with what a repair was for (``healing``)."""

    @abstractmethod
    def _completed(self) -> None:
        """Answer a completing sync if nothing is missing any more (``replica``)."""
