"""Requests at a target while they are worked on, and the payloads of their updates.

A request is answered when every item has its outcome and no thread and no forward uses the
memory that came with it any more: the sender may change that memory once it has the answer.
"""

import asyncio
import itertools
from collections.abc import Sequence

from hillfire.errors import Code
from hillfire.proto.wire.base import Part
from hillfire.proto.wire.chunks import WriteResult
from hillfire.region import Region
from hillfire.storage.craq.effects import Reply
from hillfire.storage.pool import Holder, Span

_EMPTY = Region.wrap(bytearray(1))
_new = tuple.__new__  # half the price of calling a NamedTuple


class Batch(Holder):
    """One request's items, their results and the memory that it lent us."""

    __slots__ = ("_future", "_left", "results")

    def __init__(self, count: int, future: "asyncio.Future[Sequence[WriteResult]]") -> None:
        """Wait for ``count`` results."""
        super().__init__()
        self._left = count
        self._future = future
        self.results: list[WriteResult] = [_UNKNOWN] * count

    def put(self, item: int, result: WriteResult) -> bool:
        """Take one result in; True if it was the last."""
        self.results[item] = result
        left = self._left = self._left - 1
        assert left >= 0, "an item was answered twice"
        if left:
            return False
        self.drop()
        return True

    def ended(self) -> None:
        """Every item is answered and the memory is free: answer."""
        if not self._future.done():
            self._future.set_result(self.results)


class Requests:
    """The requests under way at one target, by number."""

    def __init__(self) -> None:
        """Start with none."""
        self._numbers = itertools.count(1)
        self._open: dict[int, Batch] = {}

    def open(self, count: int) -> "tuple[int, Batch, asyncio.Future[Sequence[WriteResult]]]":
        """Return a new request: its number, its batch and what to await."""
        future: asyncio.Future[Sequence[WriteResult]] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        batch = self._open[number] = Batch(count, future)
        return number, batch, future

    def answer(self, answers: Sequence[Reply]) -> None:
        """Take results in."""
        opened, last, batch = self._open, -1, None
        for reply in answers:
            number = reply[0]
            if number != last or batch is None:
                last, batch = number, opened[number]
            if batch.put(reply[1], _new(WriteResult, reply[2:])):
                del opened[number]
                batch = None

    def fail(self, code: Code) -> None:
        """Answer everything that is not answered yet with one code."""
        result = WriteResult(code, 0, 0, 0)
        while self._open:
            _, batch = self._open.popitem()
            for item, known in enumerate(batch.results):
                if known is _UNKNOWN:
                    batch.put(item, result)


class Payload:
    """One update's bytes: in a span of ours, into which they are copied first, or borrowed."""

    __slots__ = ("_kept", "_source", "memory", "offset", "view")

    def __init__(
        self, memory: Holder, view: memoryview, offset: int, source: memoryview | None
    ) -> None:
        """``view`` lies at ``offset`` of the span's region; ``source`` is the sender's memory."""
        self.memory = memory
        self.view = view
        self.offset = offset
        self._source = source
        self._kept = False

    def keep(self) -> None:
        """Hold the memory for as long as the operation is in the core."""
        if not self._kept:
            self._kept = True
            self.memory.hold()

    def let_go(self) -> None:
        """End ``keep``."""
        if self._kept:
            self._kept = False
            self.memory.drop()

    def fetch(self) -> memoryview:
        """Copy the bytes into our own memory, once, and return them there."""
        source, self._source = self._source, None
        if source is not None:
            self.view[:] = source
        return self.view

    def part(self) -> Part:
        """Return the bytes as a part of a request to the successor."""
        memory = self.memory
        if isinstance(memory, Span):
            return _new(Part, (memory.region, self.offset, len(self.view)))
        if not self.view:
            return Part(_EMPTY, 0, 0)
        return Part(Region.wrap(self.view), 0, len(self.view))


_UNKNOWN = WriteResult(0, 0, 0, 0)
