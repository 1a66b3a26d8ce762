"""ReserveAppend: O_APPEND's offsets are given out here, so that no two writers get the same."""

from hillfire.errors import Code, Error
from hillfire.meta import access
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.keys import put_inode
from hillfire.meta.walk import load
from hillfire.proto.meta_pb2 import REGULAR, ReserveAppendReply, ReserveAppendRequest


def reserve_append(
    txn: Transaction, request: ReserveAppendRequest, host: Host
) -> ReserveAppendReply:
    """Grow the file by ``length`` and return where the caller writes.

    Raises:
        Error: INVALID, TOO_LARGE, STALE.
    """
    inode = load(txn, request.inode)
    if inode.type != REGULAR:
        raise Error(Code.INVALID, f"inode {inode.id} is no regular file")
    offset = inode.length
    if offset + request.length > inode.layout.chunk_bytes << 32:
        raise Error(Code.TOO_LARGE, f"no room for {request.length} bytes at {offset}")
    if request.length:
        inode.length = offset + request.length
        inode.mtime_ns = inode.ctime_ns = host.now_ns()
        access.drop_ids_on_write(inode, request.caller)
        put_inode(txn, inode)
    return ReserveAppendReply(offset=offset, inode=inode)
