"""SetAttributes: chmod, chown, utimens, together or apart."""

from hillfire.errors import Code, Error
from hillfire.meta import access
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.keys import put_inode
from hillfire.meta.walk import load
from hillfire.proto.meta_pb2 import SYMLINK, Inode, SetAttributesRequest


def set_attributes(txn: Transaction, request: SetAttributesRequest, host: Host) -> Inode:
    """Return the inode with what is set in the request changed, all or nothing.

    Raises:
        Error: NOT_PERMITTED, NOT_SUPPORTED for the mode of a symbolic link, STALE.
    """
    inode, caller = load(txn, request.inode), request.caller
    if request.HasField("uid") or request.HasField("gid"):
        _change_owner(inode, request)
    if request.HasField("mode"):
        if inode.type == SYMLINK:
            raise Error(Code.NOT_SUPPORTED, "a symbolic link has no mode of its own")
        access.require_owner(inode, caller)
        inode.mode = access.mode_after_chmod(inode, caller, request.mode, inode.gid)
    if request.HasField("atime_ns") or request.HasField("mtime_ns"):
        access.require_owner(inode, caller)
        if request.HasField("atime_ns"):
            inode.atime_ns = request.atime_ns
        if request.HasField("mtime_ns"):
            inode.mtime_ns = request.mtime_ns
    inode.ctime_ns = host.now_ns()
    put_inode(txn, inode)
    return inode


def _change_owner(inode: Inode, request: SetAttributesRequest) -> None:
    """Root changes all, an owner only the group, to one of his own."""
    caller = request.caller
    uid = request.uid if request.HasField("uid") else inode.uid
    gid = request.gid if request.HasField("gid") else inode.gid
    if not caller.checked and caller.uid != 0:
        mine = caller.uid == inode.uid
        if uid != inode.uid or not mine:
            raise Error(Code.NOT_PERMITTED, "only root gives files away")
        if gid != inode.gid and not access.in_group(caller, gid):
            raise Error(Code.NOT_PERMITTED, f"uid {caller.uid} is not in group {gid}")
    inode.mode = access.mode_without_ids(inode, caller)
    inode.uid, inode.gid = uid, gid
