"""Stat: an inode by its number."""

from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.walk import load
from hillfire.proto.meta_pb2 import Inode, StatRequest


def stat(txn: Transaction, request: StatRequest, host: Host) -> Inode:
    """Return an inode.

    Raises:
        Error: STALE if it is gone.
    """
    return load(txn, request.inode)
