"""Scrubber: walks all chunks of a node's targets slowly, and makes good what it finds wrong.

A pass has two parts. First the target's list of chunks is compared with those of the other serving
targets (``audit.py``): what is missing or old here is repaired from them (``repairs.py``); a target
that has a chunk otherwise than most stops and comes back through a resync, loudly. Then every byte
is read from the disk and verified; a damaged chunk is repaired at once.

The walk is paced so that it comes round once in the configured time, and takes its turns with the
syncs of the node (``turns.py``), so that foreground requests keep what is theirs.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hillfire.cluster import Chain, PublicState, Routing
from hillfire.config import StorageConfig
from hillfire.errors import Code, Error
from hillfire.proto import service
from hillfire.proto import storage_pb2 as pb
from hillfire.storage.audit import Finding, Judgement, Pace, differences, judge, still
from hillfire.storage.comparison import Remote
from hillfire.storage.peers import Peers
from hillfire.storage.repairs import Repairs
from hillfire.storage.resync import record_from_message
from hillfire.storage.shell import TargetShell
from hillfire.storage.targets import Target
from hillfire.storage.turns import Turns
from hillfire.types import ChunkId, TargetId

log = logging.getLogger(__name__)

PAGE = 2048
"""Records compared at once."""
STEP_BYTES = 4 * 1024 * 1024
"""Verified in one turn."""
LEAST_BYTES_PER_S = 256 * 1024
"""A small store is walked at that rate, however much time there is."""
SETTLE_S = 1.0
"""Between the two looks at a difference; an update passes a chain in much less."""
RETRY_S = 5.0
"""After a pass met an error, or while the target does not serve."""
SAVE_S = 60.0
"""How often the place of a slow walk is written down."""
DEFECT_S = 600.0
DAY_S = 86_400.0
CALL_TIMEOUT_S = 5.0

_LIST = service.method("Storage", "ListChunks")
_RECORDS = service.method("Storage", "GetRecords")


class Walk:
    """The passes over one target."""

    def __init__(self, target: Target, node: "Scrubber") -> None:
        """``run`` makes pass after pass."""
        self.target = target
        self.passes = 0
        self.bytes_done = self.bytes_total = self.chunks_done = 0
        self.failure = ""
        self._node = node
        self._wanted = False
        """by command: as fast as the throttle allows"""
        self._wake = asyncio.Event()

    def start_now(self) -> None:
        """Begin a pass from the start, at full speed."""
        self._wanted = True
        self._wake.set()

    def state(self) -> pb.ScrubState:
        """Tell how far it is and what was found."""
        counters = self.target.counters
        return pb.ScrubState(
            target=self.target.id,
            chain=self.target.chain,
            running=self._wanted,
            passes=self.passes,
            bytes_done=self.bytes_done,
            bytes_total=self.bytes_total,
            chunks_done=self.chunks_done,
            damaged=counters.damaged,
            behind=counters.behind,
            odd=counters.odd,
            repaired=counters.repaired,
            lost=counters.lost,
            failure=self.failure,
            findings=list(counters.findings),
        )

    async def run(self) -> None:
        """Make a pass each period, and one whenever it is asked for."""
        period_s = self._node.period_s
        while True:
            began = time.monotonic()
            self._wake.clear()
            hurried = self._wanted
            if hurried or period_s:
                try:
                    if not await self._pass(hurried, began + period_s):
                        continue
                    self.passes += 1
                    self.failure = ""
                    pause_s = began + period_s - time.monotonic()
                    log.info("event=scrubbed target=%d chunks=%d bytes=%d", self.target.id,
                             self.chunks_done, self.bytes_done)  # fmt: skip
                except Error as exc:
                    self.failure = exc.strerror or exc.code.name
                    pause_s = RETRY_S
                except Exception as exc:
                    log.error("event=defect target=%d", self.target.id, exc_info=exc)
                    self.failure = f"a defect, see the node's log: {exc!r}"
                    pause_s = DEFECT_S
                if hurried and not self.failure:
                    self._wanted = False
            else:
                pause_s = DAY_S
            if not self._wanted or self.failure:
                await self._sleep(max(RETRY_S, pause_s))

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _pass(self, hurried: bool, until: float) -> bool:
        """Make one pass; false if a hurried one is wanted instead."""
        self.bytes_done = self.bytes_total = self.chunks_done = 0
        await self._compare()
        after: ChunkId | None = None
        if not hurried:
            after, self.bytes_done, passed_s = await self._life()[0].threads.call(self._resume)
            until -= passed_s
        began_pass, saved = until - self._node.period_s, time.monotonic()
        while True:
            began = time.monotonic()
            shell, repairs = self._life()
            async with self._node.turns.turn(STEP_BYTES):
                done = await shell.threads.call(lambda: shell.store.scrub(after, STEP_BYTES))  # noqa: B023
            for chunk in done.damaged:
                repairs.schedule(chunk, "found by the scrubber")
            self.bytes_done += done.n_bytes
            after = done.last
            if after is None:
                await shell.threads.call(lambda: self._place.unlink(missing_ok=True))
                return True
            if not hurried:
                now = time.monotonic()
                if now - saved > SAVE_S:
                    saved = now
                    place = after
                    await shell.threads.call(lambda: self._save(place, now - began_pass))  # noqa: B023
                left = self.bytes_total - self.bytes_done
                rest_s = self._node.pace.rest_s(done.n_bytes, now - began, left, until - now)
                await self._sleep(rest_s)
                if self._wanted:
                    return False

    @property
    def _place(self) -> Path:
        return self.target.disk.directory / "scrub" / str(self.target.id)

    def _save(self, after: ChunkId, passed_s: float) -> None:
        """In a thread: remember where the walk is, for when the node is started again."""
        with contextlib.suppress(OSError):  # then it begins anew
            self._place.parent.mkdir(exist_ok=True)
            self._place.write_text(f"1 {after.hex()} {self.bytes_done} {passed_s:.0f}\n")

    def _resume(self) -> tuple[ChunkId | None, int, float]:
        """In a thread: return where an earlier process's walk was, its bytes, and its seconds."""
        try:
            version, after, done, passed_s = self._place.read_text().split()
            if version == "1" and float(passed_s) < self._node.period_s:
                return ChunkId(bytes.fromhex(after)), int(done), float(passed_s)
        except (OSError, ValueError):
            pass
        return None, 0, 0.0

    def _life(self) -> tuple[TargetShell, Repairs]:
        shell, repairs = self.target.shell, self.target.repairs
        if shell is None or repairs is None or shell.replica.stopped is not None:
            raise Error(Code.NOT_SERVING, f"target {self.target.id} is not up")
        return shell, repairs

    # ------------------------------------------------------------------ lists

    async def _compare(self) -> None:
        """Compare all records with those of the other serving targets.

        Raises:
            Error: NOT_SERVING, WRONG_CHAIN_VERSION: the chain changed, begin again later.
        """
        after = b""
        while True:
            shell, chain = self._serving()
            mine, last = await shell.threads.call(lambda: _own_page(shell, after))  # noqa: B023
            others = await asyncio.gather(
                *(
                    self._list(chain, target, after, last)
                    for target in chain.serving
                    if target != self.target.id
                )
            )
            self.chunks_done += len(mine)
            self.bytes_total += sum(record.length for record in mine.values())
            if suspects := sorted(differences(mine, others)):
                await self._look_closer(suspects)
            if last is None:
                return
            after = last
            await asyncio.sleep(0)

    def _serving(self) -> tuple[TargetShell, Chain]:
        shell, _ = self._life()
        chain = self._node.routing().chain(self.target.chain)
        if chain.state_of(self.target.id) is not PublicState.SERVING:
            raise Error(Code.NOT_SERVING, f"target {self.target.id} does not serve")
        return shell, chain

    async def _list(
        self, chain: Chain, target: TargetId, after: bytes, last: ChunkId | None
    ) -> dict[ChunkId, Remote]:
        """Return another target's records behind ``after`` up to ``last``."""
        grpc = self._node.peers.grpc(self._node.routing().node_of(target))
        found: dict[ChunkId, Remote] = {}
        while True:
            request = pb.ListChunksRequest(
                chain=chain.id, chain_version=chain.version, after=after, limit=PAGE
            )
            page = await grpc.call(_LIST, request, CALL_TIMEOUT_S)
            for each in page.chunks:
                if last is not None and each.id > last:
                    return found
                found[ChunkId(each.id)] = record_from_message(each)
            if page.end:
                return found
            after = page.chunks[-1].id

    async def _look_closer(self, suspects: Sequence[ChunkId]) -> None:
        """Look at what differs twice; act on what differs both times."""
        first = await self._judge(suspects)
        suspects = [c for c in suspects if first[c].finding in (Finding.BEHIND, Finding.ODD)]
        if not suspects:
            return
        await asyncio.sleep(SETTLE_S)
        second = await self._judge(suspects)
        found = {c: second[c] for c in suspects if still(first[c], second[c])}
        if not found:
            return
        shell, repairs = self._life()
        for chunk, judgement in found.items():
            if judgement.finding is Finding.BEHIND:
                repairs.schedule(chunk, judgement.reason, damaged=False)
        odd = {c: each for c, each in found.items() if each.finding is Finding.ODD}
        if not odd:
            return
        counters = self.target.counters
        counters.odd += len(odd)
        chunk, judgement = next(iter(odd.items()))
        text = (
            f"{len(odd)} chunks verify here and yet are not what other replicas have, for example "
            f"{chunk.hex()}: {judgement.reason}"
        )
        counters.note(f"target {self.target.id}: {text}; it is brought up to date")
        # Source: design.md 5.3: what verifies on both sides and differs goes offline for a resync.
        shell.fail(Error(Code.CORRUPT, text))
        raise Error(Code.NOT_SERVING, text)

    async def _judge(self, chunks: Sequence[ChunkId]) -> dict[ChunkId, Judgement]:
        shell, chain = self._serving()
        others = [target for target in chain.serving if target != self.target.id]
        request = pb.GetRecordsRequest(
            chain=chain.id, chain_version=chain.version, chunks=chunks[:PAGE]
        )
        replies = await asyncio.gather(
            *(
                self._node.peers.grpc(self._node.routing().node_of(target)).call(
                    _RECORDS, request, CALL_TIMEOUT_S
                )
                for target in others
            )
        )
        theirs = [[record_from_message(each) for each in reply.chunks] for reply in replies]
        mine = await shell.threads.call(lambda: _own_records(shell, chunks[:PAGE]))
        return {
            chunk: judge(
                mine[position],
                [(t, records[position]) for t, records in zip(others, theirs, strict=True)],
                chain.serving[0] == self.target.id,
            )
            for position, chunk in enumerate(chunks[:PAGE])
        }


class Scrubber:
    """The walks over all targets of a node."""

    def __init__(
        self, config: StorageConfig, turns: Turns, peers: Peers, routing: Callable[[], Routing]
    ) -> None:
        """Begin with no target."""
        self.turns = turns
        self.peers = peers
        self.routing = routing
        self.period_s = config.scrub_days * DAY_S
        self.pace = Pace(LEAST_BYTES_PER_S, config.scrub_bytes_per_s)
        self._walks: dict[TargetId, Walk] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, target: Target) -> None:
        """Walk a target from now on."""
        walk = self._walks[target.id] = Walk(target, self)
        self._tasks.append(asyncio.create_task(walk.run(), name=f"scrub-{target.id}"))

    def start_now(self, chain: int) -> None:
        """Begin a pass over the target of a chain, or over all."""
        for walk in self._of(chain):
            walk.start_now()

    def states(self, chain: int) -> list[pb.ScrubState]:
        """Tell how the walks stand."""
        return [walk.state() for walk in self._of(chain)]

    def _of(self, chain: int) -> Iterable[Walk]:
        return [w for w in self._walks.values() if not chain or w.target.chain == chain]

    async def stop(self) -> None:
        """Walk no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _own_page(shell: TargetShell, after: bytes) -> tuple[dict[ChunkId, Remote], ChunkId | None]:
    """Return a page of our own records, and its last id; None if it is the last page."""
    page = shell.store.scan(ChunkId(after) if after else None, PAGE)
    records = _remotes(shell, [chunk for chunk, _ in page])
    found = {c: record for c, record in records.items() if record is not None}
    return found, page[-1][0] if len(page) == PAGE else None


def _own_records(shell: TargetShell, chunks: Sequence[ChunkId]) -> list[Remote | None]:
    return list(_remotes(shell, chunks).values())


def _remotes(shell: TargetShell, chunks: Sequence[ChunkId]) -> dict[ChunkId, Remote | None]:
    """Return our own records as others would see them."""
    pending = {chunk: int(each.version) for chunk, each in shell.store.pending()}
    found: dict[ChunkId, Remote | None] = {}
    for chunk in chunks:
        meta = shell.store.get(chunk)
        found[chunk] = None if meta is None else Remote(
            meta.version, pending.get(chunk, 0), meta.length, meta.checksum, meta.chain_version,
            meta.epoch, meta.removed,
        )  # fmt: skip
    return found
