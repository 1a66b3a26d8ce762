"""Witness: the order that the answers' versions suggest, tried before any search.

Versions are the system's own account of the order, so it is never believed, only proposed: the
order counts if the register and real time accept it, which takes one pass; else the search decides.
"""

from tests.history.operation import Kind
from tests.history.register import REFUSED, Register


def propose(register: Register) -> list[int] | None:
    """Return the order by versions, None if the answers do not tell one.

    Operations of unknown outcome have no version. Where a version is missing, that one of them
    takes its place with which the answers after it are explained furthest.
    """
    operations = register.operations
    answered = [i for i, each in enumerate(operations) if not each.unknown]
    if len(register.keys) > 1 or any(operations[i].version is None for i in answered):
        return None
    answered.sort(
        key=lambda i: (
            operations[i].version or 0,
            operations[i].kind is Kind.READ,
            operations[i].invoked,
        )
    )
    open_ = [i for i, each in enumerate(operations) if each.unknown and each.kind is not Kind.READ]
    order: list[int] = []
    state, before = register.initial, 0
    for at, index in enumerate(answered):
        version = operations[index].version or 0
        for _ in range(min(version - before - 1, len(open_))):
            best = max(open_, key=lambda i: _reach(register, register.step(state, i), answered, at))
            after = register.step(state, best)
            if _reach(register, after, answered, at) > _reach(register, state, answered, at):
                state = after
                open_.remove(best)
                order.append(best)
        before = version
        state = register.step(state, index)
        if state == REFUSED:
            return None
        order.append(index)
    return order


def _reach(register: Register, state: int, answered: list[int], at: int) -> int:
    """Return how far the answers from ``at`` on are explained from a state."""
    while at < len(answered) and (state := register.step(state, answered[at])) != REFUSED:
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
