"""Open: may the caller, and who may write from now on. O_TRUNC in the same transaction."""

from hillfire.errors import Code, Error
from hillfire.meta import access
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.intents import Intent
from hillfire.meta.ops.truncate import cut
from hillfire.meta.tree import open_for_writing
from hillfire.meta.walk import load
from hillfire.proto.meta_pb2 import DIRECTORY, REGULAR, SYMLINK, Inode, OpenRequest


def open_inode(txn: Transaction, request: OpenRequest, host: Host) -> tuple[Inode, Intent | None]:
    """Return the inode, and what storage must do before the answer.

    Raises:
        Error: STALE, ACCESS, IS_DIRECTORY to write one, LOOP for a symbolic link.
    """
    inode, caller = load(txn, request.inode), request.caller
    if inode.type == SYMLINK:
        raise Error(Code.LOOP, f"inode {inode.id} is a symbolic link")
    if inode.type == DIRECTORY and (request.write or request.truncate):
        raise Error(Code.IS_DIRECTORY, f"inode {inode.id} is a directory")
    want = access.WRITE if request.write or request.truncate else access.READ
    access.require(inode, caller, want)
    intent = None
    if inode.type == REGULAR:
        if request.truncate:
            intent = cut(txn, inode, 0, caller, host)
        if request.write:
            open_for_writing(txn, inode.id, caller.client)
    return inode, intent
