"""Mounts as processes: close-to-open between two, what is refused, nothing left behind."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hillfire.errors import Error
from hillfire.local import mounts
from tests.cluster import LocalCluster


@pytest.fixture
def second(live: LocalCluster, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Another mount of the same cluster."""
    where = live.mount(live.directory.path.parent / f"second-{request.node.name[:40]}")
    yield where
    live.unmount(where)


def test_close_to_open(here: Path, root: Path, second: Path) -> None:
    there = second / here.relative_to(root)
    for round_ in range(5):
        data = os.urandom(1_500_000 + round_)
        (here / "f").write_bytes(data)
        assert (there / "f").read_bytes() == data
        more = os.urandom(700_000)
        with open(there / "f", "r+b") as file:  # same length, other bytes
            file.write(more)
        assert (here / "f").read_bytes() == more + data[700_000:]
        with open(there / "f", "ab") as file:
            file.write(b"tail")
        with open(here / "f", "rb") as file:
            assert file.read() == more + data[700_000:] + b"tail"


def test_close_to_open_whatever_the_times_say(here: Path, root: Path, second: Path) -> None:
    there = second / here.relative_to(root)
    (here / "f").write_bytes(b"old!" * 1000)
    for _ in range(2):
        assert (there / "f").read_bytes() == b"old!" * 1000
    before = os.stat(here / "f")
    with open(here / "f", "r+b") as file:
        file.write(b"new!" * 1000)
    os.utime(here / "f", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (there / "f").read_bytes() == b"new!" * 1000


def test_names_of_another_mount(here: Path, root: Path, second: Path) -> None:
    there = second / here.relative_to(root)
    (here / "a").write_text("1")
    assert (there / "a").read_text() == "1"
    os.rename(there / "a", there / "b")
    assert os.listdir(here) == ["b"] and (here / "b").read_text() == "1"


def test_open_here_removed_there(here: Path, root: Path, second: Path) -> None:
    there = second / here.relative_to(root)
    data = os.urandom(2_000_000)
    (here / "f").write_bytes(data)
    with open(there / "f", "rb", buffering=0) as file:
        os.unlink(here / "f")
        assert file.read(2_000_000) == data
    assert os.listdir(there) == []


def test_reads_go_on_when_a_storage_node_stops_in_the_middle(
    live: LocalCluster, here: Path, root: Path, second: Path
) -> None:
    there = second / here.relative_to(root)
    data = os.urandom(12_000_000)
    for name in ("connects", "f"):
        (here / name).write_bytes(data)
    assert (there / "connects").read_bytes() == data
    pid = live.pid(live.storage_names[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        assert (there / "f").read_bytes() == data
    finally:
        os.kill(pid, signal.SIGCONT)
    live.wait_serving()


def test_what_is_written_after_a_truncate_elsewhere_stays(
    here: Path, root: Path, second: Path
) -> None:
    there = second / here.relative_to(root)
    with open(here / "f", "wb", buffering=0) as file:
        file.write(b"a" * 1_000_000)
        os.fsync(file.fileno())
        os.truncate(there / "f", 0)
        file.write(b"b" * 1000)
    assert (there / "f").read_bytes() == bytes(1_000_000) + b"b" * 1000
    with open(here / "f", "r+b", buffering=0) as file:
        file.write(b"c" * 1000)
        os.truncate(there / "f", 0)
        os.fsync(file.fileno())  # its bytes are sent again, after the cut
        os.truncate(there / "f", 10)
    assert (there / "f").read_bytes() == b"c" * 10


def test_what_was_written_is_stored_when_the_mount_ends(
    live: LocalCluster, here: Path, root: Path
) -> None:
    where = live.mount(live.directory.path.parent / "ending")
    data = os.urandom(3_000_000)
    fd = os.open(where / here.relative_to(root) / "f", os.O_CREAT | os.O_WRONLY)
    os.write(fd, data)
    os.kill(live.mount_pid(where), signal.SIGTERM)  # still open: a lazy unmount
    process = live._mounts[where]
    try:
        process.wait(30)
    finally:
        with contextlib.suppress(OSError):  # of a file system that is no more
            os.close(fd)
    assert process.returncode == 0 and not mounts.is_mounted(where)
    live.unmount(where)
    assert (here / "f").read_bytes() == data


def test_a_dead_mount_is_cleared_away(live: LocalCluster) -> None:
    where = live.mount(live.directory.path.parent / "dying")
    process = live._mounts[where]
    process.kill()
    process.wait()
    with pytest.raises(OSError):
        os.listdir(where)
    live.mount(where)
    os.listdir(where)
    live.unmount(where)
    assert not mounts.is_mounted(where)


def test_what_is_refused(live: LocalCluster, root: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match="already"):
        live.mount(root)
    file = tmp_path / "file"
    file.touch()
    for where, word in ((file, "no directory"), (tmp_path / "missing", "missing")):
        done = live.command("mount", str(where), "--foreground", "--address", live.address)
        assert done.returncode != 0 and word in done.stderr, done.stderr
