"""The store's database: RocksDB behind the few calls that the store makes.

The only module that imports rocksdict, so the only one that translates its exceptions (it raises
bare ``Exception`` with RocksDB's text). Every change is one write batch, which is in the
write-ahead log, and so in the page cache, before the call returns: the death of the process
loses none. ``sync`` brings the log to the disk.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from rocksdict import DBCompressionType, Options, Rdict, WriteBatch

from hillfire.errors import Code, Error

MEMTABLE_BYTES = 32 * 1024 * 1024
MAX_LOG_BYTES = 256 * 1024 * 1024
MAX_OPEN_FILES = 256


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(MEMTABLE_BYTES)
    options.set_max_total_wal_size(MAX_LOG_BYTES)
    options.set_max_open_files(MAX_OPEN_FILES)
    options.set_compression_type(DBCompressionType.none())
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    return options


def _translate(exc: Exception, what: str) -> Error:
    text = str(exc)
    if "No space left" in text or "NoSpace" in text or "quota" in text:
        return Error(Code.NO_SPACE, f"{what}: {text}")
    if "Corruption" in text:
        return Error(Code.CORRUPT, f"{what}: {text}")
    if "lock" in text.lower() and "LOCK" in text:
        return Error(Code.BUSY, f"{what}: another process has it open: {text}")
    return Error(Code.IO, f"{what}: {text}")


class Metadata:
    """An open database."""

    def __init__(self, directory: Path) -> None:
        """Open or create the database in ``directory``.

        Raises:
            Error: BUSY if another process has it open, CORRUPT, NO_SPACE, IO.
        """
        self._directory = directory
        try:
            self._db = Rdict(str(directory), _options())
        except Exception as exc:
            raise _translate(exc, f"cannot open the database {directory}") from exc

    def get(self, key: bytes) -> bytes | None:
        """Return a value.

        Raises:
            Error: CORRUPT, IO.
        """
        try:
            value: bytes | None = self._db.get(key)
        except Exception as exc:
            raise _translate(exc, f"cannot read from {self._directory}") from exc
        return value

    def write(
        self, puts: Iterable[tuple[bytes, bytes]] = (), deletes: Iterable[bytes] = ()
    ) -> None:
        """Make changes in one step; deletes come first.

        Raises:
            Error: NO_SPACE, IO.
        """
        batch = WriteBatch(raw_mode=True)
        for key in deletes:
            batch.delete(key)
        for key, value in puts:
            batch.put(key, value)
        try:
            self._db.write(batch)
        except Exception as exc:
            raise _translate(exc, f"cannot write to {self._directory}") from exc

    def items(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """List the pairs whose key begins with ``prefix``, from the key ``after`` on, in order.

        Raises:
            Error: CORRUPT, IO.
        """
        try:
            for key, value in self._db.items(from_key=max(prefix, after)):
                if not key.startswith(prefix):  # type: ignore[union-attr, arg-type]
                    return
                yield key, value  # type: ignore[misc]
        except GeneratorExit:
            raise
        except Exception as exc:
            raise _translate(exc, f"cannot list {self._directory}") from exc

    def sync(self) -> None:
        """Bring the write-ahead log to the disk.

        Raises:
            Error: NO_SPACE, IO.
        """
        try:
            self._db.flush_wal(True)
        except Exception as exc:
            raise _translate(exc, f"cannot sync {self._directory}") from exc

    def close(self) -> None:
        """Close the database."""
        self._db.close()
