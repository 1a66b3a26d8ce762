"""Healing: damaged chunks are repaired under their locks, or lost and said so (R29, R32).

``repair.py`` knows what a repair wants and of whom; here is what becomes of the operation that
found the damage.
"""

from hillfire.errors import Code
from hillfire.storage.craq import events
from hillfire.storage.craq.events import Outcome
from hillfire.storage.craq.operation import (
    COMMITTED,
    FREE,
    LOCKED,
    PENDING,
    PREPARING,
    REPAIR,
    SENT,
    STALLED,
    SYNC,
    TRANSFER,
    WANTED,
    Operation,
)
from hillfire.storage.craq.passing import Passing
from hillfire.storage.craq.repair import MAX_ROUNDS, Repair
from hillfire.storage.store.base import Image


class Healing(Passing):
    """Operations that found damage wait for its repair, then go on."""

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
