"""A bounded pool of staging memory in one memfd region: for file objects and for the mount.

Sizes are rounded up to powers of two; a span that comes back waits in a list of its size, and all
lists melt back into free intervals when a request finds no room. A span in which an operation may
still land (quarantine, wire/base.py) is not handed out before that has ended.
"""

import asyncio
import os
import threading
import time
from bisect import insort
from collections.abc import Callable

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Part
from hillfire.region import Region

MIN_SPAN = 4096
DEFAULT_BYTES = 32 * 1024 * 1024
POLL_S = 0.05
"""How often a waiter looks whether a quarantine has ended, which nobody announces."""


class Buffers:
    """Staging memory, shared by threads or by tasks of one loop."""

    def __init__(self, n_bytes: int = DEFAULT_BYTES) -> None:
        """Allocate; the memory is faulted in at once.

        Raises:
            Error: NO_SPACE if the memory is not there.
        """
        self.region = Region.allocate(n_bytes)
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._sleepers = 0
        self._wakers: list[Callable[[], None]] = []
        self._spans: list[tuple[int, int]] = [(0, n_bytes)]
        self._ready: dict[int, list[int]] = {}
        self._out: dict[int, int] = {}
        self._held: list[tuple[int, int]] = []

    def __repr__(self) -> str:
        """Tell how much is in use."""
        used = sum(self._out.values())
        return f"<Buffers {used} of {len(self.region.view)} B out, {len(self._held)} spans held>"

    @property
    def capacity_bytes(self) -> int:
        """The largest part that can ever be acquired."""
        return len(self.region.view)

    def try_acquire(self, length: int) -> Part | None:
        """Return a part of ``length`` bytes, or None if there is no room now.

        Raises:
            Error: TOO_LARGE if there never will be, INVALID if ``length`` is not positive.
        """
        with self._lock:
            return self._take(length)

    def acquire(self, length: int, timeout_s: float) -> Part:
        """Return a part, waiting for room on the caller's thread.

        Raises:
            Error: as ``try_acquire``; TIMED_OUT.
        """
        with self._lock:
            part = self._take(length)
            if part is not None:
                return part
            deadline = time.monotonic() + timeout_s
            self._sleepers += 1
            try:
                while (left := deadline - time.monotonic()) > 0:
                    self._freed.wait(min(left, POLL_S))
                    part = self._take(length)
                    if part is not None:
                        return part
            finally:
                self._sleepers -= 1
        raise self._late(length, timeout_s)

    async def acquire_async(self, length: int, timeout_s: float) -> Part:
        """Return a part, waiting for room on the event loop.

        Raises:
            Error: as ``try_acquire``; TIMED_OUT.
        """
        part = self.try_acquire(length)
        if part is not None:
            return part
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while (left := deadline - loop.time()) > 0:
            freed = asyncio.Event()

            def wake(event: asyncio.Event = freed) -> None:
                loop.call_soon_threadsafe(event.set)

            with self._lock:
                part = self._take(length)
                if part is not None:
                    return part
                self._wakers.append(wake)
            try:
                async with asyncio.timeout(min(left, POLL_S)):
                    await freed.wait()
            except TimeoutError:
                pass
            finally:
                with self._lock:
                    if wake in self._wakers:
                        self._wakers.remove(wake)
        raise self._late(length, timeout_s)

    def release(self, part: Part) -> None:
        """Give back the very part that was acquired, once nothing of it is in use.

        A part of other memory (another pool's before a fork, a stand-in) is simply forgotten.
        """
        if part.region is not self.region:
            return
        with self._lock:
            size = self._out.pop(part.offset)
            if not self.region.quarantined or self._settled(part.offset, size):
                ready = self._ready.get(size)
                if ready is None:
                    ready = self._ready[size] = []
                ready.append(part.offset)
            else:
                self._held.append((part.offset, size))
            if self._sleepers:
                self._freed.notify()
            wakers = self._wakers
            if wakers:
                self._wakers = []
        for wake in wakers:
            wake()

    def abandon(self) -> None:
        """Drop a pool inherited by a fork: close this process's descriptor, touch nothing else."""
        if self.region.fd >= 0:
            os.close(self.region.fd)
            self.region.fd = -1

    def _late(self, length: int, timeout_s: float) -> Error:
        return Error(Code.TIMED_OUT, f"no {length} bytes of {self!r} came free in {timeout_s} s")

    def _take(self, length: int) -> Part | None:
        """Find room; the lock is held."""
        if length <= 0:
            raise Error(Code.INVALID, f"a buffer of {length} bytes")
        size = max(MIN_SPAN, 1 << (length - 1).bit_length())
        if size > self.capacity_bytes:
            if length > self.capacity_bytes:
                text = f"{length} bytes do not fit into a pool of {self.capacity_bytes}"
                raise Error(Code.TOO_LARGE, text)
            size = length
        ready = self._ready.get(size)
        offset = ready.pop() if ready else self._carve(size)
        if offset < 0:
            self._melt()
            offset = self._carve(size)
            if offset < 0:
                return None
        self._out[offset] = size
        return Part(self.region, offset, length)

    def _carve(self, size: int) -> int:
        """Cut a span off the first interval that is large enough; -1 if none is."""
        for number, (offset, length) in enumerate(self._spans):
            if length >= size:
                if length == size:
                    del self._spans[number]
                else:
                    self._spans[number] = (offset + size, length - size)
                return offset
        return -1

    def _melt(self) -> None:
        """Return all free spans to intervals, and those whose quarantine has ended."""
        still: list[tuple[int, int]] = []
        for offset, size in self._held:
            if self._settled(offset, size):
                self._ready.setdefault(size, []).append(offset)
            else:
                still.append((offset, size))
        self._held = still
        spans = self._spans
        for size, offsets in self._ready.items():
            for offset in offsets:
                insort(spans, (offset, size))
        self._ready = {}
        merged: list[tuple[int, int]] = []
        for offset, length in spans:
            if merged and sum(merged[-1]) == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((offset, length))
        self._spans = merged

    def _settled(self, offset: int, size: int) -> bool:
        """Tell whether nothing can land in a span any more."""
        try:
            self.region.check(offset, size)
        except Error:
            return False
        return True
