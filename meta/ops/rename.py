"""Rename: move, replace or exchange names, in one transaction.

Every parent pointer that the walk towards the root reads is a conflict key, so that two renames
cannot each move a directory into the other. Checks come in the order of Linux's ``do_renameat2``
and ``vfs_rename``, so that the errors are the ones that programs know.
"""

from typing import cast

from hillfire.errors import Code, Error
from hillfire.meta import access
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.keys import dentry_key, put_inode
from hillfire.meta.tree import changed, drop_link, put_entry, require_empty, require_links
from hillfire.meta.walk import Found, load_directory, walk
from hillfire.proto.meta_pb2 import DIRECTORY, Caller, Inode, Place, RenameReply, RenameRequest
from hillfire.types import ROOT_INODE


def rename(txn: Transaction, request: RenameRequest, host: Host) -> RenameReply:
    """Return the moved inode and the replaced (or exchanged) one, as they are afterwards.

    Raises:
        Error: NOT_FOUND, EXISTS, BUSY for ".", "..", and the root, INVALID into its own subtree,
            NOT_EMPTY, IS_DIRECTORY, NOT_DIRECTORY, ACCESS, NOT_PERMITTED, TOO_MANY_LINKS, a walk's.
    """
    caller = request.caller
    if request.no_replace and request.exchange:
        raise Error(Code.INVALID, "no_replace and exchange exclude each other")
    source = walk(txn, caller, _from(request))
    target = walk(txn, caller, request.to)
    source.require_name(Code.BUSY)
    target.require_name(Code.EXISTS if request.no_replace else Code.BUSY)
    moved = _require_sane(txn, request, source, target)
    there = target.inode
    if there is not None and there.id == moved.id:
        return RenameReply(inode=moved, replaced=moved)
    _require_allowed(caller, source, target, request.exchange)
    old, new = source.parent, target.parent
    if old.id == new.id:
        new = old
    now_ns = host.now_ns()
    if request.exchange:
        assert there is not None
        _move(txn, there, new, old, source.name, now_ns)
    else:
        txn.clear(dentry_key(old.id, source.name))
        if there is not None:
            if there.type == DIRECTORY:
                require_empty(txn, there)
                new.links -= 1
            drop_link(txn, host, there, now_ns, caller.client if request.hold else 0)
    _move(txn, moved, old, new, target.name, now_ns)
    changed(old, now_ns)
    changed(new, now_ns)
    put_inode(txn, old)
    put_inode(txn, new)
    return RenameReply(inode=moved, replaced=there)


def _from(request: RenameRequest) -> Place:
    return cast(Place, getattr(request, "from"))  # a word of Python's


def _require_sane(txn: Transaction, request: RenameRequest, source: Found, target: Found) -> Inode:
    """Check what does not depend on who asks; return what is to move."""
    moved, there = source.inode, target.inode
    if moved is None:
        raise Error(Code.NOT_FOUND, "no such name")
    if request.no_replace and there is not None:
        raise Error(Code.EXISTS, "the new name is taken")
    if request.exchange:
        target.require()
    source.require()
    if moved.type != DIRECTORY and target.slash and not request.exchange:
        raise Error(Code.NOT_DIRECTORY, "only a directory's name may end in a slash")
    if source.parent.id != target.parent.id or source.name != target.name:
        if moved.type == DIRECTORY and _is_above(txn, moved, target.parent):
            raise Error(Code.INVALID, "a directory cannot move into itself")
        if there is not None and there.type == DIRECTORY and _is_above(txn, there, source.parent):
            code = Code.INVALID if request.exchange else Code.NOT_EMPTY
            raise Error(code, "the new name is a directory above the old one")
    return moved


def _is_above(txn: Transaction, directory: Inode, below: Inode) -> bool:
    """Tell whether ``directory`` is ``below`` or above it; reads become conflict keys."""
    while below.id != directory.id:
        if below.id == ROOT_INODE:
            return False
        below = load_directory(txn, below.parent)
    return True


def _require_allowed(caller: Caller, source: Found, target: Found, exchange: bool) -> None:
    moved, there = source.require(), target.inode
    access.require_removal(source.parent, moved, caller)
    if there is None:
        access.require(target.parent, caller, access.WRITE | access.EXECUTE)
    else:
        access.require_removal(target.parent, there, caller)
        if not exchange:
            if moved.type == DIRECTORY and there.type != DIRECTORY:
                raise Error(Code.NOT_DIRECTORY, "a directory replaces only a directory")
            if moved.type != DIRECTORY and there.type == DIRECTORY:
                raise Error(Code.IS_DIRECTORY, "a file does not replace a directory")
    if source.parent.id != target.parent.id:
        for inode in (moved, there if exchange else None):
            if inode is not None and inode.type == DIRECTORY:  # its ".." changes
                access.require(inode, caller, access.WRITE)


def _move(txn: Transaction, inode: Inode, old: Inode, new: Inode, name: bytes, now_ns: int) -> None:
    """Write the new name, and carry a directory's link over to its new parent."""
    inode.ctime_ns = now_ns
    if inode.type == DIRECTORY and old.id != new.id:
        require_links(new)
        old.links -= 1
        new.links += 1
        inode.parent = new.id
    put_inode(txn, inode)
    put_entry(txn, new, name, inode)
