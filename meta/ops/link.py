"""Link: another name for an inode."""

from hillfire.errors import Code, Error
from hillfire.meta import access
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.keys import put_inode
from hillfire.meta.tree import changed, put_entry, require_links
from hillfire.meta.walk import load, walk
from hillfire.proto.meta_pb2 import DIRECTORY, Inode, LinkRequest


def link(txn: Transaction, request: LinkRequest, host: Host) -> Inode:
    """Return the inode with its new name counted.

    Raises:
        Error: EXISTS, NOT_PERMITTED for a directory, NOT_FOUND for one that has lost its last
            name, STALE, ACCESS, TOO_MANY_LINKS, and a walk's.
    """
    caller = request.caller
    inode = load(txn, request.inode)
    found = walk(txn, caller, request.place)
    found.require_name(Code.EXISTS)
    if found.inode is not None:
        raise Error(Code.EXISTS, "the name is taken")
    if found.slash:
        raise Error(Code.NOT_FOUND, "only a directory's name may end in a slash")
    parent = found.parent
    access.require_linkable(inode, caller)
    access.require(parent, caller, access.WRITE | access.EXECUTE)
    if inode.type == DIRECTORY:
        raise Error(Code.NOT_PERMITTED, "a directory has one name")
    if not inode.links:
        raise Error(Code.NOT_FOUND, f"inode {inode.id} has lost its last name")
    require_links(inode)
    now_ns = host.now_ns()
    inode.links += 1
    inode.ctime_ns = now_ns
    changed(parent, now_ns)
    put_inode(txn, parent)
    put_inode(txn, inode)
    put_entry(txn, parent, found.name, inode)
    return inode
