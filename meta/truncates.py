"""Truncate, second half: carry out the recorded intents, one inode's in order, and forget them.

Requests do it before they answer; the collector does what a crash or a deadline left. A writer
that a truncate overtook gets its length from the chunks.
"""

import asyncio
import logging
from functools import partial

from hillfire.errors import Code, Error
from hillfire.meta import intents
from hillfire.meta.engine.base import Engine, Transaction
from hillfire.meta.engine.retry import transact
from hillfire.meta.intents import Intent, newest_epoch
from hillfire.meta.keys import inode_key, put_inode
from hillfire.meta.storage_client import StorageClient
from hillfire.meta.walk import load
from hillfire.proto.meta_pb2 import Inode

log = logging.getLogger(__name__)

MEASURES = 4
"""Cuts that may overtake one measuring of a file, or one that waits for its turn."""


class Truncates:
    """The intents of all inodes."""

    def __init__(self, engine: Engine, storage: StorageClient) -> None:
        """Work on ``engine``'s intents."""
        self._engine = engine
        self._storage = storage
        self._locks: dict[int, tuple[asyncio.Lock, int]] = {}
        """by inode, with how many use it"""
        self.left = True
        """some may be recorded that no request is at: after a start, and after a failure"""

    def pending(self, inode: int) -> list[Intent]:
        """Return what is left to do for an inode."""
        return transact(self._engine, lambda txn: intents.of_inode(txn, inode))

    def some(self, limit: int) -> list[Intent]:
        """Return some of what is left to do for all."""
        return transact(self._engine, lambda txn: intents.unfinished(txn, limit))

    async def finish(self, inode: Inode, timeout_s: float) -> Inode:
        """Carry out and publish everything up to the newest epoch of ``inode``, and return it.

        Raises:
            Error: what storage failed with last; the rest stays recorded.
        """
        lock, users = self._locks.get(inode.id) or (asyncio.Lock(), 0)
        self._locks[inode.id] = lock, users + 1
        try:
            async with lock:
                for intent in self.pending(inode.id):
                    if intent.epoch <= newest_epoch(inode):
                        await self._storage.truncate(intent, timeout_s)
                        transact(self._engine, partial(intents.publish, intent=intent))
        except BaseException:
            self.left = True
            raise
        finally:
            users = self._locks[inode.id][1]
            if users == 1:
                del self._locks[inode.id]
            else:
                self._locks[inode.id] = lock, users - 1
        inode.epoch = newest_epoch(inode)
        return inode

    def under_way(self, inode: int) -> Inode | None:
        """Return a file that is being cut, None if it is not."""
        raw = transact(self._engine, lambda txn: txn.snapshot_get(inode_key(inode)))
        found = None if raw is None else Inode.FromString(raw)
        return found if found is not None and intents.under_way(found) else None

    async def in_turn(self, inode: int, timeout_s: float) -> None:
        """Wait until a file is not being cut: what would show its new length has to.

        Raises:
            Error: what storage failed with last; CONFLICT when cuts follow one another.
        """
        for _ in range(MEASURES):
            found = self.under_way(inode)
            if found is None:
                return
            await self.finish(found, timeout_s)
        raise Error(Code.CONFLICT, f"inode {inode} is being cut over and over")

    async def measure(self, inode: Inode, limit: int, now_ns: int, timeout_s: float) -> Inode:
        """Give a file the length that its chunks have, up to ``limit``, if that is longer.

        For a writer that did not know of a cut: what it wrote before is gone, what it wrote
        afterwards is acknowledged and in the chunks, and only they can tell the two apart.

        Raises:
            Error: what storage failed with last; CONFLICT when cuts follow one another.
        """
        for _ in range(MEASURES):
            await self.finish(inode, timeout_s)
            layout = inode.layout
            length = await self._storage.last_byte(
                inode.id, layout.chunk_bytes, layout.chains, timeout_s
            )
            then = inode
            change = partial(lengthen, then=then, length=min(length, limit), now_ns=now_ns)
            inode = transact(self._engine, change)
            if newest_epoch(inode) == newest_epoch(then):
                return inode
        raise Error(Code.CONFLICT, f"inode {inode.id} is being cut over and over")


def lengthen(txn: Transaction, then: Inode, length: int, now_ns: int) -> Inode:
    """Make a file as long as its chunks were found, unless it was cut since ``then``.

    Raises:
        Error: STALE when it is gone.
    """
    inode = load(txn, then.id)
    if newest_epoch(inode) == newest_epoch(then) and length > inode.length:
        log.info("event=length_repaired inode=%d from=%d to=%d", inode.id, inode.length, length)
        inode.length = length
        inode.mtime_ns = inode.ctime_ns = now_ns
        put_inode(txn, inode)
    return inode
