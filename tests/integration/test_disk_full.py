"""A cluster whose disk fills up, seen through its mount. Budget: 40 s.

A program is told so by write, fsync or close; what was confirmed stays, through a restart too;
deleting works on a full disk and makes room again.
"""

import errno
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hillfire.errors import Error
from hillfire.local import mounts
from tests.cluster import LocalCluster, cluster

MIB = 1 << 20
DISK_MIB = 400
FILE_MIB = 8
ROOM_TIMEOUT_S = 20.0
"""Chunks of deleted files are removed in the background."""

try:
    mounts.check_fuse()
    _NO_MOUNT = "" if os.geteuid() == 0 else "only root may mount a small disk"
except Error as error:
    _NO_MOUNT = str(error)

pytestmark = [pytest.mark.skipif(bool(_NO_MOUNT), reason=_NO_MOUNT), pytest.mark.timeout(100)]


class Small:
    """A cluster on a small disk, and what must be in its files."""

    def __init__(self, local: LocalCluster, mount: Path) -> None:
        self.local = local
        self.mount = mount
        self.files: dict[str, int] = {}
        """of each file that was confirmed the seed of its content"""

    def store(self, name: str, seed: int) -> None:
        """Store a file; it counts once it is closed."""
        fd = os.open(self.mount / name, os.O_CREAT | os.O_WRONLY)
        try:
            for block in blocks(seed):
                view = memoryview(block)
                while view:
                    view = view[os.write(fd, view) :]
            if seed % 2:
                os.fsync(fd)
        except OSError:
            os.close(fd)  # what it reports was reported
            raise
        os.close(fd)
        self.files[name] = seed

    def fill(self) -> OSError:
        """Store files until there is an error, and return that."""
        for seed in range(DISK_MIB):
            try:
                self.store(f"file-{seed}", seed)
            except OSError as error:
                return error
        raise AssertionError("the disk is never full")

    def verify(self) -> None:
        """Check every byte that was confirmed."""
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        for name, seed in self.files.items():
            with open(self.mount / name, "rb", buffering=0) as file:
                for number, block in enumerate(blocks(seed)):
                    assert file.read(MIB) == block, f"{name}, MiB {number}"
                assert file.read(1) == b""

    def store_when_there_is_room(self, name: str, seed: int, timeout_s: float) -> None:
        """Store a file as soon as chunks of deleted ones were removed."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.store(name, seed)
                return
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
                assert time.monotonic() < deadline, "deleting has made no room"
            (self.mount / name).unlink(missing_ok=True)
            time.sleep(0.25)


def blocks(seed: int) -> Iterator[bytes]:
    noise = random.Random(seed).randbytes(MIB)
    for number in range(FILE_MIB):
        yield number.to_bytes(8, "little") + noise[8:]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    base = tmp_path_factory.mktemp("full")
    disk, mount = base / "disk", base / "mount"
    disk.mkdir()
    mount.mkdir()
    options = ["-o", f"size={DISK_MIB}m"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "hillfire-test", str(disk)], check=True)
    try:
        shape = {"nodes": 2, "replicas": 2, "targets_per_node": 2}
        with cluster(disk, options=("--mount", str(mount)), **shape) as local:
            yield Small(local, mount)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_program_is_told_that_the_disk_is_full(small: Small) -> None:
    error = small.fill()
    assert error.errno == errno.ENOSPC, error
    assert len(small.files) * FILE_MIB > DISK_MIB // 2 // 2, "most of the disk is still free"
    print(f"\n{len(small.files)} files, then {error}", end=" ")
    for attempt in range(3):  # and again, and a small one
        with pytest.raises(OSError) as caught:
            small.store(f"again-{attempt}", attempt)
        assert caught.value.errno == errno.ENOSPC
    small.local.wait_serving(timeout_s=1)  # no target has left its chain for it
    small.verify()


def test_what_was_confirmed_is_there_after_a_restart_on_the_full_disk(small: Small) -> None:
    small.local.stop()
    small.local.up()
    small.local.wait_serving(timeout_s=1)
    small.verify()


def test_deleting_makes_room(small: Small) -> None:
    gone = sorted(small.files)[::2]
    for name in gone:
        (small.mount / name).unlink()
        del small.files[name]
    for path in small.mount.iterdir():  # what was refused half-way
        if path.name not in small.files:
            path.unlink()
    small.store_when_there_is_room("new", 1000, ROOM_TIMEOUT_S)
    for number in range(len(gone) - 3):
        small.store(f"new-{number}", 1001 + number)
    small.local.wait_serving(timeout_s=1)
    small.verify()
    assert {path.name for path in small.mount.iterdir()} == set(small.files)
