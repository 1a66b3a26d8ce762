"""Truncates that are begun and not finished: the record that outlives a crash in between."""

from struct import Struct
from typing import NamedTuple

from hillfire.meta.engine.base import Transaction
from hillfire.meta.keys import (
    FIRST_SEQUENCE,
    INTENTS,
    NEXT_SEQUENCE,
    after,
    inode_key,
    intent_key,
    put_inode,
    split_intent_key,
    take_number,
)
from hillfire.proto.meta_pb2 import Inode

_HEAD = Struct("<QIQ")
_CHAIN = Struct("<I")


class Intent(NamedTuple):
    """Cut the chunks of ``inode`` on ``chains`` to ``length`` of the whole file."""

    inode: int
    epoch: int
    length: int
    chunk_bytes: int
    sequence: int
    """of the tag that makes it happen once, however often it is sent"""
    chains: tuple[int, ...]


def newest_epoch(inode: Inode) -> int:
    """Return the epoch of a file's last truncate, whether it is under way or finished."""
    return max(inode.epoch, inode.cut_epoch)


def under_way(inode: Inode) -> bool:
    """Tell whether a truncate has begun that the chains have not acknowledged."""
    return inode.cut_epoch > inode.epoch


def chains_between(inode: Inode, start: int, end: int) -> tuple[int, ...]:
    """Return the chains that hold bytes of ``[start, end)`` of a file, each once."""
    size, chains = inode.layout.chunk_bytes, inode.layout.chains
    first, last = start // size, -(-end // size)
    return tuple(chains[i % len(chains)] for i in range(first, min(last, first + len(chains))))


def record(txn: Transaction, inode: Inode, length: int, end: int) -> Intent:
    """Write the intent to cut a file from ``end`` to ``length``, in a new epoch.

    Clients do not learn that epoch before the chains have acknowledged the cut (``publish``): one
    that wrote in it earlier would hide the bytes beyond the cut from it, since a cut leaves alone
    what was written in its own epoch.
    """
    inode.cut_epoch = newest_epoch(inode) + 1
    intent = Intent(
        inode.id,
        inode.cut_epoch,
        length,
        inode.layout.chunk_bytes,
        take_number(txn, NEXT_SEQUENCE, first=FIRST_SEQUENCE),
        chains_between(inode, length, end),
    )
    head = _HEAD.pack(intent.length, intent.chunk_bytes, intent.sequence)
    value = head + b"".join(_CHAIN.pack(chain) for chain in intent.chains)
    txn.set(intent_key(intent.inode, intent.epoch), value)
    return intent


def forget(txn: Transaction, intent: Intent) -> None:
    """Remove the record of a truncate."""
    txn.clear(intent_key(intent.inode, intent.epoch))


def publish(txn: Transaction, intent: Intent) -> None:
    """Let everybody write in the epoch of a truncate that all chains have acknowledged."""
    forget(txn, intent)
    raw = txn.get(inode_key(intent.inode))
    if raw is not None:
        inode = Inode.FromString(raw)
        inode.epoch = max(inode.epoch, intent.epoch)
        put_inode(txn, inode)


def unfinished(txn: Transaction, limit: int) -> list[Intent]:
    """Return the recorded intents, at most ``limit``."""
    return [_decode(*pair) for pair in txn.snapshot_range(*INTENTS, limit=limit)]


def of_inode(txn: Transaction, inode: int) -> list[Intent]:
    """Return the recorded intents of one inode, oldest first."""
    prefix = intent_key(inode, 0)[:-4]
    return [_decode(*pair) for pair in txn.range(prefix, after(prefix))]


def _decode(key: bytes, value: bytes) -> Intent:
    inode, epoch = split_intent_key(key)
    length, chunk_bytes, sequence = _HEAD.unpack_from(value)
    chains = tuple(chain for (chain,) in _CHAIN.iter_unpack(value[_HEAD.size :]))
    return Intent(inode, epoch, length, chunk_bytes, sequence, chains)
