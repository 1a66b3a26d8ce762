"""Truncate, first half: the length, the epoch and the intent. Storage follows (``truncates.py``).

Growing is metadata only: what was never written reads as zeros. Cutting begins a new epoch, so that
a writer from before cannot bring the old length back, and records which chains must cut chunks;
the epoch is published when they have.
"""

from hillfire.errors import Code, Error
from hillfire.meta import access, intents
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.intents import Intent
from hillfire.meta.keys import put_inode, session_key, session_range
from hillfire.meta.walk import load
from hillfire.proto.meta_pb2 import DIRECTORY, REGULAR, Caller, Inode, TruncateRequest


def truncate(txn: Transaction, request: TruncateRequest, host: Host) -> tuple[Inode, Intent | None]:
    """Return the inode, and what storage must do before the answer.

    Raises:
        Error: IS_DIRECTORY, INVALID, ACCESS, TOO_LARGE, STALE.
    """
    inode = load(txn, request.inode)
    if inode.type == DIRECTORY:
        raise Error(Code.IS_DIRECTORY, f"inode {inode.id} is a directory")
    if inode.type != REGULAR:
        raise Error(Code.INVALID, f"inode {inode.id} is no regular file")
    access.require(inode, request.caller, access.WRITE)
    return inode, cut(txn, inode, request.length, request.caller, host)


def cut(txn: Transaction, inode: Inode, length: int, caller: Caller, host: Host) -> Intent | None:
    """Set the length of a regular file that the caller may write."""
    if length > inode.layout.chunk_bytes << 32:
        raise Error(Code.TOO_LARGE, f"a length of {length} is beyond its chunks")
    others = length <= inode.length and _others_write(txn, inode, caller.client)
    size, chains = inode.layout.chunk_bytes, len(inode.layout.chains)
    end = length + chains * size if others else inode.length
    inode.length = length
    inode.mtime_ns = inode.ctime_ns = host.now_ns()
    access.drop_ids_on_write(inode, caller)
    intent = None
    if end > length:
        intent = intents.record(txn, inode, length, end)
    put_inode(txn, inode)
    return intent


def _others_write(txn: Transaction, inode: Inode, client: int) -> bool:
    """Tell whether another client may have written beyond the length that is known here."""
    mine = session_key(inode.id, client)
    return any(key != mine for key, _ in txn.range(*session_range(inode.id), limit=2))
