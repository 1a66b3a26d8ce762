"""What happens behind the requests: dead clients' files are closed, orphans and old answers go.

One pass after another, each step bounded, nothing remembered between passes that the engine does
not have: a restart begins where the last process ended.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

from hillfire.errors import Error
from hillfire.meta import intents, keys
from hillfire.meta.clients import Clients
from hillfire.meta.engine.base import Engine, Transaction
from hillfire.meta.engine.retry import transact
from hillfire.meta.host import Host
from hillfire.meta.intents import Intent, chains_between, newest_epoch
from hillfire.meta.keys import Range
from hillfire.meta.ops.session import newest_orphan
from hillfire.meta.replies import Pruner
from hillfire.meta.storage_client import StorageClient
from hillfire.meta.tree import erase
from hillfire.meta.truncates import Truncates, lengthen
from hillfire.proto.meta_pb2 import Inode

log = logging.getLogger(__name__)

MAX_PAUSE_S = 1.0
BATCH = 64
"""Orphans, intents or sessions worked on at once."""
SCAN = 2000
"""Records read or removed before others get their turn."""
STORAGE_TIMEOUT_S = 10.0
"""Until storage has done one thing; then it is left to the next pass."""


class Collector:
    """The background work of one metadata service."""

    def __init__(
        self,
        engine: Engine,
        host: Host,
        clients: Clients,
        truncates: Truncates,
        storage: StorageClient,
        lease_valid: Callable[[], bool],
        settled: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Work while ``lease_valid`` says so.

        ``settled`` waits until what was committed is beyond the loss of this service's disk.
        """
        self._engine = engine
        self._host = host
        self._clients = clients
        self._truncates = truncates
        self._storage = storage
        self._lease_valid = lease_valid
        self._settled = settled
        self._restored = True
        """perhaps: then files that were being written are to be measured"""
        self._pause_s = min(MAX_PAUSE_S, clients.lease_ms / 1000 / 8)
        self._strangers = True
        """clients that were not heard of since the start may have something open"""
        self._first_orphan = 0
        """no orphan is older: what was removed before it is not walked over again"""
        self._pruner = Pruner(engine, host.now_ns, clients.alive)

    async def run(self) -> None:
        """Make passes until cancelled."""
        loop = asyncio.get_running_loop()
        await self._count()
        before_s = loop.time()
        while True:
            await asyncio.sleep(self._pause_s)
            if loop.time() - before_s > self._pause_s + self._clients.lease_ms / 2000:
                log.warning("event=slept reason=paused_or_overloaded")
                self._clients.forgive()
            if self._lease_valid():
                try:
                    await self.once()
                except Error as error:
                    log.warning("event=collecting_failed error=%r", str(error))
            before_s = loop.time()

    async def once(self) -> None:
        """Make one pass: every step, whatever became of the one before.

        Raises:
            Error: the first failure, once the pass is over; what failed is tried in the next one.
        """
        failure: Error | None = None
        steps = (
            self._finish_truncates,
            self._measure_restored,
            self._end_sessions,
            self._collect,
            self._pruner.step,
        )
        for step in steps:
            try:
                await step()
            except Error as error:
                failure = failure or error
        if failure is not None:
            raise failure

    async def _finish_truncates(self) -> None:
        """Finish what a crash or a deadline left; what requests are at is waited for."""
        if not self._truncates.left:
            return
        self._truncates.left = False
        found = self._truncates.some(SCAN)
        if len(found) == SCAN:
            self._truncates.left = True
        left = {intent.inode: intent for intent in found}
        await _all(
            self._truncates.finish(Inode(id=i, epoch=intent.epoch), STORAGE_TIMEOUT_S)
            for i, intent in left.items()
        )

    async def _measure_restored(self) -> None:
        """After a restore: files that somebody had open may have been closed since, longer."""
        if not self._restored:
            return
        if transact(self._engine, lambda txn: txn.snapshot_get(keys.RESTORED)) is None:
            self._restored = False
            return
        written: list[int] = []
        async for key, value in self._scan(keys.SESSIONS):
            if keys.read_session(value).writers:
                written.append(keys.split_session_key(key)[0])
        for start in range(0, len(written), BATCH):
            await _all(self._measure(number) for number in written[start : start + BATCH])
        transact(self._engine, lambda txn: txn.clear(keys.RESTORED))
        log.info("event=measured_after_restore files=%d", len(written))

    async def _measure(self, number: int) -> None:
        inode = self._inode(number)
        if inode is None or not inode.layout.chains:
            return
        layout = inode.layout
        length = await self._storage.last_byte(
            number, layout.chunk_bytes, layout.chains, STORAGE_TIMEOUT_S
        )

        def body(txn: Transaction) -> None:
            if txn.get(keys.inode_key(number)) is not None:
                lengthen(txn, inode, length, self._host.now_ns())

        transact(self._engine, body)

    async def _end_sessions(self) -> None:
        """Close what dead clients have open; after a restart's grace, unknown clients' too."""
        gone = self._clients.expire()
        strangers = self._strangers and not self._clients.in_grace
        if not gone and not strangers:
            return
        ended: list[tuple[bytes, bytes]] = []
        async for key, value in self._scan(keys.SESSIONS):
            client = keys.split_session_key(key)[1]
            if client in gone or (strangers and not self._clients.alive(client)):
                ended.append((key, value))
        for start in range(0, len(ended), BATCH):
            await _all(self._end(*pair) for pair in ended[start : start + BATCH])
        for client in gone:
            self._clients.settled(client)
        if strangers:
            self._strangers = False

    async def _end(self, key: bytes, value: bytes) -> None:
        """End one session; a writer's file gets the length that its chunks have."""
        number, client = keys.split_session_key(key)
        inode = self._inode(number)
        length = 0
        if inode is not None and keys.read_session(value).writers and inode.layout.chains:
            layout = inode.layout
            length = await self._storage.last_byte(
                number, layout.chunk_bytes, layout.chains, STORAGE_TIMEOUT_S
            )
        if self._clients.alive(client):
            return  # it came back meanwhile
        transact(self._engine, lambda txn: self._repair(txn, key, inode, length))

    def _repair(self, txn: Transaction, key: bytes, then: Inode | None, length: int) -> None:
        txn.clear(key)
        if then is not None and txn.get(keys.inode_key(then.id)) is not None:
            lengthen(txn, then, length, self._host.now_ns())

    async def _collect(self) -> None:
        """Remove the orphans that nobody has open and every live client was told of."""
        if self._clients.in_grace:
            return
        failure: Error | None = None
        after = self._first_orphan - 1
        while batch := transact(self._engine, partial(self._ripe, after=after)):
            if self._settled is not None:
                await self._settled()
            try:
                await _all(self._remove(*each) for each in batch)
            except Error as error:  # of one chain, perhaps: the others' orphans go on
                failure = failure or error
            after = batch[-1][0]
        if failure is not None:
            raise failure

    def _ripe(self, txn: Transaction, after: int) -> list[tuple[int, int]]:
        """Return (sequence, inode) of some orphans behind ``after`` that may go."""
        newest = self._clients.acknowledged(newest_orphan(txn))
        end = keys.orphan_key(newest + 1)
        ripe: list[tuple[int, int]] = []
        begin = keys.orphan_key(after + 1)
        while len(ripe) < BATCH and (page := txn.snapshot_range(begin, end, limit=SCAN)):
            orphans = [keys.split_orphan(*pair) for pair in page]
            if after < self._first_orphan:
                self._first_orphan = after = orphans[0][0]
            ripe += [each for each in orphans if not _is_open(txn, each[1])]
            begin = page[-1][0] + b"\0"
        if after < self._first_orphan:
            self._first_orphan = max(self._first_orphan, newest + 1)  # there are none up to there
        return ripe[:BATCH]

    async def _remove(self, sequence: int, number: int) -> None:
        """Remove one orphan's chunks, then the orphan."""
        inode = self._inode(number)
        if inode is not None:
            layout = inode.layout
            chains = (
                tuple(layout.chains)
                if self._truncates.pending(number)
                else chains_between(inode, 0, inode.length)
            )
            if chains:
                epoch = newest_epoch(inode) + 1
                order = Intent(number, epoch, 0, layout.chunk_bytes, sequence, chains)
                await self._storage.remove(order, STORAGE_TIMEOUT_S)
        transact(self._engine, lambda txn: self._erase(txn, sequence, number))
        self._host.inodes -= 1

    def _erase(self, txn: Transaction, sequence: int, number: int) -> None:
        txn.clear(keys.orphan_key(sequence))
        for intent in intents.of_inode(txn, number):
            intents.forget(txn, intent)
        erase(txn, number)

    async def _count(self) -> None:
        """Count the inodes, unless the last process left their number when it stopped."""
        known = transact(self._engine, _take_count)
        if known is None:
            known = 0
            async for _ in self._scan(keys.INODES):
                known += 1
        self._host.inodes += known

    async def _scan(self, table: Range) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield a table's records in pages, others get their turn in between."""
        begin, end = table
        while page := self._page(begin, end, SCAN):
            for pair in page:
                yield pair
            begin = page[-1][0] + b"\0"
            await asyncio.sleep(0)

    def _page(self, begin: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return transact(self._engine, lambda txn: txn.snapshot_range(begin, end, limit=limit))

    def _inode(self, number: int) -> Inode | None:
        raw = transact(self._engine, lambda txn: txn.snapshot_get(keys.inode_key(number)))
        return None if raw is None else Inode.FromString(raw)


def _take_count(txn: Transaction) -> int | None:
    raw = txn.get(keys.INODE_COUNT)
    if raw is None:
        return None
    txn.clear(keys.INODE_COUNT)
    return keys.read_number(raw)


def _is_open(txn: Transaction, inode: int) -> bool:
    return bool(txn.snapshot_range(*keys.session_range(inode), limit=1))


async def _all(work: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Wait for all; the first failure is raised when none is under way any more."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
