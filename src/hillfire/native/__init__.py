"""What Python is too slow for: a small extension in C, and its twin in Python.

``crc32c``, ``sums`` and ``chunk_sums`` are the extension's where it was built and runs here, else
``pure``'s. Both give the same answers; the tests run over both. With ``HILLFIRE_PURE=1`` in the
environment the extension refuses to load, which is decided in C so that pure modules may import
this one.

``read``, ``scatter`` and ``replace_page`` are None without the extension; those who call them are
their twins and tell what they do: hillfire.storage.store.batch, system and sums.
"""

from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hillfire.native import pure
from hillfire.native.pure import Buffer


class Read(Protocol):
    """What ``read`` is called with; see hillfire.storage.store.batch."""

    def __call__(
        self,
        items: Buffer,
        into: Sequence[memoryview] | memoryview,
        look: Callable[[int, int], object],
        wait: bool,
        table: Buffer = b"",
        /,
    ) -> tuple[bytearray, bytearray, list[int], list[int], int, int]:
        """Return packed results, packed counts of filled bytes, what is left, what is cold.

        Then how many nanoseconds went to reading and to summing. With ``table`` the destinations
        are the parts of one buffer that it names (frame.PART).
        """


class Overwrite(Protocol):
    """What ``overwrite`` is called with; see hillfire.storage.store.overwrite."""

    def __call__(
        self, update: tuple[Any, ...], record: tuple[Any, ...], types: tuple[Any, ...], /
    ) -> tuple[Any, Any, bytes, bytes] | None:
        """Return what ``prepare`` answers, the pending record, its entry and its image."""


read: Read | None = None
scatter: Callable[[int, list[tuple[int, Buffer]]], None] | None = None
overwrite: Overwrite | None = None
replace_page: Callable[["array[int]", "array[int]", int, int], None] | None = None

try:
    from hillfire.native import _fast

    _functions = (
        _fast.chunk_sums, _fast.crc32c, _fast.sums, _fast.read, _fast.scatter,
        _fast.replace_page, _fast.overwrite,
    )  # fmt: skip
except (ImportError, AttributeError):  # none, or an older build, which counts as none
    FAST = False
    chunk_sums, crc32c, sums = pure.chunk_sums, pure.crc32c, pure.sums
else:
    FAST = True
    chunk_sums, crc32c, sums, read, scatter, replace_page, overwrite = _functions

__all__ = ["FAST", "Read", "chunk_sums", "crc32c", "read", "replace_page", "scatter", "sums"]
