"""Chunk writes and their durability: a batch of (extent, offset, part), one count or error each.

Every piece becomes one update with one tag, which stays the same however often it is sent. Pieces
that overlap go one after another, in the order of the batch.
"""

from collections.abc import Sequence
from typing import Any, cast

from hillfire import metrics
from hillfire.client import plan
from hillfire.client.actions import Call, Exchange, Operation, Outcome, Pause
from hillfire.client.answers import Result, Round, error_of
from hillfire.client.core import CALL_TIMEOUT_S, Core
from hillfire.client.plan import Batch, Extent, Piece
from hillfire.client.reading import Entry
from hillfire.client.retry import History, after_call, after_write, delay_s
from hillfire.errors import Code, Error
from hillfire.native import crc32c
from hillfire.proto import meta_pb2, service, storage_pb2
from hillfire.proto.wire.base import Part, Request
from hillfire.proto.wire.chunks import NO_CHUNK, WRITE, WRITE_ITEMS, WRITE_RESULTS, Kind

ATTEMPT_S = 5.0
"""Of one request: a head may wait for its dead successor's lease, twice."""

MAX_CUT_PAUSE_S = 0.1
"""Between questions whether a truncate is over."""


class Update:
    """What stays the same of a piece across its retries."""

    __slots__ = ("channel", "checksum", "sequence")

    def __init__(self, channel: int, sequence: int, checksum: int) -> None:
        """Remember the tag, and the CRC32C of the payload."""
        self.channel = channel
        self.sequence = sequence
        self.checksum = checksum


class Writing(Round):
    """One batch of writes in progress."""

    __slots__ = ("extents", "others", "updates")

    def __init__(self, core: Core, entries: int, deadline: float) -> None:
        """Nothing to do yet."""
        super().__init__(core, entries, deadline)
        self.extents: list[Extent] = []
        self.others: dict[tuple[int, bytes], list[int]] = {}
        """entries that a joined piece stands for besides its own"""
        self.updates: dict[tuple[int, bytes], Update] = {}

    def give_up(self, piece: Piece, error: Error) -> None:
        """Fail every entry that a piece stands for."""
        self.fail(piece.item, error)
        for item in self.others.get((piece.item, piece.chunk), ()):
            self.fail(item, error)

    def needed(self, piece: Piece) -> bool:
        """Tell that every piece is: it may stand for other entries too."""
        return True


def write_batch(
    core: Core, entries: Sequence[Entry], deadline: float | None = None
) -> Operation[list[Result]]:
    """Write every entry to all replicas of its chains; the file's length is the caller's affair.

    An entry's error is its result and never disturbs the others.
    """
    now = core.clock()
    work = Writing(core, len(entries), now + core.io_timeout_s if deadline is None else deadline)
    results = work.results
    work.extents = [entry[0] for entry in entries]
    waiting = plan.split(entries, results, Part, reading=False)
    waiting, work.others = plan.merge(waiting, work.extents, Part)
    while waiting:
        now_, waiting = plan.without_overlap(waiting)
        yield from _write(work, now_)
    return work.ended(metrics.WRITE)


def _write(work: Writing, todo: list[Piece]) -> Operation[None]:
    """Write pieces of different chunks, until each is done or has failed."""
    core, work.todo = work.core, todo
    for item in {piece.item for piece in todo if work.extents[piece.item].cutting}:
        yield from _new_epoch(work, item)
    todo = work.todo
    for piece in todo:
        region, place, length = piece.part
        channel, sequence = core.channels.acquire()
        checksum = crc32c(region.view[place : place + length])
        work.updates[piece.item, piece.chunk] = Update(channel, sequence, checksum)
    while todo:
        batches, stranded = _plan(work, todo)
        work.todo = []
        for piece in stranded:
            error = Error(Code.UNAVAILABLE, f"chain {piece.chain} has no serving target")
            _failed(work, piece, error)
        for first in range(0, len(batches), plan.MAX_REQUESTS):
            wave = batches[first : first + plan.MAX_REQUESTS]
            outcomes = yield Exchange([_call(core, batch, work.deadline) for batch in wave])
            for batch, outcome in zip(wave, outcomes, strict=True):
                _settle(work, batch, outcome)
        for item in {p.item for p in work.todo if _is_stale(work, p)}:
            yield from _new_epoch(work, item)
        if work.todo:
            yield from work.between()
        todo = work.todo


def _plan(work: Writing, todo: list[Piece]) -> tuple[list[Batch], list[Piece]]:
    batcher, stranded = plan.Batcher(), []
    lines, client, extents = work.core.routes.lines, work.core.client, work.extents
    for piece in todo:
        line = lines.get(piece.chain)
        if line is None or not line.serving:
            stranded.append(piece)
            continue
        extent, update = extents[piece.item], work.updates[piece.item, piece.chunk]
        record = (
            piece.chunk,
            piece.chain,
            line.version,
            Kind.WRITE,
            piece.start,
            piece.part[2],
            update.checksum,
            extent.epoch,
            extent.layout.chunk_bytes,
            client,
            update.channel,
            update.sequence,
            NO_CHUNK,
        )
        batcher.add(line.serving[0], piece, record)
    return batcher.batches, stranded


def _call(core: Core, batch: Batch, deadline: float) -> Call:
    parts = [piece[4] for piece in batch.pieces]
    request = Request(WRITE, WRITE_ITEMS.pack(cast(Any, batch.records)), parts, ())
    timeout_s = max(0.05, min(ATTEMPT_S, deadline - core.clock()))
    return Call(batch.node.endpoint, request, timeout_s)


def _settle(work: Writing, batch: Batch, outcome: Outcome) -> None:
    """Sort the answer of one request."""
    error = outcome.error
    if error is None:
        try:
            answers = WRITE_RESULTS.tuples(outcome.body)
            if len(answers) != len(batch.pieces):
                text = f"{len(answers)} results for {len(batch.pieces)} writes"
                raise Error(Code.PROTOCOL, text)
        except Error as exc:
            error = exc
    if error is not None:
        work.core.note_failure(batch.node.node, error.code)
        for piece in batch.pieces:
            _failed(work, piece, error)
        return
    release = work.core.channels.release
    for piece, (code, _, _, _) in zip(batch.pieces, answers, strict=True):
        if code == 0:
            release(work.updates.pop((piece.item, piece.chunk)).channel)
        else:
            _failed(work, piece, error_of(code, piece, batch.node.node, "write"))


def _failed(work: Writing, piece: Piece, error: Error) -> None:
    history = work.histories.get(piece)
    if history is None:
        history = work.histories[piece] = History()
    verdict = after_write(history, error.code, str(error), work.core.clock(), work.deadline)
    work.follow(piece, verdict, error)
    update = work.updates[piece.item, piece.chunk]
    if not verdict.again:
        # A channel whose update may still arrive is not used again.
        if not error.retry:
            work.core.channels.release(update.channel)
    elif error.code is Code.CHECKSUM:
        region, place, length = piece.part
        update.checksum = crc32c(region.view[place : place + length])


def _is_stale(work: Writing, piece: Piece) -> bool:
    history = work.histories.get(piece)
    return history is not None and history.code is Code.STALE_EPOCH


def _new_epoch(work: Writing, item: int) -> Operation[None]:
    """Learn an inode's new epoch, to write after the truncate that overtook us.

    The metadata service publishes it when all chains have been cut. Until then this asks again,
    ever more slowly, up to the deadline: a write in that epoch would keep the cut from its chunk.
    """
    core, old, count = work.core, work.extents[item], 0
    request = meta_pb2.StatRequest(inode=old.inode)
    try:
        while True:
            inode = yield from core.meta("Stat", request, work.deadline)
            if inode.epoch > old.epoch or inode.cut_epoch <= inode.epoch:
                work.extents[item] = old._replace(epoch=inode.epoch, cutting=False)
                return
            count += 1
            pause = min(MAX_CUT_PAUSE_S, delay_s(count))
            if core.clock() + pause >= work.deadline:
                text = f"a truncate of inode {old.inode} is under way and does not end"
                raise Error(Code.TIMED_OUT, text)
            yield Pause(pause)
    except Error as exc:
        if exc.code in (Code.NOT_FOUND, Code.STALE):
            exc = Error(Code.STALE, f"inode {old.inode} went while it was written: {exc}")
        for piece in work.todo:
            if piece.item == item:
                work.give_up(piece, exc)
        work.todo = [piece for piece in work.todo if piece.item != item]


def sync(
    core: Core, extent: Extent, start: int, end: int, deadline: float | None = None
) -> Operation[None]:
    """Make durable, on every serving replica, what was written to [start, end) of a file.

    A chain that changes meanwhile is asked again, with the members it then has.

    Raises:
        Error: the first that does not pass before the deadline.
    """
    deadline = core.deadline() if deadline is None else deadline
    method = service.method("Storage", "Sync")
    todo, histories = plan.chains_of(extent, start, end), dict[int, History]()
    while todo:
        used, calls, owners = core.routes.version, list[Call](), list[int]()
        failed: dict[int, Error] = {}
        for chain in todo:
            line = core.routes.lines.get(chain)
            if line is None or not line.serving:
                failed[chain] = Error(Code.UNAVAILABLE, f"chain {chain} has no serving target")
                continue
            message = storage_pb2.SyncRequest(chain=chain, chain_version=line.version)
            request = service.encode(method, message)
            for replica in line.serving:
                calls.append(Call(replica.endpoint, request, 2 * CALL_TIMEOUT_S))
                owners.append(chain)
        outcomes: list[Outcome] = (yield Exchange(calls)) if calls else []
        for chain, outcome in zip(owners, outcomes, strict=True):
            if outcome.error is not None:
                failed.setdefault(chain, outcome.error)
        pause, todo = 0.0, sorted(failed)
        for chain, error in failed.items():
            history = histories.setdefault(chain, History())
            # A target whose disk fails leaves the chain: then the others are asked.
            code = Code.NOT_SERVING if error.code is Code.IO else error.code
            verdict = after_call(history, code, str(error), core.clock(), deadline)
            if not verdict.again:
                raise error
            pause = max(pause, verdict.delay_s)
        if todo:
            yield from core.refresh(used, 0)
            yield Pause(pause)
