"""The store's database: RocksDB behind the few calls that the store makes.

The only module that imports rocksdict, so the only one that translates its exceptions (it raises
bare ``Exception`` with RocksDB's text). Every change is one write batch, which is in the
write-ahead log, and so in the page cache, before the call returns: the death of the process
loses none. ``sync`` brings the log to the disk.
"""

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from rocksdict import DBCompressionType, Options, Rdict, WriteBatch

from hillfire.errors import Code, Error

log = logging.getLogger(__name__)

MEMTABLE_BYTES = 32 * 1024 * 1024
MAX_LOG_BYTES = 256 * 1024 * 1024
MAX_OPEN_FILES = 256
REOPEN_BYTES = 4 * 1024 * 1024
"""With so much of the disk free, a database that met a full disk is opened anew."""


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
        self._lock = threading.Lock()
        self._stuck = False
        self._open()

    def _open(self) -> None:
        try:
            self._db = Rdict(str(self._directory), _options())
        except Exception as exc:
            raise _translate(exc, f"cannot open the database {self._directory}") from exc

    def _unstick(self) -> None:
        """Open anew once the disk has room: RocksDB refuses writes for good after it was full."""
        disk = os.statvfs(self._directory)
        if disk.f_bavail * disk.f_frsize < REOPEN_BYTES:
            raise Error(Code.NO_SPACE, f"the disk of {self._directory} is full")
        with self._lock:
            self.close()
            self._open()
            self._stuck = False

    def get(self, key: bytes) -> bytes | None:
        """Return a value.

        Raises:
            Error: CORRUPT, IO.
        """
        value: bytes | None
        try:
            value = self._db.get(key)
        except Exception:  # it may just be opened anew
            with self._lock:
                try:
                    value = self._db.get(key)
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
        if self._stuck:
            self._unstick()
        try:
            self._db.write(batch)
        except Exception as exc:
            error = _translate(exc, f"cannot write to {self._directory}")
            self._stuck = error.code == Code.NO_SPACE
            raise error from exc

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
            error = _translate(exc, f"cannot sync {self._directory}")
            self._stuck = error.code == Code.NO_SPACE
            raise error from exc

    def close(self) -> None:
        """Close the database."""
        try:
            self._db.close()
        except Exception as exc:  # it says once more what a write said before; it is closed
            log.warning("event=database_close directory=%s cause=%r", self._directory, str(exc))
