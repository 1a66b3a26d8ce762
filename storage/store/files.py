"""The block files on a real disk: one a size class, preallocated, read and written by offset.

Thin shell over system calls (system.py). Blocks are written through the page cache, or past it
(``direct``) where a write is large. What lies where is decided in allocator.py.
"""

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from hillfire.errors import Code, Error
from hillfire.storage.store.blocks import MAX_CLASS, MIN_CLASS
from hillfire.storage.store.parts import Disk, Files
from hillfire.storage.store.scratch import scratch
from hillfire.storage.store.system import System

DIRECT_MIN_BYTES = 256 * 1024
"""Writes from this size on bypass the page cache in direct mode."""
SINGLE_BYTES = 64 * 1024
"""Reads up to this size bring no more than themselves into the page cache, in small pages.

The kernel would read ahead four times as much, into pages of up to 1 MiB, and writing 4 KiB into
one of those costs 20 µs where it costs 3 otherwise.
"""
PAGE = 4096

_FULL = (errno.ENOSPC, errno.EDQUOT)


def translate(exc: OSError, what: str) -> Error:
    """Turn an operating system's error into ours."""
    code = Code.NO_SPACE if exc.errno in _FULL else Code.IO
    return Error(code, f"{what}: {exc.strerror}")


class DiskBlocks:
    """All block files of one store. See ``parts.BlockFiles``."""

    def __init__(
        self, directory: Path, *, direct: bool, system: System, direct_reads: bool = False
    ) -> None:
        """Open what is in ``directory``; ``direct`` writes large payloads past the page cache.

        ``direct_reads``: batches read large pieces past it, too.

        Raises:
            Error: IO.
        """
        self._directory = directory
        self._reserve = directory.parent / "reserve"
        self._direct = direct
        self._direct_reads = direct_reads
        self._system = system
        self._lock = threading.Lock()
        self._fds: dict[int, int] = {}
        self._direct_fds: dict[int, int] = {}
        self._single_fds: dict[int, int] = {}
        self._table: Files = (), (), ()
        try:
            system.make_directory(directory)
            system.sync_directory(directory.parent)
            names = set(system.names(directory))
        except OSError as exc:
            raise translate(exc, f"cannot create {directory}") from exc
        for name in range(MIN_CLASS, MAX_CLASS + 1):
            if self._path(name).name in names:
                self._open(name)

    def _path(self, name: int) -> Path:
        return self._directory / f"{1 << name - 10}K"

    def _error(self, exc: OSError, what: str, name: int) -> Error:
        return translate(exc, f"cannot {what} {self._path(name)}")

    def _open(self, name: int) -> int:
        """Open or create the file of one class."""
        system, path = self._system, self._path(name)
        try:
            fd = system.open(path, os.O_RDWR | os.O_CREAT)
            self._fds[name] = fd
            system.sync_directory(self._directory)
            single = system.open(path, os.O_RDONLY)
            self._single_fds[name] = single
            system.advise(single, 0, 0, os.POSIX_FADV_RANDOM)
        except OSError as exc:
            raise self._error(exc, "open", name) from exc
        if self._direct or self._direct_reads:
            try:
                self._direct_fds[name] = system.open(path, os.O_RDWR | os.O_DIRECT)
            except OSError:  # tmpfs of old kernels: everything goes through the page cache
                self._direct = self._direct_reads = False
        direct = self._direct_fds if self._direct_reads else {}
        past = _by_class(direct) if direct else ()
        self._table = _by_class(self._single_fds), _by_class(self._fds), past
        return fd

    def sizes(self) -> dict[int, int]:
        """See ``BlockFiles.sizes``."""
        return {name: self._system.size(fd) for name, fd in self._fds.items()}

    def grow(self, size_class: int, size: int) -> None:
        """See ``BlockFiles.grow``."""
        with self._lock:
            fd = self._fds.get(size_class) or self._open(size_class)
        old = self._system.size(fd)
        try:
            self._system.fallocate(fd, old, size - old)
        except OSError as exc:
            if self._system.size(fd) != old:
                self._system.truncate(fd, old)
            raise self._error(exc, "grow", size_class) from exc

    def shrink(self, size_class: int, size: int) -> None:
        """See ``BlockFiles.shrink``."""
        try:
            self._system.truncate(self._fds[size_class], size)
        except OSError as exc:
            raise self._error(exc, "shrink", size_class) from exc

    def punch(self, size_class: int, offset: int, n_bytes: int) -> bool:
        """See ``BlockFiles.punch``."""
        return self._system.punch(self._fds[size_class], offset, n_bytes)

    def fill(self, size_class: int, offset: int, n_bytes: int) -> None:
        """See ``BlockFiles.fill``."""
        try:
            self._system.fallocate(self._fds[size_class], offset, n_bytes)
        except OSError as exc:
            raise self._error(exc, "fill", size_class) from exc

    def write(self, size_class: int, offset: int, data: memoryview) -> None:
        """See ``BlockFiles.write``."""
        try:
            if self._direct and len(data) >= DIRECT_MIN_BYTES and offset % PAGE == 0:
                self._write_direct(size_class, offset, data)
            else:
                self._system.write_all(self._fds[size_class], data, offset)
        except OSError as exc:
            raise self._error(exc, "write", size_class) from exc

    def scatter(self, size_class: int, pieces: list[tuple[int, bytes]]) -> None:
        """See ``BlockFiles.scatter``."""
        try:
            self._system.scatter(self._fds[size_class], pieces)
        except OSError as exc:
            raise self._error(exc, "write", size_class) from exc

    def _write_direct(self, size_class: int, at: int, data: memoryview) -> None:
        """Write past the page cache, by way of aligned memory where ``data`` is not."""
        fd = self._direct_fds[size_class]
        if len(data) % PAGE == 0:
            try:
                self._system.write_all(fd, data, at)
                return
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
        padded = scratch(-(-len(data) // PAGE) * PAGE, "direct")
        padded[: len(data)] = data
        padded[len(data) :] = bytes(len(padded) - len(data))
        self._system.write_all(fd, padded, at)

    def read(
        self,
        size_class: int,
        offset: int,
        into: Sequence[memoryview],
        n_bytes: int,
        *,
        nowait: bool = False,
    ) -> int:
        """See ``BlockFiles.read``."""
        fds = self._single_fds if n_bytes <= SINGLE_BYTES else self._fds
        try:
            return self._system.preadv(
                fds[size_class], into, offset, os.RWF_NOWAIT if nowait else 0
            )
        except BlockingIOError:
            raise
        except OSError as exc:
            if nowait and exc.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                raise BlockingIOError(exc.errno, "no reads without waiting here") from exc
            raise self._error(exc, "read", size_class) from exc

    def table(self) -> Files | None:
        """See ``BlockFiles.table``; none where somebody stands between us and the system."""
        return self._table if type(self._system) is System else None

    def drop_cache(self, size_class: int, offset: int, n_bytes: int) -> None:
        """See ``BlockFiles.drop_cache``: what was written but not synced stays in the cache."""
        self._system.advise(self._fds[size_class], offset, n_bytes, os.POSIX_FADV_DONTNEED)

    def sync(self, size_class: int) -> None:
        """See ``BlockFiles.sync``."""
        try:
            self._system.fdatasync(self._fds[size_class])
        except OSError as exc:
            raise self._error(exc, "sync", size_class) from exc

    def disk(self) -> Disk:
        """See ``BlockFiles.disk``."""
        return Disk(*self._system.space(self._directory))

    def taken_bytes(self) -> int:
        """See ``BlockFiles.taken_bytes``."""
        return sum(map(self._system.allocated, self._fds.values()))

    def reserve(self, n_bytes: int) -> bool:
        """See ``BlockFiles.reserve``."""
        try:
            if not n_bytes:
                self._system.unlink(self._reserve)
                return True
            fd = self._system.open(self._reserve, os.O_RDWR | os.O_CREAT)
            try:
                if self._system.size(fd) < n_bytes:
                    self._system.fallocate(fd, 0, n_bytes)
            finally:
                self._system.close(fd)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the files."""
        for fds in (self._fds, self._direct_fds, self._single_fds):
            for fd in fds.values():
                self._system.close(fd)
            fds.clear()


def _by_class(fds: dict[int, int]) -> tuple[int, ...]:
    return tuple([fds.get(name, -1) for name in range(MAX_CLASS + 1)])
