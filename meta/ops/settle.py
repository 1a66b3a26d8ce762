"""Settle: what a writer knows of its file, on fsync and close."""

from hillfire.errors import Code, Error
from hillfire.meta import access
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.intents import newest_epoch
from hillfire.meta.keys import put_inode
from hillfire.meta.tree import close_one
from hillfire.meta.walk import load
from hillfire.proto.meta_pb2 import REGULAR, Inode, SettleRequest


def settle(txn: Transaction, request: SettleRequest, host: Host) -> Inode:
    """Return the inode after the length, the time and the session are settled.

    A length from before a truncate is ignored: the bytes that it speaks of may be gone. What is
    there all the same is measured afterwards (``truncates.py``).

    Raises:
        Error: STALE, INVALID for anything but a regular file, TOO_LARGE.
    """
    inode = load(txn, request.inode)
    if inode.type != REGULAR:
        if request.sync and not (request.HasField("length") or request.close):
            return inode  # fsync of a directory
        raise Error(Code.INVALID, f"inode {inode.id} is no regular file")
    written = False
    if request.HasField("length") and request.epoch >= newest_epoch(inode):
        if request.length > inode.layout.chunk_bytes << 32:
            raise Error(Code.TOO_LARGE, f"a length of {request.length} is beyond its chunks")
        if request.length > inode.length:
            inode.length = request.length
            written = True
    if request.HasField("mtime_ns") and request.mtime_ns != inode.mtime_ns:
        inode.mtime_ns = request.mtime_ns
        written = True
    if written:
        access.drop_ids_on_write(inode, request.caller)
        inode.ctime_ns = host.now_ns()
        put_inode(txn, inode)
    if request.close:
        close_one(txn, inode.id, request.caller.client)
    return inode
