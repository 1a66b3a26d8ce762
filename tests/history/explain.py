"""Explain: what a person must look at in a history that no order explains.

The history is made smaller while it still has no order: what began after the first return until
which there is none is dropped, reads are dropped, outcomes are taken as unknown (which only allows
more). What is left is the core, drawn over time.
"""

from collections.abc import Sequence

from tests.history.operation import Kind, Operation
from tests.history.register import Register
from tests.history.search import DEFAULT_STEPS, matters, search

MAX_TRIALS = 150
"""Searches spent on one explanation."""
MAX_TRIAL_STEPS = 2_000
"""Of one of them; a trial that needs more counts as one that has an order."""
WIDTH = 56


def explain(register: Register) -> tuple[list[Operation], str]:
    """Return the core of a history without an order, and its diagram. Uses the register up."""
    operations = register.operations
    known = register.unknown
    returns = sorted(each.returned for each in operations if each.returned is not None)
    low, high = 0, len(returns) - 1
    while low < high:  # a prefix without an order stays so as it grows
        middle = (low + high) // 2
        if _impossible(register, *_until(operations, returns[middle], known), DEFAULT_STEPS):
            high = middle
        else:
            low = middle + 1
    dropped, unknown = _smaller(register, *_until(operations, returns[low], known))
    register.unknown = unknown
    useful = register.observed(dropped)
    core = [
        each.but(returned=None) if unknown >> i & 1 else each
        for i, each in enumerate(operations)
        if not dropped >> i & 1 and (not unknown >> i & 1 or matters(register, i, useful))
    ]
    return core, _text(core, len(operations))


def _until(operations: Sequence[Operation], ended: int, known: int) -> tuple[int, int]:
    """Return masks of what had no part until an instant, and whose outcome was unknown then."""
    dropped, unknown = 0, known
    for index, each in enumerate(operations):
        open_ = each.returned is None or each.returned > ended
        if each.invoked > ended or (open_ and each.kind is Kind.READ):
            dropped |= 1 << index
        elif open_:
            unknown |= 1 << index
    return dropped, unknown


def _impossible(register: Register, dropped: int, unknown: int, limit: int) -> bool:
    register.unknown = unknown
    found = search(register, limit, dropped=dropped)
    return found.order is None and not found.undecided


def _smaller(register: Register, dropped: int, unknown: int) -> tuple[int, int]:
    """Drop reads and loosen the rest, in ever smaller handfuls, while there is still no order."""
    operations = register.operations
    left = [i for i in range(len(operations)) if not (dropped | unknown) >> i & 1]
    size, trials = max(1, len(left) // 2), 0
    while trials < MAX_TRIALS:
        before = len(left)
        at = 0
        while at < len(left) and trials < MAX_TRIALS:
            chosen = left[at : at + size]
            reads = sum(1 << i for i in chosen if operations[i].kind is Kind.READ)
            others = sum(1 << i for i in chosen) & ~reads
            trials += 1
            if _impossible(register, dropped | reads, unknown | others, MAX_TRIAL_STEPS):
                dropped, unknown = dropped | reads, unknown | others
                del left[at : at + size]
            else:
                at += size
        if size == 1 and len(left) == before:
            break
        size = max(1, size // 2)
    return dropped, unknown


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
