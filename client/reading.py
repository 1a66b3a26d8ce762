"""Chunk reads: a batch of (extent, offset, part) in, one byte count or error for each out.

Rounds: plan what is left to do (``plan.py``, ``bulk.py``, over the replicas that ``load.py``
expects to answer first), have it sent and hedged (``asking.py``), sort the answers
(``answers.py``). A large batch of small reads begins as arrays; what does not go well at the
first try is retried piece by piece like the rest.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias, cast

from hillfire import metrics
from hillfire.client import bulk, plan
from hillfire.client.actions import Call, Operation
from hillfire.client.answers import Result as Result
from hillfire.client.answers import Round, failed, settle, settle_bulk
from hillfire.client.asking import ask, ask_plainly
from hillfire.client.bulk import Bulk
from hillfire.client.core import Core
from hillfire.client.hedged import Ask, Moved, read_call
from hillfire.client.items import Items
from hillfire.client.plan import Batch, Extent, Piece, Replica
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2
from hillfire.proto.wire.base import Part
from hillfire.proto.wire.chunks import READ_ITEMS
from hillfire.region import Region
from hillfire.types import InodeId, chunk_id

Entry: TypeAlias = tuple[Extent, int, Part]


def read_batch(
    core: Core,
    entries: Sequence[Entry],
    deadline: float | None = None,
    patient: bool = True,
    moved: list[Moved] | None = None,
) -> Operation[list[Result]]:
    """Read every entry; those past the file's length come out short.

    ``patient``: when a request timed out, wait for the end of its parts' quarantine before they
    are used again; else fail the entry with BUSY at once. ``moved``: take bytes from elsewhere
    where something may still land in an entry's part (``asking.Moved``). An entry's error is its
    result and never disturbs the others.
    """
    work = _begin(core, len(entries), deadline, patient)
    work.moved = moved
    single = _plan_single(core, entries[0]) if len(entries) == 1 else None
    if single is not None:
        work.results[0] = n_bytes = single.bytes
        node, region, hedging = single.node[1], entries[0][2][0], core.hedging
        if (moved is None and region.fd >= 0 and node in hedging.direct) or not hedging.enabled:
            call = _call(core, single, work.deadline)
            outcome = yield from ask_plainly(core, node, call, n_bytes, core.clock())
            settle(work, single, outcome)
        else:
            yield from ask(core, (_ask(work, single),), work.deadline, moved)
        if work.todo or work.short:
            yield from work.between()
            yield from _finish(work)
        return work.ended(metrics.READ, single.bytes)
    work.todo = plan.split(entries, work.results, Part, reading=True)
    yield from _finish(work)
    return work.ended(metrics.READ)


def read_items(
    core: Core, items: Items, deadline: float | None = None, patient: bool = True
) -> Operation[list[Result]]:
    """Read a batch that is given as arrays, as ``read_batch`` does."""
    work = _begin(core, 0, deadline, patient)
    planned = None
    if len(items) >= bulk.FEWEST and items.lengths.mean() < plan.LARGE:
        left_out = core.loads.left_out(core.clock())
        table = core.table()
        planned = bulk.plan_reads(
            items, table.without(left_out) if left_out else table, next(core.turn)
        )
    if planned is None:
        return (yield from read_batch(core, list(items.entries()), work.deadline, patient))
    requests, counts = planned
    work.results = counts.tolist()
    asks = [_ask_bulk(work, each) for each in requests]
    yield from ask(core, asks, work.deadline)
    if work.todo or work.short:
        yield from work.between()
        yield from _finish(work)
    return work.ended(metrics.READ, int(counts.sum()))


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
            failed(work, piece, error, -1)
        if batches:
            asks = [_ask(work, batch) for batch in batches]
            yield from ask(core, asks, work.deadline, work.moved)
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
    turns: Sequence[Replica] = line.turns
    turn, loads = next(core.turn), core.loads
    if length >= plan.LARGE:
        batch = Batch(loads.choose(turns, length, turn, core.clock()))
    else:
        if loads.slow:
            turns = loads.turns(turns, core.clock())
        batch = Batch(turns[turn % len(turns)])
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
    part, moved = core.stage(length), list[Moved]()
    try:
        results = yield from read_batch(core, [(extent, offset, part)], deadline, False, moved)
        result = results[0]
        if isinstance(result, Error) and result.code not in (Code.BUSY, Code.TIMED_OUT):
            raise result
        if not isinstance(result, Error):
            return gathered(core, part, moved)
    except BaseException:
        unstage_all(core, part, moved)
        raise
    unstage_all(core, part, moved)
    own = Part(Region.wrap(bytearray(length)), 0, length)
    only((yield from read_batch(core, [(extent, offset, own)], deadline)))
    return own


def gathered(core: Core, part: Part, moved: list[Moved]) -> Part:
    """Return staging memory with all of the bytes that were read into ``part`` or moved.

    ``part`` and what was moved are given back; ``unstage`` what is returned.
    """
    if not moved:
        return part
    whole = core.stage(part.length)
    view, start = whole.region.view, whole.offset
    view[start : start + part.length] = part.region.view[part.offset : part.offset + part.length]
    for wanted, found, _ in moved:
        at = start + wanted.offset - part.offset
        source = found.region.view[found.offset : found.offset + found.length]
        view[at : at + found.length] = source
    unstage_all(core, part, moved)
    return whole


def unstage_all(core: Core, part: Part, moved: list[Moved]) -> None:
    """Give back the memory of a read and of what its hedges left elsewhere."""
    core.unstage(part)
    for staged in {id(each.staged): each.staged for each in moved}.values():
        core.unstage(staged)
    moved.clear()


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
        return plan.plan_reads(todo, lines, turn, core.loads, core.clock())
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
    return read_call(core, batch.node, body, parts, deadline)


def _ask(work: Round, batch: Batch) -> Ask:
    return Ask(
        batch.node[1],
        _call(work.core, batch, work.deadline),
        batch.bytes,
        batch.pieces[0][4][0],
        batch.pieces[0][2],
        batch.tell,
        partial(settle, work, batch),
    )


def _ask_bulk(work: Round, request: Bulk) -> Ask:
    return Ask(
        request.node.node,
        read_call(work.core, request.node, request.body, request.parts, work.deadline),
        request.bytes,
        request.parts.region,
        request.chain,
        request.pieces,
        partial(settle_bulk, work, request),
    )


def only(results: list[Any]) -> int:
    """Return a batch of one's result, or raise its error."""
    result = results[0]
    if isinstance(result, Error):
        raise result
    return int(result)
