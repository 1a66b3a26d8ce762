"""Unlink: take a name away; rmdir too."""

from hillfire.errors import Code, Error
from hillfire.meta import access
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.keys import dentry_key, put_inode
from hillfire.meta.tree import changed, drop_link, require_empty
from hillfire.meta.walk import Found, walk
from hillfire.proto.meta_pb2 import DIRECTORY, Inode, UnlinkReply, UnlinkRequest
from hillfire.types import ROOT_INODE


def unlink(txn: Transaction, request: UnlinkRequest, host: Host) -> UnlinkReply:
    """Return the inode as it is afterwards.

    Raises:
        Error: NOT_FOUND, ACCESS, NOT_PERMITTED by the sticky bit, IS_DIRECTORY or NOT_DIRECTORY
            for the wrong kind, NOT_EMPTY, BUSY for the root, INVALID for ".", and a walk's.
    """
    caller = request.caller
    found = walk(txn, caller, request.place)
    _require_removable_name(found, request.directory)
    inode, parent = _victim(found, request.directory), found.parent
    access.require_removal(parent, inode, caller)
    if request.directory:
        if inode.type != DIRECTORY:
            raise Error(Code.NOT_DIRECTORY, f"inode {inode.id} is no directory")
        require_empty(txn, inode)
        parent.links -= 1
    elif inode.type == DIRECTORY:
        raise Error(Code.IS_DIRECTORY, f"inode {inode.id} is a directory")
    now_ns = host.now_ns()
    changed(parent, now_ns)
    put_inode(txn, parent)
    txn.clear(dentry_key(parent.id, found.name))
    drop_link(txn, host, inode, now_ns, caller.client if request.hold else 0)
    return UnlinkReply(inode=inode)


def _victim(found: Found, directory: bool) -> Inode:
    """Return what is to go. A file's name with a slash behind it is refused before all else."""
    if found.inode is None:
        raise Error(Code.NOT_FOUND, "no such name")
    if found.slash and not directory and found.inode.type != DIRECTORY:
        raise Error(Code.NOT_DIRECTORY, "only a directory's name may end in a slash")
    if found.slash and not directory:
        raise Error(Code.IS_DIRECTORY, f"inode {found.inode.id} is a directory")
    return found.inode


def _require_removable_name(found: Found, directory: bool) -> None:
    if not directory:
        found.require_name(Code.IS_DIRECTORY)
    elif found.name == b".":
        found.require_name(Code.INVALID)
    elif found.name == b"..":
        found.require_name(Code.NOT_EMPTY)
    elif found.parent.id == ROOT_INODE:
        found.require_name(Code.BUSY)
    else:
        found.require_name(Code.INVALID)
