"""Passing: an update on its way down the chain and its acknowledgement on the way up.

Prepared here, forwarded, committed once the successor has acknowledged (R13, R14); what a
successor needs that did not take it (R21, R22, R30, R37).
"""

from hillfire.errors import Code
from hillfire.storage.craq import events
from hillfire.storage.craq.events import Outcome
from hillfire.storage.craq.locking import Locking
from hillfire.storage.craq.operation import (
    CLONE,
    COMMITTED,
    COMMITTING,
    FREE,
    PENDING,
    SENT,
    STALLED,
    SYNC,
    TRANSFER,
    WANTED,
    WHOLE,
    Operation,
)
from hillfire.storage.craq.table import SERVING, SYNCING
from hillfire.storage.store.base import Image

ABORTING = frozenset(
    (Code.NO_SPACE, Code.STALE_EPOCH, Code.TOO_LARGE, Code.INVALID, Code.NOT_SUPPORTED)
)
"""R21: refusals by a serving successor that end the update; nothing was applied there."""

_NO_SOURCE = (Code.CONFLICT, Code.NOT_FOUND)


class Passing(Locking):
    """Updates go down the chain, acknowledgements up."""

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
                if self.state is SERVING and operation.kind not in WHOLE:
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
        self._end_refused(operation, Code(code))
        if code is Code.IO or (code is Code.NO_SPACE and self.state is SYNCING):
            self._stop(code, f"the store failed to prepare {operation}")

    def _end_refused(self, operation: Operation, code: Code) -> None:
        """End an update that is refused, here or behind."""
        if operation.forwarded and code in ABORTING:  # R48: nor by a copy that comes late
            self._refused = max(self._refused, operation.serial)
        self._answer(operation, Outcome(code))
        self._finish(operation)

    def _push(self, operation: Operation) -> None:
        """Forward a pending update, and commit it as soon as the rules allow.

        R13: the tail commits at once; R14: others once their successor has acknowledged. R36: the
        last serving target does not wait for a syncing successor that is not equal yet.
        """
        whole = operation.kind in WHOLE  # recovery's: the sender's affair with us alone
        if self.successor is None or whole:
            operation.link = FREE
        elif operation.payload is None and not (self.waits and operation.stage == PENDING):
            # Restored, its payload is in the store's pending record, which ends with the commit.
            if operation.stage == COMMITTED:
                self._transfer(operation)
            else:
                operation.link = WANTED
        else:
            self._attempts = operation.attempt = self._attempts + 1
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
        self._attempts = operation.attempt = self._attempts + 1
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
            self._end_refused(operation, Code(code))
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
