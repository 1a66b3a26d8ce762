"""Explain: what a person must look at in a history that no order explains.

The history is made smaller while it still has no order: what began after the first return until
which there is none is dropped, reads are dropped, outcomes are taken as unknown (which only allows
more). What is left is the core, drawn over time.
"""

from collections.abc import Sequence

from tests.history.operation import Kind, Operation
from tests.history.register import Register
from tests.history.search import matters, search

MAX_TRIALS = 400
"""Searches spent on one explanation."""
MAX_TRIAL_STEPS = 20_000
"""Of one of them; a trial that needs more counts as one that has an order."""
WIDTH = 56


def explain(operations: Sequence[Operation], limit: int) -> tuple[list[Operation], str]:
    """Return the core of a history without an order, and its diagram."""
    returns = sorted(each.returned for each in operations if each.returned is not None)
    low, high = 0, len(returns) - 1
    while low < high:  # a prefix without an order stays so as it grows
        middle = (low + high) // 2
        if _impossible(_until(operations, returns[middle]), limit):
            high = middle
        else:
            low = middle + 1
    core = _smaller(_until(operations, returns[low]))
    return core, _text(core, len(operations))


def _until(operations: Sequence[Operation], ended: int) -> list[Operation]:
    """Return what was known at an instant."""
    return _relevant(
        [
            each
            if each.returned is not None and each.returned <= ended
            else each.but(returned=None)
            for each in operations
            if each.invoked <= ended
        ]
    )


def _relevant(operations: Sequence[Operation]) -> list[Operation]:
    return [each for each in operations if not (each.kind is Kind.READ and each.unknown)]


def _impossible(operations: Sequence[Operation], limit: int) -> bool:
    if not any(each.returned is not None for each in operations):
        return False
    found = search(Register(operations), limit)
    return found.order is None and not found.undecided


def _smaller(core: list[Operation]) -> list[Operation]:
    """Drop reads and loosen the rest, in ever smaller handfuls, while there is still no order."""
    trials = 0
    size = max(1, len(core) // 2)
    while True:
        changed = False
        at = 0
        while at < len(core) and trials < MAX_TRIALS:
            chosen = core[at : at + size]
            loosened = [each.but(returned=None) for each in chosen if each.kind is not Kind.READ]
            if loosened == chosen or all(each.unknown for each in chosen):
                at += size
                continue
            trial = core[:at] + loosened + core[at + size :]
            trials += 1
            if _impossible(trial, MAX_TRIAL_STEPS):
                core, changed = trial, True
                at += len(loosened)
            else:
                at += size
        if size == 1 and not changed:
            break
        if trials >= MAX_TRIALS:
            break
        size = max(1, size // 2)
    return _without_idle(core)


def _without_idle(core: list[Operation]) -> list[Operation]:
    """Drop the operations of unknown outcome that are of use to no order."""
    register = Register(core)
    observed = register.observed()
    return [
        each
        for index, each in enumerate(core)
        if not each.unknown or matters(register, index, observed)
    ]


def _text(core: Sequence[Operation], of: int) -> str:
    keys = sorted({each.key for each in core})
    lines = [
        f"not linearizable: chunk {', '.join(keys)}; {len(core)} of its {of} operations cannot be "
        "explained together:"
    ]
    lines += diagram(core)
    return "\n".join(lines)


def diagram(operations: Sequence[Operation], width: int = WIDTH) -> list[str]:
    """Draw operations over time, one a line; the columns are instants in order, not to scale."""
    instants = sorted(
        {each.invoked for each in operations}
        | {each.returned for each in operations if each.returned is not None}
    )
    if not instants:
        return []
    scale = (width - 1) / max(1, len(instants) - 1)
    column = {instant: round(i * scale) for i, instant in enumerate(instants)}
    origin = instants[0]
    several = len({each.key for each in operations}) > 1
    names = max(len(each.client) for each in operations)
    lines = []
    for each in sorted(operations, key=lambda each: each.invoked):
        begin = column[each.invoked]
        end = width - 1 if each.returned is None else column[each.returned]
        bar = " " * begin + "|" + "-" * max(0, end - begin - 1)
        bar += ("?" if each.returned is None else "|") if end > begin else ""
        until = "?" if each.returned is None else str(each.returned - origin)
        key = f" {each.key}" if several else ""
        lines.append(
            f"  {each.client:<{names}} {bar:<{width}} {each.describe()}{key}"
            f"  ({each.invoked - origin}..{until})"
        )
    return lines
