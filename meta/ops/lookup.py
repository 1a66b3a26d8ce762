"""Lookup: from a place to the inode there."""

from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.walk import walk
from hillfire.proto.meta_pb2 import Inode, LookupRequest


def lookup(txn: Transaction, request: LookupRequest, host: Host) -> Inode:
    """Return the inode at a place.

    Raises:
        Error: NOT_FOUND and what a walk raises.
    """
    found = walk(txn, request.caller, request.place, follow=request.follow, follow_slash=True)
    return found.require()
