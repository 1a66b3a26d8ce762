"""Replica: the CRAQ logic of one target. ``handle(event)`` is the only way to change it.

The numbered rules (R1, R2, ...) are those of ``rules.py``. The machine is one, over one table of
locks, and is read in layers, from below: ``table`` (the state, and what a reader is told),
``locking`` (who may work on a chunk), ``passing`` (updates on their way), ``healing`` (damage),
and here the events: arrivals, the chain's changes, the resync, the end. What an update may do
with the lock in hand is decided in ``admission.py``.

Source: Terrace & Freedman, "Object Storage on CRAQ", USENIX ATC 2009, sections 2.3 and 3; van
Renesse & Schneider, "Chain Replication", OSDI 2004; 3FS design notes, "Data replication".
"""

from collections.abc import Callable
from typing import Any

from hillfire.cluster import Chain, PublicState
from hillfire.errors import Code
from hillfire.storage.craq import events
from hillfire.storage.craq.batch import Batch
from hillfire.storage.craq.channels import INTERNAL
from hillfire.storage.craq.effects import Effect, Reply
from hillfire.storage.craq.events import ClientUpdate, ForwardedUpdate, Outcome
from hillfire.storage.craq.healing import Healing
from hillfire.storage.craq.operation import (
    CLONE,
    COMMITTED,
    COMMITTING,
    FREE,
    HOLD,
    PENDING,
    PREPARING,
    REPAIR,
    SENT,
    STALLED,
    SYNC,
    WANTED,
    WHOLE,
    Operation,
)
from hillfire.storage.craq.repair import Repair, Sources
from hillfire.storage.craq.table import ACTIVE, NO_TAG, SERVING, SYNCING
from hillfire.storage.store.base import Image, Tag


class Replica(Healing):
    """One target's part in its chain."""

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
        if self.head or self.state not in ACTIVE:  # R3
            if self._rule is not None:
                self._rule(3)
            self._refuse(request, index, Code.NOT_SERVING)
            return None
        # R48: a late copy of what was refused must not be done. Whatever else was overtaken by a
        # refusal is sent again.
        if 0 < item.serial <= self._refused:
            if self._rule is not None:
                self._rule(48)
            self._refuse(request, index, Code.STALE)
            return None
        tag = Tag(item.client, item.channel, item.sequence)
        # R17: the same update again is answered with the one that is pending.
        holder = self.holders.get(item.chunk)
        if (
            holder is not None
            and holder.version == item.version
            and item.kind not in WHOLE
            and holder.kind != HOLD
        ):
            if holder.tag == tag and holder.kind == item.kind:
                if self._rule is not None:
                    self._rule(17)
                holder.waiters.append((request, index))
                holder.serial = max(holder.serial, item.serial)
                if holder.stage == COMMITTED:
                    self._answer_done(holder)
                return None
            if self.state is SERVING and holder.kind not in WHOLE:
                if self._rule is not None:  # R19
                    self._rule(19)
                self._tell(f"sender diverged at {holder}: it has tag {tuple(tag)}")
                self._refuse(request, index, Code.CONFLICT)
                return None
        operation = self._make(request, index, item, tag, payload)
        operation.forwarded = True
        operation.serial = item.serial
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
            operation = Operation(chunk, SYNC, 0, 0, 0, 0, 0, NO_TAG, event.chain_version, None)
            operation.waiters.append((event.request, index))
            self._enter(operation)

    def _repairs(self, event: events.RepairArrived) -> None:
        for index, chunk in enumerate(event.chunks):
            operation = Operation(chunk, REPAIR, 0, 0, 0, 0, 0, NO_TAG, event.chain_version, None)
            operation.waiters.append((event.request, index))
            self._enter(operation)

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
        elif before is SYNCING and now not in ACTIVE:
            self._stop(Code.NOT_SERVING, f"syncing became {now.name} at chain {chain.version}")
        self._view(chain, now)
        if self.stopped is not None:
            if self._rule is not None:
                self._rule(41)
            return
        if now is SYNCING and before is not SYNCING:
            # R39: what was pending in an earlier life may have been replaced since.
            for operation in list(self.holders.values()):
                if operation.kind != HOLD:
                    if self._rule is not None:
                        self._rule(39)
                    self._out.discard.append(operation.chunk)
                    self._finish(operation)
        if now in ACTIVE:
            self._redrive()

    def _view(self, chain: Chain, now: PublicState) -> None:
        if self._completing is not None:
            self._refuse(self._completing, 0, Code.WRONG_CHAIN_VERSION)
            self._completing = None
        self.version, self.state, self._refused = chain.version, now, 0
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
            elif operation.stage == COMMITTING and self._syncing and operation.kind not in WHOLE:
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

    # ------------------------------------------------------------------ the rest

    def _sessions(self, event: events.SessionsEnded) -> None:
        self.channels.forget(event.clients)

    def _tags(self, event: events.TagsArrived) -> None:
        """R10: tags are carried by resync, those of overwritten updates too."""
        if self._rule is not None:
            self._rule(10)
        self.channels.adopt(event.tags)

    def _store_failed(self, event: events.StoreFailed) -> None:
        self._stop(Code(event.code), event.reason)

    def _refuse_all(self, event: events.Event) -> None:
        if isinstance(event, events.WritesArrived | events.ForwardsArrived):
            for index in range(len(event.items)):
                self._refuse(event.request, index, Code.NOT_SERVING)
        elif isinstance(event, events.SyncArrived | events.RepairArrived):
            for index in range(len(event.chunks)):
                self._refuse(event.request, index, Code.NOT_SERVING)
        elif isinstance(event, events.SyncCompleting):
            self._refuse(event.request, 0, Code.NOT_SERVING)


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
