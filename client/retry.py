"""What a client does after each outcome: done, again (where, when, with newer routing?), or fail.

Pure: time is passed in. One place decides, for reads, writes, metadata and storage calls alike,
so that no error is retried for ever and none is given up too early. Tags and request numbers
stay the same across retries: the servers recognise them (design, CRAQ rule 5).
"""

from typing import NamedTuple

from hillfire.errors import TABLE, Code

FIRST_DELAY_S = 0.005
LAST_DELAY_S = 0.5
MAX_CHECKSUM_RETRIES = 3
"""A payload that differs from its checksum this often is changed by its owner while it is sent."""
MAX_EPOCH_RETRIES = 8
"""Truncations that may overtake one write."""

_STALE_ROUTING = frozenset(
    {
        Code.WRONG_CHAIN_VERSION,
        Code.NOT_SERVING,
        Code.LEASE_EXPIRED,
        Code.UNAVAILABLE,
        Code.NOT_LEADER,
        Code.CONNECTION,
        Code.TIMED_OUT,
        Code.CANCELLED,  # the server is stopping
    }
)
"""After these the routing that was used may be old."""

_THIS_REPLICA = frozenset({Code.CORRUPT, Code.IO, Code.INTERNAL})
"""Final for a write, but another replica may answer the same read."""

_NODE_TROUBLE = frozenset({Code.CONNECTION, Code.TIMED_OUT, Code.LEASE_EXPIRED})
"""These speak of the whole node, not of one item."""


class Verdict(NamedTuple):
    """What to do with a piece or a call that has just failed."""

    again: bool
    delay_s: float
    refresh: bool
    """ask the manager for newer routing first"""


class History:
    """What befell one piece or call so far."""

    __slots__ = ("avoid", "bad", "checksum", "code", "count", "epochs", "tail", "text")

    def __init__(self) -> None:
        """Nothing yet."""
        self.count = 0
        self.checksum = 0
        self.epochs = 0
        self.avoid: set[int] = set()
        self.bad: set[int] = set()
        """of them those whose own copy or disk is at fault"""
        self.tail = False
        self.code = Code.OK
        self.text = ""


def delay_s(count: int) -> float:
    """Return the pause before try number ``count`` + 1: 5 ms, doubled, at most 500 ms."""
    return min(LAST_DELAY_S, FIRST_DELAY_S * (1 << min(count - 1, 10)))


def speaks_of_node(code: Code) -> bool:
    """Tell whether an error makes the whole node suspect."""
    return code in _NODE_TROUBLE


def _note(history: History, code: Code, text: str) -> None:
    history.count += 1
    history.code = code
    history.text = text


def _within(verdict: Verdict, now: float, deadline: float) -> Verdict:
    return verdict if now + verdict.delay_s < deadline else Verdict(False, 0.0, False)


def after_read(
    history: History, code: Code, text: str, target: int, serving: int, now: float, deadline: float
) -> Verdict:
    """Decide on a read that ``target``, one of ``serving`` replicas, answered with an error.

    The first failure goes to another replica at once; it waits once every replica has failed.
    """
    _note(history, code, text)
    if code is Code.NOT_COMMITTED:
        first, history.tail = not history.tail, True
        pause = 0.0 if first else delay_s(history.count - 1)
        return _within(Verdict(True, pause, False), now, deadline)
    history.tail = False
    history.avoid.add(target)
    exhausted = len(history.avoid) >= serving
    if code in _THIS_REPLICA:
        history.bad.add(target)
        if len(history.bad) >= serving:
            return Verdict(False, 0.0, False)
        if not exhausted:
            return _within(Verdict(True, 0.0, False), now, deadline)
        # The others are sound for all that is known, and only out of reach for now.
        history.avoid = set(history.bad)
        return _within(Verdict(True, delay_s(history.count), True), now, deadline)
    if code is not Code.BUSY and not TABLE[code].retry and code not in _STALE_ROUTING:
        return Verdict(False, 0.0, False)
    pause = delay_s(history.count) if exhausted or code is Code.BUSY else 0.0
    if exhausted:
        history.avoid = set(history.bad)
    return _within(Verdict(True, pause, code in _STALE_ROUTING), now, deadline)


def after_write(history: History, code: Code, text: str, now: float, deadline: float) -> Verdict:
    """Decide on an update that its head refused, or whose outcome is unknown."""
    _note(history, code, text)
    if code is Code.STALE_EPOCH:
        history.epochs += 1
        again = history.epochs <= MAX_EPOCH_RETRIES
        return _within(Verdict(again, 0.0, False), now, deadline)
    if code is Code.CHECKSUM:
        history.checksum += 1
        if history.checksum > MAX_CHECKSUM_RETRIES:
            return Verdict(False, 0.0, False)
    elif not TABLE[code].retry and code not in _STALE_ROUTING:
        return Verdict(False, 0.0, False)
    pause = delay_s(history.count)
    return _within(Verdict(True, pause, code in _STALE_ROUTING), now, deadline)


def after_call(history: History, code: Code, text: str, now: float, deadline: float) -> Verdict:
    """Decide on a metadata or storage call, which carries its request number again."""
    _note(history, code, text)
    if not TABLE[code].retry and code not in _STALE_ROUTING:
        return Verdict(False, 0.0, False)
    pause = delay_s(history.count)
    return _within(Verdict(True, pause, code in _STALE_ROUTING), now, deadline)
