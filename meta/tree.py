"""Changes to the tree that several operations share: a name put in, taken out, a file given up."""

from hillfire.errors import Code, Error
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.keys import (
    FIRST_SEQUENCE,
    NEXT_SEQUENCE,
    WriteSession,
    attribute_range,
    dentry_key,
    dentry_range,
    entry_value,
    inode_key,
    number,
    orphan_key,
    put_inode,
    read_session,
    session_key,
    session_value,
    take_number,
)
from hillfire.proto.meta_pb2 import DIRECTORY, REGULAR, Inode

MAX_LINKS = (1 << 31) - 1


def put_entry(txn: Transaction, parent: Inode, name: bytes, child: Inode) -> None:
    """Make ``name`` lead to ``child``; nobody's times or links change."""
    txn.set(dentry_key(parent.id, name), entry_value(child.id, child.type))


def changed(directory: Inode, now_ns: int) -> None:
    """Note that a directory's entries changed."""
    directory.mtime_ns = directory.ctime_ns = now_ns


def require_links(inode: Inode) -> None:
    """Raise TOO_MANY_LINKS if one more would not fit."""
    if inode.links >= MAX_LINKS:
        raise Error(Code.TOO_MANY_LINKS, f"inode {inode.id} has {inode.links} links")


def require_empty(txn: Transaction, directory: Inode) -> None:
    """Raise NOT_EMPTY if there is a name; one that appears meanwhile is a conflict."""
    if txn.range(*dentry_range(directory.id), limit=1):
        raise Error(Code.NOT_EMPTY, f"directory {directory.id} is not empty")


def drop_link(txn: Transaction, host: Host, inode: Inode, now_ns: int, holder: int) -> None:
    """Take one name away from an inode; without any it is removed, or becomes an orphan.

    A directory loses all its links at once and must be empty. ``holder`` is the client that has
    the file open, or 0.
    """
    inode.links = 0 if inode.type == DIRECTORY else inode.links - 1
    inode.ctime_ns = now_ns
    if inode.links:
        put_inode(txn, inode)
    elif inode.type == REGULAR:
        put_inode(txn, inode)
        sequence = take_number(txn, NEXT_SEQUENCE, first=FIRST_SEQUENCE)
        txn.set(orphan_key(sequence), number(inode.id))
        if holder:
            hold(txn, inode.id, holder)
    else:
        erase(txn, inode.id)
        host.inodes -= 1


def erase(txn: Transaction, inode: int) -> None:
    """Remove an inode and its extended attributes."""
    txn.clear(inode_key(inode))
    txn.clear_range(*attribute_range(inode))


def hold(txn: Transaction, inode: int, client: int) -> None:
    """Keep an orphan until ``client`` closes it."""
    key = session_key(inode, client)
    session = read_session(txn.get(key))
    if not session.held:
        txn.set(key, session_value(WriteSession(session.writers, True)))


def open_for_writing(txn: Transaction, inode: int, client: int) -> None:
    """Record one more handle that a client may write by; nothing without a client."""
    if client:
        key = session_key(inode, client)
        session = read_session(txn.get(key))
        txn.set(key, session_value(WriteSession(session.writers + 1, session.held)))


def close_one(txn: Transaction, inode: int, client: int) -> None:
    """End one write handle of a client; without any left, what it held of an orphan."""
    key = session_key(inode, client)
    raw = txn.get(key)
    if raw is None:
        return
    session = read_session(raw)
    left = (
        WriteSession(session.writers - 1, session.held)
        if session.writers
        else WriteSession(0, False)
    )
    if left.writers or left.held:
        txn.set(key, session_value(left))
    else:
        txn.clear(key)
