"""A metadata service killed under load, its disk gone: rebuilt from other nodes (budget: 60 s)."""

import hashlib
import shutil
import threading
import time
from pathlib import Path

import pytest

import hillfire
from hillfire.cli.meta import fetch_copies
from hillfire.errors import Error
from tests.cluster import LocalCluster, cluster

BEHIND_S = 1.0
"""What may be lost: everything older than this is there."""
SIZES = (0, 10, 5000, 100_000, 1_500_000)


class Creator:
    """Makes, renames and removes files and remembers when each thing was acknowledged."""

    def __init__(self, address: str) -> None:
        self.done: list[tuple[float, str, str]] = []
        """when, what ("there" or "gone"), path"""
        self.stop = threading.Event()
        self.enough = threading.Event()
        self._address = address
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> "Creator":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join()

    def _work(self) -> None:
        number = 0
        with hillfire.connect(self._address, io_timeout_s=1.0) as fs:
            fs.mkdir("/load")
            try:
                while not self.stop.is_set():
                    name = f"/load/{number}"
                    fs.write_bytes(name, content(name))
                    self._note("there", name)
                    if number % 3 == 0:
                        fs.rename(name, name + "-moved")
                        self._note("gone", name)
                    elif number % 7 == 1:
                        fs.unlink(name)
                        self._note("gone", name)
                    number += 1
            except Error:
                pass  # the service was killed

    def _note(self, what: str, name: str) -> None:
        self.done.append((time.monotonic(), what, name))
        if len(self.done) > 300 and self.done[-1][0] - self.done[0][0] > 2 * BEHIND_S:
            self.enough.set()

    def before(self, moment: float) -> dict[str, str]:
        """What was so for all names that nothing happened to since."""
        late = {name for at, _, name in self.done if at > moment}
        return {name: what for at, what, name in self.done if name not in late}


def content(name: str) -> bytes:
    seed = hashlib.sha256(name.removesuffix("-moved").encode()).digest()
    size = SIZES[seed[0] % len(SIZES)]
    return (seed * (size // len(seed) + 1))[:size]


def wait_copies(local: LocalCluster, count: int = 2, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        found = fetch_copies(local.routing())
        whole = [c for c in found["copies"] if c["complete"] and c["behind_ms"] == 0]
        if len(whole) >= count:
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@pytest.mark.timeout(180)
def test_a_lost_metadata_disk_is_rebuilt_up_to_the_last_second(tmp_path: Path) -> None:
    with cluster(tmp_path, nodes=3, replicas=2, targets_per_node=2) as local:
        meta = local.directory.path / "meta"
        with hillfire.connect(local.address) as fs:
            fs.mkdir("/early")
            fs.write_bytes("/early/file", b"kept" * 1000)
        wait_copies(local)
        with Creator(local.address) as load:
            assert load.enough.wait(60)
            local.kill("meta")
            killed = time.monotonic()
            load.stop.set()
        shutil.rmtree(meta)

        with pytest.raises(Error, match="meta restore"):  # it does not begin anew by itself
            local.start("meta")
        said = local.command(
            "meta", "restore", "--from", str(local.directory.path), "--dir", str(meta)
        )
        assert said.returncode == 0, said.stderr
        assert "up to  transaction" in said.stdout
        again = local.command(
            "meta", "restore", "--from", str(local.directory.path), "--dir", str(meta)
        )
        assert again.returncode != 0 and "--force" in again.stderr
        local.start("meta")

        with hillfire.connect(local.address) as fs:
            assert fs.read_bytes("/early/file") == b"kept" * 1000
            expected = load.before(killed - BEHIND_S)
            assert len(expected) > 50
            for name, what in expected.items():
                assert fs.exists(name) == (what == "there"), name
                if what == "there":
                    assert fs.read_bytes(name) == content(name), name
                elif fs.exists(name + "-moved"):
                    assert fs.read_bytes(name + "-moved") == content(name), name
            known = {int(fs.stat(name).st_ino) for name in expected if fs.exists(name)}
            fs.write_bytes("/after", b"new")  # nothing that is new meets what is old
            assert int(fs.stat("/after").st_ino) > max(known) + (1 << 31)
            old = next(name for name, what in expected.items() if what == "there")
            fs.write_bytes(old, b"overwritten")
            assert fs.read_bytes(old) == b"overwritten"
        wait_copies(local)
        local.kill("meta")  # and a second loss, of the rebuilt one
        shutil.rmtree(meta)
        said = local.command("meta", "restore", "--address", local.address, "--dir", str(meta))
        assert said.returncode == 0, said.stderr
        local.start("meta")
        with hillfire.connect(local.address) as fs:
            assert fs.read_bytes("/after") == b"new"
            assert fs.read_bytes(old) == b"overwritten"


@pytest.mark.timeout(180)
def test_chunks_of_files_that_a_restore_lost_are_listed_and_taken_away(tmp_path: Path) -> None:
    with cluster(tmp_path, nodes=2, replicas=2, targets_per_node=1) as local:
        with hillfire.connect(local.address) as fs:
            fs.write_bytes("/kept", b"k" * 5000)
            wait_copies(local)
            earlier = tmp_path / "earlier"
            shutil.copytree(local.directory.path / "storage-101" / "meta-log", earlier / "meta-log")
            fs.write_bytes("/lost", b"l" * 300_000)
            lost = fs.stat("/lost").st_ino
            wait_copies(local)
        local.kill("meta")
        meta = local.directory.path / "meta"
        said = local.command(
            "meta", "restore", "--force", "--from", str(earlier), "--dir", str(meta)
        )
        assert said.returncode == 0, said.stderr
        local.start("meta")
        with hillfire.connect(local.address) as fs:
            assert fs.listdir() == ["kept"] and fs.read_bytes("/kept") == b"k" * 5000
            for option in ([], ["--remove"]):
                found = local.command("meta", "orphans", "--address", local.address, *option)
                assert found.stdout.startswith(f"inode {lost}: "), found.stdout + found.stderr
                assert "1 of 2 inodes with chunks are orphans" in found.stdout
            found = local.command("meta", "orphans", "--address", local.address)
            assert found.stdout.startswith("0 of 1"), found.stdout + found.stderr
            assert fs.read_bytes("/kept") == b"k" * 5000
        wait_copies(local)  # the copies of what was thrown away have given way
