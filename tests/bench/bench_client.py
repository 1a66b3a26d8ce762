"""What the client reaches, and the machine's limits beside it, in one run. Never a pass or fail.

Usage: python tests/bench/bench_client.py [directory]. A cluster of three storage processes with
three replicas runs in ``directory`` (a temporary one by default). Limits: one process that
``preadv``s the same blocks of a local file from page cache and takes their CRC32C; memcpy; one
process writing the same bytes three times. Medians of ``ROUNDS``.
"""

import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
from crc32c import crc32c

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import hillfire
from hillfire.client.filesystem import FileSystem
from hillfire.config import StorageConfig
from hillfire.proto.wire.base import WIRE_VERSION
from hillfire.region import Region
from tests.cluster import cluster

MIB = 1 << 20
FILE_BYTES = 256 * MIB
SMALL, BATCH, LARGE = 4096, 256, 32
QUEUED, ROUND = 4, 64
SINGLES = 2000
ROUNDS = 15


def seconds(work: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Time ``work``, after one round to warm up; sorted."""
    work()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return sorted(taken)


def row(what: str, figure: float, unit: str, note: str) -> None:
    """Print one line of the table."""
    print(f"{what:<52} {figure:>11,.2f} {unit:<8} {note}", flush=True)


def latency(what: str, work: Callable[[], object], note: str) -> None:
    """Print a single operation's median and 99th percentile."""
    taken = seconds(work, SINGLES)
    p99 = taken[int(len(taken) * 0.99)] * 1e6
    row(what, statistics.median(taken) * 1e6, "µs", f"p99 {p99:,.0f} µs; {note}")


def per_second(count: float, work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return how many of ``count`` a round are done in a second."""
    return count / statistics.median(seconds(work, rounds))


def limits(directory: Path, region: Region) -> dict[str, float]:
    """Take the limits on a local file in page cache."""
    path, found = directory / "local", {}
    path.write_bytes(random.Random(0).randbytes(MIB) * (FILE_BYTES // MIB))
    fd = os.open(path, os.O_RDWR)
    view, cache = region.view, "page cache"

    def small() -> None:
        for place in range(0, BATCH * SMALL, SMALL):
            part = view[place : place + SMALL]
            os.preadv(fd, [part], random.randrange(FILE_BYTES // SMALL) * SMALL)
            crc32c(part)

    def large() -> None:
        for place in range(0, LARGE * MIB, MIB):
            part = view[place : place + MIB]
            os.preadv(fd, [part], place)
            crc32c(part)

    def write() -> None:
        for place in range(0, LARGE * MIB, MIB):
            for copy in range(3):
                os.pwrite(fd, view[place : place + MIB], place + copy * LARGE * MIB)

    other = Region.allocate(LARGE * MIB)

    def copy() -> None:
        other.view[:] = view[: LARGE * MIB]

    found["small"] = per_second(BATCH, small)
    row("limit: 4 KiB preadv + CRC32C", found["small"], "/s", cache)
    found["read"] = per_second(LARGE / 1024, large)
    row("limit: 1 MiB preadv + CRC32C", found["read"], "GiB/s", cache)
    found["write"] = per_second(LARGE / 1024, write)
    row("limit: 1 MiB pwrite, each three times", found["write"], "GiB/s", cache)
    row("limit: memcpy", per_second(LARGE / 1024, copy), "GiB/s", "")
    os.close(fd)
    path.unlink()
    return found


def client(fs: FileSystem, wire: str, region: Region, best: dict[str, float]) -> None:
    """Take the client's figures over one wire."""
    note = "3 replicas; page-cache durability"
    path, chance, random_blocks = f"/bench-{wire}", random.Random(1), np.random.default_rng(1)
    region.view[:] = random.Random(0).randbytes(MIB) * (len(region.view) // MIB)

    def fill() -> None:
        with fs.open(path, "wb") as file:
            for _ in range(0, FILE_BYTES, len(region.view)):
                file.write(region.view)

    began = time.perf_counter()
    fill()
    gib = FILE_BYTES / 2**30
    row(f"{wire}: file.write, once", gib / (time.perf_counter() - began), "GiB/s", note)
    with fs.open(path, "r+b") as file:
        into = bytearray(4 * MIB)

        def scan() -> None:
            file.seek(0)
            while file.readinto(into):
                pass

        row(f"{wire}: file.readinto 4 MiB, in order", per_second(gib, scan, 3), "GiB/s", note)
        blocks = FILE_BYTES // SMALL

        def offsets() -> list[int]:
            return [chance.randrange(blocks) * SMALL for _ in range(BATCH)]

        def single() -> None:
            file.read_at(chance.randrange(blocks) * SMALL, SMALL)

        def single_region() -> None:
            fs.read_batch([(file, chance.randrange(blocks) * SMALL, 0, SMALL)], region)

        def small() -> None:
            batch = [(file, at, i * SMALL, SMALL) for i, at in enumerate(offsets())]
            assert fs.read_batch(batch, region) == [SMALL] * BATCH

        def small_write() -> None:
            batch = [(file, at, i * SMALL, SMALL) for i, at in enumerate(offsets())]
            assert fs.write_batch(batch, region) == [SMALL] * BATCH

        bulk = [(file, i * MIB, i * MIB, MIB) for i in range(LARGE)]

        def large() -> None:
            assert fs.read_batch(bulk, region) == [MIB] * LARGE

        def large_write() -> None:
            assert fs.write_batch(bulk, region) == [MIB] * LARGE

        rows = region.numpy("u1", (QUEUED, BATCH, SMALL))
        foreign = np.ones((LARGE, MIB), "u1")

        def many() -> None:
            fs.read_many(file, random_blocks.integers(blocks, size=BATCH) * SMALL, rows[0]).check()

        def many_foreign() -> None:
            fs.read_many(file, np.arange(LARGE) * MIB, foreign).check()

        def queued() -> None:
            """Read ``ROUND`` batches, ``QUEUED`` of them on their way at once."""
            left = ROUND - QUEUED
            with fs.queue() as queue:
                for slot in rows:
                    at = random_blocks.integers(blocks, size=BATCH) * SMALL
                    queue.read(file, at, slot, tag=slot)
                for transfer in queue:
                    transfer.result().check()
                    if left:
                        left -= 1
                        at = random_blocks.integers(blocks, size=BATCH) * SMALL
                        queue.read(file, at, transfer.tag, tag=transfer.tag)

        latency(f"{wire}: one 4 KiB read_at", single, note)
        latency(f"{wire}: one 4 KiB read into a region", single_region, note)
        for what, count, unit, work, limit in [
            (f"4 KiB reads, batches of {BATCH}", BATCH, "/s", small, best["small"]),
            (f"4 KiB reads, arrays of {BATCH}", BATCH, "/s", many, best["small"]),
            (
                f"4 KiB reads, arrays of {BATCH}, {QUEUED} queued",
                BATCH * ROUND,
                "/s",
                queued,
                best["small"],
            ),
            (f"1 MiB reads, batches of {LARGE}", LARGE / 1024, "GiB/s", large, best["read"]),
            (
                f"1 MiB reads into foreign memory, arrays of {LARGE}",
                LARGE / 1024,
                "GiB/s",
                many_foreign,
                best["read"],
            ),
            (
                f"1 MiB writes, batches of {LARGE}",
                LARGE / 1024,
                "GiB/s",
                large_write,
                best["write"],
            ),
            (f"4 KiB overwrites, batches of {BATCH}", BATCH, "/s", small_write, 0.0),
        ]:
            figure = per_second(count, work)
            share = f"{100 * figure / limit:.0f} % of its limit; " if limit else ""
            row(f"{wire}: {what}", figure, unit, share + note)
    latency(f"{wire}: stat", lambda: fs.stat(path), "one metadata trip")
    fs.unlink(path)


def main() -> None:
    """Print the table."""
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=where) as name:
        directory = Path(name)
        print(
            f"# client: 3 storage processes, Python {platform.python_version()}, Linux "
            f"{platform.release()}, {os.cpu_count()} CPUs, wire version {WIRE_VERSION}, "
            f"load {os.getloadavg()[0]:.1f}"
        )
        direct = {field.name: field.default for field in fields(StorageConfig)}["direct_io"]
        print(f"# every file is read back just after it was written; storage direct_io={direct}")
        region = Region.allocate(64 * MIB)
        best = limits(directory, region)
        with cluster(directory, nodes=3, replicas=3) as local:
            for wire in ("shm", "tcp"):
                with hillfire.connect(local.address, transport=wire) as fs:
                    client(fs, wire, region, best)


if __name__ == "__main__":
    main()
