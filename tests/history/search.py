"""Search: is there an order of the operations that real time allows and the register explains?

Operations are ordered *just in time*: walking along the returns, an operation is only put in order
when it returns, or when one that returns needs it before. What was reached once (how far along, who
is in order though not returned, which state) is never tried again. A read whose answer fits the
present state is put in order at once: it changes nothing, so nothing is lost by it.

What would overwrite bytes that a read has yet to see, and that no operation left can make again, is
not tried.

Operations of unknown outcome never return: they are put in order only where a read needs them. If
the same place and state were reached with fewer of them used up, the one with more is dropped.

Source: Wing & Gong 1993; Lowe 2017 (just-in-time linearization, configurations remembered).
"""

from collections.abc import Sequence
from typing import NamedTuple

from tests.history.operation import Kind
from tests.history.register import REFUSED, Losses, Register

DEFAULT_STEPS = 2_000_000
"""Tried at most; a register that needs more is undecided."""


class Found(NamedTuple):
    """What a search came to."""

    order: list[int] | None
    """a witness: indices of operations in an order that explains all; None if there is none"""
    steps: int
    undecided: bool
    """gave up after its bound of steps"""


class _Moment(NamedTuple):
    """A return, and who may be put in order before it."""

    returning: int
    reads: tuple[int, ...]
    changes: tuple[int, ...]
    """in the order in which they return, those of unknown outcome last"""
    past: int
    """mask of those that returned before"""


def search(
    register: Register,
    limit: int = DEFAULT_STEPS,
    *,
    dropped: int = 0,
    earlier: Sequence[int] | None = None,
) -> Found:
    """Look for an order; ``limit`` bounds the steps, ``dropped`` is a mask of who plays no part.

    ``earlier`` restricts the orders that are tried: for each operation, the mask of those that must
    come before it. What is found then is a witness like any other; that nothing is says nothing.
    """
    moments = _moments(register, dropped)
    unknown = register.unknown
    step, steps = register.step, 0
    seen: dict[tuple[int, int, int], list[int]] = {}
    # (how far, those in order, state, what was put in order on the way here: a linked list)
    stack: list[tuple[int, int, int, _Path]] = [(0, 0, register.initial, None)]
    while stack:
        at, done, state, path = stack.pop()
        # Take every read that fits, pass every return that is in order.
        while at < len(moments):
            moment = moments[at]
            for read in moment.reads:
                if earlier is not None and earlier[read] & ~(moment.past | done):
                    continue
                if not done >> read & 1 and step(state, read) != REFUSED:
                    done |= 1 << read
                    path = (read, path)
            if not done >> moment.returning & 1:
                break
            done &= ~(1 << moment.returning)
            at += 1
        else:
            return Found(_order(path), steps, False)
        if _visited(seen, at, done, state, unknown):
            continue
        moment = moments[at]
        following = []
        for change in moment.changes:
            if done >> change & 1:
                continue
            if earlier is not None and earlier[change] & ~(moment.past | done):
                continue
            steps += 1
            after = step(state, change)
            if after != REFUSED and not _wasteful(
                register.losses(state, change), moment.past | done | dropped | 1 << change
            ):
                following.append((at, done | 1 << change, after, (change, path)))
        if steps > limit:
            return Found(None, steps, True)
        # The last pushed is tried first.
        if register.operations[moment.returning].kind is Kind.READ:
            following.sort(key=lambda each: -register.distance(each[2], moment.returning))
        else:
            following.reverse()
        stack.extend(following)
    return Found(None, steps, False)


def _wasteful(losses: Losses, gone: int) -> bool:
    """Tell whether something is lost that a read must still see and nobody left can make."""
    return any(needs & ~gone and not makers & ~gone for needs, makers in losses)


_Path = tuple[int, "_Path"] | None


def _order(path: "_Path") -> list[int]:
    order = []
    while path is not None:
        index, path = path
        order.append(index)
    return order[::-1]


def _visited(
    seen: dict[tuple[int, int, int], list[int]], at: int, done: int, state: int, unknown: int
) -> bool:
    """Remember a configuration; True if one at least as good was there before."""
    used = done & unknown
    before = seen.setdefault((at, done & ~unknown, state), [])
    if any(each & used == each for each in before):
        return True
    before.append(used)
    return False


def _moments(register: Register, dropped: int) -> list[_Moment]:
    """Return every return in its order, with who was invoked before it and had not returned."""
    operations = register.operations
    useful = register.observed(dropped)
    marks: list[tuple[int, int, int]] = []
    for index, operation in enumerate(operations):
        if dropped >> index & 1:
            continue
        if operation.returned is not None and not register.unknown >> index & 1:
            marks.append((operation.returned, 1, index))
        elif operation.kind is Kind.READ or not matters(register, index, useful):
            continue
        marks.append((operation.invoked, 0, index))
    marks.sort()  # at one instant invocations come first: what touches overlaps
    moments = []
    past = 0
    open_: dict[int, None] = {}
    never = float("inf")

    def due(index: int) -> float:
        returned = operations[index].returned
        return never if returned is None or register.unknown >> index & 1 else returned

    for _, is_return, index in marks:
        if not is_return:
            open_[index] = None
            continue
        reads = tuple(i for i in open_ if operations[i].kind is Kind.READ)
        changes = sorted((i for i in open_ if operations[i].kind is not Kind.READ), key=due)
        moments.append(_Moment(index, reads, tuple(changes), past))
        past |= 1 << index
        del open_[index]
    return moments


def matters(register: Register, index: int, observed: set[int]) -> bool:
    """Tell whether an operation of unknown outcome can be of use to any order.

    A write of which no read saw a byte can be left out of any order that holds it, unless lengths
    or epochs are looked at too.
    """
    operation = register.operations[index]
    if operation.kind is not Kind.WRITE or register.sized or index in observed:
        return True
    return operation.epoch is not None and any(
        other.kind in (Kind.TRUNCATE, Kind.REMOVE) and other.epoch is not None
        for other in register.operations
    )
