"""The Storage service: everything of a node but chunk reads and writes (proto/storage.proto)."""

import time
from collections.abc import Callable, Sequence

from hillfire import metrics
from hillfire.cluster import PublicState
from hillfire.errors import Code, Error
from hillfire.layout import MAX_CHUNK_BYTES
from hillfire.proto import cluster_pb2
from hillfire.proto import storage_pb2 as pb
from hillfire.proto.dispatch import CallContext
from hillfire.storage import cuts
from hillfire.storage.craq import events
from hillfire.storage.dataplane import DataPlane
from hillfire.storage.scrub import Scrubber
from hillfire.storage.shell import TargetShell
from hillfire.storage.store.base import ChunkMeta, Tag
from hillfire.storage.targets import Target
from hillfire.storage.turns import Turns
from hillfire.types import CHUNK_ID_BYTES, ChunkId, InodeId, Version, split_chunk_id

MAX_PAGE = 4096
TRUNCATE_BATCH = 1024
"""Chunks of one file changed at once."""

_EMPTY = memoryview(b"")


class StorageService:
    """Answers for the targets of one node."""

    def __init__(
        self,
        target_of: Callable[[int], Target | None],
        data: DataPlane,
        lease_valid: Callable[[], bool],
        turns: Turns,
        scrubber: Scrubber,
    ) -> None:
        """``target_of`` finds this node's target of a chain."""
        self._turns = turns
        self._scrubber = scrubber
        self._target_of = target_of
        self._data = data
        self._lease_valid = lease_valid

    async def truncate(
        self, request: pb.TruncateChunksRequest, context: CallContext
    ) -> pb.TruncateChunksReply:
        """Cut or remove a file's chunks of this chain, through the chain.

        A repeated call finds the chunks' epochs raised and changes nothing.
        """
        shell = self._serving(request.chain, request.chain_version)
        _check_chunk_bytes(request.chunk_bytes)
        inode = InodeId(request.inode)
        pending = cuts.under_way(shell.replica.holders, inode)
        found = await shell.threads.call(lambda: shell.store.scan_inode(inode))
        items = cuts.cuts(found, pending, request)
        for start in range(0, len(items), TRUNCATE_BATCH):
            part = items[start : start + TRUNCATE_BATCH]
            results = await self._data.update(
                request.chain, part, [_EMPTY] * len(part), events.WritesArrived, context.timeout_s
            )
            for result in results:
                # A newer epoch there: somebody has written or cut since, which stands.
                if result.code not in (Code.OK, Code.STALE_EPOCH):
                    code = Code(result.code)
                    raise Error(code, f"a chunk of inode {inode} was not cut: {code.name}")
        return pb.TruncateChunksReply(chunks=len(items))

    async def last_byte(
        self, request: pb.LastByteRequest, context: CallContext
    ) -> pb.LastByteReply:
        """Tell where the last chunk of a file on this chain ends, as an offset in the file."""
        shell = self._serving(request.chain, request.chain_version)
        _check_chunk_bytes(request.chunk_bytes)
        inode = InodeId(request.inode)
        found = await shell.threads.call(lambda: shell.store.scan_inode(inode))
        ends = [
            split_chunk_id(chunk)[1] * request.chunk_bytes + meta.length
            for chunk, meta in found
            if meta.length
        ]
        return pb.LastByteReply(length=max(ends, default=0))

    async def sync(self, request: pb.SyncRequest, context: CallContext) -> cluster_pb2.Empty:
        """Make what this node acknowledged for a chain durable."""
        shell = self._serving(request.chain, request.chain_version)
        began = time.monotonic_ns()
        try:
            await shell.syncs.join()
            metrics.WRITE.sync.observe(time.monotonic_ns() - began)
        except Error as exc:
            if exc.code is Code.IO:
                shell.fail(exc)
            raise
        return cluster_pb2.Empty()

    async def list_chunks(
        self, request: pb.ListChunksRequest, context: CallContext
    ) -> pb.ListChunksReply:
        """List a page of a syncing target's records for its predecessor."""
        shell = self._target(request.chain).active(request.chain_version)
        after = _chunk(request.after) if request.after else None
        limit = min(request.limit or MAX_PAGE, MAX_PAGE)

        def work() -> tuple[Sequence[tuple[ChunkId, ChunkMeta]], dict[ChunkId, int]]:
            pending = {chunk: int(each.version) for chunk, each in shell.store.pending()}
            return shell.store.scan(after, limit), pending

        page, pending = await shell.threads.call(work)
        records = [_record(chunk, meta, pending.get(chunk, 0)) for chunk, meta in page]
        return pb.ListChunksReply(chunks=records, end=len(page) < limit)

    async def get_records(
        self, request: pb.GetRecordsRequest, context: CallContext
    ) -> pb.GetRecordsReply:
        """Tell a serving target's records of given chunks, for another replica's scrubber."""
        shell = self._serving(request.chain, request.chain_version)
        chunks = [_chunk(name) for name in request.chunks[:MAX_PAGE]]

        def work() -> list[pb.ChunkRecord]:
            pending = {chunk: int(each.version) for chunk, each in shell.store.pending()}
            return [_record(c, shell.store.get(c), pending.get(c, 0)) for c in chunks]

        return pb.GetRecordsReply(chunks=await shell.threads.call(work))

    def load(self, request: pb.LoadRequest, context: CallContext) -> pb.LoadReply:
        """Tell how busy foreground requests keep this node."""
        return pb.LoadReply(busy=self._turns.busy())

    def scrub(self, request: pb.ScrubRequest, context: CallContext) -> pb.ScrubReply:
        """Check this node's chunks now, or tell how far that is."""
        if request.start:
            self._scrubber.start_now(request.chain)
        return pb.ScrubReply(targets=self._scrubber.states(request.chain))

    async def sync_done(
        self, request: pb.SyncDoneRequest, context: CallContext
    ) -> cluster_pb2.Empty:
        """Take note that this node's target of a chain is equal to its predecessor's.

        Tags are taken by a syncing target only: one that serves has its own, and believing
        another's would answer a write that was never done.
        """
        target = self._target(request.chain)
        if request.tags:
            shell = target.active(request.chain_version)
            if shell.replica.state is not PublicState.SYNCING:
                raise Error(Code.INVALID, f"target {shell.target} is not being brought up to date")
            tags = [
                (Tag(t.client, t.channel, t.sequence), _chunk(t.chunk), Version(t.version))
                for t in request.tags
            ]
            await shell.threads.call(lambda: shell.store.remember(tags))
            shell.handle(events.TagsArrived(tags))
        if request.refusal:
            target.refused(request.chain_version, request.refusal)
        elif not request.more:
            target.synced(request.chain_version)
        return cluster_pb2.Empty()

    def _target(self, chain: int) -> Target:
        if not self._lease_valid():
            raise Error(Code.LEASE_EXPIRED, "this node has lost touch with the manager")
        target = self._target_of(chain)
        if target is None:
            raise Error(Code.NOT_SERVING, f"no target of chain {chain} is on this node")
        return target

    def _serving(self, chain: int, chain_version: int) -> TargetShell:
        shell = self._target(chain).active(chain_version)
        if shell.replica.state is not PublicState.SERVING:
            raise Error(Code.NOT_SERVING, f"target {shell.target} does not serve")
        return shell


def _record(chunk: ChunkId, meta: ChunkMeta | None, pending: int) -> pb.ChunkRecord:
    if meta is None:
        return pb.ChunkRecord(id=chunk, pending=pending, removed=True)
    return pb.ChunkRecord(
        id=chunk,
        version=meta.version,
        pending=pending,
        chain_version=meta.chain_version,
        length=meta.length,
        checksum=meta.checksum,
        epoch=meta.epoch,
        removed=meta.removed,
    )


def _check_chunk_bytes(chunk_bytes: int) -> None:
    """Refuse a layout that no file has: what was computed with it would cut the wrong bytes.

    Raises:
        Error: INVALID.
    """
    if not 0 < chunk_bytes <= MAX_CHUNK_BYTES:
        raise Error(Code.INVALID, f"no file has chunks of {chunk_bytes} bytes")


def _chunk(name: bytes) -> ChunkId:
    """Return a chunk's id as a peer sent it.

    Raises:
        Error: INVALID if it is none.
    """
    if len(name) != CHUNK_ID_BYTES:
        raise Error(Code.INVALID, f"a chunk's id of {len(name)} bytes")
    return ChunkId(name)
