"""Read requests on their way: as many as the window admits, late ones hedged, each settled."""

from collections import deque
from collections.abc import Sequence
from typing import cast

from hillfire.client.actions import Await, Call, Exchange, Operation, Outcome, Start
from hillfire.client.core import Core
from hillfire.client.hedged import ATTEMPT_S, FAILED, LOST, Ask, Moved, Sent, others_of
from hillfire.client.load import Ticket

IDLE_S = 2 * ATTEMPT_S
"""How long answers are waited for at a time where no hedge is due: each ends earlier."""
MAX_WAKES = 100
"""Waits that end one after the other without anything to show for it: a defect."""
TICK_S = 0.0001
"""What is waited at least: a clock that is read in floats may stand still for less."""


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


class _Asking:
    """All requests of one operation."""

    def __init__(
        self, core: Core, asks: Sequence[Ask], deadline: float, moved: list[Moved] | None
    ) -> None:
        self._core = core
        self._deadline = deadline
        self._moved = moved
        self._line = deque(asks)
        self._sent: list[Sent] = []

    def first(self) -> Operation[None]:
        """Send the only request, and settle it if it is answered before it is due for a hedge."""
        core, one = self._core, self._line.pop()
        now = core.clock()
        ticket = core.loads.started(one.node, one.items, one.bytes, now)
        try:
            (flying,) = yield Start((one.call,))
            sent = Sent(one, flying, ticket, others_of(core, one, self._moved is not None))
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
            bound = MAX_WAKES + 4 * len(self._sent)  # a request and its hedges may each end once
            assert wakes <= bound, f"{len(self._sent)} requests wait for nothing"
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
            each.drop(self._core)

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
            sent = Sent(one, on_its_way, ticket, others_of(core, one, self._moved is not None))
            if sent.others is not None:
                delay_s = core.hedging.delay_s(ticket, sent.others)
                sent.due = None if delay_s is None else now + delay_s
            self._sent.append(sent)

    def _settled(self, sent: Sent, now: float) -> Operation[bool]:
        """Look what has become of one; tell whether it is done."""
        core, outcome = self._core, sent.flying.outcome
        if outcome is not None:
            core.loads.ended(sent.ticket, now, outcome.error is None)
            sent.due = None
            if outcome.error is None or not sent.hedges:
                yield from sent.forget(core, LOST)
                _learn(core, sent.ask.node, outcome)
                sent.ask.settle(outcome)
                return True
        if sent.hedges:
            for hedge in sent.hedges:
                if hedge.ticket is not None and hedge.flying and hedge.flying.outcome is not None:
                    core.loads.ended(hedge.ticket, now, hedge.flying.outcome.error is None)
            if all(hedge.good() for hedge in sent.hedges):
                yield from sent.win(core, now, self._moved)
                return True
            done = [hedge for hedge in sent.hedges if hedge.flying and hedge.flying.outcome]
            if not all(hedge.good() for hedge in done):
                yield from sent.forget(core, FAILED)
                if outcome is not None:
                    sent.ask.settle(outcome)
                    return True
        elif sent.due is not None and now >= sent.due:
            sent.due = None
            if core.hedging.allow(sent.ticket, now):
                yield from sent.hedge(core, now, self._deadline)
        return False
