"""The block files: one a size class, preallocated, grown in steps, read and written by offset.

Thin shell over system calls. Blocks are written through the page cache, or past it (``direct``)
where a write is large: see ``BlockFiles``. The allocator's decisions are in blocks.py.
"""

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from hillfire.errors import Code, Error
from hillfire.storage.store.base import Space
from hillfire.storage.store.blocks import MAX_CLASS, MIN_CLASS, Block, BlockMap, size_class

GROW_BYTES = 16 * 1024 * 1024
"""By how much a block file grows at least; a quarter of its size if that is more."""
GROW_MAX_BYTES = 1024 * 1024 * 1024
DIRECT_MIN_BYTES = 256 * 1024
"""Writes from this size on bypass the page cache in direct mode."""
SINGLE_BYTES = 64 * 1024
"""Reads up to this size bring no more than themselves into the page cache, in small pages.

The kernel would read ahead four times as much, into pages of up to 1 MiB, and writing 4 KiB into
one of those costs 20 µs where it costs 3 otherwise.
"""
PAGE = 4096
SCRATCH_MIN_BYTES = 128 * 1024

_FULL = (errno.ENOSPC, errno.EDQUOT)


def translate(exc: OSError, what: str) -> Error:
    """Turn an operating system's error into ours."""
    code = Code.NO_SPACE if exc.errno in _FULL else Code.IO
    return Error(code, f"{what}: {exc.strerror}")


def sync_directory(directory: Path) -> None:
    """Bring a directory's entries to the disk.

    Raises:
        OSError: it cannot.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class BlockFiles:
    """All block files of one store. Thread-safe."""

    def __init__(self, directory: Path, *, direct: bool, reserve_bytes: int) -> None:
        """Open what is in ``directory``.

        ``direct`` writes large payloads past the page cache. Files do not grow into the last
        ``reserve_bytes`` of the disk: the database needs room to record deletions.

        Raises:
            Error: IO.
        """
        self._directory = directory
        self._direct = direct
        self._reserve = reserve_bytes
        self._lock = threading.Lock()
        self._fds: dict[int, int] = {}
        self._direct_fds: dict[int, int] = {}
        self._single_fds: dict[int, int] = {}
        self._maps: dict[int, BlockMap] = {}
        self._dirty: set[int] = set()
        self._scratch = threading.local()
        try:
            directory.mkdir(exist_ok=True)
            sync_directory(directory.parent)
        except OSError as exc:
            raise translate(exc, f"cannot create {directory}") from exc
        for name in range(MIN_CLASS, MAX_CLASS + 1):
            if self._path(name).exists():
                self._open(name)

    def _path(self, name: int) -> Path:
        return self._directory / f"{1 << name - 10}K"

    def _open(self, name: int) -> BlockMap:
        """Open or create the file of one class."""
        try:
            fd = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._fds[name] = fd
            sync_directory(self._directory)
            single = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
            self._single_fds[name] = single
            os.posix_fadvise(single, 0, 0, os.POSIX_FADV_RANDOM)
            blocks = BlockMap()
            blocks.grow(os.fstat(fd).st_size >> name)
        except OSError as exc:
            raise translate(exc, f"cannot open {self._path(name)}") from exc
        if self._direct:
            try:
                self._direct_fds[name] = os.open(
                    self._path(name), os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC
                )
            except OSError:  # tmpfs of old kernels: everything goes through the page cache
                self._direct = False
        self._maps[name] = blocks
        return blocks

    def mark(self, block: Block) -> bool:
        """Declare a block used, at opening. False if there is no such block or it is used."""
        blocks = self._maps.get(block.size_class)
        return blocks is not None and blocks.mark(block.number)

    def allocate(self, length: int) -> Block:
        """Take a free block that holds ``length`` bytes.

        Raises:
            Error: NO_SPACE, IO.
        """
        name = size_class(length)
        with self._lock:
            blocks = self._maps.get(name) or self._open(name)
            index = blocks.allocate()
            if index is None:
                self._grow(name, blocks)
                index = blocks.allocate()
                assert index is not None, "a file that grew has a free block"
            return Block(name, index)

    def _grow(self, name: int, blocks: BlockMap) -> None:
        fd, size = self._fds[name], blocks.capacity << name
        step = min(max(GROW_BYTES, size >> 2), GROW_MAX_BYTES) >> name or 1
        try:
            while not self.has_room(step << name):
                if step == 1:
                    raise Error(Code.NO_SPACE, f"the disk of {self._directory} is full")
                step = max(1, step >> 2)
            os.posix_fallocate(fd, size, step << name)
        except Error:
            raise
        except OSError as exc:
            raise translate(exc, f"cannot grow {self._path(name)}") from exc
        blocks.grow(step)

    def has_room(self, n_bytes: int) -> bool:
        """Tell whether the disk has ``n_bytes`` free and the reserve beyond them."""
        disk = os.statvfs(self._directory)
        return disk.f_bavail * disk.f_frsize >= n_bytes + self._reserve

    def nearly_full(self) -> bool:
        """Tell whether half the reserve is gone: only what frees space may still be recorded."""
        return not self.has_room(-(self._reserve // 2))

    def release(self, blocks: Sequence[Block]) -> None:
        """Give blocks back that nobody reads any more."""
        with self._lock:
            for block in blocks:
                self._maps[block.size_class].release(block.number)

    def write(self, block: Block, offset: int, data: memoryview) -> None:
        """Write bytes into a block.

        Raises:
            Error: NO_SPACE, IO.
        """
        assert offset + len(data) <= block.n_bytes, "a write beyond its block"
        try:
            if self._direct and len(data) >= DIRECT_MIN_BYTES and offset % PAGE == 0:
                self._write_direct(block, offset, data)
            else:
                self._write_all(self._fds[block.size_class], data, block.offset + offset)
        except OSError as exc:
            raise translate(exc, f"cannot write {self._path(block.size_class)}") from exc
        finally:
            with self._lock:  # after the bytes, or a sync in between would forget them
                self._dirty.add(block.size_class)

    def _write_direct(self, block: Block, offset: int, data: memoryview) -> None:
        """Write past the page cache, by way of aligned memory where ``data`` is not."""
        fd = self._direct_fds[block.size_class]
        at = block.offset + offset
        if len(data) % PAGE == 0:
            try:
                self._write_all(fd, data, at)
                return
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
        padded = -(-len(data) // PAGE) * PAGE
        scratch = self.scratch(padded, "direct")
        scratch[: len(data)] = data
        scratch[len(data) : padded] = bytes(padded - len(data))
        self._write_all(fd, scratch[:padded], at)

    @staticmethod
    def _write_all(fd: int, data: memoryview, at: int) -> None:
        done = os.pwrite(fd, data, at)
        while done < len(data):
            done += os.pwrite(fd, data[done:], at + done)

    def scratch(self, n_bytes: int, use: str = "edges") -> memoryview:
        """Return page-aligned memory of this thread's own, of at least ``n_bytes``.

        What was last returned for the same ``use`` is returned again.
        """
        found: memoryview | None = getattr(self._scratch, use, None)
        if found is None or len(found) < n_bytes:
            size = 1 << max(SCRATCH_MIN_BYTES.bit_length() - 1, (n_bytes - 1).bit_length())
            found = memoryview(mmap.mmap(-1, size))
            setattr(self._scratch, use, found)
        return found

    def read(
        self, block: Block, offset: int, into: Sequence[memoryview], n_bytes: int, flags: int = 0
    ) -> int:
        """Scatter ``n_bytes`` of a block from ``offset`` on; returns how many there were.

        Raises:
            BlockingIOError: with RWF_NOWAIT, when it would have to wait for the disk.
            Error: IO.
        """
        try:
            name, number = block
            fds = self._single_fds if n_bytes <= SINGLE_BYTES else self._fds
            return os.preadv(fds[name], into, (number << name) + offset, flags)
        except BlockingIOError:
            raise
        except OSError as exc:
            if flags and exc.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                raise BlockingIOError(exc.errno, "no reads without waiting here") from exc
            raise translate(exc, f"cannot read {self._path(block.size_class)}") from exc

    def sync(self, *, everything: bool = False) -> None:
        """Bring what was written to the disk; ``everything``: by an earlier process too.

        Raises:
            Error: NO_SPACE, IO.
        """
        with self._lock:
            dirty, self._dirty = self._dirty, set()
            if everything:
                dirty = set(self._fds)
        for name in dirty:
            try:
                os.fdatasync(self._fds[name])
            except OSError as exc:
                with self._lock:
                    self._dirty |= dirty
                raise translate(exc, f"cannot sync {self._path(name)}") from exc

    def space(self) -> Space:
        """Tell how full the disk is; blocks that are free again do not count as used."""
        disk = os.statvfs(self._directory)
        with self._lock:
            free = sum(blocks.free << name for name, blocks in self._maps.items())
        used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        return Space(max(0, used - free), used + disk.f_bavail * disk.f_frsize)

    def close(self) -> None:
        """Close the files."""
        for fds in (self._fds, self._direct_fds, self._single_fds):
            for fd in fds.values():
                os.close(fd)
            fds.clear()
