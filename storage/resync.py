"""Resync: what a predecessor does to make its syncing successor equal, for one chain version.

Lists both sides page by page, has the replica send what differs under the chunks' locks, and at
the end says so, once the replica knows that nothing committed here is missing there. It starts
again from the beginning when the chain changes; what was equalled before costs a comparison only.

Source: design.md 5, Recovery; the comparison itself is recovery.py, pure.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from hillfire.cluster import Chain, Node
from hillfire.errors import Code, Error
from hillfire.proto import service
from hillfire.proto import storage_pb2 as pb
from hillfire.storage import recovery
from hillfire.storage.craq import events
from hillfire.storage.peers import Peers
from hillfire.storage.shell import TargetShell
from hillfire.storage.store.base import ChunkMeta
from hillfire.types import ChunkId

log = logging.getLogger(__name__)

PAGE = 2048
"""Records of the successor listed at once."""
TAGS = 16384
"""Channels' tags told at once."""
BATCH = 16
"""Chunks sent under their locks at once: the sync's share of the bandwidth, besides memory."""
IN_FLIGHT = 2
"""Batches on their way."""
CALL_TIMEOUT_S = 5.0
RETRY_MIN_S = 0.02
RETRY_MAX_S = 1.0

_LIST = service.method("Storage", "ListChunks")
_DONE = service.method("Storage", "SyncDone")


async def resync(shell: TargetShell, chain: Chain, node: Node, peers: Peers) -> None:
    """Make the successor on ``node`` equal, and tell it. Cancelled when the chain changes."""
    wait_s = RETRY_MIN_S
    sent = conflicts = 0
    while shell.replica.stopped is None and shell.replica.version == chain.version:
        try:
            sent_now, failed, conflicts = await _pass(shell, chain, node, peers)
            sent += sent_now
            if conflicts:
                log.critical(
                    "event=resync_conflict chain=%d target=%d chunks=%d remedy=%r",
                    chain.id, shell.target, conflicts,
                    "the returning target has newer data than the serving one; it stays out",
                )  # fmt: skip
            elif not failed and await _complete(shell, chain, node, peers):
                log.info("event=resync_done chain=%d version=%d sent=%d",
                         chain.id, chain.version, sent)  # fmt: skip
                return
        except Error as exc:
            log.info("event=resync_retry chain=%d code=%s cause=%r",
                     chain.id, exc.code.name, exc.strerror)  # fmt: skip
        await asyncio.sleep(wait_s)
        wait_s = min(RETRY_MAX_S, wait_s * 2)


async def _pass(shell: TargetShell, chain: Chain, node: Node, peers: Peers) -> tuple[int, int, int]:
    """Compare everything once: how many chunks were sent, failed, are in conflict."""
    after = b""
    pending: set[asyncio.Task[int]] = set()
    sent = failed = conflicts = 0
    try:
        while True:
            request = pb.ListChunksRequest(
                chain=chain.id, chain_version=chain.version, after=after, limit=PAGE
            )
            page = await peers.grpc(node).call(_LIST, request, CALL_TIMEOUT_S)
            remote = {ChunkId(each.id): _remote(each) for each in page.chunks}
            last = None if page.end else ChunkId(page.chunks[-1].id)
            local = await shell.threads.call(_scan(shell, after, last))
            found = list(recovery.compare(local, remote))
            for each in found:
                log.debug("event=resync_differs chain=%d chunk=%s verdict=%s reason=%r",
                          chain.id, each.chunk.hex(), each.verdict.value, each.reason)  # fmt: skip
            conflicts += sum(each.verdict is recovery.Verdict.CONFLICT for each in found)
            names = [e.chunk for e in found if e.verdict is not recovery.Verdict.CONFLICT]
            for start in range(0, len(names), BATCH):
                if len(pending) >= IN_FLIGHT:
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    failed += sum(task.result() for task in done)
                batch = names[start : start + BATCH]
                pending.add(asyncio.create_task(_send(shell, chain, batch)))
                sent += len(batch)
            if last is None:
                break
            after = last
        failed += sum(await asyncio.gather(*pending))
        pending = set()
    finally:
        for task in pending:
            task.cancel()
    return sent, failed, conflicts


async def _send(shell: TargetShell, chain: Chain, chunks: Sequence[ChunkId]) -> int:
    """Have the replica send chunks and return how many did not arrive."""
    number, batch, future = shell.requests.open(len(chunks))
    del batch
    shell.handle(events.SyncArrived(number, chain.version, chunks))
    results = await future
    return sum(result.code != Code.OK for result in results)


async def _complete(shell: TargetShell, chain: Chain, node: Node, peers: Peers) -> bool:
    """Make commits wait for the successor from now on, then tell it that it is equal."""
    number, _, future = shell.requests.open(1)
    shell.handle(events.SyncCompleting(number, chain.version))
    results = await future
    if results[0].code != Code.OK:
        return False
    # From here on the successor takes part in every commit, so this table and its own say it all.
    tags = await shell.threads.call(lambda: list(shell.store.tags()))
    for start in range(0, max(1, len(tags)), TAGS):
        request = pb.SyncDoneRequest(
            chain=chain.id,
            chain_version=chain.version,
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
        await peers.grpc(node).call(_DONE, request, CALL_TIMEOUT_S)
    return True


def _remote(record: pb.ChunkRecord) -> recovery.Remote:
    return recovery.Remote(
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
            page = shell.store.scan(at, PAGE)
            for chunk, meta in page:
                if last is not None and chunk > last:
                    return found
                found[chunk] = meta
            if len(page) < PAGE:
                return found
            at = page[-1][0]

    return work
