"""Replicas that come back: what is sent, how fast beside others, how far it is; disks that fail.

Time budget: 60 s.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from hillfire.cluster import PublicState
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import Tag, Update
from hillfire.storage.store.engine import open_store
from hillfire.types import ChunkId, Version, chunk_id
from tests.integration.chain import NODES, Client, Cluster
from tests.integration.damage import until

MIB = 1 << 20
BASE = "scrub_days = 0\nprobe_interval_ms = 100\nprobe_timeout_ms = 500\n"


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, storage=BASE) as running:
        running.wait()
        yield running


def log_of(cluster: Cluster) -> str:
    return (cluster.directory / "log").read_text()


def syncs(cluster: Cluster) -> list[dict[str, str]]:
    """Return the figures of every sync that came to its end."""
    lines = [line for line in log_of(cluster).splitlines() if "event=resync_done" in line]
    return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines]


def status(cluster: Cluster) -> dict[str, Any]:
    command = [sys.executable, "-m", "hillfire.cli", "status", "--json", "--address"]
    done = subprocess.run([*command, cluster.address], capture_output=True, text=True, timeout=30)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def fill(client: Client, count: int, size: int = MIB, inode: int = 7) -> bytes:
    data = os.urandom(size)
    for start in range(0, count, 4):
        client.write(
            [(chunk_id(inode, i), 0, data) for i in range(start, min(count, start + 4))]  # type: ignore[arg-type]
        )
    return data


def test_a_node_that_was_away_is_sent_the_bytes_that_changed(chain: Cluster) -> None:
    client = Client(chain)
    fill(client, 64)
    chain.kill(103)
    chain.wait(serving=2)
    changed = [3, 17, 18, 40, 63]
    for index in changed:
        client.write([(chunk_id(7, index), 5000, b"new" * 1000)])  # type: ignore[arg-type]
    client.write([(chunk_id(7, 20), 0, b"")], kind=Kind.REMOVE, epoch=2)  # type: ignore[arg-type]
    client.write([(chunk_id(8, 0), 0, b"x" * 70_000)])  # type: ignore[arg-type]
    before = len(syncs(chain))
    chain.start(103)
    chain.wait()
    done = [sync for sync in syncs(chain)[before:] if sync["equal"] == "True"]
    assert sum(int(sync["sent"]) for sync in done) == len(changed) + 2
    assert sum(int(sync["sent_bytes"]) for sync in done) == len(changed) * MIB + 70_000
    assert int(done[-1]["compared"]) == 65
    client.close()


class Reader(threading.Thread):
    """Reads from the tail-most serving replica all the time."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.client = Client(cluster)
        self.ending = threading.Event()
        self.reads = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                self.client.read(chunk_id(7, self.reads % 8), 64 << 10)  # type: ignore[arg-type]
                self.reads += 1
        except BaseException as exc:
            self.error = exc
        finally:
            self.client.close()


def resync_all(cluster: Cluster) -> dict[str, str]:
    """Have a node lose all its chunks and come back; returns the figures of its sync."""
    cluster.kill(103)
    cluster.wait(serving=2)
    shutil.rmtree(cluster.directory / "103" / "targets")
    cluster.start(103)
    cluster.wait()
    return syncs(cluster)[-1]


def test_beside_foreground_a_resync_works_a_share_of_the_time(tmp_path: Path) -> None:
    """The mechanism; what others keep of their throughput is measured by bench_recovery.py."""
    with Cluster(tmp_path, storage=f"{BASE}recovery_share = 0.2\n") as cluster:
        cluster.wait()
        client = Client(cluster)
        fill(client, 96)
        client.close()
        alone = resync_all(cluster)
        assert int(alone["sent_bytes"]) == 96 * MIB
        readers = [Reader(cluster), Reader(cluster)]
        for reader in readers:
            reader.start()
        try:
            beside = resync_all(cluster)
        finally:
            for reader in readers:
                reader.ending.set()
                reader.join()
        assert [reader.error for reader in readers] == [None, None]
    assert int(beside["sent_bytes"]) == 96 * MIB

    def part(sync: dict[str, str]) -> float:
        return float(sync["at_work_s"]) / float(sync["took_s"])

    print(
        f"\nat work {part(alone):.0%} of the time alone, {part(beside):.0%} beside readers", end=" "
    )
    assert part(beside) < 0.45, "a fifth is meant; the machine may be busy"
    assert part(alone) > part(beside)


def test_status_shows_how_far_a_resync_is_and_it_goes_on_after_a_crash(tmp_path: Path) -> None:
    slow = f'{BASE}recovery_bytes_per_s = "8 MiB"\n'
    with Cluster(tmp_path, storage=slow) as cluster:
        cluster.wait()
        client = Client(cluster)
        fill(client, 48)
        client.close()
        cluster.kill(103)
        cluster.wait(serving=2)
        shutil.rmtree(cluster.directory / "103" / "targets")
        cluster.start(103)

        def progress() -> dict[str, Any] | None:
            (one,) = status(cluster)["chains"]
            (syncing,) = [t for t in one["targets"] if t["state"] == "syncing"] or [{}]
            found: dict[str, Any] | None = syncing.get("progress")
            return found if found and found["bytes_done"] else None

        seen = until(progress)
        assert 0 < seen["bytes_done"] < seen["bytes_total"] == 48 * MIB
        assert 0 < seen["chunks_done"] < seen["chunks_total"] == 48
        assert seen["bytes_per_s"] > 0
        assert 0 < seen["seconds_left"] < 60
        cluster.kill(103)  # half-way: what it has need not be sent again
        cluster.wait(serving=2)
        cluster.start(103)
        cluster.wait()
        last = [sync for sync in syncs(cluster) if sync["equal"] == "True"][-1]
        assert 0 < int(last["sent_bytes"]) <= 48 * MIB - seen["bytes_done"]


def test_a_conflict_stops_the_target_and_says_so(chain: Cluster) -> None:
    client = Client(chain)
    data = fill(client, 4, 100_000)
    chain.kill(103)
    chain.wait(serving=2)
    (path,) = (chain.directory / "103" / "targets").iterdir()
    store = open_store(path)
    ahead(store, chunk_id(7, 1))  # type: ignore[arg-type]
    store.close()
    chain.start(103)
    until(lambda: "event=target_held" in log_of(chain), lambda: log_of(chain)[-2000:])
    shown = until(lambda: [p for p in status(chain)["problems"] if "newer" in p])
    assert "on storage-103 is out: 1 chunks are newer here" in shown[0]
    assert "decide which side holds" in shown[0]
    client.routing = chain.wait(serving=2)
    for target in client.chain().serving:
        assert client.read_at(target, chunk_id(7, 1), MIB)[1] == data  # type: ignore[arg-type]
    client.write([(chunk_id(7, 1), 0, b"goes on")])  # type: ignore[arg-type]
    client.close()


def ahead(store: Any, chunk: ChunkId) -> None:
    """Give a store a version that nobody else has."""
    meta = store.get(chunk)
    for step in (1, 2):
        version = Version(meta.version + step)
        payload = memoryview(b"from another history")
        update = Update(
            chunk, version, Kind.WRITE, 0, len(payload), payload, crc32c(payload), Tag(1, 1, step),
            1, meta.chain_version, MIB,
        )  # fmt: skip
        store.prepare([update])
        store.commit([(chunk, version, meta.chain_version)])


# ---------------------------------------------------------------------- disks


def serves(cluster: Cluster, node: int, count: int) -> bool:
    routing = cluster.routing()
    return count == sum(
        target.state is PublicState.SERVING
        for target in routing.targets.values()
        if target.node == node
    )


def two_disks(cluster: Cluster, last: Path) -> Path:
    """Give each node two disks, of which the second of node 103 is ``last``."""
    for node in NODES:
        disks = [cluster.directory / f"disk-{node}-{name}" for name in ("a", "b")]
        if node == 103:
            disks[1] = last
        cluster.settings[node] = f"disks = {json.dumps([str(disk) for disk in disks])}"
    return last


def test_a_disk_that_fails_takes_its_own_targets_offline_until_it_works(tmp_path: Path) -> None:
    unborn = Cluster(tmp_path, targets_per_node=2, storage=BASE)
    disk = two_disks(unborn, tmp_path / "disk-fails")
    with unborn as cluster:
        cluster.wait()
        assert len(list((disk / "targets").iterdir())) == 1
        probe = disk / "probe"
        until(probe.exists)
        probe.unlink()
        probe.mkdir()  # from now on its probes fail
        until(lambda: serves(cluster, 103, 1), lambda: log_of(cluster)[-2000:])
        assert "event=disk_fails" in log_of(cluster)
        assert any(str(disk) in problem for problem in status(cluster)["problems"])
        client = Client(cluster)
        for inode in (7, 8):
            client.write([(chunk_id(inode, 0), 0, b"meanwhile")])  # type: ignore[arg-type]
        probe.rmdir()
        cluster.wait()
        assert "event=disk_works_again" in log_of(cluster)
        client.close()


def test_a_disk_that_is_not_mounted_is_not_filled_anew(tmp_path: Path) -> None:
    unborn = Cluster(tmp_path, targets_per_node=2, storage=BASE)
    disk = two_disks(unborn, tmp_path / "mounted")
    with unborn as cluster:
        cluster.wait()
        client = Client(cluster)
        for number in list(client.routing.chains):
            client.number_of_chain = number
            fill(client, 4)
        cluster.kill(103)
        cluster.wait(serving=2)
        away = disk.rename(tmp_path / "elsewhere")
        disk.mkdir()
        cluster.start(103)
        until(lambda: serves(cluster, 103, 1), lambda: log_of(cluster)[-3000:])
        until(lambda: any("mounted?" in p for p in status(cluster)["problems"]))
        assert not (disk / "targets").exists()
        disk.rmdir()
        away.rename(disk)
        cluster.wait()
        assert all(sync["sent_bytes"] == "0" for sync in syncs(cluster))
        # and an empty disk in its place is filled once somebody says that it is one
        disk.rename(tmp_path / "broken")
        until(lambda: serves(cluster, 103, 1), lambda: log_of(cluster)[-3000:])
        disk.mkdir()
        (disk / "hillfire-disk").touch()
        cluster.wait()
        assert syncs(cluster)[-1]["sent_bytes"] == str(4 * MIB)
        client.close()


@pytest.mark.parametrize("when", ["defect", "defect at routing"])
def test_a_defect_costs_one_target_not_the_node(tmp_path: Path, when: str) -> None:
    with Cluster(tmp_path, targets_per_node=2, storage=BASE) as cluster:
        cluster.wait()
        (tmp_path / "103" / "forget").write_text(when)
        cluster.kill(103, number=signal.SIGUSR1)
        if when != "defect":
            cluster.kill(102)
        until(lambda: serves(cluster, 103, 1), lambda: log_of(cluster)[-3000:])
        assert any("a defect" in problem for problem in status(cluster)["problems"])
        assert cluster.routing().nodes[103].alive  # type: ignore[index]
        client = Client(cluster)
        for number in list(client.routing.chains):
            client.number_of_chain = number
            fill(client, 4)
        client.close()


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """A file system that a test may freeze; it thaws by itself after a while."""
    if os.geteuid() != 0 or shutil.which("fsfreeze") is None or shutil.which("mkfs.ext4") is None:
        pytest.skip("a file system that hangs takes root, fsfreeze and mkfs.ext4")
    image, place = tmp_path / "image", tmp_path / "hangs"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(256 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)]).returncode:
        pytest.skip("no loop device here")
    # Whoever writes there hangs in the kernel, unkillable: it must not depend on this process.
    thaw = f"sleep 40; fsfreeze --unfreeze {place}"
    guard = subprocess.Popen(["sh", "-c", thaw], stderr=subprocess.DEVNULL, process_group=0)
    try:
        yield place
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(place)], stderr=subprocess.DEVNULL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)
        guard.wait()
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_hangs_takes_its_own_targets_offline_not_the_node(
    tmp_path: Path, frozen: Path
) -> None:
    unborn = Cluster(tmp_path, targets_per_node=2, storage=BASE)
    two_disks(unborn, frozen)
    with unborn as cluster:
        try:
            cluster.wait()
            subprocess.run(["fsfreeze", "--freeze", str(frozen)], check=True)
            client = Client(cluster)
            began = time.monotonic()
            for number in list(client.routing.chains):
                client.number_of_chain = number
                client.write([(chunk_id(7, 0), 0, b"while it hangs" * 5000)])  # type: ignore[arg-type]
            print(f"\nwrites went on after {time.monotonic() - began:.1f} s", end=" ")
            until(lambda: serves(cluster, 103, 1), lambda: log_of(cluster)[-3000:])
            assert cluster.routing().nodes[103].alive  # type: ignore[index]
            assert "event=disk_hangs" in log_of(cluster)
            client.close()
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", str(frozen)], check=False)
        cluster.wait()


def test_a_target_whose_disk_was_full_comes_back_when_there_is_room(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=192m", "hillfire-test", str(small)]
    subprocess.run(mount, check=True)
    try:
        with Cluster(tmp_path, storage=BASE) as cluster:
            cluster.wait()
            client = Client(cluster)
            fill(client, 16)
            cluster.kill(103)
            cluster.wait(serving=2)
            shutil.rmtree(tmp_path / "103" / "targets")
            cluster.settings[103] = f"disks = {json.dumps([str(small)])}"
            ballast = small / "ballast"
            ballast.write_bytes(bytes(160 * MIB))
            cluster.start(103)
            held = until(
                lambda: [p for p in status(cluster)["problems"] if "storage-103 is out" in p],
                lambda: log_of(cluster)[-3000:],
            )
            assert "its disk is full" in held[0]
            ballast.unlink()
            client.routing = cluster.wait()
            assert len(client.chain().serving) == 3
            client.close()
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
