"""Truncate, second half: carry out the recorded intents, one inode's in order, and forget them.

Requests do it before they answer; the collector does what a crash or a deadline left.
"""

import asyncio
from functools import partial

from hillfire.meta import intents
from hillfire.meta.engine.base import Engine
from hillfire.meta.engine.retry import transact
from hillfire.meta.intents import Intent
from hillfire.meta.storage_client import StorageClient
from hillfire.proto.meta_pb2 import Inode


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
        """Carry out everything up to the epoch of ``inode``, and return it.

        Raises:
            Error: what storage failed with last; the rest stays recorded.
        """
        lock, users = self._locks.get(inode.id) or (asyncio.Lock(), 0)
        self._locks[inode.id] = lock, users + 1
        try:
            async with lock:
                for intent in self.pending(inode.id):
                    if intent.epoch <= inode.epoch:
                        await self._storage.truncate(intent, timeout_s)
                        transact(self._engine, partial(intents.forget, intent=intent))
        except BaseException:
            self.left = True
            raise
        finally:
            users = self._locks[inode.id][1]
            if users == 1:
                del self._locks[inode.id]
            else:
                self._locks[inode.id] = lock, users - 1
        return inode
