"""Replica: the CRAQ logic of one target. ``handle(event)`` is the only way to change it.

The numbered rules (R1, R2, ...) are those of ``rules.py``. A chunk's *lock* is held by one
operation from the moment it may prepare until it is committed and the successor has it (R5);
others of the same chunk wait in line. What an update may do with the lock in hand is decided in
``admission.py``; how a damaged chunk is made good under its lock, in ``repair.py``.

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
from hillfire.storage.craq.admission import admit_client, admit_forward
from hillfire.storage.craq.batch import Batch
from hillfire.storage.craq.channels import INTERNAL, Channels
from hillfire.storage.craq.effects import Effect, Reply, Stop
from hillfire.storage.craq.events import ClientUpdate, ForwardedUpdate, Outcome
from hillfire.storage.craq.operation import Kind, Link, Operation, Stage
from hillfire.storage.craq.repair import MAX_ROUNDS, Repair, Sources
from hillfire.storage.store.base import ChunkMeta, Image, Pending, Tag
from hillfire.types import ChunkId, TargetId, Version

MAX_WAITING = 1024
"""Operations in line for one chunk; more are refused with OVERLOADED."""
STORY_LINES = 256

ABORTING = frozenset(
    (Code.NO_SPACE, Code.STALE_EPOCH, Code.TOO_LARGE, Code.INVALID, Code.NOT_SUPPORTED)
)
"""R21: refusals by a serving successor that end the update; nothing was applied there."""

_ACTIVE = (PublicState.SERVING, PublicState.SYNCING)
# The names of the per-I/O path, looked up once.
SERVING, SYNCING = PublicState.SERVING, PublicState.SYNCING
LOCKED, PREPARING, PENDING = Stage.LOCKED, Stage.PREPARING, Stage.PENDING
COMMITTING, COMMITTED = Stage.COMMITTING, Stage.COMMITTED
SENT, STALLED, WANTED, TRANSFER = Link.SENT, Link.STALLED, Link.WANTED, Link.TRANSFER
FREE = Link.NONE
SYNC, CLONE, REPAIR, HOLD = Kind.SYNC, Kind.CLONE, Kind.REPAIR, Kind.HOLD

_NO_SOURCE = (Code.CONFLICT, Code.NOT_FOUND)
_WHOLE = (Kind.REPLACE, Kind.LOST)
"""Whole images from the predecessor, which are nobody else's affair."""
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

        R25, R26: with a version pending here a reader could be given what a later read of the
        successor outdates, so it asks the tail, where what is committed is what was acknowledged.
        Until this target forwards, no other can have committed the update. R27: a tail reads past
        what it is about to commit, unless it became the tail with it: then the old tail may have
        committed and shown it (found by the simulator, seed 2111). R28: relaxed reads may.

        Source: Terrace & Freedman, section 2.3 ("dirty" objects ask the tail).
        """
        if chain_version != self.version:
            return Code.WRONG_CHAIN_VERSION
        if self.state is not SERVING or self.stopped is not None:
            return Code.NOT_SERVING
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
        # R1: the chain version on arrival.
        if item.chain_version != self.version:
            if self._rule is not None:
                self._rule(1)
            self._refuse(request, index, Code.WRONG_CHAIN_VERSION)
            return None
        # R3: writes enter at the head.
        if not self.head or self.state is not SERVING:
            if self._rule is not None:
                self._rule(3)
            self._refuse(request, index, Code.NOT_SERVING)
            return None
        # R6: before a retry is recognised, so that nobody is told of what too few hold.
        if not self._quorum:
            if self._rule is not None:
                self._rule(6)
            self._refuse(request, index, Code.UNAVAILABLE)
            return None
        tag = Tag(item.client, item.channel, item.sequence)
        # R7, R8: exactly once. R9: done already, or in flight: then the retry joins it.
        last = self.channels.last(tag)
        if last is not None and tag.client != INTERNAL and tag.sequence <= last[0]:
            if self._rule is not None:
                self._rule(7 if tag.sequence == last[0] else 8)
            if tag.sequence == last[0]:
                self._out.answers.append(Reply(request, index, *last[1]))
            else:
                self._refuse(request, index, Code.STALE)
            return None
        if self.channels.join(tag, (request, index)):
            if self._rule is not None:
                self._rule(9)
            return None
        operation = self._make(request, index, item, tag, payload)
        if item.kind == CLONE:
            if item.source == item.chunk:
                self._refuse(request, index, Code.INVALID)
                return None
            self._hold(operation, item.source)
        return operation

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
        if item.chain_version != self.version:  # R1
            if self._rule is not None:
                self._rule(1)
            self._refuse(request, index, Code.WRONG_CHAIN_VERSION)
            return None
        if self.head or self.state not in _ACTIVE:  # R3
            if self._rule is not None:
                self._rule(3)
            self._refuse(request, index, Code.NOT_SERVING)
            return None
        tag = Tag(item.client, item.channel, item.sequence)
        # R17: the same update again is answered with the one that is pending.
        holder = self.holders.get(item.chunk)
        if (
            holder is not None
            and holder.version == item.version
            and item.kind not in _WHOLE
            and holder.kind != HOLD
        ):
            if holder.tag == tag and holder.kind == item.kind:
                if self._rule is not None:
                    self._rule(17)
                holder.waiters.append((request, index))
                if holder.stage == COMMITTED:
                    self._answer_done(holder)
                return None
            if self.state is SERVING and holder.kind not in _WHOLE:
                if self._rule is not None:  # R19
                    self._rule(19)
                self._tell(f"sender diverged at {holder}: it has tag {tuple(tag)}")
                self._refuse(request, index, Code.CONFLICT)
                return None
        operation = self._make(request, index, item, tag, payload)
        operation.forwarded = True
        operation.version = item.version
        operation.expected = Image(item.post_length, item.post_checksum)
        if item.kind == CLONE:
            if item.source == item.chunk:
                self._refuse(request, index, Code.INVALID)
                return None
            self._hold(operation, item.source).version = item.source_version
        return operation

    def _syncs(self, event: events.SyncArrived) -> None:
        for index, chunk in enumerate(event.chunks):
            operation = Operation(chunk, SYNC, 0, 0, 0, 0, 0, _NO_TAG, event.chain_version, None)
            operation.waiters.append((event.request, index))
            self._enter(operation)

    def _repairs(self, event: events.RepairArrived) -> None:
        for index, chunk in enumerate(event.chunks):
            operation = Operation(chunk, REPAIR, 0, 0, 0, 0, 0, _NO_TAG, event.chain_version, None)
            operation.waiters.append((event.request, index))
            self._enter(operation)

    # ------------------------------------------------------------------ the chunk's lock

    def _hold(self, clone: Operation, source: ChunkId) -> Operation:
        """Make what keeps a clone's source as it is."""
        hold = Operation(source, HOLD, 0, 0, 0, 0, 0, _NO_TAG, clone.chain_version, None)
        hold.forwarded = clone.forwarded
        hold.partner, clone.partner = clone, hold
        return hold

    def _enter(self, operation: Operation) -> None:
        """Take the chunk's lock, or stand in line for it."""
        if self.stopped is not None:  # by an earlier item of the same batch
            self._end(operation, Outcome(Code.NOT_SERVING))
            return
        partner = operation.partner
        if partner is not None and partner.chunk < operation.chunk:
            operation = partner  # R47: the locks are taken in the order of the ids
        chunk = operation.chunk
        if chunk in self.holders:
            line = self.waiting.setdefault(chunk, deque())
            if len(line) >= MAX_WAITING:
                self._end(operation, Outcome(Code.OVERLOADED))
                return
            line.append(operation)
        elif not self._lock(operation):
            return
        if operation is partner:
            operation = operation.partner or operation
        if operation.tag.client != INTERNAL:
            # Forwarded ones too: their client asks here when this target becomes the head.
            self.channels.flying.setdefault(operation.tag, operation)

    def _lock(self, operation: Operation) -> bool:
        """Begin an operation whose chunk is free; False if it was answered instead."""
        if operation.partner is not None:
            return self._lock_clone(operation)
        outcome = self._admit(operation)
        if outcome is not None:
            self._end(operation, outcome)
            return False
        self.holders[operation.chunk] = operation
        if operation.kind == SYNC:
            operation.stage = COMMITTED
            self._transfer(operation)
        elif operation.kind == REPAIR:
            self._repair(operation)
        else:
            operation.stage = PREPARING
            self._out.prepare.append(operation)
        return True

    def _lock_clone(self, operation: Operation) -> bool:
        """Take one of a clone's two locks; with both in hand, begin it (R47)."""
        other = operation.partner
        assert other is not None
        self.holders[operation.chunk] = operation
        operation.stage = LOCKED
        if operation.chunk < other.chunk:
            if other.chunk not in self.holders:
                return self._lock_clone(other)
            line = self.waiting.setdefault(other.chunk, deque())
            if len(line) >= MAX_WAITING:
                self._end(operation, Outcome(Code.OVERLOADED))
                return False
            line.append(other)
            return True
        clone, hold = (operation, other) if operation.kind == CLONE else (other, operation)
        if self._rule is not None:
            self._rule(47)
        if not clone.forwarded:
            hold.version = self.committed(hold.chunk)
        outcome = self._admit(clone)
        if outcome is not None:
            self._end(clone, outcome)
            return False
        clone.stage = PREPARING
        self._out.prepare.append(clone)
        return True

    def _end(self, operation: Operation, outcome: Outcome) -> None:
        """Answer an operation that was not begun, and let go of what it holds."""
        partner = operation.partner
        if partner is not None:
            operation = operation if operation.kind == CLONE else partner
            if self.channels.flying.get(operation.tag) is operation:
                del self.channels.flying[operation.tag]
        self._answer(operation, outcome)
        self._out.finish.append(operation)
        if partner is not None:
            self._part(operation)
            if self.holders.get(operation.chunk) is operation:
                self._release(operation.chunk)

    def _part(self, clone: Operation) -> None:
        """Let go of a clone's source."""
        hold = clone.partner
        assert hold is not None
        hold.partner = clone.partner = None
        if self.holders.get(hold.chunk) is hold:
            self._release(hold.chunk)

    def _admit(self, operation: Operation) -> Outcome | None:
        """Decide under the lock what an operation may do; an outcome ends it here."""
        # R2: the chain may have changed while the operation stood in line.
        if operation.chain_version != self.version:
            if self._rule is not None:
                self._rule(2)
            return Outcome(Code.WRONG_CHAIN_VERSION)
        kind = operation.kind
        if kind == SYNC:
            return None if self._syncing else Outcome(Code.NOT_SERVING)
        meta = self._lookup(operation.chunk)
        if kind == REPAIR:
            return None if self.state in _ACTIVE else Outcome(Code.NOT_SERVING)
        last = self.channels.last(operation.tag) if operation.tag.client != INTERNAL else None
        if not operation.forwarded:
            return admit_client(operation, meta, last, self._rule)
        syncing = self.state is SYNCING
        outcome = admit_forward(operation, meta, last, syncing, self._rule)
        if outcome is not None and outcome.code and not syncing:
            self._tell(f"refused {operation} with {outcome}, committed here is {meta}")
            if outcome.code == Code.MISSING_UPDATE:
                # R20. Source: design.md 5.4; who missed an update serves old bytes.
                self._stop(Code.MISSING_UPDATE, f"{operation} arrived on {meta}")
        return outcome

    def _finish(self, operation: Operation) -> None:
        """Release the lock and begin who is next in line."""
        if self.channels.flying.get(operation.tag) is operation:
            del self.channels.flying[operation.tag]
        self._out.finish.append(operation)
        if operation.repair is not None:
            self._out.finish.append(operation.repair)
        if operation.partner is not None:
            self._part(operation)
        chunk = operation.chunk
        if chunk in self.waiting:
            self._release(chunk)
        else:
            del self.holders[chunk]
        if self._completing is not None:
            self._completed()

    def _release(self, chunk: ChunkId) -> None:
        del self.holders[chunk]
        line = self.waiting.get(chunk)
        while line and chunk not in self.holders and self.stopped is None:
            following = line.popleft()
            if following.kind == HOLD and following.partner is None:
                continue  # its clone has ended
            if not self._lock(following) and (self.channels.flying.get(following.tag) is following):
                del self.channels.flying[following.tag]
        if line is not None and not line and self.waiting.get(chunk) is line:
            del self.waiting[chunk]

    def _answer_done(self, operation: Operation) -> None:
        if not self._quorum and self.head:
            if self._rule is not None:
                self._rule(6)
            self._answer(operation, Outcome(Code.UNAVAILABLE))
            return
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
                self._repair_prepared(operation, image)
                continue
            if not isinstance(image, Image):
                self._not_prepared(operation, Code(image))
                continue
            operation.image = image
            # R15: the post-image is compared before the update counts for anything.
            if operation.expected is not None and image != operation.expected:
                if self._rule is not None:
                    self._rule(15)
                self._out.discard.append(operation.chunk)
                self._answer(operation, Outcome(Code.CHECKSUM))
                self._finish(operation)
                # A replacement is all payload: if it does not add up, that is the sender's fault.
                if self.state is SERVING and operation.kind not in _WHOLE:
                    wanted = operation.expected
                    self._stop(Code.CORRUPT, f"{operation} made {image}, sender has {wanted}")
                continue
            operation.stage = PENDING
            self._push(operation)

    def _not_prepared(self, operation: Operation, code: Code) -> None:
        if code is Code.CORRUPT and not operation.forwarded and operation.repair is None:
            self._repair(operation)  # others are sent the whole chunk by their predecessor (R30)
            return
        if operation.forwarded and operation.kind == CLONE and code in _NO_SOURCE:
            code = Code.MISSING_UPDATE  # its source is not there yet as the sender has it
        self._answer(operation, Outcome(code))
        self._finish(operation)
        if code is Code.IO or (code is Code.NO_SPACE and self.state is SYNCING):
            self._stop(code, f"the store failed to prepare {operation}")

    def _push(self, operation: Operation) -> None:
        """Forward a pending update, and commit it as soon as the rules allow.

        R13: the tail commits at once; R14: others once their successor has acknowledged. R36: the
        last serving target does not wait for a syncing successor that is not equal yet.
        """
        whole = operation.kind in _WHOLE  # recovery's: the sender's affair with us alone
        if self.successor is None or whole:
            operation.link = FREE
        elif operation.payload is None and not (self.waits and operation.stage == PENDING):
            # Restored, its payload is in the store's pending record, which ends with the commit.
            if operation.stage == COMMITTED:
                self._transfer(operation)
            else:
                operation.link = WANTED
        else:
            operation.attempt += 1
            operation.link = SENT
            operation.exposed = operation.exposed or self.waits
            self._out.forward.append((operation, operation.attempt))
        if operation.stage == PENDING and (whole or not self.waits):
            if self._rule is not None:
                self._rule(36 if self.successor is not None else 13)
            self._commit(operation)
        elif operation.stage == COMMITTED and operation.link == FREE:
            self._finish(operation)

    def _commit(self, operation: Operation) -> None:
        operation.stage = COMMITTING
        self._out.commit.append(operation)

    def _transfer(self, operation: Operation) -> None:
        operation.attempt += 1
        operation.link = TRANSFER
        self._out.transfer.append((operation, operation.attempt))

    def _forwarded(self, event: events.Forwarded) -> None:
        for operation, attempt, outcome in event.outcomes:
            # R24: an answer to an attempt that was overtaken by a change of the chain says nothing.
            if (
                attempt == operation.attempt
                and operation.link in (SENT, TRANSFER)
                and self.holders.get(operation.chunk) is operation
            ):
                self._answered(operation, outcome)
            elif self._rule is not None:
                self._rule(24)

    def _answered(self, operation: Operation, outcome: Outcome) -> None:
        if outcome.code == Code.OK:
            self._acknowledged(operation, outcome)
        elif operation.kind == SYNC:
            self._answer(operation, Outcome(outcome.code))
            self._finish(operation)
        else:
            self._resend(operation, outcome)

    def _acknowledged(self, operation: Operation, outcome: Outcome) -> None:
        sent, operation.link = operation.link, FREE
        if operation.stage == PENDING:
            if sent == TRANSFER:
                self._push(operation)  # the successor's base is right again
                return
            # R16: both sides must have made the same chunk of it.
            if operation.image != (outcome.length, outcome.checksum):
                if self._rule is not None:
                    self._rule(16)
                self._stop(Code.CORRUPT, f"{operation.image} here, successor has {outcome}")
                return
            if self._rule is not None:
                self._rule(14)
            self._commit(operation)
        elif operation.stage == COMMITTED:
            if operation.kind == SYNC:
                self._answer(operation, outcome)
            self._finish(operation)

    def _resend(self, operation: Operation, outcome: Outcome) -> None:
        """Decide what a successor needs that did not take an update."""
        code = outcome.code
        if code == Code.CONFLICT and not self._syncing:  # R19
            self._stop(Code.CONFLICT, f"the successor refuses {operation} as diverged")
        elif (
            code in ABORTING
            and operation.stage == PENDING
            and operation.chain_version == self.version
        ):
            # Not if it was sent under an earlier version: that successor may have shown it.
            if self._rule is not None:
                self._rule(21)
            self._out.discard.append(operation.chunk)
            self._answer(operation, Outcome(code))
            self._finish(operation)
        elif operation.link == SENT and (
            code == Code.CORRUPT
            or (self._syncing and code in (Code.MISSING_UPDATE, Code.CHECKSUM, Code.CONFLICT))
        ):
            # R30, R37: its base differs or is damaged: it gets the whole chunk instead.
            if self._rule is not None:
                self._rule(30 if code == Code.CORRUPT else 37)
            if operation.stage == COMMITTING:
                operation.link = WANTED
            else:
                self._transfer(operation)
        else:
            operation.link = STALLED
            self._ask_retry()

    def _ask_retry(self) -> None:
        if not self._retry_asked:
            self._retry_asked = self._out.retry = True
        if self._rule is not None:
            self._rule(22)

    def _committed(self, event: events.Committed) -> None:
        for operation in event.operations:
            if self.holders.get(operation.chunk) is not operation:
                self._repair_committed(operation)
                continue
            operation.stage = COMMITTED
            self.channels.committed(operation)
            self._answer_done(operation)
            if operation.link == FREE:
                self._finish(operation)
            elif operation.link == WANTED:
                self._transfer(operation)

    # ------------------------------------------------------------------ repairs

    def _repair(self, operation: Operation) -> None:
        """Make the chunk good under this operation's lock, then let it go on (R29)."""
        meta = self._lookup(operation.chunk)
        if operation.stage < PENDING:
            operation.stage = LOCKED
        operation.link = FREE if operation.stage < PENDING else WANTED
        if self._rule is not None:
            self._rule(29)
        repair = operation.repair = Repair(
            operation.chunk, meta, self.version, operation.kind == REPAIR
        )
        repair.again(self._sources)
        self._fetch(operation, repair)

    def _fetch(self, operation: Operation, repair: Repair) -> None:
        source = repair.following()
        if source is not None:
            repair.link = SENT
            self._out.fetch.setdefault(source, []).append((operation, repair.attempt))
        elif repair.hopeless and repair.nothing:
            self._answer(operation, Outcome(Code.OK))
            self._finish(operation)
        elif repair.hopeless:
            self._lost(operation, repair)
        elif repair.rounds < MAX_ROUNDS:
            repair.link = STALLED
            self._ask_retry()
        else:
            self._unrepaired(operation, Code.UNAVAILABLE)

    def _lost(self, operation: Operation, repair: Repair) -> None:
        """Go on without a good copy (R32): nobody may be shown something older instead."""
        if self._rule is not None:
            self._rule(32)
        self._tell(f"{operation} is lost: no target has a good copy")
        repair.mark_lost()
        self._out.lost.append(operation.chunk)
        if operation.kind == SYNC:
            self._sync(operation)
        elif operation.stage == COMMITTED and self.successor is not None:
            self._transfer(operation)
        elif operation.stage == COMMITTED:
            self._push(operation)
        else:
            self._unrepaired(operation, Code.CORRUPT)

    def _unrepaired(self, operation: Operation, code: Code) -> None:
        if operation.stage == COMMITTED and operation.kind != SYNC:
            operation.link = STALLED  # it is done; its lock stays until the successor has it
            if operation.repair is not None:
                self._out.finish.append(operation.repair)
                operation.repair = None
            self._ask_retry()
            return
        self._answer(operation, Outcome(code))
        self._finish(operation)

    def _fetched(self, event: events.Fetched) -> None:
        for operation, attempt, copy in event.outcomes:
            repair = operation.repair
            if (
                self.holders.get(operation.chunk) is not operation
                or not isinstance(repair, Repair)
                or repair.attempt != attempt
                or repair.link != SENT
            ):
                continue
            if repair.take(copy):
                repair.link, repair.stage = FREE, PREPARING
                self._out.prepare.append(repair)
            else:
                self._fetch(operation, repair)

    def _repair_prepared(self, repair: Operation, image: Image | int) -> None:
        operation = self.holders.get(repair.chunk)
        if not isinstance(repair, Repair) or operation is None or operation.repair is not repair:
            return
        if image == repair.expected:
            self._commit(repair)
            return
        self._out.finish.append(repair)
        if isinstance(image, Image):
            self._out.discard.append(repair.chunk)
        elif image == Code.IO:
            self._stop(Code.IO, f"the store failed to repair {operation}")
            return
        repair.take(Code.CORRUPT)
        self._fetch(operation, repair)

    def _repair_committed(self, repair: Operation) -> None:
        operation = self.holders.get(repair.chunk)
        if not isinstance(repair, Repair) or operation is None or operation.repair is not repair:
            return
        repair.stage = COMMITTED
        self._tell(f"repaired under {operation}")
        if operation.kind == REPAIR:
            self._answer(operation, Outcome(0, repair.version, *repair.expected or ()))
            self._finish(operation)
        elif operation.kind == SYNC:
            self._sync(operation)
        elif operation.stage == COMMITTED:
            self._push(operation)
        else:
            operation.stage = PREPARING
            self._out.prepare.append(operation)

    def _sync(self, operation: Operation) -> None:
        """Send a chunk as it is, unless the chain has changed meanwhile."""
        if operation.chain_version == self.version and self._syncing:
            self._transfer(operation)
        else:
            self._answer(operation, Outcome(Code.WRONG_CHAIN_VERSION))
            self._finish(operation)

    def _unreadable(self, event: events.Unreadable) -> None:
        """Repair what a transfer found damaged here, and send it then."""
        for operation, attempt in event.operations:
            if (
                attempt != operation.attempt
                or operation.link != TRANSFER
                or self.holders.get(operation.chunk) is not operation
            ):
                continue
            if operation.stage == PENDING:
                # The base of what is pending here is damaged; a successor that serves goes on.
                self._stop(Code.CORRUPT, f"the bytes that {operation} builds upon are damaged")
                return
            if operation.repair is None:
                self._repair(operation)
            else:
                self._unrepaired(operation, Code.CORRUPT)

    # ------------------------------------------------------------------ the chain

    def _routing(self, event: events.RoutingChanged) -> None:
        chain = event.chain
        if chain.version <= self.version:
            return
        before, now = self.state, chain.state_of(self.target)
        self._tell(f"chain {chain}")
        # R41
        if before is SERVING and now is not SERVING:
            self._stop(Code.NOT_SERVING, f"serving became {now.name} at chain {chain.version}")
        elif before is SYNCING and now not in _ACTIVE:
            self._stop(Code.NOT_SERVING, f"syncing became {now.name} at chain {chain.version}")
        self._view(chain, now)
        if self.stopped is not None:
            return
        if now is SYNCING and before is not SYNCING:
            # R39: what was pending in an earlier life may have been replaced since.
            for operation in list(self.holders.values()):
                if operation.kind != HOLD:
                    if self._rule is not None:
                        self._rule(39)
                    self._out.discard.append(operation.chunk)
                    self._finish(operation)
        if now in _ACTIVE:
            self._redrive()

    def _view(self, chain: Chain, now: PublicState) -> None:
        if self._completing is not None:
            self._refuse(self._completing, 0, Code.WRONG_CHAIN_VERSION)
            self._completing = None
        self.version, self.state = chain.version, now
        self.head = now is SERVING and chain.serving[0] == self.target
        self.successor = chain.successor(self.target)
        self._syncing = self.successor is not None and chain.state_of(self.successor) is SYNCING
        self.waits = self.successor is not None and not self._syncing
        self._quorum = len(chain.serving) >= chain.min_serving
        line = chain.writable
        self._sources = Sources(
            tuple(t for t in line if t != self.target),
            chain.serving,
            line[: line.index(self.target)] if self.target in line else (),
        )

    def _redrive(self) -> None:
        """R23: on every change of the chain, pending versions go on with their stored tags.

        A new tail commits, others forward again under the new chain version. Without it a
        pending version whose head and client are gone would block its chunk for ever.

        Source: design.md 5.6; van Renesse & Schneider, section 3.3 (updates in transit).
        """
        for operation in list(self.holders.values()):
            repair = operation.repair
            if isinstance(repair, Repair) and PREPARING <= repair.stage < COMMITTED:
                continue  # the store is at it; what it is for goes on afterwards
            if operation.kind == SYNC:
                self._answer(operation, Outcome(Code.WRONG_CHAIN_VERSION))
                self._finish(operation)
            elif isinstance(repair, Repair) and repair.link in (SENT, STALLED):
                repair.again(self._sources)
                self._fetch(operation, repair)
            elif operation.stage == PENDING or (
                operation.stage >= COMMITTING and operation.link != FREE
            ):
                if self._rule is not None:
                    self._rule(23)
                self._push(operation)
            elif operation.stage == COMMITTING and self._syncing and operation.kind not in _WHOLE:
                # R38: it is the tail's of before, and the comparison may be over before it is
                # committed (found by the simulator, seed 1066).
                operation.link = WANTED

    def _retry(self, event: events.RetryDue) -> None:
        self._retry_asked = False
        for operation in list(self.holders.values()):
            repair = operation.repair
            if operation.link == STALLED:
                self._push(operation)
            elif isinstance(repair, Repair) and repair.link == STALLED:
                repair.again(self._sources)
                self._fetch(operation, repair)

    def _complete(self, event: events.SyncCompleting) -> None:
        """R38: from here on the successor counts: commits wait for it, before it is told so."""
        if event.chain_version != self.version or not self._syncing:
            self._refuse(event.request, 0, Code.WRONG_CHAIN_VERSION)
            return
        if self._rule is not None:
            self._rule(38)
        if self._completing is not None:
            self._refuse(self._completing, 0, Code.WRONG_CHAIN_VERSION)
        self.waits = True
        self._completing = event.request
        self._completed()

    def _completed(self) -> None:
        """Answer a completing sync once nothing is committed here that the successor lacks."""
        if self._completing is None:
            return
        for operation in self.holders.values():
            if operation.stage >= COMMITTING and operation.link != FREE:
                return
        self._out.answers.append(Reply(self._completing, 0, Code.OK, 0, 0, 0))
        self._completing = None

    # ------------------------------------------------------------------ the end

    def _sessions(self, event: events.SessionsEnded) -> None:
        self.channels.forget(event.clients)

    def _tags(self, event: events.TagsArrived) -> None:
        """R10: tags are carried by resync, those of overwritten updates too."""
        if self._rule is not None:
            self._rule(10)
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

    def _refuse_all(self, event: events.Event) -> None:
        if isinstance(event, events.WritesArrived | events.ForwardsArrived):
            for index in range(len(event.items)):
                self._refuse(event.request, index, Code.NOT_SERVING)
        elif isinstance(event, events.SyncArrived | events.RepairArrived):
            for index in range(len(event.chunks)):
                self._refuse(event.request, index, Code.NOT_SERVING)
        elif isinstance(event, events.SyncCompleting):
            self._refuse(event.request, 0, Code.NOT_SERVING)

    def _tell(self, line: str) -> None:
        self.story.append(line)


_HANDLERS: dict[type, Callable[[Replica, Any], None]] = {
    events.WritesArrived: Replica._writes,
    events.ForwardsArrived: Replica._forwards,
    events.Prepared: Replica._prepared,
    events.Forwarded: Replica._forwarded,
    events.Committed: Replica._committed,
    events.Unreadable: Replica._unreadable,
    events.Fetched: Replica._fetched,
    events.RepairArrived: Replica._repairs,
    events.StoreFailed: Replica._store_failed,
    events.RoutingChanged: Replica._routing,
    events.RetryDue: Replica._retry,
    events.SyncArrived: Replica._syncs,
    events.SyncCompleting: Replica._complete,
    events.TagsArrived: Replica._tags,
    events.SessionsEnded: Replica._sessions,
}
