"""Chunk reads: a batch of (extent, offset, part) in, one byte count or error for each out.

Rounds: plan what is left to do, send all requests at once, sort the answers. Holes, and bytes
past a chunk's end but before the file's, are filled with zeros here. Bytes that came over tcp are
verified here; over shm the server verified them in place.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

from crc32c import crc32c

from hillfire.client import plan
from hillfire.client.actions import Call, Exchange, Operation, Outcome, Pause
from hillfire.client.core import Core
from hillfire.client.plan import Batch, Extent, Piece
from hillfire.client.retry import History, Verdict, after_read
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2
from hillfire.proto.wire.base import Part, Request
from hillfire.proto.wire.chunks import READ, READ_ITEMS, READ_RESULTS
from hillfire.region import Region
from hillfire.types import InodeId, chunk_id

ATTEMPT_S = 3.0
"""Of one request: more than a lease, after which another replica is asked."""

Entry: TypeAlias = tuple[Extent, int, Part]
Result: TypeAlias = "int | Error"


class Round:
    """One operation's work in progress."""

    __slots__ = (
        "core",
        "deadline",
        "delay_s",
        "histories",
        "patient",
        "refresh",
        "results",
        "short",
        "todo",
    )

    def __init__(self, core: Core, entries: int, deadline: float) -> None:
        """Nothing to do yet."""
        self.core = core
        self.deadline = deadline
        self.results: list[Result] = [0] * entries
        self.histories: dict[Piece, History] = {}
        self.todo: list[Piece] = []
        self.short: list[Piece] = []
        """pieces with bytes that are not stored, of files that may have gone"""
        self.delay_s = 0.0
        self.refresh = False
        self.patient = True

    def follow(self, piece: Piece, verdict: Verdict, error: Error) -> None:
        """Carry a verdict out: once more in the next round, or the entry has failed."""
        if verdict.again:
            self.todo.append(piece)
            self.delay_s = max(self.delay_s, verdict.delay_s)
            self.refresh = self.refresh or verdict.refresh
        else:
            self.give_up(piece, error)

    def give_up(self, piece: Piece, error: Error) -> None:
        """Fail the entry that a piece belongs to."""
        self.fail(piece.item, error)

    def needed(self, piece: Piece) -> bool:
        """Tell whether a piece is still of use: an entry that has failed needs no others."""
        return not isinstance(self.results[piece.item], Error)

    def fail(self, item: int, error: Error) -> None:
        """Remember an entry's first error."""
        if not isinstance(self.results[item], Error):
            self.results[item] = error

    def between(self) -> Operation[None]:
        """Refresh and wait as the last round's verdicts want it."""
        used = self.core.routes.version
        refresh, delay_s = self.refresh, self.delay_s
        self.refresh, self.delay_s = False, 0.0
        if refresh:
            yield from self.core.refresh(used, 0)
        if delay_s and not (refresh and self.core.routes.version > used):
            yield Pause(delay_s)
        self.todo = [piece for piece in self.todo if self.needed(piece)]


def read_batch(
    core: Core,
    entries: Sequence[Entry],
    deadline: float | None = None,
    patient: bool = True,
) -> Operation[list[Result]]:
    """Read every entry; those past the file's length come out short.

    ``patient``: when a request timed out, wait for the end of its parts' quarantine before they
    are used again; else fail the entry with BUSY at once. An entry's error is its result and
    never disturbs the others.
    """
    now = core.clock()
    work = Round(core, len(entries), now + core.io_timeout_s if deadline is None else deadline)
    work.patient = patient
    results = work.results
    core.routes.expire(now)
    single = _plan_single(core, entries[0]) if len(entries) == 1 else None
    if single is not None:
        results[0] = single.bytes
        outcomes = yield Exchange([_call(core, single, work.deadline)])
        _settle(work, single, outcomes[0])
        if not work.todo:
            if work.short:
                yield from _confirm(work)
            return results
        yield from work.between()
    else:
        work.todo = plan.split(entries, results, Part, reading=True)
    while work.todo:
        todo, work.todo = work.todo, []
        batches, stranded = _plan(core, work, todo)
        for piece in stranded:
            error = Error(Code.UNAVAILABLE, f"chain {piece.chain} has no serving target")
            _failed(work, piece, error, -1)
        for first in range(0, len(batches), plan.MAX_REQUESTS):
            wave = batches[first : first + plan.MAX_REQUESTS]
            outcomes = yield Exchange([_call(core, batch, work.deadline) for batch in wave])
            for batch, outcome in zip(wave, outcomes, strict=True):
                _settle(work, batch, outcome)
        if work.todo:
            yield from work.between()
    if work.short:
        yield from _confirm(work)
    return results


def _confirm(work: Round) -> Operation[None]:
    """Fail the reads of files that went while this client was not counted as alive.

    What is not stored reads as zeros, but the chunks of a file that was removed are not stored
    either: a mount that was paused for longer than its session must not take one for the other.
    """
    core = work.core
    inodes: dict[int, list[Piece]] = {}
    for piece in work.short:
        inodes.setdefault(int.from_bytes(piece.chunk[2:10], "big"), []).append(piece)
    for number, pieces in inodes.items():
        error: Error | None = None
        try:
            leased = core.leased
            request = meta_pb2.StatRequest(inode=number)
            inode = yield from core.meta("Stat", request, work.deadline)
            if not inode.links:  # its chunks may be on their way out
                error = Error(Code.STALE, f"inode {number} was removed while we were away")
            elif leased:
                core.confirmed.add(number)
        except Error as exc:
            error = exc
        if error is not None:
            for piece in pieces:
                work.fail(piece.item, error)


def _plan_single(core: Core, entry: Entry) -> Batch | None:
    """Plan a lone read within one chunk in a few steps; None if it is not as simple as that."""
    extent, offset, part = entry
    region, place, length = part
    inode, end, _, layout, _ = extent
    index, start = divmod(offset, layout.chunk_bytes)
    if (
        offset < 0
        or place < 0
        or length <= 0
        or place + length > region.size
        or region.quarantined
        or offset + length > end
        or start + length > layout.chunk_bytes
    ):
        return None
    chain = layout.chains[index % len(layout.chains)]
    line = core.routes.lines.get(chain)
    if line is None or not line.turns:
        return None
    chunk = chunk_id(InodeId(inode), index)
    batch = Batch(line.turns[next(core.turn) % len(line.turns)])
    batch.pieces.append(Piece(0, chunk, chain, start, part))
    batch.records.append((chunk, chain, line.version, start, 0))
    batch.bytes = length
    return batch


def fetch_part(
    core: Core, extent: Extent, offset: int, length: int, deadline: float | None = None
) -> Operation[Part]:
    """Return ``length`` bytes that lie within the file, in staging memory: ``unstage`` it.

    When a server stopped in the middle, its part of the staging memory stays in quarantine: then
    all is read once more into memory that no server can reach by itself.

    Raises:
        Error: as for a batch's entry.
    """
    deadline = core.deadline() if deadline is None else deadline
    part = core.stage(length)
    try:
        results = yield from read_batch(core, [(extent, offset, part)], deadline, patient=False)
        result = results[0]
        if isinstance(result, Error) and result.code not in (Code.BUSY, Code.TIMED_OUT):
            raise result
    except BaseException:
        core.unstage(part)
        raise
    if not isinstance(result, Error):
        return part
    core.unstage(part)
    own = Part(Region.wrap(bytearray(length)), 0, length)
    only((yield from read_batch(core, [(extent, offset, own)], deadline)))
    return own


def fetch(
    core: Core, extent: Extent, offset: int, length: int, into: memoryview | None = None
) -> Operation[Any]:
    """Return up to ``length`` bytes, or fill ``into`` and return the count; by staging memory.

    Raises:
        Error: as for a batch's entry.
    """
    plan.check_range(extent, offset, length)
    length = min(length, extent.length - offset)
    if length <= 0:
        return b"" if into is None else 0
    part = yield from fetch_part(core, extent, offset, length)
    try:
        view = part.region.view[part.offset : part.offset + length]
        if into is None:
            return bytes(view)
        into[:length] = view
        return length
    finally:
        core.unstage(part)


def _plan(core: Core, work: Round, todo: list[Piece]) -> tuple[list[Batch], list[Piece]]:
    lines, turn = core.routes.lines, next(core.turn)
    if not work.histories:
        return plan.plan_reads(todo, lines, turn)
    batcher, stranded = plan.Batcher(), []
    for piece in todo:
        line, history = lines.get(piece.chain), work.histories.get(piece)
        if line is None:
            stranded.append(piece)
            continue
        avoid, tail = (history.avoid, history.tail) if history else (set(), False)
        replica = plan.choose_again(line, avoid, tail, turn)
        if replica is None:
            stranded.append(piece)
        else:
            record = (piece.chunk, piece.chain, line.version, piece.start, 0)
            batcher.add(replica, piece, record)
    return batcher.batches, stranded


def _call(core: Core, batch: Batch, deadline: float) -> Call:
    parts = [piece[4] for piece in batch.pieces]
    request = Request(READ, READ_ITEMS.pack(cast(Any, batch.records)), (), parts)
    timeout_s = max(0.05, min(ATTEMPT_S, deadline - core.clock()))
    return Call(batch.node.endpoint, request, timeout_s)


def _settle(work: Round, batch: Batch, outcome: Outcome) -> None:
    """Sort the answer of one request."""
    error, pieces, lines = outcome.error, batch.pieces, work.core.routes.lines
    if error is None:
        try:
            answers = READ_RESULTS.tuples(outcome.body)
            if len(answers) != len(pieces):
                raise Error(Code.PROTOCOL, f"{len(answers)} results for {len(pieces)} reads")
        except Error as exc:
            error = exc
    node = batch.node.node
    if error is not None:
        work.core.note_failure(node, error.code)
        for piece in pieces:
            _failed(work, piece, error, plan.target_on(lines.get(piece.chain), node))
        return
    verified = outcome.verified
    for piece, (code, filled, checksum, _) in zip(pieces, answers, strict=True):
        region, place, length = piece[4]
        if code == 0 and filled <= length:
            if not verified and crc32c(region.view[place : place + filled]) != checksum:
                error = Error(Code.CHECKSUM, "bytes changed on their way from the storage node")
            elif filled < length:
                region.view[place + filled : place + length] = bytes(length - filled)
                if work.core.doubts(int.from_bytes(piece.chunk[2:10], "big")):
                    work.short.append(piece)
                continue
            else:
                continue
        else:
            error = error_of(code, piece, batch, "read")
        _failed(work, piece, error, plan.target_on(lines.get(piece.chain), node))


def error_of(code: int, piece: Piece, batch: Batch, what: str) -> Error:
    """Make the error of one item from the code in its result."""
    try:
        known = Code(code) if code else Code.PROTOCOL
    except ValueError:
        known = Code.PROTOCOL
    inode, index = int.from_bytes(piece.chunk[2:10]), int.from_bytes(piece.chunk[12:16])
    text = (
        f"{what} of chunk {index} of inode {inode} on chain {piece.chain} at node "
        f"{batch.node.node}: {known.name}"
    )
    return Error(known, text)


def _failed(work: Round, piece: Piece, error: Error, target: int) -> None:
    core = work.core
    history = work.histories.get(piece)
    if history is None:
        history = work.histories[piece] = History()
    line = core.routes.lines.get(piece.chain)
    serving = len(line.serving) if line is not None else 1
    now = core.clock()
    if error.code is Code.TIMED_OUT and not work.patient:
        try:
            piece.part.region.check(piece.part.offset, piece.part.length)
        except Error as busy:
            work.fail(piece.item, busy)
            return
    verdict = after_read(history, error.code, str(error), target, serving, now, work.deadline)
    work.follow(piece, verdict, error)


def only(results: list[Any]) -> int:
    """Return a batch of one's result, or raise its error."""
    result = results[0]
    if isinstance(result, Error):
        raise result
    return int(result)
