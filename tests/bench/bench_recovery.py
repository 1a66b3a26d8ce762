"""How fast a replica is brought up to date, against ``cp``, and what it costs those who write and
read meanwhile.

    python tests/bench/bench_recovery.py [--mib 1024] [--chunk-kib 1024] [--rounds 3] [--dir DIR]

Three storage nodes of one chain on one disk. *resync*: a node's target is emptied and comes back;
from the node's start until it serves, then ``sync``. *cp*: ``cp -r`` of the same target's
directory on the same disk, then ``sync``. Page caches are dropped before each. *foreground*: 1 MiB
writes and reads by two clients alone, and beside a resync of as many bytes as last that long.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hillfire.types import chunk_id
from tests.integration.chain import Client, Cluster

MIB = 1 << 20
BATCH = 8
AWAY = 103


def fill(cluster: Cluster, mib: int, chunk_kib: int) -> None:
    client, size = Client(cluster), chunk_kib * 1024
    count = mib * MIB // size
    noise = random.Random(1).randbytes(size + count)
    for start in range(0, count, BATCH):
        client.write(
            [(chunk_id(7, i), 0, noise[i : i + size]) for i in range(start, start + BATCH)]  # type: ignore[arg-type]
        )
    client.close()


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def empty(cluster: Cluster) -> Path:
    """Take the node down and its target's store away; returns the store of another replica."""
    cluster.kill(AWAY)
    cluster.wait(serving=2)
    for path in (cluster.directory / str(AWAY) / "targets").iterdir():
        shutil.rmtree(path)
    (source,) = (cluster.directory / "101" / "targets").iterdir()
    return source


def resync(cluster: Cluster, mib: int) -> float:
    empty(cluster)
    drop_caches()
    began = time.monotonic()
    cluster.start(AWAY)
    started = time.monotonic()
    cluster.wait(timeout_s=600)
    serves = time.monotonic()
    os.sync()
    took = time.monotonic() - began
    from_up_s = time.monotonic() - started
    print(
        f"  resync: node up after {started - began:.2f} s, serves after {serves - began:.2f} s, "
        f"synced after {took:.2f} s: {mib / from_up_s:.0f} MiB/s from when it is up",
        flush=True,
    )
    return mib / from_up_s


def copy(cluster: Cluster, mib: int) -> float:
    (source,) = (cluster.directory / "101" / "targets").iterdir()
    target = cluster.directory / "copy"
    drop_caches()
    began = time.monotonic()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    copied = time.monotonic()
    os.sync()
    took = time.monotonic() - began
    size = sum(path.stat().st_blocks * 512 for path in target.rglob("*") if path.is_file())
    print(
        f"  cp: {copied - began:.2f} s, synced after {took:.2f} s, {size / MIB:.0f} MiB allocated",
        flush=True,
    )
    shutil.rmtree(target)
    os.sync()
    return mib / took


class Load(threading.Thread):
    """Writes or reads 1 MiB chunks, as fast as it is answered."""

    def __init__(self, cluster: Cluster, writes: bool) -> None:
        super().__init__(daemon=True)
        self.client = Client(cluster)
        self.writes = writes
        self.done = 0
        self.ending = False

    def run(self) -> None:
        data = random.Random(2).randbytes(MIB)
        index = 0
        while not self.ending:
            index = (index + 1) % 64
            if self.writes:
                self.client.write([(chunk_id(9, index), 0, data)])  # type: ignore[arg-type]
            else:
                self.client.read(chunk_id(7, random.randrange(256)))  # type: ignore[arg-type]
            self.done += 1


def rate(loads: list[Load], seconds: float) -> list[float]:
    before = [load.done for load in loads]
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return [(load.done - was) / took for load, was in zip(loads, before, strict=True)]


def foreground(cluster: Cluster, mib: int, seconds: float) -> tuple[list[float], list[float]]:
    """Return MiB/s of writes and reads without and with a resync beside them.

    A write passes through three replicas both times: a target that is being brought up to date
    takes part in writes.
    """
    loads = [Load(cluster, True), Load(cluster, False)]
    for load in loads:
        load.start()
    time.sleep(1)
    alone = rate(loads, seconds)
    empty(cluster)
    cluster.start(AWAY)
    known = 0
    while not any("SYNCING" in str(chain) for chain in cluster.routing(known).chains.values()):
        time.sleep(0.01)
    beside: list[list[float]] = []
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        found = rate(loads, 0.5)
        if all(len(c.serving) == 3 for c in cluster.routing().chains.values()):
            print(f"  the resync ended after {time.monotonic() - began:.1f} s")
            break
        beside.append(found)
    began = time.monotonic()
    cluster.wait(timeout_s=600)
    rest_s = time.monotonic() - began
    again = rate(loads, seconds)
    for load in loads:
        load.ending = True
    for load in loads:
        load.join()
    means = [statistics.mean(values) for values in zip(*beside, strict=True)]
    print(
        f"  writes, reads: {_shown(alone)} before, {_shown(means)} beside a resync, which took "
        f"{rest_s:.1f} s more, {_shown(again)} after it",
        flush=True,
    )
    return [statistics.mean(pair) for pair in zip(alone, again, strict=True)], means


def _shown(rates: list[float]) -> str:
    return ", ".join(f"{each:.0f}" for each in rates) + " MiB/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--chunk-kib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--only", choices=("resync", "foreground"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.dir) as name, Cluster(Path(name)) as cluster:
        cluster.wait()
        fill(cluster, given.mib, given.chunk_kib)
        what = f"{given.mib} MiB in chunks of {given.chunk_kib} KiB"
        print(f"1 chain, 3 replicas, {what}, page cache dropped")
        if given.only != "foreground":
            pairs = [
                (resync(cluster, given.mib), copy(cluster, given.mib)) for _ in range(given.rounds)
            ]
            ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(f"resync {ours:.0f} MiB/s, cp and sync {theirs:.0f} MiB/s: {ours / theirs:.0%}")
        if given.only != "resync":
            rounds = [foreground(cluster, given.mib, given.seconds) for _ in range(given.rounds)]
            for column, what in enumerate(("writes", "reads")):
                alone = statistics.median(each[0][column] for each in rounds)
                beside = statistics.median(each[1][column] for each in rounds)
                print(
                    f"{what}: {alone:.0f} MiB/s alone, {beside:.0f} beside a resync: "
                    f"{beside / alone:.0%} kept"
                )


if __name__ == "__main__":
    main()
