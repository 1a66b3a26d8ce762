"""The embedded default: RocksDB through rocksdict.

RocksDB gives order, atomic batches and a write-ahead log; transactions are ours (``base``). A
commit without ``sync`` is in the kernel's page cache when it returns, so it survives ``kill -9``
of this process; ``sync`` flushes the log with one fdatasync on another thread, and all who wait
share it.
"""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from hillfire.durable import sync_directory
from hillfire.errors import Code, Error
from hillfire.meta.engine.base import Engine, Pair

CACHE_BYTES = 128 * 1024 * 1024
WRITE_BUFFER_BYTES = 64 * 1024 * 1024
LOG_FILES = 3
SYNC_COMMITS = 1 << 12
"""So many commits after a sync there is another one, though nobody asks."""


class RocksEngine(Engine):
    """An engine in a directory of its own; one process at a time."""

    def __init__(self, directory: Path) -> None:
        """Open, or create what is not there yet.

        Raises:
            Error: BUSY when another process has it open, CORRUPT, NO_SPACE or IO.
        """
        super().__init__()
        try:
            _make(directory)
            self._db = Rdict(str(directory), _options())
        except Exception as error:
            raise _translated(error, directory) from error
        self._directory = directory
        self._closed = False
        self._synced_write = WriteOptions()
        self._synced_write.sync = True
        self._wanted = 0
        self._durable = 0
        self._flush: asyncio.Task[None] | None = None
        self._unsynced = 0

    async def sync(self) -> None:
        """Flush the log; see the interface."""
        self._wanted += 1
        mine = self._wanted
        while self._durable < mine:
            if self._flush is None:
                self._start_flush()
            assert self._flush is not None
            await asyncio.shield(self._flush)

    def _start_flush(self) -> None:
        self._flush = asyncio.create_task(self._flush_once(), name="engine-sync")
        self._flush.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _flush_once(self) -> None:
        covers, self._unsynced = self._wanted, 0
        try:
            await asyncio.to_thread(self._db.flush_wal, True)
            self._durable = covers
        except Exception as error:
            raise _translated(error, self._directory) from error
        finally:
            self._flush = None

    def close(self) -> None:
        """Flush and release; idempotent."""
        if not self._closed:
            self._closed = True
            self._db.close()

    def freeze(self) -> Iterator[Pair]:
        """Open an iterator: RocksDB keeps what it sees until it is gone."""
        return cast(Iterator[Pair], self._db.items())

    def load(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Write what a restore brings, before any transaction.

        Raises:
            Error: IO, NO_SPACE.
        """
        self._apply(writes, False)

    def _get(self, key: bytes) -> bytes | None:
        try:
            found: bytes | None = self._db.get(key)
        except Exception as error:
            raise _translated(error, self._directory) from error
        return found

    def _scan(self, begin: bytes, end: bytes, reverse: bool) -> Iterator[Pair]:
        if reverse:
            return self._scan_back(begin, end)
        options = ReadOptions()
        options.set_iterate_upper_bound(end)
        return cast(Iterator[Pair], self._db.items(from_key=begin, read_opt=options))

    def _scan_back(self, begin: bytes, end: bytes) -> Iterator[Pair]:
        """Step an iterator by hand: rocksdict's backward ``items`` needs its start to exist."""
        at = self._db.iter()
        at.seek_for_prev(end)
        while at.valid():
            key = cast(bytes, at.key())
            if key < begin:
                return
            if key != end:
                yield key, cast(bytes, at.value())
            at.prev()

    def _apply(self, writes: Mapping[bytes, bytes | None], sync: bool) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in writes.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        try:
            if sync:
                self._db.write(batch, self._synced_write)
                self._unsynced = 0
            else:
                self._db.write(batch)
                self._unsynced += 1
                if self._unsynced >= SYNC_COMMITS:
                    self._sync_soon()
        except Exception as error:
            raise _translated(error, self._directory) from error

    def _sync_soon(self) -> None:
        """Bound what a loss of power can take: in the background, unless no loop runs."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._db.flush_wal(True)
            self._unsynced = 0
        else:
            if self._flush is None:
                self._start_flush()


def read_pairs(directory: Path) -> Iterator[Pair]:
    """Read a database that another process may have open, as it is now, without a lock.

    Raises:
        Error: CORRUPT, IO; also when that process rewrites it meanwhile: then try again.
    """
    try:
        database = Rdict(str(directory), _options(), access_type=AccessType.read_only(False))
    except Exception as error:
        raise _translated(error, directory) from error
    try:
        yield from cast(Iterator[Pair], database.items())
    except Exception as error:
        raise _translated(error, directory) from error
    finally:
        database.close()


def _make(directory: Path) -> None:
    """Make a directory that is there after a loss of power too, as what will be synced in it."""
    if directory.is_dir():
        return
    if not directory.parent.is_dir():
        _make(directory.parent)
    directory.mkdir(exist_ok=True)
    sync_directory(directory.parent)


def _options() -> Options:
    """Bloom filters for the many look-ups that miss, few log files, no information log growth."""
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_total_wal_size(2 * WRITE_BUFFER_BYTES)
    options.set_keep_log_file_num(LOG_FILES)
    options.set_max_open_files(512)
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_cache(Cache(CACHE_BYTES))
    options.set_block_based_table_factory(table)
    return options


def _translated(error: Exception, directory: Path) -> Error:
    """Turn what rocksdict raises (a bare Exception with RocksDB's text) into one of ours."""
    text = str(error)
    if "lock" in text.lower() and "hold" in text.lower():
        return Error(Code.BUSY, f"{directory} is open in another process: stop that one first")
    if "No space left" in text:
        return Error(Code.NO_SPACE, f"the disk of {directory} is full: {text}")
    if text.startswith("Corruption"):
        return Error(Code.CORRUPT, f"{directory} is damaged: {text}")
    return Error(Code.IO, f"{directory}: {text}")
