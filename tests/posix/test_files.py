"""What programs rely on, one test a promise. Budget: 40 s."""

import errno
import mmap
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MIB = 1 << 20
OTHER = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")


def forget(path: Path | int) -> None:
    """Have the kernel forget a file's pages, so that reads go to the storage nodes."""
    fd = path if isinstance(path, int) else os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if fd != path:
        os.close(fd)


def refused(number: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments)
    assert caught.value.errno == number, errno.errorcode[caught.value.errno or 0]


def as_other(call: Callable[[], object], where: Path) -> int:
    """Do something as another user with ``where`` as working directory; return its errno."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.chdir(where)
            os.setgroups([])
            os.setgid(OTHER)
            os.setuid(OTHER)
            try:
                call()
                code = 0
            except OSError as exc:
                code = exc.errno or 254
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_file_comes_back_from_storage(here: Path) -> None:
    data = random.randbytes(5 * MIB + 12345)
    (here / "f").write_bytes(data)
    forget(here / "f")
    assert (here / "f").read_bytes() == data


def test_append(here: Path) -> None:
    for number in range(50):
        with open(here / "f", "ab", buffering=0) as file:
            file.write(b"%03d\n" % number)
            assert file.tell() == (number + 1) * 4
    assert (here / "f").read_bytes() == b"".join(b"%03d\n" % n for n in range(50))


def test_truncate_on_open(here: Path) -> None:
    (here / "f").write_bytes(b"x" * 3 * MIB)
    fd = os.open(here / "f", os.O_RDWR | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0 and os.read(fd, 10) == b""
    os.pwrite(fd, b"y", 2 * MIB)
    os.close(fd)
    forget(here / "f")
    assert (here / "f").read_bytes() == bytes(2 * MIB) + b"y"


def test_exclusive_creation(here: Path) -> None:
    os.close(os.open(here / "f", os.O_CREAT | os.O_EXCL))
    refused(errno.EEXIST, os.open, here / "f", os.O_CREAT | os.O_EXCL)


def test_sparse(here: Path) -> None:
    with open(here / "f", "wb") as file:
        file.seek(40 * MIB)
        file.write(b"end")
    forget(here / "f")
    with open(here / "f", "rb") as file:
        assert file.read(4096) == bytes(4096)
        file.seek(40 * MIB - 5)
        assert file.read() == bytes(5) + b"end"
    assert (here / "f").stat().st_size == 40 * MIB + 3


def test_truncate_down_and_up_leaves_zeros(here: Path) -> None:
    (here / "f").write_bytes(b"x" * (3 * MIB))
    os.truncate(here / "f", MIB + 100)
    os.truncate(here / "f", 3 * MIB)
    forget(here / "f")
    assert (here / "f").read_bytes() == b"x" * (MIB + 100) + bytes(2 * MIB - 100)


def test_truncate_with_writes_not_yet_stored(here: Path) -> None:
    with open(here / "f", "w+b", buffering=0) as file:
        file.write(b"x" * 1000)
        file.truncate(10)
        file.seek(20)
        file.write(b"y")
        file.seek(0)
        assert file.read() == b"x" * 10 + bytes(10) + b"y"
    forget(here / "f")
    assert (here / "f").read_bytes() == b"x" * 10 + bytes(10) + b"y"


def test_unlinked_but_open(here: Path) -> None:
    data = random.randbytes(2 * MIB)
    with open(here / "f", "w+b", buffering=0) as file:
        file.write(data[:MIB])
        os.unlink(here / "f")
        assert not (here / "f").exists()
        file.write(data[MIB:])
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_nlink == 0
        forget(file.fileno())
        file.seek(0)
        assert file.read() == data
    assert os.listdir(here) == []


def test_rename_over_an_open_file(here: Path) -> None:
    (here / "old").write_bytes(b"old")
    (here / "new").write_bytes(b"new")
    with open(here / "old", "rb", buffering=0) as file:
        os.rename(here / "new", here / "old")
        forget(file.fileno())
        assert file.read() == b"old"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert (here / "old").read_bytes() == b"new" and os.listdir(here) == ["old"]


def test_hard_links(here: Path) -> None:
    (here / "a").write_bytes(b"1")
    os.link(here / "a", here / "b")
    with open(here / "b", "ab") as file:
        file.write(b"2")
    assert (here / "a").read_bytes() == b"12"
    assert os.stat(here / "a").st_nlink == 2 and os.path.samefile(here / "a", here / "b")
    os.unlink(here / "a")
    assert os.stat(here / "b").st_nlink == 1 and (here / "b").read_bytes() == b"12"


def test_symbolic_links(here: Path) -> None:
    os.symlink("there", here / "link")
    assert os.readlink(here / "link") == "there" and stat.S_ISLNK(os.lstat(here / "link").st_mode)
    refused(errno.ENOENT, os.stat, here / "link")
    (here / "there").write_text("x")
    assert (here / "link").read_text() == "x"
    os.symlink("loop", here / "loop")
    refused(errno.ELOOP, os.stat, here / "loop")


def test_extended_attributes(here: Path) -> None:
    (here / "f").touch()
    refused(errno.ENODATA, os.getxattr, here / "f", "user.a")
    os.setxattr(here / "f", "user.a", b"1", os.XATTR_CREATE)
    refused(errno.EEXIST, os.setxattr, here / "f", "user.a", b"2", os.XATTR_CREATE)
    refused(errno.ENODATA, os.setxattr, here / "f", "user.b", b"2", os.XATTR_REPLACE)
    os.setxattr(here / "f", "user.b", bytes(1000))
    assert sorted(os.listxattr(here / "f")) == ["user.a", "user.b"]
    assert os.getxattr(here / "f", "user.a") == b"1"
    os.removexattr(here / "f", "user.a")
    refused(errno.ENODATA, os.removexattr, here / "f", "user.a")
    assert os.listxattr(here / "f") == ["user.b"]


def test_rename_flags(here: Path) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def renameat2(one: str, two: str, flags: int) -> int:
        paths = os.fsencode(here / one), os.fsencode(here / two)
        done = libc.renameat2(-100, paths[0], -100, paths[1], flags)
        return 0 if done == 0 else ctypes.get_errno()

    (here / "a").write_text("a")
    (here / "b").write_text("b")
    assert renameat2("a", "b", 1) == errno.EEXIST
    assert renameat2("a", "b", 2) == 0
    assert (here / "a").read_text() == "b" and (here / "b").read_text() == "a"
    (here / "d").mkdir()
    (here / "d/x").touch()
    assert renameat2("a", "d", 2) == 0
    assert os.listdir(here / "a") == ["x"] and (here / "d").read_text() == "b"
    assert renameat2("d", "c", 1) == 0 and (here / "c").read_text() == "b"


def test_shared_writable_mapping(here: Path) -> None:
    data = bytearray(random.randbytes(3 * MIB))
    (here / "f").write_bytes(data)
    with open(here / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[:] == data
        for offset in range(0, 3 * MIB, 100_000):
            mapped[offset : offset + 7] = b"mapping"
            data[offset : offset + 7] = b"mapping"
        mapped.flush()
    forget(here / "f")
    assert (here / "f").read_bytes() == data


def test_a_mapping_outlives_its_descriptor(here: Path) -> None:
    (here / "f").write_bytes(bytes(MIB))
    with open(here / "f", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    mapped[100:103] = b"end"
    mapped.close()
    forget(here / "f")
    assert (here / "f").read_bytes()[100:103] == b"end"


def test_times_and_modes(here: Path) -> None:
    (here / "f").touch()
    os.utime(here / "f", ns=(1_000_000_007, 2_000_000_009))
    found = os.stat(here / "f")
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_007, 2_000_000_009)
    os.chmod(here / "f", 0o4710)
    assert stat.S_IMODE(os.stat(here / "f").st_mode) == 0o4710
    with open(here / "f", "wb", buffering=0) as file:
        before = os.fstat(file.fileno()).st_mtime_ns
        file.write(b"x")
        assert os.fstat(file.fileno()).st_mtime_ns > before
        os.utime(here / "f", ns=(1, 2))
        assert os.fstat(file.fileno()).st_mtime_ns == 2
    assert os.stat(here / "f").st_mtime_ns == 2


def test_directories(here: Path) -> None:
    refused(errno.ENOENT, os.rmdir, here / "d")
    os.mkdir(here / "d")
    os.mkdir(here / "d/e")
    assert os.stat(here / "d").st_nlink == 3
    refused(errno.ENOTEMPTY, os.rmdir, here / "d")
    refused(errno.EINVAL, os.rename, here / "d", here / "d/e/f")
    os.rename(here / "d/e", here / "e")
    assert os.stat(here / "d").st_nlink == 2
    refused(errno.EISDIR, os.unlink, here / "e")
    refused(errno.ENAMETOOLONG, os.mkdir, here / ("x" * 256))
    os.mkdir(here / ("x" * 255))
    fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def test_many_entries(here: Path) -> None:
    names = {f"entry-{number:05d}" for number in range(5000)}
    for name in names:
        os.mknod(here / name)
    assert set(os.listdir(here)) == names
    with os.scandir(here) as entries:
        for entry in entries:  # removed while it is read
            assert entry.is_file()
            os.unlink(entry.path)
    assert os.listdir(here) == []


def test_removed_names_are_not_listed(here: Path) -> None:
    for number in range(400):
        os.mknod(here / f"{number:03d}")
    seen = []
    with os.scandir(here) as entries:
        first = next(entries)
        gone = next(name for name in ("399", "398") if name != first.name)
        os.unlink(here / gone)
        seen = [first.name, *(entry.name for entry in entries)]
    assert not (here / gone).exists()
    assert len(set(seen)) == len(seen) >= 399


def test_space(here: Path) -> None:
    found = os.statvfs(here)
    assert found.f_blocks > found.f_bavail > 0 and found.f_namemax == 255


@needs_root
def test_permissions_of_another_user(here: Path) -> None:
    (here / "secret").write_text("x")
    os.chmod(here / "secret", 0o600)
    (here / "open").write_text("x")
    os.chmod(here / "open", 0o644)
    assert as_other(lambda: open("secret").close(), here) == errno.EACCES
    assert as_other(lambda: open("open").close(), here) == 0
    assert as_other(lambda: open("open", "w").close(), here) == errno.EACCES
    assert as_other(lambda: os.mkdir("d"), here) == errno.EACCES
    assert as_other(lambda: os.chmod("open", 0o777), here) == errno.EPERM
    assert as_other(lambda: os.unlink("open"), here) == errno.EACCES
    os.chmod(here, 0o1777)
    assert as_other(lambda: os.unlink("open"), here) == errno.EPERM  # sticky
    assert as_other(lambda: os.mkdir("d"), here) == 0
    found = os.stat(here / "d")
    assert (found.st_uid, found.st_gid) == (OTHER, OTHER)
    assert as_other(lambda: os.chown("d", 0, 0), here) == errno.EPERM
    os.chmod(here, 0o2777)
    os.chown(here, 0, 77)
    assert as_other(lambda: os.mkdir("e"), here) == 0
    assert os.stat(here / "e").st_gid == 77 and os.stat(here / "e").st_mode & stat.S_ISGID


@needs_root
def test_a_write_by_another_user_takes_set_uid_away(here: Path) -> None:
    (here / "f").write_bytes(b"x")
    os.chown(here / "f", OTHER, OTHER)
    os.chmod(here / "f", 0o4777)

    def write() -> None:
        fd = os.open("f", os.O_WRONLY)
        os.write(fd, b"y")
        os.close(fd)

    assert as_other(write, here) == 0
    assert stat.S_IMODE(os.stat(here / "f").st_mode) == 0o777


def test_sequential_megabytes(here: Path) -> None:
    block = random.randbytes(MIB)
    with open(here / "f", "wb", buffering=0) as file:
        for number in range(64):
            file.write(number.to_bytes(8, "big") + block[8:])
        os.fsync(file.fileno())
    forget(here / "f")
    with open(here / "f", "rb", buffering=0) as file:
        for number in range(64):
            assert file.read(MIB) == number.to_bytes(8, "big") + block[8:]
        assert file.read(1) == b""


def test_random_writes(here: Path) -> None:
    rng, size = random.Random(7), 16 * MIB
    model = bytearray(size)
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, size)
    for number in range(300):
        offset = rng.randrange(size)
        data = rng.randbytes(min(size - offset, rng.choice((100, 4096, 300_000, MIB))))
        os.pwrite(fd, data, offset)
        model[offset : offset + len(data)] = data
        if number % 3 == 0:
            offset = rng.randrange(size)
            assert os.pread(fd, 10_000, offset) == model[offset : offset + 10_000]
    os.close(fd)
    forget(here / "f")
    assert (here / "f").read_bytes() == model


def test_a_duplicate_writes_on_after_a_close(here: Path) -> None:
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    other = os.dup(fd)
    os.write(fd, b"one")
    os.close(fd)
    os.write(other, b"two")
    os.close(other)
    forget(here / "f")
    assert (here / "f").read_bytes() == b"onetwo"


def test_a_program_runs_from_the_mount(here: Path) -> None:
    script = here / "hello.py"
    script.write_text("print('hello')")
    copy = here / "python"
    copy.write_bytes(Path("/bin/true").read_bytes())
    copy.chmod(0o755)
    assert subprocess.run([copy], timeout=30).returncode == 0
    said = subprocess.run([sys.executable, script], capture_output=True, timeout=30).stdout
    assert said == b"hello\n"
