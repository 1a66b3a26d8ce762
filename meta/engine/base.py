"""The engine interface: an ordered map of bytes with optimistic, serialisable transactions.

A transaction reads one snapshot, sees its own writes, and remembers what it read. Commit checks
that nothing it read has been written since, then applies its writes at once or not at all
(Kung & Robinson, "On Optimistic Methods for Concurrency Control", backward validation). Check and
apply happen in one call without an ``await``, which is all the locking there is: an engine belongs
to one thread.

Both engines are in-process, so the interface is synchronous; only making the log durable waits
(``sync``). An implementation is five short methods (``_get``, ``_scan``, ``_apply``, ``sync``,
``close``): snapshots and conflicts are decided here, once. A snapshot costs nothing until somebody
else commits: only then are the values that he overwrites kept for those who are still reading.
"""

import abc
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import Protocol, Self

from hillfire.errors import Code, Error

WINDOW_COMMITS = 10_000
"""A transaction that sees more commits than this go by must start again."""

Pair = tuple[bytes, bytes]


class Journal(Protocol):
    """Is told of every committed transaction, in their order (``meta/journal.py``)."""

    def stamp(self, writes: dict[bytes, bytes | None]) -> None:
        """Add a record of its own to what is about to be written."""

    def written(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Take what was written."""


class Transaction:
    """One snapshot, and the writes that will be made to it. Use with ``with`` or the retry loop.

    ``get`` and ``range`` add what they read to the conflict set; ``snapshot_get`` and
    ``snapshot_range`` read the same snapshot without that.
    """

    __slots__ = ("_engine", "_keys", "_ranges", "_touched", "_undo", "_version", "_writes")

    def __init__(self, engine: "Engine", version: int) -> None:
        """Begin at ``version`` of ``engine``; called by :meth:`Engine.transaction` only."""
        self._engine = engine
        self._version = version
        self._writes: dict[bytes, bytes | None] = {}
        self._undo: dict[bytes, bytes | None] | None = None
        self._keys: set[bytes] = set()
        self._ranges: list[tuple[bytes, bytes]] = []
        self._touched: set[bytes] = set()

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key`` or None; a later write of it by another is a conflict."""
        self._keys.add(key)
        return self.snapshot_get(key)

    def snapshot_get(self, key: bytes) -> bytes | None:
        """Return the value of ``key`` or None without making it a conflict key."""
        if key in self._writes:
            return self._writes[key]
        if self._undo is not None:
            self._require_young()
            if key in self._undo:
                return self._undo[key]
        return self._engine._get(key)

    def range(
        self, begin: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[Pair]:
        """Return the pairs with ``begin <= key < end`` in order, at most ``limit`` of them.

        What was looked at becomes a conflict range: up to the last key returned if ``limit`` cut
        the answer short, all of it otherwise.
        """
        found = self.snapshot_range(begin, end, limit=limit, reverse=reverse)
        if limit is not None and len(found) >= limit and found:
            edge = found[-1][0]
            self._ranges.append((edge, end) if reverse else (begin, edge + b"\0"))
        elif limit != 0:
            self._ranges.append((begin, end))
        return found

    def snapshot_range(
        self, begin: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[Pair]:
        """Return what :meth:`range` does without making it a conflict range."""
        if limit is not None and limit <= 0:
            return []
        overlay: dict[bytes, bytes | None] = {}
        if self._undo is not None:
            self._require_young()
            overlay.update((k, v) for k, v in self._undo.items() if begin <= k < end)
        overlay.update((k, v) for k, v in self._writes.items() if begin <= k < end)
        pairs = self._engine._scan(begin, end, reverse)
        if overlay:
            pairs = _merge(pairs, overlay, reverse)
        if limit is None:
            return list(pairs)
        return list(islice(pairs, limit))

    def set(self, key: bytes, value: bytes) -> None:
        """Write ``value`` at commit; this transaction sees it at once."""
        self._writes[key] = value

    def clear(self, key: bytes) -> None:
        """Remove ``key`` at commit, if it is there."""
        self._writes[key] = None

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """Remove every key of a range that this transaction sees; a conflict range."""
        for key, _ in self.range(begin, end):
            self._writes[key] = None

    def conflict_key(self, key: bytes) -> None:
        """Count ``key`` as read: a write of it by another since the snapshot is a conflict."""
        self._keys.add(key)

    def conflict_range(self, begin: bytes, end: bytes) -> None:
        """Count a range as read."""
        self._ranges.append((begin, end))

    def touch(self, key: bytes) -> None:
        """Count ``key`` as written, though it keeps its value: who has read it conflicts."""
        self._touched.add(key)

    @property
    def pending(self) -> Mapping[bytes, bytes | None]:
        """What commit will write; None stands for a removal."""
        return self._writes

    def commit(self, *, sync: bool = False) -> None:
        """Check and apply, then close. ``sync``: on the disk before this returns (it blocks).

        Without ``sync`` the writes survive the death of the process but not of the host; await
        :meth:`Engine.sync` afterwards for that, which many transactions share.

        Raises:
            Error: CONFLICT, nothing was written and the transaction may be tried again; IO.
        """
        try:
            self._engine._commit(self, sync)
        finally:
            self.close()

    def close(self) -> None:
        """Forget the snapshot and the writes. Idempotent; not to be used afterwards."""
        self._engine._live.discard(self)
        self._writes = {}
        self._undo = None

    def _require_young(self) -> None:
        if self._version < self._engine._floor:
            raise Error(Code.CONFLICT, "the transaction is older than the conflict window")

    def __enter__(self) -> Self:
        """Return the transaction itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; nothing is committed by this."""
        self.close()


class Engine(abc.ABC):
    """An ordered map that only transactions touch."""

    def __init__(self) -> None:
        """Start with an empty conflict window."""
        self._version = 0
        self._floor = 0
        self._log: deque[frozenset[bytes]] = deque()
        self._live: set[Transaction] = set()
        self.journal: Journal | None = None
        """told of every commit from when it is set"""

    def transaction(self) -> Transaction:
        """Begin a transaction at what is committed now."""
        transaction = Transaction(self, self._version)
        self._live.add(transaction)
        return transaction

    @abc.abstractmethod
    async def sync(self) -> None:
        """Make everything committed before this call durable; callers share one disk flush.

        Raises:
            Error: IO.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Write out what is left and release the files. Idempotent."""

    @abc.abstractmethod
    def freeze(self) -> Iterator[Pair]:
        """Return all pairs as they are now, in order, whatever is committed while they are read."""

    @abc.abstractmethod
    def _get(self, key: bytes) -> bytes | None:
        """Return the committed value."""

    @abc.abstractmethod
    def _scan(self, begin: bytes, end: bytes, reverse: bool) -> Iterator[Pair]:
        """Yield the committed pairs of ``[begin, end)``; nothing is committed meanwhile."""

    @abc.abstractmethod
    def _apply(self, writes: Mapping[bytes, bytes | None], sync: bool) -> None:
        """Write all or nothing."""

    def _commit(self, transaction: Transaction, sync: bool) -> None:
        """Validate and apply. No await between the two, ever."""
        writes = transaction._writes
        if not writes and not transaction._touched:
            return
        if transaction._version != self._version:
            self._validate(transaction)
        changed = frozenset(writes) | transaction._touched
        self._keep_for_readers(transaction, writes)
        if writes:
            journal = self.journal
            if journal is not None:
                journal.stamp(writes)
            self._apply(writes, sync)
            if journal is not None:
                journal.written(writes)
        self._version += 1
        self._log.append(changed)
        if len(self._log) > WINDOW_COMMITS:
            self._log.popleft()
            self._floor += 1

    def _validate(self, transaction: Transaction) -> None:
        """Raise CONFLICT if anything that was read has been written since."""
        transaction._require_young()
        keys, ranges = transaction._keys, transaction._ranges
        for age in range(self._version - transaction._version):
            changed = self._log[-1 - age]
            if not keys.isdisjoint(changed) or any(
                begin <= key < end for begin, end in ranges for key in changed
            ):
                raise Error(Code.CONFLICT, "another transaction wrote what this one read")

    def _keep_for_readers(self, writer: Transaction, writes: Mapping[bytes, bytes | None]) -> None:
        """Give each open transaction but the writer the values that are about to change.

        One that has left the window gets nothing more: it fails at its next read.
        """
        for reader in self._live:
            if reader is writer or reader._version < self._floor:
                continue
            if reader._undo is None:
                reader._undo = {}
            for key in writes:
                if key not in reader._undo:
                    reader._undo[key] = self._get(key)


def _merge(
    pairs: Iterator[Pair], overlay: Mapping[bytes, bytes | None], reverse: bool
) -> Iterator[Pair]:
    """Yield ``pairs`` with the keys of ``overlay`` replaced, added or (None) left out."""
    extra = sorted(overlay, reverse=reverse)
    position = 0
    for pair in pairs:
        key = pair[0]
        while position < len(extra) and (
            extra[position] > key if reverse else extra[position] < key
        ):
            value = overlay[extra[position]]
            if value is not None:
                yield extra[position], value
            position += 1
        if key not in overlay:
            yield pair
    for key in extra[position:]:
        value = overlay[key]
        if value is not None:
            yield key, value
