"""Session: a client's heartbeat. What it holds is written down, what was unlinked it is told."""

from hillfire.errors import Code, Error
from hillfire.meta.engine.base import Transaction
from hillfire.meta.keys import (
    FIRST_SEQUENCE,
    NEXT_SEQUENCE,
    ORPHANS,
    inode_key,
    orphan_key,
    read_number,
    split_orphan,
)
from hillfire.meta.tree import hold
from hillfire.proto.meta_pb2 import Inode, SessionReply, SessionRequest

MAX_HELD = 1 << 16
MAX_ORPHANS = 4096
"""In one reply; the rest come with the next."""


def newest_orphan(txn: Transaction) -> int:
    """Return the sequence of the youngest orphan there ever was."""
    return read_number(txn.snapshot_get(NEXT_SEQUENCE), FIRST_SEQUENCE) - 1


def session(txn: Transaction, request: SessionRequest) -> SessionReply:
    """Record what the client holds and return the orphans that came since ``seen``.

    A client that has seen nothing is new: what went before it came is none of its business.

    Raises:
        Error: TOO_LARGE for more than can be held in one call.
    """
    if len(request.held) > MAX_HELD:
        raise Error(Code.TOO_LARGE, f"at most {MAX_HELD} inodes are held in one call")
    for inode in request.held:
        raw = txn.get(inode_key(inode))
        if raw is not None and not Inode.FromString(raw).links:
            hold(txn, inode, request.client)
    newest = newest_orphan(txn)
    if not request.seen or request.seen >= newest:
        return SessionReply(seen=newest)
    found = txn.snapshot_range(orphan_key(request.seen + 1), ORPHANS[1], limit=MAX_ORPHANS)
    orphans = [split_orphan(*pair) for pair in found]
    return SessionReply(
        seen=orphans[-1][0] if len(orphans) == MAX_ORPHANS else newest,
        orphans=[inode for _, inode in orphans],
    )
