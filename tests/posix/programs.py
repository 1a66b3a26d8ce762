"""Random programs of system calls, run on two directories, and what each call gave.

A program is a list of (operation, arguments) made from a seed; ``Machine`` runs it in one
directory and returns what a program could see: results, errno, attributes, contents. Two
directories that behave alike give equal lists.
"""

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("a", "b", "c", "d", "dir", "dir/x", "dir/y", "dir/sub", "dir/sub/z", "e", "no/such")
ATTRIBUTES = ("user.one", "user.two", "user.long" * 10)
MAX_OFFSET = 3 << 20
Call = tuple[str, tuple[Any, ...]]


def program(seed: int, length: int) -> list[Call]:
    """Make a program."""
    rng = random.Random(seed)
    kinds = list(_MAKERS)
    weights = [_MAKERS[kind][1] for kind in kinds]
    return [(kind, _MAKERS[kind][0](rng)) for kind in rng.choices(kinds, weights=weights, k=length)]


def _name(rng: random.Random) -> str:
    return rng.choice(NAMES)


def _two(rng: random.Random) -> tuple[str, str]:
    return _name(rng), _name(rng)


def _offset(rng: random.Random) -> int:
    near = rng.choice((0, 4096, 1 << 20, 2 << 20))
    return max(0, rng.choice((near, near, rng.randrange(MAX_OFFSET))) + rng.randrange(-3000, 3000))


def _size(rng: random.Random) -> int:
    return rng.choice((0, 1, 17, 4096, 5000, 70_000, 1_200_000))


def _slot(rng: random.Random) -> int:
    return rng.randrange(4)


def _open(rng: random.Random) -> tuple[int, str, int, int]:
    flags = rng.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR))
    for flag, chance in (
        (os.O_CREAT, 0.6), (os.O_EXCL, 0.1), (os.O_TRUNC, 0.15), (os.O_APPEND, 0.15),
        (os.O_DIRECTORY, 0.05), (os.O_NOFOLLOW, 0.1),
    ):  # fmt: skip
        if rng.random() < chance:
            flags |= flag
    return _slot(rng), _name(rng), flags, rng.choice((0o644, 0o600, 0o755, 0o400))


_MAKERS: dict[str, tuple[Callable[[random.Random], tuple[Any, ...]], int]] = {
    "open": (_open, 14),
    "close": (lambda r: (_slot(r),), 5),
    "read": (lambda r: (_slot(r), _size(r)), 5),
    "pread": (lambda r: (_slot(r), _size(r), _offset(r)), 9),
    "write": (lambda r: (_slot(r), _size(r), r.randrange(256)), 7),
    "pwrite": (lambda r: (_slot(r), _size(r), r.randrange(256), _offset(r)), 12),
    "lseek": (lambda r: (_slot(r), _offset(r), r.choice((0, 1, 2))), 2),
    "fsync": (lambda r: (_slot(r), r.random() < 0.5), 2),
    "ftruncate": (lambda r: (_slot(r), _offset(r)), 4),
    "fstat": (lambda r: (_slot(r),), 5),
    "fchmod": (lambda r: (_slot(r), r.choice((0o600, 0o644, 0o4755))), 1),
    "dup": (lambda r: (_slot(r), _slot(r)), 1),
    "truncate": (lambda r: (_name(r), _offset(r)), 4),
    "stat": (lambda r: (_name(r),), 6),
    "lstat": (lambda r: (_name(r),), 4),
    "mkdir": (lambda r: (_name(r), r.choice((0o755, 0o700, 0o2755))), 6),
    "rmdir": (lambda r: (_name(r),), 3),
    "unlink": (lambda r: (_name(r),), 5),
    "rename": (_two, 6),
    "link": (_two, 4),
    "symlink": (_two, 3),
    "readlink": (lambda r: (_name(r),), 2),
    "mkfifo": (lambda r: (_name(r), 0o640), 1),
    "chmod": (lambda r: (_name(r), r.choice((0o600, 0o644, 0o755, 0o1777, 0o2755))), 2),
    "chown": (lambda r: (_name(r), r.choice((0, 12, 1000)), r.choice((0, 34, 1000, -1))), 2),
    "utime": (lambda r: (_name(r), r.randrange(1 << 60), r.randrange(1 << 60)), 2),
    "listdir": (lambda r: (r.choice((".", "dir", "dir/sub", "a")),), 4),
    "setxattr": (lambda r: (_name(r), r.choice(ATTRIBUTES), r.randrange(40), r.randrange(3)), 3),
    "getxattr": (lambda r: (_name(r), r.choice(ATTRIBUTES)), 2),
    "listxattr": (lambda r: (_name(r),), 2),
    "removexattr": (lambda r: (_name(r), r.choice(ATTRIBUTES)), 1),
    "access": (lambda r: (_name(r), r.choice((os.F_OK, os.R_OK, os.W_OK, os.X_OK))), 1),
}


def _payload(size: int, salt: int) -> bytes:
    return random.Random(size * 1000 + salt).randbytes(size)


def attributes(found: os.stat_result) -> tuple[Any, ...]:
    """What of a ``stat`` must be equal; a directory's size is the file system's own affair."""
    size = None if stat.S_ISDIR(found.st_mode) else found.st_size
    return oct(found.st_mode), found.st_nlink, found.st_uid, found.st_gid, size


class Machine:
    """Runs programs in one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.slots: dict[int, int] = {}

    def run(self, calls: list[Call]) -> list[Any]:
        """Return what each call gave, the tree included at the end."""
        seen: list[Any] = []
        for kind, arguments in calls:
            try:
                seen.append(getattr(self, f"do_{kind}")(*arguments))
            except OSError as exc:
                seen.append(errno.errorcode.get(exc.errno or 0, exc.errno))
            except KeyError:
                seen.append("closed")
        self.end()
        seen.append(self.tree())
        return seen

    def end(self) -> None:
        for fd in self.slots.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self.slots = {}

    def tree(self) -> list[Any]:
        """Everything that is there, contents included."""
        found: list[Any] = []
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            for name in sorted((*folders, *files)):
                path = os.path.join(folder, name)
                status = os.lstat(path)
                entry: list[Any] = [os.path.relpath(path, self.root), attributes(status)]
                if stat.S_ISREG(status.st_mode):
                    entry.append(Path(path).read_bytes())
                elif stat.S_ISLNK(status.st_mode):
                    entry.append(os.readlink(path))
                found.append(entry)
        return found

    def at(self, name: str) -> str:
        return os.path.join(self.root, name)

    def do_open(self, slot: int, name: str, flags: int, mode: int) -> Any:
        fd = os.open(self.at(name), flags | os.O_NONBLOCK, mode)
        if stat.S_ISFIFO(os.fstat(fd).st_mode):  # a pipe's own behaviour is not the mount's
            os.close(fd)
            return "fifo"
        if slot in self.slots:
            os.close(self.slots.pop(slot))
        self.slots[slot] = fd
        return attributes(os.fstat(fd))

    def do_close(self, slot: int) -> Any:
        os.close(self.slots.pop(slot))

    def do_dup(self, slot: int, other: int) -> Any:
        if slot != other:
            fd = os.dup(self.slots[slot])
            if other in self.slots:
                os.close(self.slots.pop(other))
            self.slots[other] = fd

    def do_read(self, slot: int, size: int) -> Any:
        return os.read(self.slots[slot], size)

    def do_pread(self, slot: int, size: int, offset: int) -> Any:
        return os.pread(self.slots[slot], size, offset)

    def do_write(self, slot: int, size: int, salt: int) -> Any:
        return os.write(self.slots[slot], _payload(size, salt))

    def do_pwrite(self, slot: int, size: int, salt: int, offset: int) -> Any:
        fd = self.slots[slot]
        return os.pwrite(fd, _payload(size, salt), offset), os.fstat(fd).st_size

    def do_lseek(self, slot: int, offset: int, whence: int) -> Any:
        fd = self.slots[slot]
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return None
        return os.lseek(fd, offset, whence)

    def do_fsync(self, slot: int, data: bool) -> Any:
        (os.fdatasync if data else os.fsync)(self.slots[slot])

    def do_ftruncate(self, slot: int, length: int) -> Any:
        fd = self.slots[slot]
        os.ftruncate(fd, length)
        return attributes(os.fstat(fd))

    def do_fstat(self, slot: int) -> Any:
        return attributes(os.fstat(self.slots[slot]))

    def do_fchmod(self, slot: int, mode: int) -> Any:
        os.fchmod(self.slots[slot], mode)

    def do_truncate(self, name: str, length: int) -> Any:
        os.truncate(self.at(name), length)
        return attributes(os.stat(self.at(name)))

    def do_stat(self, name: str) -> Any:
        return attributes(os.stat(self.at(name)))

    def do_lstat(self, name: str) -> Any:
        return attributes(os.lstat(self.at(name)))

    def do_mkdir(self, name: str, mode: int) -> Any:
        os.mkdir(self.at(name), mode)
        return attributes(os.stat(self.at(name)))

    def do_rmdir(self, name: str) -> Any:
        os.rmdir(self.at(name))

    def do_unlink(self, name: str) -> Any:
        os.unlink(self.at(name))

    def do_rename(self, name: str, to: str) -> Any:
        os.rename(self.at(name), self.at(to))

    def do_link(self, name: str, to: str) -> Any:
        os.link(self.at(name), self.at(to), follow_symlinks=False)

    def do_symlink(self, target: str, name: str) -> Any:
        os.symlink(os.path.basename(target), self.at(name))

    def do_readlink(self, name: str) -> Any:
        return os.readlink(self.at(name))

    def do_mkfifo(self, name: str, mode: int) -> Any:
        os.mkfifo(self.at(name), mode)

    def do_chmod(self, name: str, mode: int) -> Any:
        os.chmod(self.at(name), mode)

    def do_chown(self, name: str, uid: int, gid: int) -> Any:
        os.chown(self.at(name), uid, gid, follow_symlinks=False)
        return attributes(os.lstat(self.at(name)))

    def do_utime(self, name: str, atime_ns: int, mtime_ns: int) -> Any:
        os.utime(self.at(name), ns=(atime_ns, mtime_ns))
        found = os.stat(self.at(name))
        return found.st_atime_ns, found.st_mtime_ns

    def do_listdir(self, name: str) -> Any:
        return sorted(os.listdir(self.at(name)))

    def do_setxattr(self, name: str, attribute: str, size: int, flags: int) -> Any:
        os.setxattr(self.at(name), attribute, _payload(size, 1), flags)

    def do_getxattr(self, name: str, attribute: str) -> Any:
        return os.getxattr(self.at(name), attribute)

    def do_listxattr(self, name: str) -> Any:
        return sorted(os.listxattr(self.at(name)))

    def do_removexattr(self, name: str, attribute: str) -> Any:
        os.removexattr(self.at(name), attribute)

    def do_access(self, name: str, mode: int) -> Any:
        return os.access(self.at(name), mode)
