"""ReadDirectory: a page of names in the order of their bytes, with their inodes if wanted."""

from hillfire.errors import Code, Error
from hillfire.meta import access
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.keys import dentry_key, dentry_range, inode_key, read_entry
from hillfire.meta.walk import load
from hillfire.proto.meta_pb2 import DIRECTORY, ReadDirectoryReply, ReadDirectoryRequest

DEFAULT_LIMIT = 1024
MAX_LIMIT = 2048
"""The longest symbolic links and names at once still fit a wire message."""


def read_directory(
    txn: Transaction, request: ReadDirectoryRequest, host: Host
) -> ReadDirectoryReply:
    """Return the names behind ``after``; "." and ".." are not among them.

    Raises:
        Error: NOT_DIRECTORY, ACCESS, STALE.
    """
    directory = load(txn, request.inode)
    if directory.type != DIRECTORY:
        raise Error(Code.NOT_DIRECTORY, f"inode {directory.id} is no directory")
    access.require(directory, request.caller, access.READ)
    limit = min(request.limit or DEFAULT_LIMIT, MAX_LIMIT)
    begin, end = dentry_range(directory.id)
    if request.after:
        begin = dentry_key(directory.id, request.after) + b"\0"
    pairs = txn.snapshot_range(begin, end, limit=limit + 1)
    reply = ReadDirectoryReply(end=len(pairs) <= limit)
    skip = len(dentry_key(directory.id, b""))
    entries, inodes = reply.entries, reply.inodes
    for key, value in pairs[:limit]:
        number, kind = read_entry(value)
        entries.add(name=key[skip:], inode=number, type=kind)
        if request.attributes:
            raw = txn.snapshot_get(inode_key(number))
            if raw is None:
                raise Error(Code.CORRUPT, f"a name in inode {directory.id} leads nowhere")
            inodes.add().MergeFromString(raw)
    return reply
