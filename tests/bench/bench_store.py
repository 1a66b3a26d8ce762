"""How fast the chunk store is, beside what the system calls under it allow.

    python tests/bench/bench_store.py [--directory DIR] [--seconds 2] [--json]

One process, one copy, nothing synced but by checkpoints of the log, which are part of every figure:
what a storage node does for each replica. Each row names
its limit, measured in the same run: pwrite and preadv over a file of the same size in the same
cache state, memcpy. Never a pass or fail.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

from hillfire.proto.wire.chunks import Kind
from hillfire.region import Region
from hillfire.storage.store.base import ChunkStore, Tag, Update
from hillfire.storage.store.engine import open_store
from hillfire.types import ChunkId, InodeId, Version, chunk_id

MIB = 1024 * 1024
CHUNKS = 512
SMALL = 4096


class Row(NamedTuple):
    """One figure."""

    what: str
    value: float
    unit: str
    note: str


def rate(seconds: float, step: Callable[[], int]) -> float:
    """Call ``step`` for ``seconds``; returns the sum of what it returned, per second."""
    start, total = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        total += step()
    return total / spent


def names(inode: int) -> list[ChunkId]:
    return [chunk_id(InodeId(inode), index) for index in range(CHUNKS)]


class Writer:
    """Prepares and commits whole chunks, or small overwrites, with growing versions."""

    def __init__(self, store: ChunkStore, inode: int) -> None:
        self.store = store
        self.names = names(inode)
        self.region = Region.allocate(MIB)
        self.region.view[:] = os.urandom(MIB)
        self.checksum = crc32c(self.region.view)
        self.small = self.region.view[:SMALL]
        self.small_checksum = crc32c(self.small)
        self.versions = dict.fromkeys(self.names, 0)
        self.cycle = self._cycle()
        self.sequence = 0
        self.inode = 1000

    def _cycle(self) -> Iterator[ChunkId]:
        while True:
            yield from self.names

    def _update(self, chunk: ChunkId, offset: int, payload: memoryview, checksum: int) -> Update:
        self.versions[chunk] += 1
        self.sequence += 1
        return Update(
            chunk,
            Version(self.versions[chunk]),
            Kind.WRITE,
            offset,
            len(payload),
            payload,
            checksum,
            Tag(1, 1, self.sequence),
            0,
            1,
            MIB,
        )

    def _run(self, updates: list[Update]) -> None:
        for answer in self.store.prepare(updates):
            if isinstance(answer, Exception):
                raise answer
        self.store.commit([(each.chunk, each.version, 1) for each in updates])

    def whole(self, batch: int = 4) -> int:
        view, crc = self.region.view, self.checksum
        self._run([self._update(next(self.cycle), 0, view, crc) for _ in range(batch)])
        return batch * MIB

    def whole_again(self) -> None:
        """Write every chunk once more, so that none is in the page cache in direct mode."""
        for _ in range(CHUNKS // 4):
            self.whole()

    def overwrites(self, batch: int = 64) -> int:
        chunks = random.sample(self.names, batch)
        view, crc = self.small, self.small_checksum
        places = [random.randrange(MIB // SMALL) * SMALL for _ in chunks]
        self._run([self._update(c, at, view, crc) for c, at in zip(chunks, places, strict=True)])
        return batch

    def appends(self, n_bytes: int) -> int:
        """Fill new chunks by appends of ``n_bytes``, sixteen chunks in a batch."""
        self.inode += 1
        chunks = [chunk_id(InodeId(self.inode), index) for index in range(16)]
        self.versions.update(dict.fromkeys(chunks, 0))
        piece = self.region.view[:n_bytes]
        crc = crc32c(piece)
        for at in range(0, MIB, n_bytes):
            self._run([self._update(chunk, at, piece, crc) for chunk in chunks])
        return 16 * MIB


def read_steps(
    store: ChunkStore, chunks: list[ChunkId], into: memoryview
) -> dict[str, Callable[[], int]]:
    small = into[:SMALL]

    def random_cached() -> int:
        for _ in range(256):
            at = random.randrange(MIB // SMALL) * SMALL
            chunk = random.choice(chunks)
            if store.read_cached(chunk, at, small) is None:
                store.read(chunk, at, small)
        return 256

    def whole() -> int:
        for chunk in chunks[:64]:
            store.read(chunk, 0, into)
        return 64 * MIB

    def hot_get() -> int:
        for chunk in chunks:
            store.get(chunk)
        return len(chunks)

    return {"random": random_cached, "whole": whole, "get": hot_get}


def limits(directory: Path, seconds: float) -> list[Row]:
    """What the system calls alone do, on a preallocated file of as many chunks."""
    region = Region.allocate(MIB)
    data = region.view
    path = directory / "limit"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, CHUNKS * MIB)
    rows, position = [], 0

    def write(to: int) -> Callable[[], int]:
        def step() -> int:
            nonlocal position
            os.pwrite(to, data, position % CHUNKS * MIB)
            position += 1
            return MIB

        return step

    def limit(what: str, value: float, unit: str = "GiB/s") -> None:
        rows.append(Row(what, value, unit, "limit"))

    start = time.perf_counter()
    for _ in range(CHUNKS):
        write(fd)()
    first = CHUNKS / 1024 / (time.perf_counter() - start)
    limit("pwrite 1 MiB, page cache, first time", first)
    rows.append(
        Row("pwrite 1 MiB, page cache, again", rate(seconds, write(fd)) / 2**30, "GiB/s", "limit")
    )
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    rows.append(
        Row("pwrite 1 MiB, O_DIRECT", rate(seconds, write(direct)) / 2**30, "GiB/s", "limit")
    )
    for _ in range(CHUNKS):
        write(fd)()

    def read_whole() -> int:
        nonlocal position
        os.preadv(fd, [data], position % CHUNKS * MIB)
        position += 1
        return MIB

    small = data[:SMALL]

    def read_small() -> int:
        for _ in range(256):
            os.preadv(fd, [small], random.randrange(CHUNKS * MIB // SMALL) * SMALL)
        return 256

    rows.append(
        Row("preadv 1 MiB, page cache", rate(seconds, read_whole) / 2**30, "GiB/s", "limit")
    )
    limit("preadv 4 KiB at random, page cache", rate(seconds, read_small), "/s")
    other = bytearray(MIB)

    def copy() -> int:
        other[:] = data
        return MIB

    limit("memcpy 1 MiB", rate(seconds, copy) / 2**30)
    rows.append(
        Row("CRC32C 1 MiB", rate(seconds, lambda: crc32c(data) * 0 + MIB) / 2**30, "GiB/s", "limit")
    )
    os.close(fd)
    os.close(direct)
    path.unlink()
    return rows


def one_store(directory: Path, seconds: float, direct: bool) -> list[Row]:
    store = open_store(directory, direct=direct)
    mode = "O_DIRECT" if direct else "page cache"
    rows = []
    try:
        writer = Writer(store, 1)
        start = time.perf_counter()
        for _ in range(CHUNKS // 4):
            writer.whole()
        first = CHUNKS / 1024 / (time.perf_counter() - start)
        rows.append(Row("write whole 1 MiB chunks, new blocks", first, "GiB/s", mode))
        value = rate(seconds, writer.whole) / 2**30
        rows.append(Row("write whole 1 MiB chunks, again", value, "GiB/s", mode))
        region = Region.allocate(MIB)
        steps = read_steps(store, writer.names, region.view)
        if direct:
            start = time.perf_counter()
            for at in range(0, CHUNKS, 64):
                for chunk in writer.names[at : at + 64]:
                    store.read(chunk, 0, region.view)
            value = CHUNKS / 1024 / (time.perf_counter() - start)
            rows.append(Row("read whole 1 MiB chunks after it, cold", value, "GiB/s", mode))
            writer.whole_again()
        for chunk in writer.names:  # small pages, as small reads leave them
            for at in range(0, MIB, 65536):
                store.read(chunk, at, region.view[:65536])
        for batch in (256, 64, 1):
            value = rate(seconds, partial(writer.overwrites, batch))
            what = f"overwrite 4 KiB at random, batches of {batch}"
            rows.append(Row(what, value, "/s", mode))
        for size in (4096, 65536):
            value = rate(seconds, partial(writer.appends, size)) / 2**30
            rows.append(Row(f"append {size // 1024} KiB, batches of 16", value, "GiB/s", mode))
        for name, what, unit, scale in (
            ("random", "read 4 KiB at random, cached", "/s", 1),
            ("whole", "read whole 1 MiB chunks, cached", "GiB/s", 2**30),
            ("get", "get", "/s", 1),
        ):
            rows.append(Row(what, rate(seconds, steps[name]) / scale, unit, mode))
    finally:
        store.close()
    start = time.perf_counter()
    open_store(directory).close()
    rows.append(Row(f"open {CHUNKS}+ chunks", time.perf_counter() - start, "s", mode))
    return rows


def durable(directory: Path, seconds: float) -> list[Row]:
    """Small overwrites that are on the disk when they return."""
    store = open_store(directory, durable=True)
    try:
        writer = Writer(store, 1)
        for _ in range(CHUNKS // 4):
            writer.whole()
        rows = []
        for batch in (256, 1):
            value = rate(seconds, partial(writer.overwrites, batch))
            rows.append(Row(f"overwrite 4 KiB, batches of {batch}", value, "/s", "durable"))
        return rows
    finally:
        store.close()


def three_stores(directory: Path, seconds: float, direct: bool) -> list[Row]:
    """Three stores on one disk, a thread each: the sum over new blocks, then again."""
    stores = [open_store(directory / str(which), direct=direct) for which in range(3)]
    writers = [Writer(store, 1) for store in stores]
    mode = "O_DIRECT" if direct else "page cache"
    rows = []
    try:
        for what in ("new blocks", "again"):
            start = time.perf_counter()
            threads = [
                threading.Thread(target=lambda w=w: [w.whole() for _ in range(CHUNKS // 4)])
                for w in writers
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            value = 3 * CHUNKS / 1024 / (time.perf_counter() - start)
            rows.append(Row(f"three stores, whole chunks, {what}", value, "GiB/s", mode))
        start = time.perf_counter()
        for store in stores:
            store.sync()
        rows.append(Row("three stores, sync after it", time.perf_counter() - start, "s", mode))
        if direct:
            for path in directory.glob("*/blocks/*"):
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
            region = Region.allocate(MIB)
            into = region.view
            start = time.perf_counter()
            for store, writer in zip(stores, writers, strict=True):
                for chunk in writer.names:
                    store.read(chunk, 0, into)
            value = 3 * CHUNKS / 1024 / (time.perf_counter() - start)
            rows.append(Row("three stores, read cold", value, "GiB/s", mode))
    finally:
        for store in stores:
            store.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", default=None, help="on the disk to be measured")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        rows += limits(directory, options.seconds)
        for direct in (False, True):
            rows += one_store(directory / f"one-{direct}", options.seconds, direct)
            rows += three_stores(directory / f"three-{direct}", options.seconds, direct)
        rows += durable(directory / "durable", options.seconds)
    if options.json:
        json.dump([row._asdict() for row in rows], sys.stdout, indent=2)
        return
    print(f"replicas 1, not synced, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}")
    for row in rows:
        print(f"{row.what:45} {row.value:12,.2f} {row.unit:6} {row.note}")


if __name__ == "__main__":
    main()
