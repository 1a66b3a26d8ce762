"""The system calls that a store makes on its block files, log and reserve: one each, and no more.

Apart so that a test can record them, refuse them or tear them: ``open_store`` takes another
``System``. RocksDB makes its own; its steps are recorded at ``parts.RecordsDatabase``.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from hillfire import native
from hillfire.storage.store.parts import Buffer

PIECES = 1024
"""Written in one call of the extension: a thread that ends waits that long for them."""

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_LIBC = ctypes.CDLL(None, use_errno=True)


class System:
    """The operating system, thinly. Every method may raise OSError."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file; flags as of ``os.open``."""
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def close(self, fd: int) -> None:
        """Close a file."""
        os.close(fd)

    def size(self, fd: int) -> int:
        """Return a file's length in bytes."""
        return os.fstat(fd).st_size

    def allocated(self, fd: int) -> int:
        """Return how many bytes of the disk a file takes."""
        return os.fstat(fd).st_blocks * 512

    def pwrite(self, fd: int, data: Buffer, at: int) -> int:
        """Write; returns how much was written."""
        return os.pwrite(fd, data, at)

    def scatter(self, fd: int, pieces: Sequence[tuple[int, Buffer]]) -> None:
        """Write all of several buffers, each at a place of its own.

        The extension does it with the interpreter's lock released once, not once a piece.
        """
        if native.scatter is not None:
            for first in range(0, len(pieces), PIECES):
                native.scatter(fd, list(pieces[first : first + PIECES]))
            return
        for at, data in pieces:
            self.write_all(fd, data, at)

    def write_all(self, fd: int, data: Buffer, at: int) -> None:
        """Write all of a buffer."""
        done = self.pwrite(fd, data, at)
        if done < len(data):
            rest = memoryview(data)
            while done < len(data):
                done += self.pwrite(fd, rest[done:], at + done)

    def pwritev(self, fd: int, data: Sequence[Buffer], at: int) -> int:
        """Write buffers in a row; returns how much was written."""
        return os.pwritev(fd, data, at)

    def preadv(self, fd: int, into: Sequence[memoryview], at: int, flags: int = 0) -> int:
        """Read; returns how much was read."""
        return os.preadv(fd, into, at, flags)

    def fallocate(self, fd: int, at: int, n_bytes: int) -> None:
        """Have the disk set a range aside; the file grows to its end."""
        os.posix_fallocate(fd, at, n_bytes)

    def punch(self, fd: int, at: int, n_bytes: int) -> bool:
        """Make a hole; False if this file system has none. Python has no name for it."""
        mode, offset, length = _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(at), ctypes.c_int64(n_bytes)
        return bool(_LIBC.fallocate(fd, mode, offset, length) == 0)

    def truncate(self, fd: int, size: int) -> None:
        """Cut or extend a file."""
        os.ftruncate(fd, size)

    def fdatasync(self, fd: int) -> None:
        """Bring a file's bytes to the disk, and its size."""
        os.fdatasync(fd)

    def sync_directory(self, directory: Path) -> None:
        """Bring a directory's entries to the disk."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file."""
        old.rename(new)

    def unlink(self, path: Path) -> None:
        """Remove a file's name."""
        path.unlink()

    def make_directory(self, directory: Path) -> None:
        """Make a directory where there is none, there after a loss of power too."""
        if directory.is_dir():
            return
        if not directory.parent.is_dir():
            self.make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        self.sync_directory(directory.parent)

    def names(self, directory: Path) -> list[str]:
        """List a directory."""
        return sorted(os.listdir(directory))

    def space(self, directory: Path) -> tuple[int, int]:
        """Return how many bytes the disk has for us, and how many of them are free."""
        disk = os.statvfs(directory)
        used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        return used + disk.f_bavail * disk.f_frsize, disk.f_bavail * disk.f_frsize

    def advise(self, fd: int, at: int, n_bytes: int, advice: int) -> None:
        """Advise the page cache; ``advice`` as of ``os.posix_fadvise``."""
        os.posix_fadvise(fd, at, n_bytes, advice)
