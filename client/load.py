"""How busy each storage node is, as far as one client can tell: which replica should be asked.

Pure: time is passed in. A client knows what it has on its way to each node, and how long answers
took. From both it expects of a node ``(what is on its way + what is asked) x pace``, where *pace*
is the time that a unit of cost took there lately (an average with exponential weights). It asks
whoever is expected first, as C3 and Prequal do; among nodes of like pace only what is on its way
counts, so that noise does not drive all reads to one node. A node that was found slow is left
alone, and asked again every ``PROBE_S`` by one request: else nobody would see it recover.

How late an answer is before that is unusual is estimated for each node and size of request
(``late_s``): hedging wants it.

Sources: Suresh et al., "C3" (NSDI 2015); Wydrowski et al., "Load is not what you should balance:
Introducing Prequal" (NSDI 2024).
"""

from collections.abc import Mapping, Sequence
from math import exp

from hillfire.client.plan import Replica

REQUEST_COST = 128 * 1024
"""What a request costs besides its bytes, in bytes: its way there and back."""
ITEM_COST = 8 * 1024
"""What an item of a request costs besides its bytes: the server's work for it."""

PACE_WEIGHT = 1 / 8
"""Of the newest answer in a node's pace."""
RECOVERY_WEIGHT = 1 / 2
"""Of the newest answer of a slow node, if it was faster: probes are few."""
MOST_AT_ONCE = 8.0
"""An answer counts as at most so many times slower than the average: one that a thread was late
for makes no node slow, three in a row do."""
LIKE_PACE = 2.0
"""Paces within this factor of the usual one are all the same."""
SLOW_PACE = 4.0
"""A node slower than this, against the usual pace, is slow: small reads leave it out."""
LOST_FACTOR = 4.0
"""A request that lost to its hedge counts as if it took so many times as long as it was given."""
MAX_SLOWNESS = 1000.0
PROBE_S = 0.25
"""A slow node with nothing on its way is asked again after this."""
USUAL_EVERY = 32
"""Answers after which the usual pace is found anew."""

CLASSES = 5
"""Sizes of requests that are told apart: up to 64 KiB, 256 KiB, 1 MiB, 4 MiB, and more."""
RISE, FALL = exp(0.15 * 0.95), exp(-0.15 * 0.05)
"""Steps of the estimate of the 95th percentile: up where an answer took longer, else down, such
that they balance where one in twenty takes longer (Tierney, "space-efficient recursive procedure
for estimating a quantile", 1983)."""
FIRST_LATE_S = 0.05
"""The estimate before the first answer."""
FIRST_FACTOR = 4.0
"""The estimate after it, at most, in times of what it took."""


def class_of(n_bytes: int) -> int:
    """Return which requests one of ``n_bytes`` is compared with."""
    return min(CLASSES - 1, (((n_bytes - 1) >> 16).bit_length() + 1) // 2) if n_bytes > 0 else 0


class NodeLoad:
    """What a client knows of one node's load."""

    __slots__ = ("asked", "cost", "flying", "late_s", "pace", "slowness")

    def __init__(self) -> None:
        """Nothing is known, nothing is on its way."""
        self.cost = 0
        """on its way"""
        self.flying: dict[int, Ticket] = {}
        self.pace = 0.0
        """seconds a unit of cost; 0.0: unknown"""
        self.slowness = 1.0
        """pace against the usual one; 1.0 within LIKE_PACE"""
        self.asked = 0.0
        """when it was asked last"""
        self.late_s = [FIRST_LATE_S] * CLASSES


class Ticket:
    """One request on its way."""

    __slots__ = ("at", "before", "bytes", "cost", "load", "node")

    def __init__(self, node: int, load: NodeLoad, cost: int, n_bytes: int, now: float) -> None:
        """Sent now, behind what is on its way already."""
        self.node = node
        self.load = load
        self.cost = cost
        self.bytes = n_bytes
        self.before = load.cost + cost
        self.at = now


class Loads:
    """Every node's load. Threads may share it: what a race loses is made good once all is quiet."""

    def __init__(self) -> None:
        """Know nothing."""
        self.nodes: dict[int, NodeLoad] = {}
        self.bytes = 0
        """on their way to this client"""
        self.usual = 0.0
        """pace of the nodes in the middle"""
        self.slow: frozenset[int] = frozenset()
        """nodes that small reads leave out"""
        self.cost = 0
        """of all that was ever sent"""
        self.answers = 0
        """that ever came"""
        self._like = 0.0
        self._flying = 0

    def of(self, node: int) -> NodeLoad:
        """Return what is known of a node."""
        load = self.nodes.get(node)
        return load if load is not None else self.nodes.setdefault(node, NodeLoad())

    # --- what happens

    def started(self, node: int, items: int, n_bytes: int, now: float) -> Ticket:
        """Note a request that is sent now."""
        load = self.nodes.get(node) or self.of(node)
        ticket = Ticket(node, load, REQUEST_COST + items * ITEM_COST + n_bytes, n_bytes, now)
        load.flying[id(ticket)] = ticket
        load.cost += ticket.cost
        self.cost += ticket.cost
        load.asked = now
        self.bytes += n_bytes
        self._flying += 1
        return ticket

    def ended(self, ticket: Ticket, now: float, answered: bool = True) -> None:
        """Note a request's end; only an answer says something of the node's pace."""
        load = ticket.load
        if load.flying.pop(id(ticket), None) is None:
            return
        load.cost -= ticket.cost
        if not load.flying:
            load.cost = 0
        self.bytes -= ticket.bytes
        self._flying -= 1
        if self._flying <= 0:
            self._flying = self.bytes = 0
        if not answered:
            return
        took, late = now - ticket.at, load.late_s
        size = 0 if ticket.bytes <= 65536 else class_of(ticket.bytes)
        if late[size] != FIRST_LATE_S:
            late[size] *= RISE if took > late[size] else FALL
        else:
            late[size] = min(FIRST_FACTOR * took, 0.99 * FIRST_LATE_S)
        self._sample(load, took / ticket.before)
        self.answers += 1
        if not self.answers % USUAL_EVERY or not self.usual:
            self._find_usual()
        if load.pace > self._like or load.slowness != 1.0:
            self._judge(ticket.node, load)

    def overdue(self, ticket: Ticket, now: float) -> None:
        """Note that a request has taken so long already: its node is at least that slow."""
        self._at_least(ticket, (now - ticket.at) / ticket.before)

    def lost(self, ticket: Ticket, now: float) -> None:
        """Note that another replica answered first: nobody will see how long this one takes."""
        self._at_least(ticket, LOST_FACTOR * (now - ticket.at) / ticket.before)
        self.ended(ticket, now, answered=False)

    def _at_least(self, ticket: Ticket, pace: float) -> None:
        if pace > ticket.load.pace:
            self._sample(ticket.load, pace)
            self._judge(ticket.node, ticket.load)

    @staticmethod
    def _sample(load: NodeLoad, pace: float) -> None:
        """Take a pace into the average."""
        known = load.pace
        if not known:
            load.pace = pace
        elif pace > known:
            load.pace = known + (min(pace, MOST_AT_ONCE * known) - known) * PACE_WEIGHT
        else:
            weight = PACE_WEIGHT if load.slowness == 1.0 else RECOVERY_WEIGHT
            load.pace = known + (pace - known) * weight

    def _find_usual(self) -> None:
        paces = sorted(load.pace for load in list(self.nodes.values()) if load.pace)
        if paces:
            self.usual = paces[(len(paces) - 1) // 2]
            self._like = LIKE_PACE * self.usual

    def _judge(self, node: int, load: NodeLoad) -> None:
        ratio = load.pace / self.usual if self.usual else 1.0
        load.slowness = min(ratio, MAX_SLOWNESS) if ratio > LIKE_PACE else 1.0
        if (ratio > SLOW_PACE) != (node in self.slow):
            self.slow = self.slow | {node} if ratio > SLOW_PACE else self.slow - {node}

    # --- who is asked

    def due(self, node: int, now: float) -> bool:
        """Tell whether a slow node should be asked once, to see whether it still is."""
        load = self.nodes[node]
        return not load.flying and now - load.asked >= PROBE_S

    def choose(
        self,
        turns: Sequence[Replica],
        n_bytes: int,
        turn: int,
        now: float,
        planned: Mapping[int, int] | None = None,
    ) -> Replica:
        """Choose the replica that should answer first; of equals the one whose turn it is.

        ``turns`` names a replica as often as its weight says; ``planned`` is the cost, by node,
        of what the caller will send but has not.
        """
        count = len(turns)
        best = turns[turn % count]
        if count == 1:
            return best
        nodes, cost = self.nodes, ITEM_COST + n_bytes
        least = -1.0
        seen: dict[int, float] = {}
        for i in range(count):
            replica = turns[(turn + i) % count]
            node = replica[1]
            load = nodes.get(node)
            seen[node] = weight = seen.get(node, 0) + 1
            ahead = planned.get(node, 0) if planned else 0
            if load is None:
                expected = (ahead + cost) / weight
            else:
                slowness = load.slowness
                if slowness != 1.0 and not load.flying and now - load.asked >= PROBE_S:
                    slowness = 1.0
                expected = (load.cost + ahead + cost) * slowness / weight
            if least < 0 or expected < least:
                best, least = replica, expected
        return best

    def left_out(self, now: float) -> frozenset[int]:
        """Return the nodes that small reads leave out now: the slow ones but for due probes."""
        slow = self.slow
        return frozenset(node for node in slow if not self.due(node, now)) if slow else slow

    def turns(self, turns: Sequence[Replica], now: float) -> Sequence[Replica]:
        """Return who is asked for small reads: all but slow nodes, or these if there is no other.

        A slow node's turn comes once when a probe is due.
        """
        slow = self.slow
        if not slow or not any(replica[1] in slow for replica in turns):
            return turns
        good = [r for r in turns if r[1] not in slow or self.due(r[1], now)]
        return good or turns
