"""Witness: the order that the answers' versions suggest, tried before any search.

Versions are the system's own account of the order, so it is never believed, only proposed: the
order counts if the register and real time accept it, which takes one pass; else the search decides.
"""

from tests.history.operation import Kind
from tests.history.register import REFUSED, Register


def propose(register: Register) -> list[int] | None:
    """Return the order by versions, None if the answers do not tell one.

    Operations of unknown outcome have no version. As long as an answer is not explained, one of
    them is put where a version is missing before it: the one, and the place, that explain most.
    """
    operations = register.operations
    order = [i for i, each in enumerate(operations) if not each.unknown]
    if len(register.keys) > 1 or any(operations[i].version is None for i in order):
        return None
    order.sort(
        key=lambda i: (
            operations[i].version or 0,
            operations[i].kind is Kind.READ,
            operations[i].invoked,
        )
    )
    open_ = [i for i, each in enumerate(operations) if each.unknown and each.kind is not Kind.READ]
    while True:
        states = _states(register, order)
        reached = len(states) - 1
        if reached == len(order):
            return order
        best = reached, -1, -1
        for at in _gaps(register, order[: reached + 1]):
            for unknown in open_:
                after = register.step(states[at], unknown)
                best = max(best, (_reach(register, after, order, at), at, unknown))
        _, at, unknown = best
        if at < 0:
            return None
        order.insert(at, unknown)
        open_.remove(unknown)


def by_versions(register: Register) -> list[int]:
    """Return for each operation the mask of those that versions put before it.

    For histories of several chunks, which clones connect: there versions tell the order within each
    chunk only, and a search has to find how the chunks' orders interlock.
    """
    operations = register.operations
    chunks: dict[str, list[tuple[int, bool, int]]] = {}
    for index, each in enumerate(operations):
        if not each.unknown and each.version is not None:
            is_read = each.kind is Kind.READ
            chunks.setdefault(each.key, []).append((each.version, is_read, index))
    earlier = [0] * len(operations)
    for ordered in chunks.values():
        ordered.sort()
        before, same, place = 0, 0, (0, False)
        for version, is_read, index in ordered:
            if (version, is_read) != place:  # reads of one version are in no order
                before, same, place = before | same, 0, (version, is_read)
            earlier[index] = before
            same |= 1 << index
    return earlier


def _states(register: Register, order: list[int]) -> list[int]:
    """Return the states before each operation and after the last, as far as the answers fit."""
    states = [register.initial]
    for index in order:
        after = register.step(states[-1], index)
        if after == REFUSED:
            break
        states.append(after)
    return states


def _gaps(register: Register, order: list[int]) -> list[int]:
    """Return the places in an order before which a version is missing."""
    gaps, version, filled = [], 0, 0
    for at, index in enumerate(order):
        operation = register.operations[index]
        following = operation.version
        if following is None:
            filled += 1
            continue
        made = following - version - (operation.kind is not Kind.READ)
        if made > filled:
            gaps.append(at)
        version, filled = following, 0
    return gaps


def _reach(register: Register, state: int, order: list[int], at: int) -> int:
    """Return how far the answers from ``at`` on are explained from a state."""
    while at < len(order) and (state := register.step(state, order[at])) != REFUSED:
        at += 1
    return at


def holds(register: Register, order: list[int]) -> bool:
    """Tell whether an order has all that was answered, and real time and the register accept it."""
    operations = register.operations
    answered = {i for i, each in enumerate(operations) if not each.unknown}
    if len(set(order)) != len(order) or not answered <= set(order):
        return False
    state, latest = register.initial, None
    for index in order:
        operation = operations[index]
        if latest is not None and operation.returned is not None and operation.returned < latest:
            return False  # it had returned before one that is ordered before it was invoked
        latest = operation.invoked if latest is None else max(latest, operation.invoked)
        state = register.step(state, index)
        if state == REFUSED:
            return False
    return True
