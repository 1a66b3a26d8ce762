"""The write buffer of one open file, and the buffers that are on their way to the chains.

Writes gather in a staging part and leave when it is full, several at once: the caller fills the
next buffer while the chains replicate the last. Two buffers on their way never share a chunk, so
their updates cannot overtake each other.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from hillfire.client import writing
from hillfire.client.actions import Join, Operation, Spawn
from hillfire.client.core import Core
from hillfire.client.plan import Extent
from hillfire.errors import Error
from hillfire.proto.wire.base import Part

BUFFER_BYTES = 4 * 1024 * 1024
FIRST_BUFFER_BYTES = 128 * 1024
"""A small file does not take a whole buffer; the first one grows once."""
DEPTH = 3
"""Buffers on their way at once."""


class Flying(NamedTuple):
    """A buffer on its way."""

    handle: Any
    part: Part
    first: int
    """chunk index"""
    last: int


class WriteBuffer:
    """Gathers the writes of one open file."""

    def __init__(
        self, core: Core, extent: Extent, reserve: Callable[[int], Operation[int]] | None
    ) -> None:
        """``reserve`` says where appended bytes go; without it they go where they were written."""
        self.extent = extent
        """of the file, with the epoch to write under"""
        self.dirty_start = -1
        """of what was sent since the last sync; -1: nothing"""
        self.dirty_end = 0
        self._core = core
        self._reserve = reserve
        self._part: Part | None = None
        self._start = 0
        self._fill = 0
        self._flying: deque[Flying] = deque()

    def __bool__(self) -> bool:
        """Tell whether bytes are buffered or on their way."""
        return self._part is not None or bool(self._flying)

    @property
    def end(self) -> int:
        """The first offset after everything that was written, 0 if unknown (appending)."""
        if self._part is None or self._reserve is not None:
            return self.dirty_end
        return max(self.dirty_end, self._start + self._fill)

    def add(self, position: int, data: memoryview) -> Operation[None]:
        """Take ``data``, written at ``position``."""
        done, total = 0, len(data)
        while done < total:
            part = self._part
            if part is not None and position != self._start + self._fill and not self._reserve:
                yield from self._dispatch()
                continue
            if part is None:
                self._start, self._fill = position, 0
                left = total - done
                size = FIRST_BUFFER_BYTES if left <= FIRST_BUFFER_BYTES else self._room()
                part = self._part = self._core.stage(size)
            count = min(total - done, part.length - self._fill)
            if not count:
                yield from self._grow_or_dispatch(part)
                continue
            begin = part.offset + self._fill
            part.region.view[begin : begin + count] = data[done : done + count]
            self._fill += count
            done += count
            position += count
        if self._part is not None and self._fill >= self._room():
            yield from self._dispatch()

    def _room(self) -> int:
        """Return the size of a full buffer from the start on: it ends where a chunk ends."""
        chunk = self.extent.layout.chunk_bytes
        return BUFFER_BYTES - self._start % min(chunk, BUFFER_BYTES)

    def _grow_or_dispatch(self, part: Part) -> Operation[None]:
        room = self._room()
        if part.length >= room:
            yield from self._dispatch()
            return
        larger = self._core.stage(room)
        old = part.region.view[part.offset : part.offset + self._fill]
        larger.region.view[larger.offset : larger.offset + self._fill] = old
        self._core.unstage(part)
        self._part = larger

    def _dispatch(self) -> Operation[None]:
        """Send the buffer on its way, once nothing on its way shares a chunk with it."""
        part, count, start = self._part, self._fill, self._start
        self._part, self._fill = None, 0
        if part is None:
            return
        try:
            if self._reserve is not None:
                start = yield from self._reserve(count)
            chunk = self.extent.layout.chunk_bytes
            first, last = start // chunk, (start + count - 1) // chunk
            while self._flying and (
                len(self._flying) >= DEPTH
                or any(f.first <= last and first <= f.last for f in self._flying)
            ):
                yield from self._land()
        except BaseException:
            self._core.unstage(part)
            raise
        self.sent(start, start + count)
        source = Part(part.region, part.offset, count)
        handle = yield Spawn(writing.write_batch(self._core, [(self.extent, start, source)]))
        self._flying.append(Flying(handle, part, first, last))

    def sent(self, start: int, end: int) -> None:
        """Note bytes that are on the chains, or on their way, and not synced."""
        self.dirty_start = start if self.dirty_start < 0 else min(self.dirty_start, start)
        self.dirty_end = max(self.dirty_end, end)

    def synced(self) -> None:
        """Note that all of it is durable."""
        self.dirty_start, self.dirty_end = -1, 0

    def cut(self, length: int) -> None:
        """Note that the file was truncated, with nothing buffered."""
        self.dirty_end = min(self.dirty_end, length)

    def _land(self) -> Operation[None]:
        """Wait for the oldest buffer on its way."""
        flying = self._flying.popleft()
        try:
            results = yield Join(flying.handle)
        finally:
            self._core.unstage(flying.part)
        if isinstance(results[0], Error):
            raise results[0]

    def drain(self) -> Operation[None]:
        """Send what is buffered and wait until all of it is on every replica.

        Raises:
            Error: the first of a buffer that could not be written; nothing is left either way.
        """
        failure: Error | None = None
        try:
            yield from self._dispatch()
        except Error as exc:
            failure = exc
        while self._flying:
            try:
                yield from self._land()
            except Error as exc:
                failure = failure or exc
        if failure is not None:
            raise failure
