"""Read requests on their way: as many as the window admits, late ones hedged, each settled.

A hedge asks other replicas for the pieces of a request that is late. It lands in staging memory
of its own: the first request may still land in the caller's. When the hedge wins, the first
request is abandoned, and if its server cannot reach the caller's memory any more (over tcp, and
memory that it never mapped), the bytes are copied there. If it can (shared memory, rdma), they
stay where they are, for callers that take them from there (``moved``); others are not hedged.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from hillfire import metrics
from hillfire.client import plan
from hillfire.client.actions import (
    Abandon,
    Await,
    Call,
    Exchange,
    Flying,
    Operation,
    Outcome,
    Start,
)
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
IDLE_S = 2 * ATTEMPT_S
"""How long answers are waited for at a time where no hedge is due: each ends earlier."""
MAX_WAKES = 100
"""Waits that end one after the other without anything to show for it: a defect."""
TICK_S = 0.0001
"""What is waited at least: a clock that is read in floats may stand still for less."""

_WON, _LOST, _FAILED = (
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

    __slots__ = ("bytes", "call", "items", "node", "pieces", "region", "settle")

    def __init__(
        self,
        node: int,
        call: Call,
        n_bytes: int,
        region: Region,
        pieces: Callable[[], Sequence[Piece]],
        settle: Callable[[Outcome], None],
    ) -> None:
        """``settle`` is told what came of it; ``pieces`` tells what it asks for, if need be."""
        self.node = node
        self.call = call
        self.items = len(call.request.destinations)
        self.bytes = n_bytes
        self.region = region
        self.pieces = pieces
        self.settle = settle


def read_call(
    core: Core, node: Replica, body: bytes, parts: Sequence[Part], deadline: float
) -> Call:
    """Return the call that reads packed items into ``parts``."""
    timeout_s = max(0.05, min(ATTEMPT_S, deadline - core.clock()))
    return Call(node.endpoint, Request(READ, body, (), parts), timeout_s)


def ask(
    core: Core, asks: Sequence[Ask], deadline: float, moved: list[Moved] | None = None
) -> Operation[None]:
    """Send all requests and have each settled.

    ``moved``: the caller takes bytes from elsewhere too; filled in.
    """
    asking = _Asking(core, asks, deadline, moved)
    try:
        if len(asks) == 1:  # nearly always answered before a hedge is due: nothing to keep book of
            yield from asking.first()
        yield from asking.run()
    finally:
        asking.end()


def ask_plainly(core: Core, node: int, call: Call, n_bytes: int, now: float) -> Operation[Outcome]:
    """Send one request that is not to be hedged, and return what came of it: the cheapest way."""
    loads = core.loads
    ticket = loads.started(node, 1, n_bytes, now)
    try:
        (outcome,) = yield Exchange([call])
    except BaseException:
        loads.ended(ticket, now, False)
        raise
    loads.ended(ticket, core.clock(), outcome[1] is None)
    return cast(Outcome, outcome)


def _learn(core: Core, node: int, outcome: Outcome) -> None:
    """Remember of a node whether it writes into this process's memory itself."""
    if outcome.verified and outcome.error is None:
        core.hedging.direct.add(node)


def _other(core: Core, one: Ask, movable: bool) -> set[int] | None:
    """Return the nodes that could be asked instead; None if this request is not to be hedged."""
    if not core.hedging.enabled:
        return None
    if not movable and one.node in core.hedging.direct and one.region.fd >= 0:
        return None
    line = core.routes.lines.get(one.pieces()[0].chain)
    others = {replica.node for replica in line.turns} if line is not None else set()
    others.discard(one.node)
    return others or None


class _Hedge:
    """A second request for some of an ask's pieces."""

    __slots__ = ("answers", "batch", "flying", "positions", "ticket")

    def __init__(self, batch: Batch, positions: list[int]) -> None:
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


class _Sent:
    """An ask on its way."""

    __slots__ = ("ask", "due", "flying", "hedges", "others", "staged", "ticket")

    def __init__(self, one: Ask, flying: Flying, ticket: Ticket, others: set[int] | None) -> None:
        self.ask = one
        self.flying = flying
        self.ticket = ticket
        self.others = others
        self.due: float | None = None
        """when it is hedged"""
        self.hedges: list[_Hedge] = []
        self.staged: Part | None = None
        """where its hedges land"""


class _Asking:
    """All requests of one operation."""

    def __init__(
        self, core: Core, asks: Sequence[Ask], deadline: float, moved: list[Moved] | None
    ) -> None:
        self._core = core
        self._deadline = deadline
        self._moved = moved
        self._line = deque(asks)
        self._sent: list[_Sent] = []

    def first(self) -> Operation[None]:
        """Send the only request, and settle it if it is answered before it is due for a hedge."""
        core, one = self._core, self._line.pop()
        now = core.clock()
        ticket = core.loads.started(one.node, one.items, one.bytes, now)
        try:
            (flying,) = yield Start((one.call,))
            sent = _Sent(one, flying, ticket, _other(core, one, self._moved is not None))
            delay_s = None
            if sent.others is not None:
                delay_s = core.hedging.delay_s(ticket, sent.others)
            yield Await((flying,), IDLE_S if delay_s is None else delay_s)
        except BaseException:
            core.loads.ended(ticket, now, False)
            raise
        outcome = flying.outcome
        if outcome is None:
            sent.due = None if delay_s is None else now + delay_s
            self._sent.append(sent)
            return
        core.loads.ended(ticket, core.clock(), outcome.error is None)
        _learn(core, one.node, outcome)
        one.settle(outcome)

    def run(self) -> Operation[None]:
        """Send, wait, settle, until nothing is left."""
        core, wakes = self._core, 0
        while self._line or self._sent:
            yield from self._send()
            wakes += 1
            assert wakes <= MAX_WAKES, f"{len(self._sent)} requests wait for nothing"
            waiting, due = [], None
            for each in self._sent:
                waiting.append(each.flying)
                waiting += [hedge.flying for hedge in each.hedges if hedge.flying is not None]
                if each.due is not None and (due is None or each.due < due):
                    due = each.due
            left_s = IDLE_S if due is None else max(TICK_S, due - core.clock())
            yield Await([each for each in waiting if each.outcome is None], left_s)
            now, still = core.clock(), []
            for each in self._sent:
                due, hedges = each.due, len(each.hedges)
                if (yield from self._settled(each, now)):
                    wakes = 0
                    continue
                still.append(each)
                if each.due != due or len(each.hedges) != hedges:
                    wakes = 0
            self._sent = still

    def end(self) -> None:
        """Forget what is still on its way: the operation is over."""
        for each in self._sent:
            self._core.loads.ended(each.ticket, 0.0, False)
            self._drop(each)

    def _send(self) -> Operation[None]:
        """Send what the window admits."""
        core, now, later = self._core, self._core.clock(), deque[Ask]()
        going, tickets = list[Ask](), list[Ticket]()
        while self._line:
            one = self._line.popleft()
            if core.window.admits(one.node, one.bytes, len(self._sent) + len(going)):
                going.append(one)
                tickets.append(core.loads.started(one.node, one.items, one.bytes, now))
            else:
                later.append(one)
        self._line = later
        if not going:
            return
        try:
            flying = yield Start([one.call for one in going])
        except BaseException:
            for ticket in tickets:
                core.loads.ended(ticket, now, False)
            raise
        for one, on_its_way, ticket in zip(going, flying, tickets, strict=True):
            sent = _Sent(one, on_its_way, ticket, _other(core, one, self._moved is not None))
            if sent.others is not None:
                delay_s = core.hedging.delay_s(ticket, sent.others)
                sent.due = None if delay_s is None else now + delay_s
            self._sent.append(sent)

    def _settled(self, sent: _Sent, now: float) -> Operation[bool]:
        """Look what has become of one; tell whether it is done."""
        core, outcome = self._core, sent.flying.outcome
        if outcome is not None:
            core.loads.ended(sent.ticket, now, outcome.error is None)
            sent.due = None
            if outcome.error is None or not sent.hedges:
                yield from self._forget(sent, _LOST)
                _learn(core, sent.ask.node, outcome)
                sent.ask.settle(outcome)
                return True
        if sent.hedges:
            for hedge in sent.hedges:
                if hedge.ticket is not None and hedge.flying and hedge.flying.outcome is not None:
                    core.loads.ended(hedge.ticket, now, hedge.flying.outcome.error is None)
            if all(hedge.good() for hedge in sent.hedges):
                yield from self._won(sent, now)
                return True
            done = [hedge for hedge in sent.hedges if hedge.flying and hedge.flying.outcome]
            if not all(hedge.good() for hedge in done):
                yield from self._forget(sent, _FAILED)
                if outcome is not None:
                    sent.ask.settle(outcome)
                    return True
        elif sent.due is not None and now >= sent.due:
            sent.due = None
            if core.hedging.allow(sent.ticket, now):
                yield from self._hedge(sent, now)
        return False

    def _hedge(self, sent: _Sent, now: float) -> Operation[None]:
        """Ask other replicas for all that a request asks for, if each piece has one."""
        core, pieces = self._core, sent.ask.pieces()
        staged, place = core.stage(sent.ask.bytes), 0
        positions: dict[int, list[int]] = {}
        batcher = plan.Batcher()
        patience = core.loads.of(sent.ask.node).slowness
        for position, piece in enumerate(pieces):
            line = core.routes.lines.get(piece.chain)
            others = [r for r in line.turns if r.node != sent.ask.node] if line is not None else []
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
        sent.staged = staged
        calls = []
        for batch in batcher.batches:
            parts = [piece.part for piece in batch.pieces]
            hedge = _Hedge(batch, positions[id(batch)])
            hedge.ticket = core.loads.started(batch.node.node, len(parts), batch.bytes, now)
            sent.hedges.append(hedge)
            body = READ_ITEMS.pack(batch.records)  # type: ignore[arg-type]
            calls.append(read_call(core, batch.node, body, parts, self._deadline))
        flying = yield Start(calls)
        for hedge, on_its_way in zip(sent.hedges, flying, strict=True):
            hedge.flying = on_its_way

    def _won(self, sent: _Sent, now: float) -> Operation[None]:
        """Take the hedges' bytes: to where they were wanted, if nothing can land there."""
        core, one = self._core, sent.ask
        _WON.value += 1
        if sent.flying.outcome is None:
            core.loads.lost(sent.ticket, now)
            yield Abandon([sent.flying])
        staged, sent.staged = sent.staged, None
        assert staged is not None
        answers: dict[int, tuple[int, int, int, int]] = {}
        moves: list[Moved] = []
        for hedge in sent.hedges:
            assert hedge.answers is not None
            for position, piece, answer in zip(
                hedge.positions, hedge.batch.pieces, hedge.answers, strict=True
            ):
                answers[position] = answer
                moves.append(Moved(one.pieces()[position].part, piece.part, staged))
        if all(_free(move.wanted) for move in moves):
            for (region, place, length), (found, start, _), _ in moves:
                region.view[place : place + length] = found.view[start : start + length]
            core.unstage(staged)
        elif self._moved is not None:
            self._moved += moves
        else:
            core.hedging.direct.add(one.node)
            core.unstage(staged)
            text = "the answer was late, and may still land"
            one.settle(Outcome(b"", Error(Code.TIMED_OUT, text), True))
            return
        body = READ_RESULTS.pack([answers[at] for at in range(len(answers))])  # type: ignore[misc]
        one.settle(Outcome(body, None, True))

    def _forget(self, sent: _Sent, why: metrics.Counter) -> Operation[None]:
        """Nobody needs the hedges of a request any more."""
        if sent.hedges:
            why.value += 1
            yield Abandon([hedge.flying for hedge in sent.hedges if hedge.flying is not None])
            self._drop(sent)

    def _drop(self, sent: _Sent) -> None:
        """Give back what hedges hold; memory where they may land is not used again before."""
        for hedge in sent.hedges:
            if hedge.ticket is not None:
                self._core.loads.ended(hedge.ticket, 0.0, False)
        sent.hedges = []
        if sent.staged is not None:
            self._core.unstage(sent.staged)
            sent.staged = None


def _free(part: Part) -> bool:
    """Tell whether nothing can land in a part."""
    try:
        part.region.check(part.offset, part.length)
    except Error:
        return False
    return True
