"""Scratch memory of a thread's own: page-aligned, used again and again, never shared."""

import mmap
import threading

MIN_BYTES = 128 * 1024

_OF_THREAD = threading.local()


def scratch(n_bytes: int, use: str) -> memoryview:
    """Return memory of ``n_bytes``; what was last returned for the same ``use`` is used again.

    It may hold anything.
    """
    found: memoryview | None = getattr(_OF_THREAD, use, None)
    if found is None or len(found) < n_bytes:
        size = 1 << max(MIN_BYTES.bit_length() - 1, (n_bytes - 1).bit_length())
        found = memoryview(mmap.mmap(-1, size))
        setattr(_OF_THREAD, use, found)
    return found[:n_bytes]
