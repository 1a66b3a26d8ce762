"""Random operations against a directory of this machine: the same results, errors and trees.

Needs root, to act as several users. Budget: 20 s.
"""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hillfire.errors import Error
from hillfire.meta.ops.make_node import MAX_SYMLINK_BYTES
from hillfire.proto import meta_pb2 as pb
from tests.unit.meta_world import ALICE, BOB, ROOT, World, fails, place, world

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="acts as several users: run as root")

USERS = {"root": ROOT, "alice": ALICE, "bob": BOB}
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2

KINDS = {
    stat.S_IFREG: pb.REGULAR,
    stat.S_IFDIR: pb.DIRECTORY,
    stat.S_IFLNK: pb.SYMLINK,
    stat.S_IFIFO: pb.FIFO,
    stat.S_IFSOCK: pb.SOCKET,
}

NAMES = st.sampled_from([b"a", b"b", b"c", b"s", b"t"])
PARTS = st.one_of(NAMES, NAMES, NAMES, st.sampled_from([b".", b".."]))
WANDERING = st.builds(
    lambda parts, tail: b"/".join(parts) + tail,
    st.lists(PARTS, min_size=1, max_size=4).filter(lambda p: p.count(b"..") == 0 or p[0] != b".."),
    st.sampled_from([b"", b"", b"", b"", b"/"]),
).filter(lambda path: not _leaves(path))
NEAR = st.builds(
    lambda parts, tail: b"/".join(parts) + tail,
    st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=2),
    st.sampled_from([b"", b"", b"", b"", b"", b"", b"/"]),
)
PATHS = st.one_of(NEAR, NEAR, NEAR, NEAR, WANDERING)
TARGETS = st.sampled_from([b"a", b"b", b"a/b", b"s", b"t", b"./c", b"missing", b"a/", b"x" * 300])
MODES = st.sampled_from([0o777, 0o755, 0o700, 0o500, 0o300, 0o000, 0o1777, 0o2775, 0o4755, 0o6711])
USER = st.sampled_from(["root", "alice", "alice", "bob"])
IDS = st.sampled_from([0, 1000, 1001, 5000])


def _leaves(path: bytes) -> bool:
    """Whether ".." leads above the root, where the two trees differ."""
    depth = 0
    for part in path.split(b"/"):
        depth += {b"": 0, b".": 0, b"..": -1}.get(part, 1)
        if depth < 0:
            return True
    return False


OPERATIONS = st.one_of(
    st.tuples(st.just("create"), USER, PATHS, MODES, st.booleans()),
    st.tuples(st.just("mkdir"), USER, PATHS, MODES),
    st.tuples(st.just("mkdir"), USER, PATHS, st.just(0o777)),
    st.tuples(st.just("symlink"), USER, TARGETS, PATHS),
    st.tuples(st.just("mknod"), USER, PATHS, MODES, st.sampled_from([stat.S_IFIFO, stat.S_IFREG])),
    st.tuples(st.just("link"), USER, PATHS, PATHS),
    st.tuples(st.just("unlink"), USER, PATHS),
    st.tuples(st.just("rmdir"), USER, PATHS),
    st.tuples(st.just("rename"), USER, PATHS, PATHS, st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("chmod"), USER, PATHS, MODES),
    st.tuples(st.just("chown"), USER, PATHS, IDS, IDS),
    st.tuples(st.just("stat"), USER, PATHS, st.booleans()),
    st.tuples(st.just("list"), USER, PATHS),
    st.tuples(st.just("truncate"), USER, PATHS, st.sampled_from([0, 10, 100_000])),
)


START: list[tuple[Any, ...]] = [
    ("mkdir", "alice", b"a", 0o777),
    ("mkdir", "root", b"b", 0o777),
    ("chmod", "root", b"b", 0o1777),
    ("mkdir", "alice", b"a/a", 0o755),
    ("create", "alice", b"a/b", 0o666, True),
    ("create", "bob", b"b/b", 0o6777, True),
    ("symlink", "bob", b"../a", b"b/c"),
    ("link", "alice", b"a/b", b"b/a"),
]
"""Something to work on, so that most operations do something."""


class Local:
    """The operations on a directory of this machine."""

    def __init__(self) -> None:
        self.path = os.fsencode(tempfile.mkdtemp())
        os.chmod(self.path, 0o755)
        os.mkdir(self.path + b"/top")
        os.chmod(self.path + b"/top", 0o777)
        self.root = os.open(self.path + b"/top", os.O_RDONLY | os.O_DIRECTORY)
        self.before = os.getcwd()
        os.chdir(self.root)  # truncate(2) takes no directory

    def close(self) -> None:
        os.chdir(self.before)
        os.close(self.root)
        shutil.rmtree(self.path)

    def create(self, path: bytes, mode: int, exclusive: bool) -> None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK | (os.O_EXCL if exclusive else 0)
        try:
            os.close(os.open(path, flags, mode, dir_fd=self.root))
        except OSError as error:
            if error.errno != errno.ENXIO:  # a FIFO without a reader: it was found all the same
                raise

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(path, mode, dir_fd=self.root)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, path, dir_fd=self.root)

    def mknod(self, path: bytes, mode: int, kind: int) -> None:
        os.mknod(path, mode | kind, dir_fd=self.root)

    def link(self, old: bytes, new: bytes) -> None:
        os.link(old, new, src_dir_fd=self.root, dst_dir_fd=self.root, follow_symlinks=False)

    def unlink(self, path: bytes) -> None:
        os.unlink(path, dir_fd=self.root)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(path, dir_fd=self.root)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        if flags:
            import ctypes

            libc = ctypes.CDLL(None, use_errno=True)
            if libc.renameat2(self.root, old, self.root, new, flags):
                raise OSError(ctypes.get_errno(), "renameat2")
        else:
            os.rename(old, new, src_dir_fd=self.root, dst_dir_fd=self.root)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(path, mode, dir_fd=self.root)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.chown(path, uid, gid, dir_fd=self.root)

    def stat(self, path: bytes, follow: bool) -> tuple[Any, ...]:
        found = os.stat(path, dir_fd=self.root, follow_symlinks=follow)
        kind = stat.S_IFMT(found.st_mode)
        size = 0 if kind == stat.S_IFDIR else found.st_size
        return KINDS[kind], found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_nlink, size

    def list(self, path: bytes) -> list[bytes]:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.root)
        try:
            return sorted(os.fsencode(name) for name in os.listdir(fd))
        finally:
            os.close(fd)

    def truncate(self, path: bytes, length: int) -> None:
        os.truncate(path, length)


class Ours:
    """The same in the metadata service."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.caller = ROOT
        world.set(world.make(b"top").id, mode=0o777)

    def create(self, path: bytes, mode: int, exclusive: bool) -> None:
        request = pb.CreateRequest(
            caller=self.caller, place=place(b"top/" + path), mode=mode, exclusive=exclusive
        )
        self.world.call("Create", request)

    def mkdir(self, path: bytes, mode: int) -> None:
        self.world.make(
            b"top/" + path, pb.DIRECTORY, mode & 0o1777, self.caller
        )  # as mkdir(2) cuts it

    def symlink(self, target: bytes, path: bytes) -> None:
        self.world.make(b"top/" + path, pb.SYMLINK, 0, self.caller, symlink=target)

    def mknod(self, path: bytes, mode: int, kind: int) -> None:
        self.world.make(b"top/" + path, KINDS[kind], mode, self.caller)

    def link(self, old: bytes, new: bytes) -> None:
        self.world.link(
            self.world.look(b"top/" + old, caller=self.caller).id, b"top/" + new, self.caller
        )

    def unlink(self, path: bytes) -> None:
        self.world.unlink(b"top/" + path, self.caller)

    def rmdir(self, path: bytes) -> None:
        self.world.rmdir(b"top/" + path, self.caller)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self.world.rename(
            b"top/" + old,
            b"top/" + new,
            self.caller,
            no_replace=bool(flags & RENAME_NOREPLACE),
            exchange=bool(flags & RENAME_EXCHANGE),
        )

    def _id(self, path: bytes) -> int:
        return self.world.look(b"top/" + path, follow=True, caller=self.caller).id

    def chmod(self, path: bytes, mode: int) -> None:
        self.world.set(self._id(path), self.caller, mode=mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self.world.set(self._id(path), self.caller, uid=uid, gid=gid)

    def stat(self, path: bytes, follow: bool) -> tuple[Any, ...]:
        found = self.world.look(b"top/" + path, follow=follow, caller=self.caller)
        size = 0 if found.type == pb.DIRECTORY else found.length
        return found.type, found.mode, found.uid, found.gid, found.links, size

    def list(self, path: bytes) -> list[bytes]:
        return self.world.names(self._id(path), self.caller)

    def truncate(self, path: bytes, length: int) -> None:
        self.world.truncate(self._id(path), length, self.caller)


@contextmanager
def acting_as(caller: pb.Caller) -> Iterator[None]:
    """Be somebody else for the kernel: only the effective ids, so that we come back."""
    before = os.getgroups()
    os.setgroups(list(caller.groups))
    os.setegid(caller.gid)
    os.seteuid(caller.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


def outcome(call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What came back, or the errno."""
    try:
        return call(*arguments)
    except OSError as error:
        return OSError, os.strerror(error.errno or 0)


def tree(side: Any, path: bytes = b".") -> dict[bytes, tuple[Any, ...]]:
    found = {path: side.stat(path, False)}
    if found[path][0] == pb.DIRECTORY:
        for name in side.list(path):
            found |= tree(side, path + b"/" + name)
    return found


@pytest.mark.parametrize("kind", ["memory", "rocksdb"])
def test_random_operations(kind: str) -> None:
    umask = os.umask(0)

    @settings(
        max_examples=400 if kind == "memory" else 30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.lists(OPERATIONS, max_size=30))
    def check(operations: list[tuple[Any, ...]]) -> None:
        local = Local()
        try:
            with world(kind) as made:
                ours = Ours(made)
                for name, user, *arguments in START + operations:
                    ours.caller = USERS[user]
                    with acting_as(ours.caller):
                        expected = outcome(getattr(local, name), tuple(arguments))
                    answer = outcome(getattr(ours, name), tuple(arguments))
                    assert answer == expected, (name, user, arguments)
                ours.caller = ROOT
                assert tree(ours) == tree(local)
        finally:
            local.close()

    try:
        check()
    finally:
        os.umask(umask)


def test_names_and_paths_end_somewhere() -> None:
    """The lengths at which both sides refuse."""
    local = Local()
    try:
        with world() as made:
            ours = Ours(made)
            for side in (local, ours):
                side.mkdir(b"d" * 255, 0o777)
                for path in (b"d" * 256, b"x/" * 3000 + b"x"):
                    with pytest.raises(OSError) as caught:
                        side.create(path, 0o644, True)
                    assert caught.value.errno == errno.ENAMETOOLONG
                side.symlink(b"t" * MAX_SYMLINK_BYTES, b"long")
                with pytest.raises(OSError) as caught:
                    side.symlink(b"t" * (MAX_SYMLINK_BYTES + 1), b"longer")
                assert caught.value.errno == errno.ENAMETOOLONG
    finally:
        local.close()


def test_the_errors_are_ours() -> None:
    with world() as made, fails(errno.ENOENT):
        made.look(b"none")
    assert issubclass(Error, OSError)
