"""Judge: the verdict on a history, chunk by chunk.

Linearizability is local (Herlihy & Wing 1990, theorem 1): a history is linearizable if and only if
each object's part is. Chunks that a clone connects count as one object.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.history.explain import explain
from tests.history.operation import Kind, Operation
from tests.history.register import Register
from tests.history.search import DEFAULT_STEPS, search
from tests.history.witness import by_versions, holds, propose

MAX_EXPLAINED = 3
"""Violations of one history that are made small and drawn; the others are named."""

GUIDED_SHARE = 4
"""Of the bound of steps, what a search among the orders that versions allow may take first."""


@dataclass(slots=True)
class Violation:
    """A register whose history no order explains."""

    keys: list[str]
    core: list[Operation]
    """the fewest operations found that cannot be explained together"""
    text: str
    """a diagram of them, to be read by a person"""


@dataclass(slots=True)
class Undecided:
    """A register whose search gave up: too many operations at once for the bound of steps."""

    keys: list[str]
    operations: int
    steps: int


@dataclass(slots=True)
class Verdict:
    """What came of judging a history."""

    operations: int = 0
    registers: int = 0
    by_versions: int = 0
    """registers whose versions told an order that holds"""
    steps: int = 0
    violations: list[Violation] = field(default_factory=list)
    undecided: list[Undecided] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every register is linearizable, and that was shown."""
        return not self.violations and not self.undecided

    def __str__(self) -> str:
        """Say it in words, with a diagram of every violation."""
        lines = [
            f"{self.operations} operations on {self.registers} chunks: "
            f"{len(self.violations)} not linearizable, {len(self.undecided)} undecided"
        ]
        lines += [violation.text for violation in self.violations]
        lines += [
            f"undecided: {', '.join(each.keys)}: {each.operations} operations, gave up after "
            f"{each.steps} steps"
            for each in self.undecided
        ]
        return "\n".join(lines)


def judge(
    operations: Iterable[Operation], *, limit: int = DEFAULT_STEPS, versions: bool = True
) -> Verdict:
    """Judge every chunk's history; ``versions=False`` leaves out the order that they suggest."""
    verdict = Verdict()
    for group in _groups(operations):
        verdict.operations += len(group)
        verdict.registers += 1
        _judge_one(_relevant(group), verdict, limit, versions)
    return verdict


def check_versions(operations: Iterable[Operation]) -> list[str]:
    """Tell where versions contradict real time, or two changes share one. Empty if nowhere."""
    wrong = []
    by_key: dict[str, list[Operation]] = {}
    for operation in operations:
        if operation.version is not None and operation.returned is not None:
            by_key.setdefault(operation.key, []).append(operation)
    for key, group in by_key.items():
        made: dict[int, Operation] = {}
        for each in group:
            if each.kind is Kind.WRITE and not each.refused:
                other = made.setdefault(each.version or 0, each)
                if other is not each:
                    wrong.append(f"{key}: two writes are version {each.version}: {other}, {each}")
        group.sort(key=lambda each: each.invoked)
        returns = sorted(group, key=lambda each: each.returned or 0)
        highest: Operation | None = None
        passed = 0
        for each in group:
            while (returns[passed].returned or 0) < each.invoked:
                before = returns[passed]
                passed += 1
                if highest is None or (before.version or 0) > (highest.version or 0):
                    highest = before
            if highest is not None and (each.version or 0) < (highest.version or 0):
                wrong.append(f"{key}: {each} after {highest}")
    return wrong


def _judge_one(operations: list[Operation], verdict: Verdict, limit: int, versions: bool) -> None:
    register = Register(operations)
    if versions:
        order = propose(register)
        if order is not None and holds(register, order):
            verdict.by_versions += 1
            return
        if len(register.keys) > 1:
            found = search(register, limit // GUIDED_SHARE, earlier=by_versions(register))
            verdict.steps += found.steps
            if found.order is not None and holds(register, found.order):
                verdict.by_versions += 1
                return
    found = search(register, limit)
    verdict.steps += found.steps
    if found.order is not None:
        assert holds(register, found.order), "the search found an order that does not hold"
    elif found.undecided:
        verdict.undecided.append(Undecided(register.keys, len(operations), found.steps))
    else:
        violation = Violation(register.keys, [], f"not linearizable: {', '.join(register.keys)}")
        if len(verdict.violations) < MAX_EXPLAINED:
            violation.core, violation.text = explain(register)
        verdict.violations.append(violation)


def _relevant(operations: Sequence[Operation]) -> list[Operation]:
    """Leave out what was refused, and reads without an answer."""
    return [
        each
        for each in operations
        if not each.refused and not (each.kind is Kind.READ and each.unknown)
    ]


def _groups(operations: Iterable[Operation]) -> list[list[Operation]]:
    """Return the operations by register."""
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    listed = list(operations)
    for each in listed:
        first = root(each.key)
        if each.kind is Kind.CLONE:
            parents[root(each.source)] = first
    groups: dict[str, list[Operation]] = {}
    for each in listed:
        groups.setdefault(root(each.key), []).append(each)
    return list(groups.values())
