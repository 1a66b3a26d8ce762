"""A read request on its way, and the second one that is sent when it is late: where each lands.

A hedge asks other replicas for the pieces of a request that is late. It lands in staging memory
of its own: the first request may still land in the caller's. When the hedge wins, the first
request is abandoned, and if its server cannot reach the caller's memory any more (over tcp, and
memory that it never mapped), the bytes are copied there. If it can (shared memory, rdma), they
stay where they are, for callers that take them from there (``Moved``); others are not hedged.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hillfire import metrics
from hillfire.client import plan
from hillfire.client.actions import Abandon, Call, Flying, Operation, Outcome, Start
from hillfire.client.core import Core
from hillfire.client.load import Ticket
from hillfire.client.plan import Batch, Piece, Replica
from hillfire.errors import Code, Error
from hillfire.native import crc32c
from hillfire.proto.wire.base import Part, Request
from hillfire.proto.wire.chunks import READ, READ_ITEMS, READ_RESULTS
from hillfire.region import Region

ATTEMPT_S = 3.0
"""Of one request: more than a lease, after which another replica is asked."""

WON, LOST, FAILED = (
    metrics.counter(
        "hillfire_hedged_reads_total",
        "reads that were asked of a second replica too, by whether that answered first",
        outcome=outcome,
    )
    for outcome in ("won", "lost", "failed")
)


class Moved(NamedTuple):
    """Bytes that are not where they were wanted, since something may still land there."""

    wanted: Part
    found: Part
    staged: Part
    """the staging memory that ``found`` is part of: ``unstage`` it once for all"""


class Ask:
    """One read request that is to be sent."""

    __slots__ = ("bytes", "call", "chain", "items", "node", "pieces", "region", "settle")

    def __init__(
        self,
        node: int,
        call: Call,
        n_bytes: int,
        region: Region,
        chain: int,
        pieces: Callable[[], Sequence[Piece]],
        settle: Callable[[Outcome], None],
    ) -> None:
        """``settle`` is told what came of it; ``pieces`` tells what it asks for, if need be.

        ``chain``: of its first piece.
        """
        self.node = node
        self.call = call
        self.items = len(call.request.destinations)
        self.bytes = n_bytes
        self.region = region
        self.chain = chain
        self.pieces = pieces
        self.settle = settle


def read_call(
    core: Core, node: Replica, body: bytes, parts: Sequence[Part], deadline: float
) -> Call:
    """Return the call that reads packed items into ``parts``."""
    timeout_s = max(0.05, min(ATTEMPT_S, deadline - core.clock()))
    return Call(node.endpoint, Request(READ, body, (), parts), timeout_s)


def others_of(core: Core, one: Ask, movable: bool) -> set[int] | None:
    """Return the nodes that could be asked instead; None if this request is not to be hedged.

    ``movable``: its caller takes bytes from elsewhere too.
    """
    if not core.hedging.enabled:
        return None
    if not movable and one.node in core.hedging.direct and one.region.fd >= 0:
        return None
    line = core.routes.lines.get(one.chain)
    others = {replica[1] for replica in line.turns} if line is not None else set()
    others.discard(one.node)
    return others or None


class Hedge:
    """A second request for some of an ask's pieces."""

    __slots__ = ("answers", "batch", "flying", "positions", "ticket")

    def __init__(self, batch: Batch, positions: list[int]) -> None:
        """Not sent yet."""
        self.batch = batch
        self.positions = positions
        """in the ask, of the batch's pieces"""
        self.flying: Flying | None = None
        self.ticket: Ticket | None = None
        self.answers: list[tuple[int, int, int, int]] | None = None

    def good(self) -> bool:
        """Tell whether its answer can be used; its bytes are verified."""
        outcome = self.flying.outcome if self.flying is not None else None
        if outcome is None or outcome.error is not None:
            return False
        if self.answers is not None:
            return True
        try:
            answers = READ_RESULTS.tuples(outcome.body)
        except Error:
            return False
        if len(answers) != len(self.positions):
            return False
        for piece, (code, filled, checksum, _) in zip(self.batch.pieces, answers, strict=True):
            region, place, length = piece.part
            if code or filled > length:
                return False
            if not outcome.verified and crc32c(region.view[place : place + filled]) != checksum:
                return False
            region.view[place + filled : place + length] = bytes(length - filled)
        self.answers = answers
        return True


class Sent:
    """An ask on its way."""

    __slots__ = ("ask", "due", "flying", "hedges", "others", "staged", "ticket")

    def __init__(self, one: Ask, flying: Flying, ticket: Ticket, others: set[int] | None) -> None:
        """``others``: the nodes that could be asked instead; None: it is not to be hedged."""
        self.ask = one
        self.flying = flying
        self.ticket = ticket
        self.others = others
        self.due: float | None = None
        """when it is hedged"""
        self.hedges: list[Hedge] = []
        self.staged: Part | None = None
        """where its hedges land"""

    def hedge(self, core: Core, now: float, deadline: float) -> Operation[None]:
        """Ask other replicas for all that the request asks for, if each piece has one."""
        pieces = self.ask.pieces()
        staged, place = core.stage(self.ask.bytes), 0
        positions: dict[int, list[int]] = {}
        batcher = plan.Batcher()
        patience = core.loads.of(self.ask.node).slowness
        for position, piece in enumerate(pieces):
            line = core.routes.lines.get(piece.chain)
            others = [r for r in line.turns if r.node != self.ask.node] if line is not None else []
            if line is None or not others:
                core.unstage(staged)
                return
            replica = core.loads.choose(others, piece.part.length, position, now)
            if core.loads.of(replica.node).slowness > patience:
                core.unstage(staged)  # whoever would be asked instead is slower still
                return
            part = Part(staged.region, staged.offset + place, piece.part.length)
            place += piece.part.length
            record = (piece.chunk, piece.chain, line.version, piece.start, 0)
            batch = batcher.add(replica, piece._replace(part=part), record)
            positions.setdefault(id(batch), []).append(position)
        self.staged = staged
        calls = []
        for batch in batcher.batches:
            parts = [piece.part for piece in batch.pieces]
            hedge = Hedge(batch, positions[id(batch)])
            hedge.ticket = core.loads.started(batch.node.node, len(parts), batch.bytes, now)
            self.hedges.append(hedge)
            body = READ_ITEMS.pack(batch.records)  # type: ignore[arg-type]
            calls.append(read_call(core, batch.node, body, parts, deadline))
        flying = yield Start(calls)
        for hedge, on_its_way in zip(self.hedges, flying, strict=True):
            hedge.flying = on_its_way

    def win(self, core: Core, now: float, moved: list[Moved] | None) -> Operation[None]:
        """Take the hedges' bytes: to where they were wanted, if nothing can land there."""
        one = self.ask
        WON.value += 1
        if self.flying.outcome is None:
            core.loads.lost(self.ticket, now)
            yield Abandon([self.flying])
        staged, self.staged = self.staged, None
        assert staged is not None
        pieces = one.pieces()
        answers: dict[int, tuple[int, int, int, int]] = {}
        moves: list[Moved] = []
        for hedge in self.hedges:
            assert hedge.answers is not None
            for position, piece, answer in zip(
                hedge.positions, hedge.batch.pieces, hedge.answers, strict=True
            ):
                answers[position] = answer
                moves.append(Moved(pieces[position].part, piece.part, staged))
        if all(_free(move.wanted) for move in moves):
            for (region, place, length), (found, start, _), _ in moves:
                region.view[place : place + length] = found.view[start : start + length]
            core.unstage(staged)
        elif moved is not None:
            moved += moves
        else:
            core.hedging.direct.add(one.node)
            core.unstage(staged)
            text = "the answer was late, and may still land"
            one.settle(Outcome(b"", Error(Code.TIMED_OUT, text), True))
            return
        body = READ_RESULTS.pack([answers[at] for at in range(len(answers))])  # type: ignore[misc]
        one.settle(Outcome(body, None, True))

    def forget(self, core: Core, why: metrics.Counter) -> Operation[None]:
        """Nobody needs the hedges any more."""
        if self.hedges:
            why.value += 1
            yield Abandon([hedge.flying for hedge in self.hedges if hedge.flying is not None])
            self.drop(core)

    def drop(self, core: Core) -> None:
        """Give back what hedges hold; memory where they may land is not used again before."""
        for hedge in self.hedges:
            if hedge.ticket is not None:
                core.loads.ended(hedge.ticket, 0.0, False)
        self.hedges = []
        if self.staged is not None:
            core.unstage(self.staged)
            self.staged = None


def _free(part: Part) -> bool:
    """Tell whether nothing can land in a part."""
    try:
        part.region.check(part.offset, part.length)
    except Error:
        return False
    return True
