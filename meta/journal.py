"""The transaction log as it is shipped: every commit as a record, with its place in the order.

The engine tells it of each commit, within the call. The position (epoch, sequence) is written
with the transaction itself, so that a database always knows how far it goes. The epoch grows with
each start: what a host lost with its power was another epoch's, and a copy that has it is no copy
of this one any more.

Beside the position each transaction writes its sequence into one of so many slots. RocksDB does
not notice when a loss of power leaves a hole in the log that it had not synced yet (a page of
zeros between others that were written is what some file systems make of that), and goes on behind
it: then a slot still has the number that it had before. A database with a hole is not a state that
ever was, and is refused; the copies have what it lacks.

Records wait here in memory until every copy has them, up to a bound; a copy
that falls behind that far gets a snapshot.
"""

import secrets
import time
from bisect import bisect_left
from collections.abc import Mapping
from struct import Struct
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.meta.engine.base import Engine, Transaction
from hillfire.meta.keys import LOG, POSITION, log_key, number, read_number
from hillfire.proto.metalog_format import encode_record

MAX_WAITING_BYTES = 64 << 20
SLOTS = 1 << 14
"""Four times what an engine commits before it syncs by itself (``rocksdb.SYNC_COMMITS``)."""

MAX_STEP = 1 << 16
"""Of the epoch at a start: two that begin at the same backup of a database differ."""

_POSITION = Struct("<QQQ")


class Place(NamedTuple):
    """A database's place: which one, and how far."""

    history: int
    """a random number of the database, kept through restores"""
    epoch: int
    sequence: int


def place(raw: bytes | None) -> Place | None:
    """Decode what is stored under ``POSITION``."""
    return None if raw is None else Place._make(_POSITION.unpack(raw))


def place_value(where: Place) -> bytes:
    """Encode it."""
    return _POSITION.pack(*where)


class Journal:
    """The records of one process's commits; one event loop."""

    def __init__(self, engine: Engine, *, keep: bool = True) -> None:
        """Go on where the engine's database ends, in a new epoch; the engine tells it from now.

        ``keep``: there will be copies, for which records wait.

        Raises:
            Error: CORRUPT for a database with a hole.
        """
        txn = engine.transaction()
        known = place(txn.snapshot_get(POSITION))
        if known is not None:
            _require_whole(txn, known.sequence)
        txn.close()
        self._keep = keep
        self.fresh = known is None
        """the database has just been made"""
        self.start = known or Place(secrets.randbits(63) | 1, 0, 0)
        """where it ended when this process began"""
        self.history = self.start.history
        self.epoch = self.start.epoch + 1 + secrets.randbelow(MAX_STEP)
        self.sequence = self.start.sequence
        """of the last commit"""
        self._records: list[tuple[int, int, bytes]] = []
        """sequence, when (monotonic ns), bytes"""
        self._bytes = 0
        self._kept_from = self.sequence + 1
        engine.journal = self

    def stamp(self, writes: dict[bytes, bytes | None]) -> None:
        """Write the position with the transaction."""
        sequence = self.sequence + 1
        writes[POSITION] = _POSITION.pack(self.history, self.epoch, sequence)
        writes[log_key(sequence % SLOTS)] = number(sequence)

    def written(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Keep the record of a commit for the copies."""
        self.sequence += 1
        if not self._keep:
            return
        record = encode_record(self.epoch, self.sequence, time.time_ns(), writes)
        self._records.append((self.sequence, time.monotonic_ns(), record))
        self._bytes += len(record)
        if self._bytes > MAX_WAITING_BYTES:
            self._drop(len(self._records) // 2)

    def has(self, sequence: int) -> bool:
        """Tell whether every record from ``sequence`` on is here."""
        return self._kept_from <= sequence <= self.sequence + 1

    def take(self, sequence: int, limit_bytes: int) -> tuple[bytes, int]:
        """Return records from ``sequence`` on, about ``limit_bytes`` of them, and the last's."""
        at, size, parts = self._index(sequence), 0, list[bytes]()
        while at < len(self._records) and size < limit_bytes:
            parts.append(self._records[at][2])
            size += len(parts[-1])
            at += 1
        return b"".join(parts), sequence + len(parts) - 1

    def age_ns(self, sequence: int) -> int:
        """Return how long ago the first commit behind ``sequence`` was; 0 if there is none."""
        if sequence >= self.sequence:
            return 0
        at = self._index(max(sequence + 1, self._kept_from))
        return max(1, time.monotonic_ns() - self._records[at][1]) if self._records else 1

    def waiting(self, sequence: int) -> int:
        """Return how many commits there are behind ``sequence``."""
        return self.sequence - sequence

    def forget(self, sequence: int) -> None:
        """Drop the records up to ``sequence``: every copy has them."""
        self._drop(self._index(sequence + 1))

    def _index(self, sequence: int) -> int:
        return bisect_left(self._records, sequence, key=lambda each: each[0])

    def _drop(self, count: int) -> None:
        if count > 0:
            self._bytes -= sum(len(each[2]) for each in self._records[:count])
            self._kept_from = self._records[count - 1][0] + 1
            del self._records[:count]


def _require_whole(txn: Transaction, last: int) -> None:
    """Check that the latest transactions are all there.

    Raises:
        Error: CORRUPT.
    """
    slots = dict(txn.snapshot_range(*LOG))
    missing = [
        sequence
        for sequence in range(max(1, last - SLOTS + 1), last + 1)
        if read_number(slots.get(log_key(sequence % SLOTS))) != sequence
    ]
    if missing:
        raise Error(
            Code.CORRUPT,
            f"a loss of power took transactions {missing[0]} to {missing[-1]} out of the metadata, "
            f"but not the later ones up to {last}: rebuild it with `hillfire meta restore --force`",
        )
