"""MakeNode: directories, symbolic links, special files, and regular files nobody opens yet."""

from hillfire.errors import Code, Error
from hillfire.meta import access
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.keys import put_inode
from hillfire.meta.tree import changed, put_entry, require_links
from hillfire.meta.walk import walk
from hillfire.proto.meta_pb2 import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FILE_TYPE_UNSPECIFIED,
    REGULAR,
    SYMLINK,
    Inode,
    MakeNodeRequest,
)

MAX_SYMLINK_BYTES = 4095


def make_node(txn: Transaction, request: MakeNodeRequest, host: Host) -> Inode:
    """Return the new inode.

    Raises:
        Error: EXISTS, ACCESS, NOT_PERMITTED for devices, TOO_MANY_LINKS, INVALID, and a walk's.
    """
    caller, kind = request.caller, request.type
    _check(request)
    found = walk(txn, caller, request.place)
    found.require_name(Code.EXISTS)
    if found.inode is not None:
        raise Error(Code.EXISTS, "the name is taken")
    if found.slash and kind != DIRECTORY:
        raise Error(Code.NOT_FOUND, "only a directory's name may end in a slash")
    parent = found.parent
    access.require(parent, caller, access.WRITE | access.EXECUTE)
    if kind in (CHARACTER, BLOCK) and caller.uid != 0 and not caller.checked:
        raise Error(Code.NOT_PERMITTED, "only root makes devices")
    now_ns = host.now_ns()
    mode = 0o777 if kind == SYMLINK else request.mode
    gid, mode = access.inherited(parent, caller, mode, kind == DIRECTORY)
    inode = Inode(
        id=host.new_inode(),
        type=kind,
        mode=mode,
        uid=caller.uid,
        gid=gid,
        links=1,
        atime_ns=now_ns,
        mtime_ns=now_ns,
        ctime_ns=now_ns,
    )
    if kind == DIRECTORY:
        require_links(parent)
        parent.links += 1
        inode.links = 2
        inode.parent = parent.id
    elif kind == SYMLINK:
        inode.symlink = request.symlink
        inode.length = len(request.symlink)
    elif kind == REGULAR:
        inode.layout.CopyFrom(host.layout(inode.id))
    else:
        inode.device = request.device
    changed(parent, now_ns)
    put_inode(txn, parent)
    put_inode(txn, inode)
    put_entry(txn, parent, found.name, inode)
    return inode


def _check(request: MakeNodeRequest) -> None:
    if request.type == FILE_TYPE_UNSPECIFIED or request.type > BLOCK:
        raise Error(Code.INVALID, f"there is no file type {request.type}")
    if request.type == SYMLINK:
        if not request.symlink:
            raise Error(Code.NOT_FOUND, "a symbolic link leads somewhere")
        if len(request.symlink) > MAX_SYMLINK_BYTES:
            raise Error(Code.NAME_TOO_LONG, f"targets have at most {MAX_SYMLINK_BYTES} bytes")
        if b"\0" in request.symlink:
            raise Error(Code.INVALID, "a path has no NUL in it")
