"""Resync: carries one ``recovery.Sync``'s effects out, at the predecessor of a syncing target.

It starts again from the beginning when the chain changes; what was equalled before costs a
comparison only.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence

from hillfire.cluster import Chain, Node, PublicState, Routing
from hillfire.errors import Error
from hillfire.proto import service
from hillfire.proto import storage_pb2 as pb
from hillfire.proto.manager_pb2 import SyncProgress
from hillfire.storage import recovery
from hillfire.storage.comparison import Remote
from hillfire.storage.craq import events
from hillfire.storage.peers import Peers
from hillfire.storage.shell import TargetShell
from hillfire.storage.store.base import ChunkMeta
from hillfire.storage.turns import Peer, Turns
from hillfire.types import ChunkId, NodeId

log = logging.getLogger(__name__)

TAGS = 16384
"""Channels' tags told at once."""
SCAN = 4096
"""Our own records read at once."""
BATCH_CHUNKS = 128
"""Small chunks sent at once; large ones are limited by their bytes."""
CALL_TIMEOUT_S = 5.0
RETRY_MIN_S = 0.02
RETRY_MAX_S = 1.0
LOAD_S = 0.25
"""How often the successor's node is asked how busy it is."""
LOAD_TIMEOUT_S = 1.0

_LIST = service.method("Storage", "ListChunks")
_DONE = service.method("Storage", "SyncDone")
_LOAD = service.method("Storage", "Load")


class Recovery:
    """What all syncs of a node share: its turns, and how many chains it syncs at once."""

    def __init__(self, turns: Turns, chains: int, routing: Callable[[], Routing]) -> None:
        """``chains`` at once; ``routing`` tells how many others send to the same node."""
        self.turns = turns
        self.places = asyncio.Semaphore(chains)
        self.routing = routing

    def streams(self, node: NodeId) -> int:
        """Return how many targets of a node are being brought up to date now."""
        routing = self.routing()
        targets = [target.id for target in routing.targets.values() if target.node == node]
        return sum(routing.targets[target].state is PublicState.SYNCING for target in targets)


class Resync:
    """One sync under way: the machine, and what it needs to be carried out."""

    def __init__(
        self, shell: TargetShell, chain: Chain, node: Node, peers: Peers, shared: Recovery
    ) -> None:
        """``run`` does it; it is cancelled when the chain changes."""
        self.sync = recovery.Sync(chain.version, batch_chunks=BATCH_CHUNKS)
        self.began = 0.0
        """when its first step was made, by the loop's clock; 0 while it waits for its place"""
        self._at_work_s = 0.0
        """of all batches, added up"""
        self._shared = shared
        self._peer = Peer()
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
        async with self._shared.places:
            self.began = asyncio.get_running_loop().time()
            asking = asyncio.create_task(self._ask_load())
            try:
                self._carry(self.sync.start())
                while not self.sync.finished:
                    event = await self._events.get()
                    if isinstance(event, BaseException):
                        raise event
                    self._carry(self.sync.handle(event))
            finally:
                for task in (asking, *self._tasks):
                    task.cancel()

    def progress(self) -> SyncProgress:
        """Tell how far it is; the totals are estimates until all was compared."""
        done = self.sync.progress
        took_s = asyncio.get_running_loop().time() - self.began if self.began else 0.0
        seen = max(1, done.compared_chunks)
        unseen = 0 if done.compared_all else max(0, done.total_chunks - done.compared_chunks)
        return SyncProgress(
            bytes_done=done.sent_bytes,
            bytes_total=done.sent_bytes + max(0, done.left_bytes()),
            chunks_done=done.sent_chunks,
            chunks_total=done.to_send_chunks + unseen * done.to_send_chunks // seen,
            bytes_per_s=int(done.sent_bytes / took_s) if took_s > 0 else 0,
        )

    async def _ask_load(self) -> None:
        """Ask the successor's node now and then how busy it is."""
        while True:
            try:
                reply = await self._peers.grpc(self._node).call(
                    _LOAD, pb.LoadRequest(), LOAD_TIMEOUT_S
                )
                self._peer.busy = reply.busy
            except Exception as exc:
                if not isinstance(exc, Error):
                    log.error("event=load_unknown node=%d", self._node.id, exc_info=exc)
                self._peer.busy = 1.0
            self._peer.streams = self._shared.streams(self._node.id)
            await asyncio.sleep(LOAD_S)

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
                    self._tell_end(effect)

    def _tell_end(self, effect: recovery.Finished) -> None:
        done = self.sync.progress
        took_s = asyncio.get_running_loop().time() - self.began
        log.info(
            "event=resync_done chain=%d version=%d equal=%s compared=%d sent_bytes=%d took_s=%.3f "
            "at_work_s=%.3f sent=%d",
            self._chain.id, self._chain.version, effect.equal, done.compared_chunks,
            done.sent_bytes, took_s, self._at_work_s, done.sent_chunks,
        )  # fmt: skip

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
        records = {ChunkId(each.id): record_from_message(each) for each in page.chunks}
        return recovery.Listed(records, None if page.end else ChunkId(page.chunks[-1].id))

    async def _scan(self, effect: recovery.Scan) -> recovery.Event:
        work = _scan(self._shell, effect.after, effect.last)
        held = frozenset(self._shell.replica.holders)
        return recovery.Scanned(await self._shell.threads.call(work), held)

    async def _send(self, effect: recovery.SendBatch) -> recovery.Event:
        async with self._shared.turns.turn(effect.n_bytes, self._peer):
            began = asyncio.get_running_loop().time()
            number, _, future = self._shell.requests.open(len(effect.chunks))
            self._shell.handle(events.SyncArrived(number, self._chain.version, effect.chunks))
            results = await future
            self._at_work_s += asyncio.get_running_loop().time() - began
        return recovery.BatchDone(effect.number, [result.code for result in results])

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


def record_from_message(record: pb.ChunkRecord) -> Remote:
    """Return another target's record of a chunk."""
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
