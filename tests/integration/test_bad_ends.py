"""Ends that nobody plans: storage away, files open, a supervisor or a mount killed. Budget: 60 s.

Whatever was going on, the end comes in bounded time, says what it cost, and leaves no mount and
no process; what was confirmed is there at the next start.
"""

import contextlib
import errno
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hillfire.errors import Error
from hillfire.local import mounts
from tests.cluster import LocalCluster, cluster

MIB = 1 << 20
DOWN_S = 25.0
"""No `down` below takes longer, whatever hangs."""

try:
    mounts.check_fuse()
    _NO_MOUNT = ""
except Error as error:
    _NO_MOUNT = str(error)

pytestmark = [pytest.mark.skipif(bool(_NO_MOUNT), reason=_NO_MOUNT), pytest.mark.timeout(100)]


class Ends:
    """A mounted cluster, and the processes that must be gone when it has ended."""

    def __init__(self, local: LocalCluster, mount: Path) -> None:
        self.local = local
        self.mount = mount
        self.watched: dict[str, int] = {}

    def watch(self) -> None:
        """Remember the processes of now."""
        for service in self.local.services():
            if service["pid"]:
                self.watched[service["name"]] = os.pidfd_open(service["pid"])

    def down(self) -> tuple[str, float]:
        """`hillfire down`; return what it said and how long it took. Nothing is left after it."""
        start = time.monotonic()
        done = self.local.command("down", "--dir", str(self.local.directory.path))
        took_s = time.monotonic() - start
        assert done.returncode == 0, done.stderr
        self.nothing_left(0)
        self.local.stop()
        return " ".join(done.stdout.split()), took_s

    def nothing_left(self, timeout_s: float) -> None:
        """Check that every process has ended and nothing is mounted."""
        self.ended(timeout_s)
        assert not mounts.is_mounted(self.mount)

    def ended(self, timeout_s: float) -> None:
        """Check that every process that was watched has ended."""
        deadline = time.monotonic() + timeout_s
        for name, end in self.watched.items():
            gone, _, _ = select.select([end], [], [], max(0.0, deadline - time.monotonic()))
            assert gone, f"{name} still runs"
            os.close(end)
        self.watched.clear()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    base = tmp_path_factory.mktemp("ends")
    mount = base / "mount"
    mount.mkdir()
    options = ("--mount", str(mount))
    with cluster(base, nodes=2, replicas=2, targets_per_node=1, options=options) as local:
        (mount / "kept").write_bytes(b"kept" * 1000)
        yield Ends(local, mount)


@pytest.fixture
def ends(shared: Ends) -> Iterator[Ends]:
    """The cluster, up, with the file ``kept`` in it."""
    with contextlib.suppress(Error):  # it runs already
        shared.local.up()
    assert (shared.mount / "kept").read_bytes() == b"kept" * 1000
    shared.watch()
    yield shared
    for end in shared.watched.values():
        os.close(end)
    shared.watched.clear()


WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(fd, bytes(int(sys.argv[2])))
print("written", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def writer(path: Path, size: int) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a program that has written to a file and neither synced nor closed it.

    A process of its own: a fork of this one would flush what this one has open.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Hold a file open, whatever becomes of the mount below it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):  # it is closed, and the mount is gone
            os.close(fd)


def test_down_with_dirty_data_and_no_storage(ends: Ends) -> None:
    for name in ends.local.storage_names:
        ends.local.command("node", "stop", name, "--dir", str(ends.local.directory.path))
    with writer(ends.mount / "lost", 3 * MIB) as process:
        said, took_s = ends.down()
    assert "3 MiB written to 1 open file" in said, said
    assert "lost" in said
    assert f"(pid {process.pid})" in said
    assert took_s < DOWN_S


def test_down_while_a_program_has_a_file_open(ends: Ends) -> None:
    with opened(ends.mount / "kept") as fd:
        said, took_s = ends.down()
        assert f"{ends.mount} was in use by" in said, said
        assert f"(pid {os.getpid()})" in said
        assert "lost" not in said
        with pytest.raises(OSError) as caught:
            os.fsync(fd)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    assert took_s < DOWN_S


def test_down_with_a_storage_node_that_is_stopped(ends: Ends) -> None:
    os.kill(ends.local.pid(ends.local.storage_names[1]), signal.SIGSTOP)
    said, took_s = ends.down()
    assert "!" not in said
    assert took_s < DOWN_S


def test_a_killed_supervisor_is_followed_by_another_at_once(ends: Ends) -> None:
    (ends.mount / "after").write_text("closed before the kill")
    ends.local.kill_supervisor()
    ends.local.up()
    ends.ended(0)
    assert (ends.mount / "after").read_text() == "closed before the kill"


def test_a_killed_mount_is_mounted_again(ends: Ends) -> None:
    """The program that had a file open there is told so, others go on."""
    with opened(ends.mount / "kept") as fd:
        os.kill(ends.local.pid("mount"), signal.SIGKILL)
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                if (ends.mount / "kept").read_bytes() == b"kept" * 1000:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(OSError) as caught:
            os.fsync(fd)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def test_ctrl_c_in_the_foreground(ends: Ends) -> None:
    """On a terminal, where the signal goes to the whole foreground group."""
    ends.local.stop()
    ends.nothing_left(0)
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "hillfire.cli", "up", "--mount", str(ends.mount)]
    command += ["--dir", str(ends.local.directory.path)]
    process = subprocess.Popen(
        command,
        env={**ends.local.environment, "COLUMNS": "200"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=os.setsid,
    )
    os.close(theirs)
    try:
        said = read_until(terminal, b"Ctrl-C")
        assert b"mounted on" in said
        ends.watch()
        assert (ends.mount / "kept").read_bytes() == b"kept" * 1000
        os.killpg(process.pid, signal.SIGINT)
        said = read_until(terminal, b"stopped; the data stays")
        assert b"Traceback" not in said
        assert process.wait(20) == 0
        ends.nothing_left(0)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def read_until(fd: int, wanted: bytes) -> bytes:
    said, deadline = b"", time.monotonic() + 40
    while wanted not in said:
        assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], said
        said += os.read(fd, 65536)
    return said
