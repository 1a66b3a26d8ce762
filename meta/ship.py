"""Ships the metadata's log to storage nodes, so that it does not die with its disk.

Each copy has a task: it asks how far the copy goes, sends what follows every few hundred
milliseconds, and a snapshot where nothing follows: at first, after a crash (the last records were
only in the dead process's memory), and when the copy's log has grown. A snapshot travels between
the batches, so that a good copy stays good while the next one is made.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from hillfire.cluster import Endpoint, Node, NodeKind, Routing
from hillfire.errors import Code, Error
from hillfire.meta.copies import choose
from hillfire.meta.engine.base import Engine
from hillfire.meta.journal import Journal
from hillfire.proto import metalog_format as form
from hillfire.proto import metalog_pb2 as pb
from hillfire.proto.cluster_pb2 import Empty
from hillfire.proto.service import CallContext, GrpcClient, method
from hillfire.types import NodeId

log = logging.getLogger(__name__)

INTERVAL_S = 0.2
BATCH_BYTES = 1 << 20
PIECE_BYTES = 256 << 10
"""Of a snapshot in one message: reading that much takes the loop some two milliseconds."""
BLOCK_BYTES = 64 << 10
MIN_LOG_BYTES = 64 << 20
"""A copy's log gets this long, and as long as twice the snapshot, before there is another one."""
CALL_TIMEOUT_S = 5.0
RETRY_S = 0.25
CHOOSE_S = 0.5
REPLACE_S = 10.0
"""After so long without a node that kept a copy, another one gets it."""
SETTLE_S = 5.0
LOUD_BEHIND_MS = 1000
LOUD_EVERY_S = 5.0

_POSITION = method("MetaLog", "Position")
_APPEND = method("MetaLog", "Append")
_SNAPSHOT = method("MetaLog", "Snapshot")


class Snapshot:
    """Everything that is in the engine, as pieces to be sent."""

    def __init__(self, engine: Engine, journal: Journal) -> None:
        """See the engine as it is now; what is committed later is in the log."""
        self.sequence = journal.sequence
        self.time_ns = time.time_ns()
        self.offset = 0
        self._pairs = engine.freeze()
        head = form.SnapshotHead(journal.history, journal.epoch, self.sequence, self.time_ns)
        self._blocks = self._encode(form.snapshot_head(head))

    def piece(self) -> tuple[bytes, bool]:
        """Return the next piece, and whether it is the last."""
        parts, size = list[bytes](), 0
        for block in self._blocks:
            parts.append(block)
            size += len(block)
            if size >= PIECE_BYTES:
                return b"".join(parts), False
        return b"".join(parts), True

    def _encode(self, head: bytes) -> Iterator[bytes]:
        yield head
        block, size, count = list[form.Pair](), 0, 0
        for pair in self._pairs:
            block.append(pair)
            size += len(pair[0]) + len(pair[1])
            if size >= BLOCK_BYTES:
                count += len(block)
                yield form.snapshot_block(block)
                block, size = [], 0
        if block:
            yield form.snapshot_block(block)
        yield form.snapshot_end(count + len(block))


class Copy:
    """One copy, and the task that keeps it up to date."""

    def __init__(self, shipper: "Shipper", node: Node) -> None:
        """Start the task."""
        self.node = node.id
        self.address = node.endpoint.grpc
        self.complete = False
        self.acknowledged = 0
        """the last sequence of this epoch that is there"""
        self.problem = "not reached yet"
        self.since_s = time.monotonic()
        self.last_seen_s = time.monotonic()
        self._shipper = shipper
        self._snapshot: Snapshot | None = None
        self._snapshot_bytes = 0
        self._task = asyncio.create_task(self._run(), name=f"ship-to-{node.id}")

    def behind_ms(self) -> int:
        """Return how old the oldest commit is that this copy lacks."""
        if not self.complete:
            return int((time.monotonic() - self.since_s) * 1000) + 1
        age_ns = self._shipper.journal.age_ns(self.acknowledged)
        return -(-age_ns // 1_000_000)

    async def stop(self) -> None:
        """End the task."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):  # logged where it happened
            await self._task

    async def _run(self) -> None:
        while True:
            client = GrpcClient(self.address)
            try:
                await self._session(client)
            except Error as error:
                if self.problem != error.strerror:
                    log.warning("event=copy_failed node=%d error=%r", self.node, str(error))
                self.problem = error.strerror or error.code.name
                if error.code is Code.STALE:
                    self._shipper.refused(error)
            except Exception:
                log.exception("event=shipping_failed node=%d", self.node)
                self.problem = "a defect: see the log"
            finally:
                await client.close()
            self._lost()
            await asyncio.sleep(RETRY_S)

    def _lost(self) -> None:
        """Go back to knowing nothing of this copy but what it acknowledged."""
        self._snapshot = None

    async def _session(self, client: GrpcClient) -> None:
        """Bring the copy up to date and keep it so, until something fails.

        Raises:
            Error: what the node answered; MISSING_UPDATE when the records it needs are gone.
        """
        journal, cluster = self._shipper.journal, self._shipper.cluster()
        at = await client.call(_POSITION, pb.LogRequest(cluster=cluster), CALL_TIMEOUT_S)
        if reason := refusal(at, journal):
            text = f"node {self.node}: {reason}: rebuild it with `hillfire meta restore`"
            raise Error(Code.STALE, text)
        ours = at.history == journal.history
        if ours and at.epoch == journal.epoch and journal.has(at.sequence + 1):
            after, follows = at.sequence, journal.epoch
        elif ours and (at.epoch, at.sequence) == journal.start[1:] and journal.has(at.sequence + 1):
            after, follows = at.sequence, at.epoch
        else:
            if ours and (at.epoch, at.sequence) > journal.start[1:]:
                log.error(
                    "event=transactions_lost_here node=%d have=%s copy_had=%s",
                    self.node,
                    journal.start[1:],
                    (at.epoch, at.sequence),
                )
            after, follows = journal.sequence, 0
        self.complete = bool(at.complete and follows)
        if not self.complete:
            self._snapshot = Snapshot(self._shipper.engine, journal)
        self._take(after)
        while True:
            if not journal.has(after + 1):
                raise Error(Code.MISSING_UPDATE, "it fell too far behind: it gets a snapshot")
            records, last = journal.take(after + 1, BATCH_BYTES)
            if records:
                message = pb.LogAppend(
                    cluster=cluster,
                    history=journal.history,
                    epoch=journal.epoch,
                    first=after + 1,
                    follows_epoch=follows,
                    records=records,
                )
                at = await client.call(_APPEND, message, CALL_TIMEOUT_S)
                after, follows = last, journal.epoch
                self._take(after)
            if self._snapshot is not None:
                at = await self._send_piece(client, self._snapshot)
            elif at.log_bytes > max(MIN_LOG_BYTES, 2 * self._snapshot_bytes):
                self._snapshot = Snapshot(self._shipper.engine, journal)
            elif len(records) < BATCH_BYTES:
                await self._shipper.pause()

    async def _send_piece(self, client: GrpcClient, snapshot: Snapshot) -> pb.LogPosition:
        journal = self._shipper.journal
        piece, last = snapshot.piece()
        message = pb.LogSnapshot(
            cluster=self._shipper.cluster(),
            history=journal.history,
            epoch=journal.epoch,
            sequence=snapshot.sequence,
            time_ns=snapshot.time_ns,
            offset=snapshot.offset,
            piece=piece,
            last=last,
        )
        answer: pb.LogPosition = await client.call(_SNAPSHOT, message, 4 * CALL_TIMEOUT_S)
        snapshot.offset += len(piece)
        if last:
            self._snapshot, self._snapshot_bytes = None, snapshot.offset
            log.info("event=snapshot_shipped node=%d bytes=%d", self.node, snapshot.offset)
            self.complete = answer.complete
            self._take(self.acknowledged)
        return answer

    def _take(self, acknowledged: int) -> None:
        self.acknowledged = acknowledged
        self.last_seen_s = time.monotonic()
        if self.complete:
            self.problem = ""
        self._shipper.acknowledged()


class Shipper:
    """Chooses where copies are, watches how far behind they are, and tells."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        wanted: int,
        *,
        routing: Callable[[], Routing],
        cluster: Callable[[], str],
        host: str,
        refused: Callable[[Error], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        """``host``: of this process, as nodes tell theirs; ``refused``: a copy is newer."""
        self.engine = engine
        self.journal = journal
        self.cluster = cluster
        self.refused = refused
        self._wanted = wanted
        self._routing = routing
        self._host = host
        self._interval_s = interval_s
        self._copies: dict[NodeId, Copy] = {}
        self._news = asyncio.Event()
        self._hurry = asyncio.Event()
        self._told_s = 0.0
        self._since_s = time.monotonic()

    async def run(self) -> None:
        """Keep the copies until cancelled."""
        try:
            while True:
                await self._choose()
                self._tell()
                await asyncio.sleep(CHOOSE_S)
        finally:
            for copy in self._copies.values():
                await copy.stop()
            self._copies.clear()

    async def shipped(self, sequence: int, timeout_s: float) -> bool:
        """Wait until a copy has everything up to ``sequence``; False if none does in time.

        Without copies there is nothing to wait for: that is told elsewhere.
        """
        self._hurry.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._best() < sequence:
                    self._news.clear()
                    await self._news.wait()
        return self._best() >= sequence

    async def drain(self, timeout_s: float) -> None:
        """Before the end: give the copies what is left, so that the next start can go on."""
        await self.shipped(self.journal.sequence, timeout_s)

    def copies(self, request: Empty, context: CallContext) -> pb.CopiesReply:
        """Tell how far each copy goes: the MetaCopies service."""
        nodes = self._routing().nodes
        reply = pb.CopiesReply(
            wanted=self._possible(),
            epoch=self.journal.epoch,
            sequence=self.journal.sequence,
            age_ms=int((time.monotonic() - self._since_s) * 1000),
        )
        for copy in self._copies.values():
            known = nodes.get(copy.node)
            problem = copy.problem
            if not problem and known is not None and not known.alive:
                problem = "the node is dead"
            reply.copies.add(
                node=copy.node,
                name=copy.address,
                complete=copy.complete,
                behind_ms=copy.behind_ms(),
                problem=problem,
            )
        return reply

    async def pause(self) -> None:
        """Wait until there should be enough for a batch, or somebody is waiting for it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._interval_s):
                await self._hurry.wait()
        if self._hurry.is_set():
            await asyncio.sleep(0)  # the copies' tasks all see it
            self._hurry.clear()

    def acknowledged(self) -> None:
        """Let go of what every copy has, and wake who waits."""
        if self._copies:
            self.journal.forget(min(copy.acknowledged for copy in self._copies.values()))
        self._news.set()

    async def settled(self) -> None:
        """Wait until a copy has everything that was committed so far, if there is one at all.

        For what cannot be taken back: a restore must not bring names back whose chunks are gone.
        """
        if self._best() >= 0:
            await self.shipped(self.journal.sequence, SETTLE_S)

    def _possible(self) -> int:
        """Return how many copies there can be."""
        nodes = self._routing().nodes.values()
        return min(self._wanted, sum(node.kind is NodeKind.STORAGE for node in nodes))

    def _best(self) -> int:
        return max((c.acknowledged for c in self._copies.values() if c.complete), default=-1)

    async def _choose(self) -> None:
        """Start and stop copies as nodes come and go."""
        nodes, now_s = self._routing().nodes, time.monotonic()
        for number, copy in list(self._copies.items()):
            node = nodes.get(number)
            lost = node is None or (not node.alive and now_s - copy.last_seen_s > REPLACE_S)
            others = any(
                each.alive and each.kind is NodeKind.STORAGE and each.id not in self._copies
                for each in nodes.values()
            )
            moved = node is not None and node.endpoint.grpc != copy.address
            if moved or (lost and others):
                del self._copies[number]
                await copy.stop()
        for number in choose(nodes, list(self._copies), self._wanted, self._host):
            if number not in self._copies:
                self._copies[number] = Copy(self, nodes[number])

    def _tell(self) -> None:
        """Be loud when a loss of this disk would cost more than a second."""
        behind = [copy.behind_ms() for copy in self._copies.values()]
        whole = sum(each <= LOUD_BEHIND_MS for each in behind)
        now_s = time.monotonic()
        if (
            whole < self._possible()
            and now_s - self._told_s > LOUD_EVERY_S
            and self._started(now_s)
        ):
            self._told_s = now_s
            log.error(
                "event=metadata_copies_behind whole=%d wanted=%d best_ms=%s",
                whole,
                self._possible(),
                min(behind, default=None),
            )

    def _started(self, now_s: float) -> bool:
        """Tell whether the copies have had time to begin."""
        return bool(self._copies) and any(
            now_s - copy.since_s > LOUD_EVERY_S for copy in self._copies.values()
        )


def refusal(at: pb.LogPosition, journal: Journal) -> str:
    """Return why a database must not be served, if a copy at ``at`` shows that, else nothing.

    It is another database of the same cluster, or an older state of the same one: a backup, say.
    """
    if at.history not in (0, journal.history):
        return "it has a copy of other metadata than this database"
    if at.epoch > journal.start.epoch and at.epoch != journal.epoch:
        return "it has a copy of newer metadata than this database"
    return ""


async def refused_by(
    journal: Journal, cluster: str, nodes: list[tuple[int, Endpoint]], timeout_s: float
) -> str:
    """Return which node shows that a database must not be served, and why, else nothing.

    Nodes that do not answer are passed over: they are asked again when there are copies to make.
    """

    async def ask(number: int, endpoint: Endpoint) -> str:
        client = GrpcClient(endpoint.grpc)
        try:
            at = await client.call(_POSITION, pb.LogRequest(cluster=cluster), timeout_s)
        except Error:
            return ""
        finally:
            await client.close()
        reason = refusal(at, journal)
        return f"storage node {number} ({endpoint.grpc}): {reason}" if reason else ""

    answers = await asyncio.gather(*(ask(*each) for each in nodes))
    return next((answer for answer in answers if answer), "")
