"""Invariants of a replica, numbered; run after every event in simulation, by a flag in production.

A broken one is a programmer's error: ``AssertionError`` with the replica's story.
"""

from hillfire.cluster import PublicState
from hillfire.storage.craq.operation import Kind, Link, Operation, Stage
from hillfire.storage.craq.replica import Replica


class Broken(AssertionError):
    """An invariant does not hold."""


def check(replica: Replica) -> None:
    """Verify every invariant.

    Raises:
        Broken: with the number of the first invariant that does not hold, and the story.
    """
    for chunk, operation in replica.holders.items():
        _operation(replica, operation)
        if operation.chunk != chunk:
            _fail(replica, 1, f"{operation} holds the lock of another chunk")
    for chunk, line in replica.waiting.items():
        # I2: nobody waits for a lock that is free. Source: liveness; design.md 5.2.
        if chunk not in replica.holders or not line:
            _fail(replica, 2, f"{len(line)} wait for the free lock of {chunk.hex()}")
    for tag, operation in replica.channels.flying.items():
        # I3: what a retry may join is really here. Source: design.md 5.5.
        if not _here(replica, operation) and not (
            operation.partner is not None and _here(replica, operation.partner)
        ):
            _fail(replica, 3, f"{tag} is in flight and nowhere")
    # I4: a stopped target keeps nobody waiting. Source: design.md 5, Leases.
    if replica.stopped is not None and (replica.holders or replica.waiting):
        _fail(replica, 4, "stopped, yet locks are held")


def _here(replica: Replica, operation: Operation) -> bool:
    if replica.holders.get(operation.chunk) is operation:
        return True
    return operation in replica.waiting.get(operation.chunk, ())


def _operation(replica: Replica, operation: Operation) -> None:
    serving = replica.state is PublicState.SERVING
    # I5: no lock is held at QUEUED. Source: design.md 5.1.
    if operation.stage == Stage.QUEUED:
        _fail(replica, 5, f"{operation} holds a lock in line")
    # I6: on a serving target that waits for nobody, a pending version is being committed: the
    # tail commits at once. Source: van Renesse & Schneider 3.1; design.md 5.2, 5.6.
    if serving and operation.stage == Stage.PENDING and not replica.waits:
        _fail(replica, 6, f"{operation} is pending at the tail")
    # I7: on a serving target that waits for its successor, a pending version is on its way to it
    # or a retry was asked for. Source: design.md 5.6.
    if serving and operation.stage == Stage.PENDING and operation.link == Link.NONE:
        _fail(replica, 7, f"{operation} is pending and not on its way")
    # I8: something is on its way only if there is a successor.
    if operation.link in (Link.SENT, Link.TRANSFER) and replica.successor is None:
        _fail(replica, 8, f"{operation} is on its way to nobody")
    # I9: a pending version is one more than the committed one. Source: design.md 5.2.
    if operation.stage == Stage.PENDING and serving and operation.kind != Kind.REPLACE:
        committed = replica.committed(operation.chunk)
        if operation.version != committed + 1:
            _fail(replica, 9, f"{operation} is pending on committed {committed}")
    # I10: a source is held for a clone that is under way, which has both locks once it is past
    # LOCKED. Source: design.md 6; deadlock freedom.
    if operation.kind == Kind.HOLD and operation.partner is None:
        _fail(replica, 10, f"{operation} holds a source for nobody")
    partner = operation.partner
    begun = operation.kind == Kind.CLONE and operation.stage > Stage.LOCKED
    if begun and partner is not None and replica.holders.get(partner.chunk) is not partner:
        _fail(replica, 10, f"{operation} does not hold its source")
    # I11: who stands still with a lock in hand waits for a repair or a second lock.
    if operation.stage == Stage.LOCKED and operation.repair is None and partner is None:
        _fail(replica, 11, f"{operation} waits for nothing")


def _fail(replica: Replica, number: int, text: str) -> None:
    story = "\n".join(replica.story)
    raise Broken(f"I{number} at target {replica.target}: {text}\n{story}")
