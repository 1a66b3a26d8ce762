"""What came of a batch: a byte count or an error for each of its I/Os."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from hillfire.client.items import Longs
from hillfire.errors import Error


class Results(Sequence["int | Error"]):
    """A sequence of byte counts and errors, and the same as an array.

    ``counts`` has -1 where ``errors``, by position, says why.
    """

    __slots__ = ("counts", "errors")

    def __init__(self, results: Sequence["int | Error"]) -> None:
        """Take each I/O's outcome."""
        self.errors: dict[int, Error] = {}
        """by position"""
        if not set(map(type, results)) <= {int}:
            results = list(results)
            for at, each in enumerate(results):
                if isinstance(each, Error):
                    self.errors[at], results[at] = each, -1
        self.counts: Longs = np.array(results, np.int64)

    def __repr__(self) -> str:
        """Tell how much was done and what failed first."""
        failed = f", {len(self.errors)} failed: {self._first()}" if self.errors else ""
        return f"<Results of {len(self)} I/Os, {self.n_bytes} B{failed}>"

    @property
    def n_bytes(self) -> int:
        """How many bytes were read or written."""
        return int(self.counts.sum()) + len(self.errors)

    def check(self) -> "Results":
        """Return these results if nothing failed.

        Raises:
            Error: the first.
        """
        if self.errors:
            raise self._first()
        return self

    def _first(self) -> Error:
        return self.errors[min(self.errors)]

    def __len__(self) -> int:
        """Return the number of I/Os."""
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> int | Error: ...

    @overload
    def __getitem__(self, index: slice) -> list[int | Error]: ...

    def __getitem__(self, index: int | slice) -> "int | Error | list[int | Error]":
        """Return what came of one I/O, or of some."""
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        at = range(len(self))[index]
        return self.errors.get(at) or int(self.counts[at])

    def __iter__(self) -> Iterator[int | Error]:
        """Yield each."""
        return iter(self[:])
