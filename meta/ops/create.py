"""Create: a regular file, open for writing, in one transaction.

The parent's inode is read and written here and removed by rmdir, so the two cannot both happen.
"""

from hillfire.errors import Code, Error
from hillfire.meta import access
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.keys import put_inode
from hillfire.meta.tree import changed, open_for_writing, put_entry
from hillfire.meta.walk import DOTS, walk
from hillfire.proto.meta_pb2 import DIRECTORY, REGULAR, Caller, CreateRequest, Inode


def create(txn: Transaction, request: CreateRequest, host: Host) -> Inode:
    """Return the new file, or the one that is there unless ``exclusive``.

    A symbolic link at the last name is followed unless ``exclusive``.

    Raises:
        Error: EXISTS, IS_DIRECTORY, ACCESS, UNAVAILABLE without chains, and a walk's.
    """
    caller = request.caller
    found = walk(txn, caller, request.place, follow=not request.exclusive)
    if found.slash and found.name not in DOTS:
        raise Error(Code.IS_DIRECTORY, "the path of a file does not end in a slash")
    if found.inode is not None:
        if request.exclusive:
            raise Error(Code.EXISTS, "the name is taken")
        return _existing(txn, caller, found.require())
    parent = found.parent
    access.require(parent, caller, access.WRITE | access.EXECUTE)
    now_ns = host.now_ns()
    gid, mode = access.inherited(parent, caller, request.mode, False)
    number = host.new_inode()
    inode = Inode(
        id=number,
        type=REGULAR,
        mode=mode,
        uid=caller.uid,
        gid=gid,
        links=1,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
        layout=host.layout(number),
    )
    changed(parent, now_ns)
    put_inode(txn, parent)
    put_inode(txn, inode)
    put_entry(txn, parent, found.name, inode)
    open_for_writing(txn, number, caller.client)
    return inode


def _existing(txn: Transaction, caller: Caller, inode: Inode) -> Inode:
    if inode.type == DIRECTORY:
        raise Error(Code.IS_DIRECTORY, f"inode {inode.id} is a directory")
    access.require(inode, caller, access.WRITE)
    if inode.type == REGULAR:
        open_for_writing(txn, inode.id, caller.client)
    return inode
