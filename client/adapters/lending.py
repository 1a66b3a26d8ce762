"""Memory that servers fill, lent to whoever holds an array over it.

Arrow keeps what it read for as long as a table stands on it. Instead of ``bytes`` (a copy, into
memory that is touched for the first time) it gets an array over staging memory of ours, and when
the last reference to it goes, the next read has the memory. There is a bound: beyond it, ``bytes``.

A fork would let parent and child share what was lent, and one write where the other still reads:
so the pool is retired before each, and what was lent of it is never lent again.
"""

import os
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

from hillfire.client.buffers import Buffers
from hillfire.errors import Error
from hillfire.proto.wire.base import Part

LENT_BYTES = 64 << 20
"""At most, a process."""
SMALLEST = 256 * 1024
"""A smaller read is not worth the bookkeeping."""


class Lender:
    """A pool whose parts come back by themselves."""

    def __init__(self, n_bytes: int = LENT_BYTES) -> None:
        """Allocate; the memory is faulted in at once.

        Raises:
            Error: NO_SPACE if the memory is not there.
        """
        self._buffers = Buffers(n_bytes)
        self._back: deque[Part] = deque()  # finalisers run anywhere, in the midst of anything

    def lend(self, length: int) -> tuple[Part, NDArray[np.uint8]] | None:
        """Return memory and the array that stands for it; None if there is no room now."""
        while self._back:
            self._buffers.release(self._back.popleft())
        try:
            part = self._buffers.try_acquire(length)
        except Error:  # there never will be
            return None
        if part is None:
            return None
        array = np.frombuffer(part.region.view, np.uint8, length, part.offset)
        weakref.finalize(array, self._back.append, part).atexit = False
        return part, array


_lender: Lender | None = None


def lender() -> Lender:
    """Return the process's."""
    global _lender
    if _lender is None:
        _lender = Lender()
    return _lender


def _retire() -> None:
    global _lender
    _lender = None


os.register_at_fork(before=_retire)
