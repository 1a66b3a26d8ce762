"""What is fetched before it is asked for, once reads of a file follow one another.

Windows of growing size, several on their way at once, each in a staging part of its own from
which reads are served by one copy. A jump ends it: the windows are waited for and dropped.
"""

from collections import deque
from typing import Any

from hillfire.client import reading
from hillfire.client.actions import Join, Operation, Spawn
from hillfire.client.core import Core
from hillfire.client.plan import Extent
from hillfire.errors import Error
from hillfire.proto.wire.base import Part

FIRST_WINDOW = 128 * 1024
MAX_WINDOW = 4 * 1024 * 1024
WINDOWS = 3
"""At once, the one being read included."""


class Window:
    """A stretch of the file, here or on its way."""

    __slots__ = ("end", "handle", "part", "start")

    def __init__(self, start: int, end: int, handle: Any) -> None:
        """Remember what was asked for."""
        self.start = start
        self.end = end
        self.handle = handle
        self.part: Part | None = None


class ReadAhead:
    """The windows of one open file."""

    def __init__(self, core: Core) -> None:
        """Begin with none."""
        self.expect = 0
        """where the next read begins if reads follow one another"""
        self._core = core
        self._windows: deque[Window] = deque()
        self._bytes = FIRST_WINDOW

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return bool(self._windows)

    def at(self, position: int, wanted: int, extent: Extent) -> Operation[memoryview | None]:
        """Return what there is from ``position`` on, None if the read is better done directly.

        ``wanted`` 0: anything will do (peek).
        """
        windows = self._windows
        while windows and not windows[0].start <= position < windows[0].end:
            if position < windows[0].start:
                yield from self.forget()
            else:
                yield from self._drop(windows.popleft())
        if position >= extent.length:
            return None
        if not windows:
            if wanted and (position != self.expect or not position):
                self._bytes = FIRST_WINDOW
                return None
            self._bytes = min(MAX_WINDOW, max(wanted, self._bytes))
            yield from self._fetch(position, self._bytes, extent)
        while (
            len(windows) < WINDOWS
            and windows[-1].end < extent.length
            and self._bytes > FIRST_WINDOW * 2
        ):
            yield from self._fetch(windows[-1].end, self._bytes, extent)
        first = windows[0]
        if first.part is None:
            try:
                first.part = yield Join(first.handle)
            except Error:
                windows.popleft()
                yield from self.forget()
                raise
        region, place, length = first.part
        return region.view[place + position - first.start : place + length]

    def _fetch(self, start: int, length: int, extent: Extent) -> Operation[None]:
        end = min(start + length, extent.length)
        operation = reading.fetch_part(self._core, extent, start, end - start)
        self._windows.append(Window(start, end, (yield Spawn(operation))))
        self._bytes = min(MAX_WINDOW, self._bytes * 2)

    def _drop(self, window: Window) -> Operation[None]:
        """Give a window's memory back, once it has landed."""
        if window.part is None:
            try:
                window.part = yield Join(window.handle)
            except Error:
                return  # nobody asked for it
        self._core.unstage(window.part)

    def forget(self) -> Operation[None]:
        """Drop everything: the position jumped, or the bytes may have changed."""
        while self._windows:
            yield from self._drop(self._windows.popleft())
        self._bytes = FIRST_WINDOW
