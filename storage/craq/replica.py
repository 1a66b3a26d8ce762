"""Replica: the CRAQ logic of one target. ``handle(event)`` is the only way to change it.

The numbered rules are design.md section 5's; each has its place here. A chunk's *lock* is held
by one operation from the moment it may prepare until it is committed and the successor has it;
others of the same chunk wait in line. Rule 2 lives in ``_lock`` (versions) and ``_push`` and
``_acknowledged`` (commit order); rules 3 and 4 in ``_follow``, ``_prepared`` and ``_resend``.

One file, longer than others here: each rule leans on where the operation is in this one table of
locks, and to read it in pieces is to miss what may happen in between.

Source: Terrace & Freedman, "Object Storage on CRAQ", USENIX ATC 2009, sections 2.3 and 3; van
Renesse & Schneider, "Chain Replication", OSDI 2004; 3FS design notes, "Data replication".
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from hillfire.cluster import Chain, PublicState
from hillfire.errors import Code
from hillfire.storage.craq import events
from hillfire.storage.craq.batch import Batch
from hillfire.storage.craq.channels import INTERNAL, Channels
from hillfire.storage.craq.effects import Effect, Reply, Stop
from hillfire.storage.craq.events import ClientUpdate, ForwardedUpdate, Outcome
from hillfire.storage.craq.operation import Kind, Link, Operation, Stage
from hillfire.storage.store.base import ChunkMeta, Image, Pending, Tag
from hillfire.types import ChunkId, TargetId, Version

MAX_WAITING = 1024
"""Operations in line for one chunk; more are refused with OVERLOADED."""
STORY_LINES = 256

ABORTING = frozenset(
    (Code.NO_SPACE, Code.STALE_EPOCH, Code.TOO_LARGE, Code.INVALID, Code.NOT_SUPPORTED)
)
"""Refusals by a serving successor that end the update: nothing was applied, the client learns."""

_ACTIVE = (PublicState.SERVING, PublicState.SYNCING)
_NO_TAG = Tag(INTERNAL, 0, 0)


class Replica:
    """One target's part in its chain."""

    def __init__(
        self,
        target: TargetId,
        lookup: Callable[[ChunkId], ChunkMeta | None],
        pending: Iterable[tuple[ChunkId, Pending]] = (),
        tags: Iterable[tuple[Tag, ChunkId, Version]] = (),
        *,
        inspect: "Callable[[Replica], None] | None" = None,
    ) -> None:
        """Restore from the store's records; ``inspect`` (check.check) runs after every event."""
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
        self._completing: int | None = None
        self._retry_asked = False
        self._inspect = inspect
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
        operation.stage = Stage.PENDING
        operation.exposed = True
        self.holders[chunk] = operation
        if operation.tag.client != INTERNAL:
            self.channels.flying[operation.tag] = operation

    # ------------------------------------------------------------------ the two ways in

    def handle(self, event: events.Event) -> list[Effect]:
        """Take one event and return what must be done about it."""
        out = self._out = Batch()
        if self.stopped is None:
            self._tell(type(event).__name__)
            _HANDLERS[type(event)](self, event)
        else:
            self._refuse_all(event)
        effects = out.effects(self.successor, self.version)
        if self._inspect is not None:
            self._inspect(self)
        return effects

    def refuse_read(self, chunk: ChunkId, chain_version: int, relaxed: bool) -> Code:
        """Tell whether a chunk may be read now: OK, or why not. Changes nothing.

        Rule 7: with a version pending here a reader could be given what a later read of the
        successor outdates, so it asks the tail, where what is committed is what was acknowledged.
        Until this target forwards, no other can have committed the update. A tail reads past what
        it is about to commit, unless it became the tail with it: then the old tail may have
        committed and shown it (found by the simulator, seed 2111).

        Source: Terrace & Freedman, section 2.3 ("dirty" objects ask the tail).
        """
        if chain_version != self.version:
            return Code.WRONG_CHAIN_VERSION
        if self.state is not PublicState.SERVING or self.stopped is not None:
            return Code.NOT_SERVING
        holder = self.holders.get(chunk)
        if (
            holder is not None
            and Stage.PENDING <= holder.stage <= Stage.COMMITTING
            and (self.waits or holder.exposed)
            and not relaxed
        ):
            return Code.NOT_COMMITTED
        return Code.OK

    def committed(self, chunk: ChunkId) -> int:
        """Return a chunk's committed version, 0 if it was never written."""
        meta = self._lookup(chunk)
        return 0 if meta is None else meta.version

    # ------------------------------------------------------------------ arrivals

    def _writes(self, event: events.WritesArrived) -> None:
        payloads = event.payloads
        for index, item in enumerate(event.items):
            operation = self._arrive(event.request, index, item, payloads[index])
            if operation is not None:
                self._enter(operation)

    def _arrive(
        self, request: int, index: int, item: ClientUpdate, payload: object
    ) -> Operation | None:
        # Rule 1, first check: the chain version on arrival.
        if item.chain_version != self.version:
            self._refuse(request, index, Code.WRONG_CHAIN_VERSION)
            return None
        # Rule 2: writes enter at the head.
        if not self.head or self.state is not PublicState.SERVING:
            self._refuse(request, index, Code.NOT_SERVING)
            return None
        tag = Tag(item.client, item.channel, item.sequence)
        # Rule 5: exactly once. Done already, or in flight: then the retry joins it.
        last = self.channels.last(tag)
        if last is not None and tag.client != INTERNAL:
            if tag.sequence == last[0]:
                self._out.answers.append(Reply(request, index, *last[1]))
                return None
            if tag.sequence < last[0]:
                self._refuse(request, index, Code.STALE)
                return None
        if self.channels.join(tag, (request, index)):
            return None
        return self._make(request, index, item, tag, payload)

    def _make(
        self, request: int, index: int, item: ClientUpdate, tag: Tag, payload: object
    ) -> Operation:
        operation = Operation(
            item.chunk, item.kind, item.offset, item.length, item.checksum, item.epoch,
            item.chunk_bytes, tag, item.chain_version, payload,
        )  # fmt: skip
        operation.waiters.append((request, index))
        return operation

    def _refuse(self, request: int, index: int, code: Code) -> None:
        self._out.answers.append(Reply(request, index, code, 0, 0, 0))

    def _forwards(self, event: events.ForwardsArrived) -> None:
        for index, item in enumerate(event.items):
            operation = self._follow(event.request, index, item, event.payloads[index])
            if operation is not None:
                self._enter(operation)

    def _follow(
        self, request: int, index: int, item: ForwardedUpdate, payload: object
    ) -> Operation | None:
        # Rule 1, first check.
        if item.chain_version != self.version:
            self._refuse(request, index, Code.WRONG_CHAIN_VERSION)
            return None
        if self.head or self.state not in _ACTIVE:
            self._refuse(request, index, Code.NOT_SERVING)
            return None
        tag = Tag(item.client, item.channel, item.sequence)
        # Rule 4, against the pending version: the same update again is answered with it.
        holder = self.holders.get(item.chunk)
        if holder is not None and holder.version == item.version and item.kind != Kind.REPLACE:
            if holder.tag == tag and holder.kind == item.kind:
                holder.waiters.append((request, index))
                if holder.stage == Stage.COMMITTED:
                    self._answer_done(holder)
                return None
            if self.state is PublicState.SERVING and holder.kind != Kind.REPLACE:
                self._tell(f"sender diverged at {holder}: it has tag {tuple(tag)}")
                self._refuse(request, index, Code.CONFLICT)
                return None
        operation = self._make(request, index, item, tag, payload)
        operation.forwarded = True
        operation.version = item.version
        operation.expected = Image(item.post_length, item.post_checksum)
        return operation

    def _syncs(self, event: events.SyncArrived) -> None:
        for index, chunk in enumerate(event.chunks):
            operation = Operation(
                chunk, Kind.SYNC, 0, 0, 0, 0, 0, _NO_TAG, event.chain_version, None
            )
            operation.waiters.append((event.request, index))
            self._enter(operation)

    # ------------------------------------------------------------------ the chunk's lock

    def _enter(self, operation: Operation) -> None:
        """Take the chunk's lock, or stand in line for it."""
        chunk = operation.chunk
        if chunk in self.holders:
            line = self.waiting.setdefault(chunk, deque())
            if len(line) >= MAX_WAITING:
                self._answer(operation, Outcome(Code.OVERLOADED))
                self._out.finish.append(operation)
                return
            line.append(operation)
        elif not self._lock(operation):
            return
        if operation.tag.client != INTERNAL:
            # Forwarded ones too: their client asks here when this target becomes the head.
            self.channels.flying.setdefault(operation.tag, operation)

    def _lock(self, operation: Operation) -> bool:
        """Begin an operation whose chunk is free; False if it was answered instead."""
        outcome = self._admit(operation)
        if outcome is not None:
            self._answer(operation, outcome)
            self._out.finish.append(operation)
            return False
        self.holders[operation.chunk] = operation
        if operation.kind == Kind.SYNC:
            operation.stage = Stage.COMMITTED
            self._transfer(operation)
        else:
            operation.stage = Stage.PREPARING
            self._out.prepare.append(operation)
        return True

    def _admit(self, operation: Operation) -> Outcome | None:
        """Decide under the lock what an operation may do; an outcome ends it here."""
        # Rule 1, second check: the chain may have changed while the operation stood in line.
        if operation.chain_version != self.version:
            return Outcome(Code.WRONG_CHAIN_VERSION)
        if operation.kind == Kind.SYNC:
            return None if self._syncing else Outcome(Code.NOT_SERVING)
        meta = self._lookup(operation.chunk)
        committed = meta.version if meta is not None else 0
        if operation.forwarded:
            return self._admit_forward(operation, meta, committed)
        # Rule 5, again: the update may have been committed by another road meanwhile.
        last = self.channels.last(operation.tag)
        tag = operation.tag
        if last is not None and tag.client != INTERNAL and tag.sequence <= last[0]:
            return last[1] if tag.sequence == last[0] else Outcome(Code.STALE)
        # Truncate and remove touch older epochs only; a write of an older epoch came too late.
        if meta is not None and meta.epoch > operation.epoch:
            return Outcome(Code.STALE_EPOCH, meta.version, meta.length, meta.checksum)
        # What carries the epoch of the cut was written after it, and stays.
        if operation.kind in (Kind.TRUNCATE, Kind.REMOVE) and (
            meta is None or meta.removed or meta.epoch == operation.epoch
        ):
            return Outcome(Code.OK, committed, 0 if meta is None else meta.length)
        # Rule 2: the head gives the version.
        operation.version = committed + 1
        return None

    def _admit_forward(
        self, operation: Operation, meta: ChunkMeta | None, committed: int
    ) -> Outcome | None:
        version, syncing = operation.version, self.state is PublicState.SYNCING
        if operation.kind == Kind.REPLACE or (operation.kind == Kind.REMOVE and syncing):
            # Recovery: a whole image, whatever was here. A serving target accepts one only as
            # the repair of the very version that it has.
            return None if syncing or version == committed else Outcome(Code.CONFLICT)
        if version == committed + 1:
            return None
        # Rule 4: at or below the committed version it is done if the tag is the request's.
        if version <= committed:
            if meta is not None and version == committed and meta.tag == operation.tag:
                return Outcome(Code.OK, version, meta.length, meta.checksum)
            last = self.channels.last(operation.tag)
            if last is not None and last[0] == operation.tag.sequence and last[1][1] == version:
                return last[1]
            if not syncing:
                self._tell(f"sender diverged: {operation}, committed here is {meta}")
                return Outcome(Code.CONFLICT, committed)
        elif not syncing:
            # Source: design.md 5.4; a serving target that missed an update serves old bytes.
            self._stop(Code.MISSING_UPDATE, f"{operation} arrived on committed {committed}")
        return Outcome(Code.MISSING_UPDATE, committed)

    def _finish(self, operation: Operation) -> None:
        """Release the lock and begin who is next in line."""
        chunk = operation.chunk
        del self.holders[chunk]
        if self.channels.flying.get(operation.tag) is operation:
            del self.channels.flying[operation.tag]
        self._out.finish.append(operation)
        line = self.waiting.get(chunk)
        while line and chunk not in self.holders and self.stopped is None:
            following = line.popleft()
            if not self._lock(following) and (self.channels.flying.get(following.tag) is following):
                del self.channels.flying[following.tag]
        if line is not None and not line:
            self.waiting.pop(chunk, None)
        self._completed()

    def _answer_done(self, operation: Operation) -> None:
        image = operation.image
        assert image is not None, operation
        self._answer(operation, Outcome(0, operation.version, image.length, image.checksum))

    def _answer(self, operation: Operation, outcome: Outcome) -> None:
        for request, index in operation.waiters:
            self._out.answers.append(Reply(request, index, *outcome))
        operation.waiters = []

    # ------------------------------------------------------------------ prepared, forwarded

    def _prepared(self, event: events.Prepared) -> None:
        for operation, image in event.outcomes:
            if self.holders.get(operation.chunk) is not operation:
                continue
            if not isinstance(image, Image):
                self._not_prepared(operation, Code(image))
                continue
            operation.image = image
            # Rule 3: the post-image is compared before the update counts for anything.
            if operation.expected is not None and image != operation.expected:
                self._out.discard.append(operation.chunk)
                self._answer(operation, Outcome(Code.CHECKSUM))
                self._finish(operation)
                # A replacement is all payload: if it does not add up, that is the sender's fault.
                if self.state is PublicState.SERVING and operation.kind != Kind.REPLACE:
                    wanted = operation.expected
                    self._stop(Code.CORRUPT, f"{operation} made {image}, sender has {wanted}")
                continue
            operation.stage = Stage.PENDING
            self._push(operation)

    def _not_prepared(self, operation: Operation, code: Code) -> None:
        if code is Code.CORRUPT and self.head and self.waits and not self._syncing:
            # Nobody is before the head to repair it, so another becomes the head: the client's
            # retry makes a version there that the resync brings here, the whole chunk.
            self._stop(code, f"the bytes that {operation} builds upon are damaged here")
            return
        self._answer(operation, Outcome(code))
        self._finish(operation)
        if code is Code.IO or (code is Code.NO_SPACE and self.state is PublicState.SYNCING):
            self._stop(code, f"the store failed to prepare {operation}")

    def _push(self, operation: Operation) -> None:
        """Forward a pending update, and commit it as soon as the rules allow.

        Rule 2: the tail commits at once; others once their successor has acknowledged. The last
        serving target does not wait for a syncing successor that is not equal yet.
        """
        whole = operation.kind == Kind.REPLACE  # recovery's: the sender's affair with us alone
        if self.successor is None or whole:
            operation.link = Link.NONE
        elif operation.payload is None and not (self.waits and operation.stage == Stage.PENDING):
            # Restored, its payload is in the store's pending record, which ends with the commit.
            if operation.stage == Stage.COMMITTED:
                self._transfer(operation)
            else:
                operation.link = Link.WANTED
        else:
            operation.attempt += 1
            operation.link = Link.SENT
            operation.exposed = operation.exposed or self.waits
            self._out.forward.append((operation, operation.attempt))
        if operation.stage == Stage.PENDING and (whole or not self.waits):
            self._commit(operation)
        elif operation.stage == Stage.COMMITTED and operation.link == Link.NONE:
            self._finish(operation)

    def _commit(self, operation: Operation) -> None:
        operation.stage = Stage.COMMITTING
        self._out.commit.append(operation)

    def _transfer(self, operation: Operation) -> None:
        operation.attempt += 1
        operation.link = Link.TRANSFER
        self._out.transfer.append((operation, operation.attempt))

    def _forwarded(self, event: events.Forwarded) -> None:
        for operation, attempt, outcome in event.outcomes:
            # An answer to an attempt that was overtaken by a change of the chain says nothing.
            if (
                attempt == operation.attempt
                and operation.link in (Link.SENT, Link.TRANSFER)
                and self.holders.get(operation.chunk) is operation
            ):
                self._answered(operation, outcome)

    def _answered(self, operation: Operation, outcome: Outcome) -> None:
        if outcome.code == Code.OK:
            self._acknowledged(operation, outcome)
        elif operation.kind == Kind.SYNC:
            self._answer(operation, Outcome(outcome.code))
            self._finish(operation)
        else:
            self._resend(operation, outcome)

    def _acknowledged(self, operation: Operation, outcome: Outcome) -> None:
        sent, operation.link = operation.link, Link.NONE
        if operation.stage == Stage.PENDING:
            if sent == Link.TRANSFER:
                self._push(operation)  # the successor's base is right again
                return
            # Rule 3: both sides must have made the same chunk of it.
            if operation.image != (outcome.length, outcome.checksum):
                self._stop(Code.CORRUPT, f"{operation.image} here, successor has {outcome}")
                return
            self._commit(operation)
        elif operation.stage == Stage.COMMITTED:
            if operation.kind == Kind.SYNC:
                self._answer(operation, outcome)
            self._finish(operation)

    def _resend(self, operation: Operation, outcome: Outcome) -> None:
        """Decide what a successor needs that did not take an update."""
        code = outcome.code
        if code == Code.CONFLICT and not self._syncing:
            self._stop(Code.CONFLICT, f"the successor refuses {operation} as diverged")
        elif code in ABORTING and operation.stage == Stage.PENDING:
            self._out.discard.append(operation.chunk)
            self._answer(operation, Outcome(code))
            self._finish(operation)
        elif operation.link == Link.SENT and (
            code == Code.CORRUPT
            or (self._syncing and code in (Code.MISSING_UPDATE, Code.CHECKSUM, Code.CONFLICT))
        ):
            # Its base differs or is damaged: it gets the whole chunk instead.
            if operation.stage == Stage.COMMITTING:
                operation.link = Link.WANTED
            else:
                self._transfer(operation)
        else:
            operation.link = Link.STALLED
            if not self._retry_asked:
                self._retry_asked = self._out.retry = True

    def _committed(self, event: events.Committed) -> None:
        for operation in event.operations:
            if self.holders.get(operation.chunk) is not operation:
                continue
            operation.stage = Stage.COMMITTED
            self.channels.committed(operation)
            self._answer_done(operation)
            if operation.link == Link.NONE:
                self._finish(operation)
            elif operation.link == Link.WANTED:
                self._transfer(operation)

    # ------------------------------------------------------------------ the chain

    def _routing(self, event: events.RoutingChanged) -> None:
        chain = event.chain
        if chain.version <= self.version:
            return
        before, now = self.state, chain.state_of(self.target)
        self._tell(f"chain {chain}")
        if before is PublicState.SERVING and now is not PublicState.SERVING:
            self._stop(Code.NOT_SERVING, f"serving became {now.name} at chain {chain.version}")
        elif before is PublicState.SYNCING and now not in _ACTIVE:
            self._stop(Code.NOT_SERVING, f"syncing became {now.name} at chain {chain.version}")
        self._view(chain, now)
        if self.stopped is not None:
            return
        if now is PublicState.SYNCING and before is not PublicState.SYNCING:
            # What was pending in an earlier life may have been replaced since: recovery decides.
            for operation in list(self.holders.values()):
                self._out.discard.append(operation.chunk)
                self._finish(operation)
        if now in _ACTIVE:
            self._redrive()

    def _view(self, chain: Chain, now: PublicState) -> None:
        if self._completing is not None:
            self._refuse(self._completing, 0, Code.WRONG_CHAIN_VERSION)
            self._completing = None
        self.version, self.state = chain.version, now
        self.head = now is PublicState.SERVING and chain.serving[0] == self.target
        self.successor = chain.successor(self.target)
        self._syncing = (
            self.successor is not None and chain.state_of(self.successor) is PublicState.SYNCING
        )
        self.waits = self.successor is not None and not self._syncing

    def _redrive(self) -> None:
        """Rule 6: on every change of the chain, pending versions go on with their stored tags.

        A new tail commits, others forward again under the new chain version. Without it a
        pending version whose head and client are gone would block its chunk for ever.

        Source: design.md 5.6; van Renesse & Schneider, section 3.3 (updates in transit).
        """
        for operation in list(self.holders.values()):
            if operation.kind == Kind.SYNC:
                self._answer(operation, Outcome(Code.WRONG_CHAIN_VERSION))
                self._finish(operation)
            elif operation.stage == Stage.PENDING or (
                operation.stage >= Stage.COMMITTING and operation.link != Link.NONE
            ):
                self._push(operation)

    def _retry(self, event: events.RetryDue) -> None:
        self._retry_asked = False
        for operation in list(self.holders.values()):
            if operation.link == Link.STALLED:
                self._push(operation)

    def _complete(self, event: events.SyncCompleting) -> None:
        """From here on the successor counts: commits wait for it, before it is told so."""
        if event.chain_version != self.version or not self._syncing:
            self._refuse(event.request, 0, Code.WRONG_CHAIN_VERSION)
            return
        self.waits = True
        self._completing = event.request
        self._completed()

    def _completed(self) -> None:
        """Answer a completing sync once nothing is committed here that the successor lacks."""
        if self._completing is None:
            return
        for operation in self.holders.values():
            if operation.stage >= Stage.COMMITTING and operation.link != Link.NONE:
                return
        self._out.answers.append(Reply(self._completing, 0, Code.OK, 0, 0, 0))
        self._completing = None

    # ------------------------------------------------------------------ the end

    def _sessions(self, event: events.SessionsEnded) -> None:
        self.channels.forget(event.clients)

    def _tags(self, event: events.TagsArrived) -> None:
        """Rule 5: tags are carried by resync, those of overwritten updates too."""
        self.channels.adopt(event.tags)

    def _store_failed(self, event: events.StoreFailed) -> None:
        self._stop(Code(event.code), event.reason)

    def _stop(self, code: Code, reason: str) -> None:
        """Answer everyone and never work again: this target comes back through a resync.

        What is pending stays in the store: if this was the last serving target, its next life
        re-drives it.
        """
        if self.stopped is not None:
            return
        self._tell(f"stop: {reason}")
        self.stopped = self._out.stop = Stop(code, reason, "\n".join(self.story))
        lines = [operation for line in self.waiting.values() for operation in line]
        for operation in [*self.holders.values(), *lines]:
            self._answer(operation, Outcome(Code.NOT_SERVING))
            self._out.finish.append(operation)
        self.holders.clear()
        self.waiting.clear()
        self.channels.flying.clear()
        if self._completing is not None:
            self._refuse(self._completing, 0, Code.NOT_SERVING)
            self._completing = None

    def give_up(self, reason: str) -> tuple[Stop, list[Operation]]:
        """Stop after a defect, in whatever state; the shell answers who waits.

        Returns why, and the operations whose memory may be used again.
        """
        out = self._out
        lines = [operation for line in self.waiting.values() for operation in line]
        left = [*self.holders.values(), *lines, *out.prepare, *out.finish]
        if self.stopped is None:
            self._tell(f"stop: {reason}")
            self.stopped = Stop(Code.INTERNAL, reason, "\n".join(self.story))
        self.holders.clear()
        self.waiting.clear()
        self.channels.flying.clear()
        self._completing = None
        return self.stopped, left

    def _refuse_all(self, event: events.Event) -> None:
        if isinstance(event, events.WritesArrived | events.ForwardsArrived):
            for index in range(len(event.items)):
                self._refuse(event.request, index, Code.NOT_SERVING)
        elif isinstance(event, events.SyncArrived):
            for index in range(len(event.chunks)):
                self._refuse(event.request, index, Code.NOT_SERVING)
        elif isinstance(event, events.SyncCompleting):
            self._refuse(event.request, 0, Code.NOT_SERVING)

    def _tell(self, line: str) -> None:
        self.story.append(line)


def _size_class(length: int) -> int:
    """Return a chunk size that holds ``length`` bytes, for updates whose layout is not known."""
    return max(65536, 1 << (length - 1).bit_length()) if length else 65536


_HANDLERS: dict[type, Callable[[Replica, Any], None]] = {
    events.WritesArrived: Replica._writes,
    events.ForwardsArrived: Replica._forwards,
    events.Prepared: Replica._prepared,
    events.Forwarded: Replica._forwarded,
    events.Committed: Replica._committed,
    events.StoreFailed: Replica._store_failed,
    events.RoutingChanged: Replica._routing,
    events.RetryDue: Replica._retry,
    events.SyncArrived: Replica._syncs,
    events.SyncCompleting: Replica._complete,
    events.TagsArrived: Replica._tags,
    events.SessionsEnded: Replica._sessions,
}
