"""Locking: who holds a chunk's lock, who stands in line, and what is admitted under it (R5).

A chunk's lock is held by one operation from before it is prepared until it is committed here and
the successor has it. A clone holds two (R47).
"""

from collections import deque

from hillfire.errors import Code
from hillfire.storage.craq.admission import admit_client, admit_forward
from hillfire.storage.craq.channels import INTERNAL
from hillfire.storage.craq.events import Outcome
from hillfire.storage.craq.operation import (
    CLONE,
    COMMITTED,
    HOLD,
    LOCKED,
    PREPARING,
    REPAIR,
    SYNC,
    Operation,
)
from hillfire.storage.craq.table import ACTIVE, SYNCING, Table
from hillfire.types import ChunkId

MAX_WAITING = 1024
"""Operations in line for one chunk; more are refused with OVERLOADED."""


class Locking(Table):
    """The table's locks are given out and taken back."""

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
            if self._rule is not None:
                self._rule(5)
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
            return None if self.state in ACTIVE else Outcome(Code.NOT_SERVING)
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
