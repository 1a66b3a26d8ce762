"""Register: the model of a chunk that operations are tried on, with numbered states.

A chunk is bytes without end (zeros where nothing was written). The borders of all operations cut
it into *segments*, which every operation takes or leaves whole; what a segment may hold is numbered
by content. A state is a tuple of those numbers, with length, epoch and presence where they matter;
equal states are one number, and each step from a state is computed once.

Chunks that a clone connects are one register: no order of one can be judged without the other's.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import gcd

from tests.history.operation import Extent, Kind, Operation
from tests.history.pattern import WORD, pattern

MAX_SEGMENTS = 1 << 16

Chunk = tuple[tuple[int, ...], int, int, bool]
"""content of each segment, length, epoch, presence: each only as far as it matters"""
State = tuple[Chunk, ...]

Losses = tuple[tuple[int, int], ...]
_Masks = dict[tuple[str, int, int], int]

REFUSED = -1
"""No state: the operation cannot have come out so."""


class Register:
    """Operations of one register, prepared, and the states that they were seen to lead to."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        """Prepare operations, none of them refused, and reads only with an answer.

        Raises:
            ValueError: a history that the model cannot hold.
        """
        self.operations = operations
        self.keys = sorted({operation.key for operation in operations} | _sources(operations))
        self.appends = any(operation.kind is Kind.APPEND for operation in operations)
        self.sized = self.appends or any(operation.size is not None for operation in operations)
        self.epochs = any(operation.epoch is not None for operation in operations)
        self.borders = _borders(operations, self.appends)
        self.n_segments = len(self.borders) - 1
        self._key = [self.keys.index(operation.key) for operation in operations]
        self._low: list[int] = []
        self._values: list[tuple[int, ...]] = []
        self._number_contents()
        self.unknown = sum(1 << i for i, each in enumerate(operations) if each.unknown)
        """mask of the operations of unknown outcome; more may be taken to be so"""
        self._states: dict[State, int] = {}
        self.states: list[State] = []
        self._steps: list[dict[int, int]] = []
        self._losses: dict[tuple[int, int], Losses] = {}
        self._needs, self._makers = self._who_needs_and_makes()
        blank: Chunk = ((0,) * self.n_segments, 0, 0, False)
        self.initial = self._number((blank,) * len(self.keys))

    def step(self, state: int, index: int) -> int:
        """Return the state after an operation, REFUSED if it cannot have come out so there."""
        steps = self._steps[state]
        after = steps.get(index)
        if after is None:
            after = steps[index] = self._apply(state, index)
        return state if after == REFUSED and self.unknown >> index & 1 else after

    def losses(self, state: int, index: int) -> "Losses":
        """Return what an operation overwrites: (reads that saw it, operations that make it).

        Both are masks of operations; a value that a read has yet to see, and that nobody can make
        any more, must not be lost.
        """
        found = self._losses.get((state, index))
        if found is None:
            found = self._losses[state, index] = self._lost(state, self.step(state, index))
        return found

    def _lost(self, before: int, after: int) -> "Losses":
        if self.appends or after == REFUSED:
            return ()
        lost = set()
        for which, key in enumerate(self.keys):
            old, new = self.states[before][which][0], self.states[after][which][0]
            if old is new:
                continue
            for segment, (value, other) in enumerate(zip(old, new, strict=True)):
                if value != other and (needs := self._needs.get((key, segment, value))):
                    makers = self._makers.get((key, segment, value), 0)
                    lost.add((needs, makers | self._makers.get((key, -1, 0), 0)))
        return tuple(lost)

    def _who_needs_and_makes(self) -> "tuple[_Masks, _Masks]":
        """Return by (key, segment, value) who saw and who makes it; segment -1: makes anything."""
        needs: _Masks = {}
        makers: _Masks = {}
        for index, operation in enumerate(self.operations):
            key, low, bit = operation.key, self._low[index], 1 << index
            values: tuple[int, ...] = self._values[index]
            masks = needs if operation.kind is Kind.READ else makers
            if operation.kind is Kind.TRUNCATE:
                low = bisect_left(self.borders, operation.length)
            if operation.kind in (Kind.TRUNCATE, Kind.REMOVE):
                values = (0,) * (self.n_segments - low)
            elif operation.kind is Kind.CLONE:
                low, values = -1, (0,)
            for segment, value in enumerate(values, low):
                masks[key, segment, value] = masks.get((key, segment, value), 0) | bit
        return needs, makers

    def distance(self, state: int, read: int) -> int:
        """Return how many segments differ from what a read saw: how far a state is from it."""
        segments = self.states[state][self._key[read]][0]
        low, values = self._low[read], self._values[read]
        return sum(a != b for a, b in zip(segments[low : low + len(values)], values, strict=True))

    def observed(self, dropped: int = 0) -> set[int]:
        """Return the writes of which a read that is not dropped may have seen a byte."""
        seen: set[tuple[int, int]] = set()
        for index, operation in enumerate(self.operations):
            if operation.kind is Kind.READ and not dropped >> index & 1:
                low = self._low[index]
                seen.update((low + i, value) for i, value in enumerate(self._values[index]))
        return {
            index
            for index, operation in enumerate(self.operations)
            if operation.kind is not Kind.WRITE
            or any(
                (self._low[index] + i, value) in seen for i, value in enumerate(self._values[index])
            )
        }

    # ------------------------------------------------------------------ the model

    def _apply(self, number: int, index: int) -> int:
        state, operation = self.states[number], self.operations[index]
        which = self._key[index]
        segments, length, epoch, present = state[which]
        kind, asked = operation.kind, operation.epoch
        low, values = self._low[index], self._values[index]
        if kind is Kind.READ:
            same = segments[low : low + len(values)] == values
            sized = operation.size is None or operation.size == length
            return number if same and sized else REFUSED
        if asked is not None and epoch > asked:
            return REFUSED
        idle = asked is not None and (not present or epoch == asked)
        if idle and kind in (Kind.TRUNCATE, Kind.REMOVE):
            return number
        if kind is Kind.WRITE:
            length = max(length, operation.end)
        elif kind is Kind.APPEND:
            low, left = divmod(length, self.borders[1])
            if operation.offset not in (-1, length) or left or low + len(values) > self.n_segments:
                return REFUSED
            length += operation.length
        elif kind is Kind.TRUNCATE:
            length, low = operation.length, bisect_left(self.borders, operation.length)
            values = (0,) * (self.n_segments - low)
        elif kind is Kind.REMOVE:
            length, low, values = 0, 0, (0,) * self.n_segments
        else:
            segments, length, _, _ = state[self.keys.index(operation.source)]
            low, values = 0, ()
        after: Chunk = (
            segments[:low] + values + segments[low + len(values) :],
            length if self.sized else 0,
            epoch if asked is None else asked,
            self.epochs and kind is not Kind.REMOVE,
        )
        return self._number((*state[:which], after, *state[which + 1 :]))

    def _number(self, state: State) -> int:
        number = self._states.get(state)
        if number is None:
            number = self._states[state] = len(self.states)
            self.states.append(state)
            self._steps.append({})
        return number

    # ------------------------------------------------------------------ numbers for contents

    def _number_contents(self) -> None:
        """Give every operation its first segment and the numbers of what it puts or saw there."""
        numbers: list[dict[int | bytes, int]] = [{0: 0} for _ in range(self.n_segments)]
        appended: dict[int | bytes, int] = {0: 0}
        exact = self._exact()
        bytes_of = _Patterns(self.operations)
        for operation in self.operations:
            if operation.kind not in (Kind.READ, Kind.WRITE, Kind.APPEND):
                self._low.append(0)
                self._values.append(())
                continue
            start = max(operation.offset, 0) if operation.kind is not Kind.APPEND else 0
            low = bisect_left(self.borders, start)
            high = bisect_left(self.borders, start + operation.length)
            shift = start - max(operation.offset, 0)
            values = []
            extents = [e._replace(offset=e.offset + shift) for e in operation.content]
            cursor = _Cursor(extents, bytes_of)
            for segment in range(low, high):
                begin, end = self.borders[segment], self.borders[segment + 1]
                value = cursor.take(begin, end, segment in exact or self.appends)
                known = appended if self.appends else numbers[segment]
                values.append(known.setdefault(value, len(known)))
            self._low.append(low)
            self._values.append(tuple(values))

    def _exact(self) -> set[int]:
        """Return the segments to be compared by bytes: short ones, and where some are bytes."""
        borders = self.borders
        exact = {
            segment
            for segment in range(self.n_segments)
            if borders[segment + 1] - borders[segment] < 2 * WORD
        }
        for operation in self.operations:
            for extent in operation.content:
                if isinstance(extent.value, bytes):
                    low = bisect_left(borders, max(extent.offset, 0))
                    high = bisect_left(borders, extent.offset + extent.length)
                    exact.update(range(low, high))
        return exact


class _Cursor:
    """Takes content in order, a segment at a time."""

    def __init__(self, extents: list[Extent], bytes_of: "_Patterns") -> None:
        self._extents = sorted(extents, key=lambda each: each.offset)
        self._bytes_of = bytes_of
        self._at = 0

    def take(self, begin: int, end: int, exact: bool) -> int | bytes:
        """Return a segment's label, or its bytes (0 for zeros)."""
        extents = self._extents
        while self._at < len(extents) and extents[self._at][0] + extents[self._at][1] <= begin:
            self._at += 1
        if self._at >= len(extents) or extents[self._at].offset >= end:
            return 0
        assert extents[self._at].offset <= begin, "an extent's ends are borders"
        offset, _, value = extents[self._at]
        if isinstance(value, bytes):
            data = value[begin - offset : end - offset]
        elif exact:
            data = self._bytes_of(value, begin, end)
        else:
            return value
        return data if any(data) else 0


class _Patterns:
    """The bytes of labels, each made once for all of the extents that show it."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._spans: dict[int, tuple[int, int]] = {}
        self._made: dict[int, bytes] = {}
        for operation in operations:
            for offset, length, value in operation.content:
                if isinstance(value, int):
                    low, high = self._spans.get(value, (offset, offset + length))
                    self._spans[value] = min(low, offset), max(high, offset + length)

    def __call__(self, label: int, begin: int, end: int) -> bytes:
        low, high = self._spans[label]
        made = self._made.get(label)
        if made is None:
            made = self._made[label] = pattern(label, low, high - low)
        return made[begin - low : end - low]


def _sources(operations: Sequence[Operation]) -> set[str]:
    return {operation.source for operation in operations if operation.kind is Kind.CLONE}


def _borders(operations: Sequence[Operation], appends: bool) -> list[int]:
    marks = {0}
    total = 0
    for operation in operations:
        if operation.kind is Kind.APPEND:
            total += operation.length
            marks.update((operation.length, max(operation.offset, 0)))
        elif operation.kind is Kind.TRUNCATE:
            marks.add(operation.length)
        elif operation.kind in (Kind.READ, Kind.WRITE):
            marks.update((operation.offset, operation.end))
        for extent in operation.content:
            if operation.kind is not Kind.APPEND:
                marks.update((extent.offset, extent.offset + extent.length))
    if appends:
        if any(isinstance(e.value, int) for each in operations for e in each.content if e.value):
            raise ValueError("a history with appends needs bytes, not labels, as content")
        unit = gcd(*marks) or 1
        end = max(marks) + total
        if end // unit > MAX_SEGMENTS:
            raise ValueError(f"appends of {unit} bytes within {end}: too many segments")
        marks = set(range(0, end + unit, unit))
    if len(marks) == 1:
        marks.add(1)
    if len(marks) > MAX_SEGMENTS:
        raise ValueError(f"{len(marks)} segments: more than {MAX_SEGMENTS}")
    return sorted(marks)
