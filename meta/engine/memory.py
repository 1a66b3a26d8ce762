"""The engine for tests: a dict, and a sorted list of its keys."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping

from hillfire.meta.engine.base import Engine, Pair


class MemoryEngine(Engine):
    """Everything is lost when the process ends; nothing else differs."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self._values: dict[bytes, bytes] = {}
        self._sorted: list[bytes] = []

    async def sync(self) -> None:
        """There is nothing to make durable."""

    def close(self) -> None:
        """There is nothing to release; what was written can still be read."""

    def freeze(self) -> Iterator[Pair]:
        """Copy it all."""
        return iter([(key, self._values[key]) for key in self._sorted])

    def _get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def _scan(self, begin: bytes, end: bytes, reverse: bool) -> Iterator[Pair]:
        keys = self._sorted[bisect_left(self._sorted, begin) : bisect_left(self._sorted, end)]
        if reverse:
            keys.reverse()
        return ((key, self._values[key]) for key in keys)

    def _apply(self, writes: Mapping[bytes, bytes | None], sync: bool) -> None:
        for key, value in writes.items():
            if value is None:
                if self._values.pop(key, None) is not None:
                    del self._sorted[bisect_left(self._sorted, key)]
            else:
                if key not in self._values:
                    insort(self._sorted, key)
                self._values[key] = value
