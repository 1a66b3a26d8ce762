"""Chunk reads: a batch of (extent, offset, part) in, one byte count or error for each out.

Rounds: plan what is left to do, send all requests at once, sort the answers. A large batch begins
as arrays (``bulk.py``); what does not go well at the first try is retried piece by piece like the
rest. Holes, and bytes past a chunk's end but before the file's, are filled with zeros here. Bytes
that came over tcp are verified here; over shm the server verified them in place.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from crc32c import crc32c

from hillfire.client import bulk, plan
from hillfire.client.actions import Call, Exchange, Operation, Outcome, Pause
from hillfire.client.bulk import Bulk
from hillfire.client.core import Core
from hillfire.client.items import Items
from hillfire.client.plan import Batch, Extent, Piece, Replica
from hillfire.client.retry import History, Verdict, after_read
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2
from hillfire.proto.wire.base import Part, Request
from hillfire.proto.wire.chunk_arrays import read_results
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
    work = _begin(core, len(entries), deadline, patient)
    single = _plan_single(core, entries[0]) if len(entries) == 1 else None
    if single is not None:
        work.results[0] = single.bytes
        outcomes = yield Exchange([_call(core, single, work.deadline)])
        _settle(work, single, outcomes[0])
        if work.todo or work.short:
            yield from work.between()
            yield from _finish(work)
        return work.results
    work.todo = plan.split(entries, work.results, Part, reading=True)
    yield from _finish(work)
    return work.results


def read_items(
    core: Core, items: Items, deadline: float | None = None, patient: bool = True
) -> Operation[list[Result]]:
    """Read a batch that is given as arrays, as ``read_batch`` does."""
    work = _begin(core, 0, deadline, patient)
    planned = None
    if len(items) >= bulk.FEWEST:
        planned = bulk.plan_reads(items, core.table(), next(core.turn))
    if planned is None:
        return (yield from read_batch(core, list(items.entries()), work.deadline, patient))
    requests, counts = planned
    work.results = counts.tolist()
    for first in range(0, len(requests), plan.MAX_REQUESTS):
        wave = requests[first : first + plan.MAX_REQUESTS]
        calls = [_request(core, each.node, each.body, each.parts, work.deadline) for each in wave]
        outcomes = yield Exchange(calls)
        for request, outcome in zip(wave, outcomes, strict=True):
            _settle_bulk(work, request, outcome)
    if work.todo or work.short:
        yield from work.between()
        yield from _finish(work)
    return work.results


def _begin(core: Core, entries: int, deadline: float | None, patient: bool) -> Round:
    now = core.clock()
    core.routes.expire(now)
    work = Round(core, entries, now + core.io_timeout_s if deadline is None else deadline)
    work.patient = patient
    return work


def _finish(work: Round) -> Operation[None]:
    """Do what is left to do, round by round."""
    core = work.core
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
    body = READ_ITEMS.pack(cast(Any, batch.records))
    return _request(core, batch.node, body, parts, deadline)


def _request(
    core: Core, node: Replica, body: bytes, parts: Sequence[Part], deadline: float
) -> Call:
    timeout_s = max(0.05, min(ATTEMPT_S, deadline - core.clock()))
    return Call(node.endpoint, Request(READ, body, (), parts), timeout_s)


def _settle(work: Round, batch: Batch, outcome: Outcome) -> None:
    """Sort the answer of one request."""
    error, pieces, node = outcome.error, batch.pieces, batch.node.node
    if error is None:
        try:
            answers = READ_RESULTS.tuples(outcome.body)
            if len(answers) != len(pieces):
                raise Error(Code.PROTOCOL, f"{len(answers)} results for {len(pieces)} reads")
        except Error as exc:
            error = exc
    if error is not None:
        _request_failed(work, node, pieces, error)
        return
    verified = outcome.verified
    for piece, (code, filled, checksum, _) in zip(pieces, answers, strict=True):
        if code or filled != piece[4][2] or not verified:
            _settle_piece(work, piece, node, code, filled, None if verified else checksum)


def _settle_bulk(work: Round, request: Bulk, outcome: Outcome) -> None:
    """Sort the answer of one request of a large batch: look closer at what is not as asked."""
    error, node, parts = outcome.error, request.node.node, request.parts
    if error is None:
        try:
            answers = read_results(outcome.body, len(parts))
        except Error as exc:
            error = exc
    if error is not None:
        _request_failed(work, node, [request.piece(at) for at in range(len(parts))], error)
        return
    checksums = answers["checksum"]
    wrong = (answers["code"] != 0) | (answers["filled"] != parts.lengths)
    if not outcome.verified:
        view = parts.region.view
        ends = (parts.offsets + parts.lengths).tolist()
        found = [
            crc32c(view[start:end]) for start, end in zip(parts.offsets.tolist(), ends, strict=True)
        ]
        wrong |= checksums != np.array(found, np.uint32)
    if not wrong.any():
        return
    for at in np.flatnonzero(wrong).tolist():
        checksum = None if outcome.verified else int(checksums[at])
        code, filled = int(answers["code"][at]), int(answers["filled"][at])
        _settle_piece(work, request.piece(at), node, code, filled, checksum)


def _settle_piece(
    work: Round, piece: Piece, node: int, code: int, filled: int, checksum: int | None
) -> None:
    """Sort one answer: verify what has a ``checksum``, fill up what came out short."""
    region, place, length = piece[4]
    if code or filled > length:
        error = error_of(code, piece, node, "read")
    elif checksum is not None and crc32c(region.view[place : place + filled]) != checksum:
        error = Error(Code.CHECKSUM, "bytes changed on their way from the storage node")
    else:
        if filled < length:
            region.view[place + filled : place + length] = bytes(length - filled)
            if work.core.doubts(int.from_bytes(piece.chunk[2:10], "big")):
                work.short.append(piece)
        return
    _failed(work, piece, error, plan.target_on(work.core.routes.lines.get(piece.chain), node))


def _request_failed(work: Round, node: int, pieces: Sequence[Piece], error: Error) -> None:
    """Take note that a whole request failed."""
    work.core.note_failure(node, error.code)
    lines = work.core.routes.lines
    for piece in pieces:
        _failed(work, piece, error, plan.target_on(lines.get(piece.chain), node))


def error_of(code: int, piece: Piece, node: int, what: str) -> Error:
    """Make the error of one item from the code in its result."""
    try:
        known = Code(code) if code else Code.PROTOCOL
    except ValueError:
        known = Code.PROTOCOL
    inode, index = int.from_bytes(piece.chunk[2:10]), int.from_bytes(piece.chunk[12:16])
    text = (
        f"{what} of chunk {index} of inode {inode} on chain {piece.chain} at node "
        f"{node}: {known.name}"
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
