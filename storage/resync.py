"""Resync: carries one ``recovery.Sync``'s effects out, at the predecessor of a syncing target.

It starts again from the beginning when the chain changes; what was equalled before costs a
comparison only.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence

from hillfire.cluster import Chain, Node
from hillfire.errors import Error
from hillfire.proto import service
from hillfire.proto import storage_pb2 as pb
from hillfire.storage import recovery
from hillfire.storage.comparison import Remote
from hillfire.storage.craq import events
from hillfire.storage.peers import Peers
from hillfire.storage.shell import TargetShell
from hillfire.storage.store.base import ChunkMeta
from hillfire.types import ChunkId

log = logging.getLogger(__name__)

TAGS = 16384
"""Channels' tags told at once."""
SCAN = 4096
"""Our own records read at once."""
CALL_TIMEOUT_S = 5.0
RETRY_MIN_S = 0.02
RETRY_MAX_S = 1.0

_LIST = service.method("Storage", "ListChunks")
_DONE = service.method("Storage", "SyncDone")


class Resync:
    """One sync under way: the machine, and what it needs to be carried out."""

    def __init__(self, shell: TargetShell, chain: Chain, node: Node, peers: Peers) -> None:
        """``run`` does it; it is cancelled when the chain changes."""
        self.sync = recovery.Sync(chain.version)
        self._shell = shell
        self._chain = chain
        self._node = node
        self._peers = peers
        self._tasks: set[asyncio.Task[None]] = set()
        self._events: asyncio.Queue[recovery.Event | BaseException] = asyncio.Queue()

    async def run(self) -> None:
        """Make the successor equal, and tell it.

        Raises:
            Exception: a defect; the target must stop over it.
        """
        try:
            self._carry(self.sync.start())
            while not self.sync.finished:
                event = await self._events.get()
                if isinstance(event, BaseException):
                    raise event
                self._carry(self.sync.handle(event))
        finally:
            for task in self._tasks:
                task.cancel()

    def _carry(self, effects: Sequence[recovery.Effect]) -> None:
        for effect in effects:
            match effect:
                case recovery.List():
                    self._spawn(self._list(effect))
                case recovery.Scan():
                    self._spawn(self._scan(effect))
                case recovery.SendBatch():
                    self._spawn(self._send(effect))
                case recovery.Complete():
                    self._spawn(self._complete())
                case recovery.TellTags():
                    self._spawn(self._tell())
                case recovery.Refuse():
                    log.critical("event=resync_conflict chain=%d target=%d chunks=%d reason=%r",
                                 self._chain.id, self._shell.target, len(effect.chunks),
                                 effect.reason)  # fmt: skip
                    self._spawn(self._refuse(effect))
                case recovery.Wait():
                    self._spawn(self._wait(effect))
                case recovery.Finished():
                    log.info("event=resync_done chain=%d version=%d equal=%s sent=%d",
                             self._chain.id, self._chain.version, effect.equal,
                             self.sync.progress.sent_chunks)  # fmt: skip

    def _spawn(self, work: Coroutine[object, object, recovery.Event]) -> None:
        async def step() -> None:
            try:
                self._events.put_nowait(await work)
            except Error as exc:
                self._events.put_nowait(
                    recovery.StepFailed(exc.code, exc.strerror or exc.code.name)
                )
            except Exception as exc:
                self._events.put_nowait(exc)

        task = asyncio.create_task(step())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _list(self, effect: recovery.List) -> recovery.Event:
        request = pb.ListChunksRequest(
            chain=self._chain.id,
            chain_version=self._chain.version,
            after=effect.after,
            limit=effect.limit,
        )
        page = await self._peers.grpc(self._node).call(_LIST, request, CALL_TIMEOUT_S)
        records = {ChunkId(each.id): _remote(each) for each in page.chunks}
        return recovery.Listed(records, None if page.end else ChunkId(page.chunks[-1].id))

    async def _scan(self, effect: recovery.Scan) -> recovery.Event:
        work = _scan(self._shell, effect.after, effect.last)
        return recovery.Scanned(await self._shell.threads.call(work))

    async def _send(self, effect: recovery.SendBatch) -> recovery.Event:
        number, _, future = self._shell.requests.open(len(effect.chunks))
        self._shell.handle(events.SyncArrived(number, self._chain.version, effect.chunks))
        return recovery.BatchDone(effect.number, [result.code for result in await future])

    async def _complete(self) -> recovery.Event:
        number, _, future = self._shell.requests.open(1)
        self._shell.handle(events.SyncCompleting(number, self._chain.version))
        return recovery.Completed((await future)[0].code)

    async def _tell(self) -> recovery.Event:
        # The successor takes part in every commit by now, so this table and its own say it all.
        shell = self._shell
        tags = await shell.threads.call(lambda: list(shell.store.tags()))
        for start in range(0, max(1, len(tags)), TAGS):
            request = pb.SyncDoneRequest(
                chain=self._chain.id,
                chain_version=self._chain.version,
                tags=[
                    pb.TagRecord(
                        client=tag.client,
                        channel=tag.channel,
                        sequence=tag.sequence,
                        chunk=chunk,
                        version=version,
                    )
                    for tag, chunk, version in tags[start : start + TAGS]
                ],
                more=start + TAGS < len(tags),
            )
            await self._peers.grpc(self._node).call(_DONE, request, CALL_TIMEOUT_S)
        return recovery.Told()

    async def _refuse(self, effect: recovery.Refuse) -> recovery.Event:
        request = pb.SyncDoneRequest(
            chain=self._chain.id, chain_version=self._chain.version, refusal=effect.reason
        )
        await self._peers.grpc(self._node).call(_DONE, request, CALL_TIMEOUT_S)
        return recovery.Told()

    async def _wait(self, effect: recovery.Wait) -> recovery.Event:
        log.info("event=resync_retry chain=%d attempt=%d cause=%r",
                 self._chain.id, effect.attempt, effect.reason)  # fmt: skip
        await asyncio.sleep(min(RETRY_MAX_S, RETRY_MIN_S * 2 ** min(effect.attempt - 1, 16)))
        return recovery.RetryDue()


def _remote(record: pb.ChunkRecord) -> Remote:
    return Remote(
        record.version,
        record.pending,
        record.length,
        record.checksum,
        record.chain_version,
        record.epoch,
        record.removed,
    )


def _scan(
    shell: TargetShell, after: bytes, last: ChunkId | None
) -> Callable[[], dict[ChunkId, ChunkMeta]]:
    """Return a job that lists our own records behind ``after``, up to ``last`` (None: all)."""

    def work() -> dict[ChunkId, ChunkMeta]:
        found: dict[ChunkId, ChunkMeta] = {}
        at = ChunkId(after) if after else None
        while True:
            page = shell.store.scan(at, SCAN)
            for chunk, meta in page:
                if last is not None and chunk > last:
                    return found
                found[chunk] = meta
            if len(page) < SCAN:
                return found
            at = page[-1][0]

    return work
