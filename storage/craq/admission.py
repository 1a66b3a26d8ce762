"""Admission: what an update may do once it holds its chunk's lock. Pure decisions, no state.

An ``Outcome`` ends the update here; None lets it be prepared. Apart from the replica because each
of these rules looks at one chunk's record only.

Source: 3FS design notes, "Data replication"; design.md 5.
"""

from collections.abc import Callable

from hillfire.errors import Code
from hillfire.storage.craq.events import Outcome
from hillfire.storage.craq.operation import Kind, Operation
from hillfire.storage.store.base import ChunkMeta

Hook = Callable[[int], None] | None


def admit_client(
    operation: Operation, meta: ChunkMeta | None, last: tuple[int, Outcome] | None, rule: Hook
) -> Outcome | None:
    """Decide at the head; ``last`` is the channel's latest committed update."""
    # R7, R8 again: the update may have been committed by another road meanwhile.
    if last is not None and operation.tag.sequence <= last[0]:
        return last[1] if operation.tag.sequence == last[0] else Outcome(Code.STALE)
    if meta is None:
        if operation.kind in (Kind.TRUNCATE, Kind.REMOVE):
            return Outcome(Code.OK)
        # R4: the head gives the version.
        operation.version = 1
        return None
    # R11: a write of an older epoch came too late.
    if meta.epoch > operation.epoch:
        if rule is not None:
            rule(11)
        return Outcome(Code.STALE_EPOCH, meta.version, meta.length, meta.checksum)
    # R12: what carries the epoch of the cut was written after it, and stays.
    if operation.kind in (Kind.TRUNCATE, Kind.REMOVE) and (
        meta.removed or meta.epoch == operation.epoch
    ):
        if rule is not None:
            rule(12)
        return Outcome(Code.OK, meta.version, meta.length)
    # R4: of a removed chunk too, whose tombstone keeps its version.
    if rule is not None:
        rule(4)
    operation.version = meta.version + 1
    return None


def admit_forward(
    operation: Operation,
    meta: ChunkMeta | None,
    last: tuple[int, Outcome] | None,
    syncing: bool,
    rule: Hook,
) -> Outcome | None:
    """Decide behind the head. MISSING_UPDATE beyond the committed version stops who serves."""
    version = operation.version
    committed = meta.version if meta is not None else 0
    kind = operation.kind
    if kind in (Kind.REPLACE, Kind.LOST) or (kind == Kind.REMOVE and syncing):
        # Recovery: a whole image, whatever was here. R31: a serving target accepts one only as
        # the repair of the very version that it has.
        if syncing:
            # R33: not what this predecessor has itself overtaken, under this very chain version:
            # a copy of its request that was late (found by the simulator, seed 22).
            late = meta is not None and meta.chain_version == operation.chain_version
            if meta is None or not late or version > committed:
                return None
            if version == committed and kind != Kind.LOST:
                return None
            return Outcome(Code.OK, committed, meta.length, meta.checksum)
        if rule is not None:
            rule(31)
        same = kind == Kind.REPLACE and version == committed
        return None if same else Outcome(Code.CONFLICT)
    if version == committed + 1:
        return None
    if version > committed:  # R20
        if rule is not None:
            rule(20)
        return Outcome(Code.MISSING_UPDATE, committed)
    # R18: at or below the committed version it is done if the tag is the request's.
    if meta is not None and version == committed and meta.tag == operation.tag:
        if rule is not None:
            rule(18)
        return Outcome(Code.OK, version, meta.length, meta.checksum)
    if last is not None and last[0] == operation.tag.sequence and last[1][1] == version:
        return last[1]
    if syncing:
        return Outcome(Code.MISSING_UPDATE, committed)
    # R19: the sender has diverged.
    if rule is not None:
        rule(19)
    return Outcome(Code.CONFLICT, committed)
