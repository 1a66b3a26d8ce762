"""What a storage node's reads cost at the store, with no wire: cached and cold, beside the limits.

Usage: python tests/bench/bench_reads.py [seconds a row [directory]]. Never a pass or fail.
HILLFIRE_PURE=1 shows the twin. Limits, over the same block file: ``preadv`` and the library's
CRC32C in a loop (cached), ``preadv`` in a row and by 16 threads (cold). Processor time is that of
all threads; on a busy machine it says more than the clock.
"""

import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hillfire import native
from hillfire.native import pure
from hillfire.proto.wire.base import Views
from hillfire.proto.wire.chunks import READ_ITEMS, Kind, ReadItem
from hillfire.proto.wire.frame import PART
from hillfire.region import Region
from hillfire.storage.store.base import Tag, Update
from hillfire.storage.store.batch import Batch, Target
from hillfire.storage.store.engine import open_store
from hillfire.storage.store.enginestore import EngineStore
from hillfire.types import ChunkId, Version, chunk_id

KIB = 1024
MIB = 1024 * KIB
CHUNKS = 512
SIZES = ((4 * KIB, 256), (MIB, 16))
THREADS = 16


class Bench:
    """One store of chunks of 1 MiB, and its block file as others read it."""

    def __init__(self, directory: Path, *, buffered: bool, direct_reads: bool = False) -> None:
        """``buffered``: written through the page cache, where it then lies in large folios."""
        self.store: EngineStore = open_store(
            directory, direct=not buffered, direct_reads=direct_reads
        )
        self.chance = random.Random(1)
        self.names: list[ChunkId] = [chunk_id(7, i) for i in range(CHUNKS)]  # type: ignore[arg-type]
        data = memoryview(self.chance.randbytes(MIB))
        checksum = native.crc32c(data)
        for index, name in enumerate(self.names):
            update = Update(
                name, Version(1), Kind.WRITE, 0, MIB, data, checksum, Tag(1, 1, index + 1), 0, 1,
                MIB,
            )  # fmt: skip
            self.store.prepare([update])
            self.store.commit([(name, Version(1), 1)])
        self.store.sync()
        self.region = Region.allocate(16 * MIB)
        self.fd = os.open(directory / "blocks" / "1024K", os.O_RDONLY)
        self.pool = ThreadPoolExecutor(THREADS)

    def close(self) -> None:
        """Close the store."""
        self.pool.shutdown()
        os.close(self.fd)
        self.store.close()

    def empty_cache(self) -> None:
        """Have the next reads come from the disk."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def wanted(self, size: int, count: int) -> list[tuple[ChunkId, int]]:
        """Choose places at random, none twice."""
        places = self.chance.sample(range(CHUNKS * MIB // size), count)
        per_chunk = MIB // size
        return [(self.names[at // per_chunk], at % per_chunk * size) for at in places]

    def ask(self, wanted: list[tuple[ChunkId, int]], size: int) -> Batch:
        """Make the batch that a client's request comes as."""
        items = READ_ITEMS.pack([ReadItem(name, 1, 1, offset) for name, offset in wanted])
        table = b"".join([PART.pack(1, at * size, size) for at in range(len(wanted))])
        return Batch(items, Views(self.region.view, memoryview(table), size * len(wanted)))

    def batch(self, batch: Batch, size: int) -> None:
        """Read as a node's thread does."""
        direct = self.store.direct()
        assert direct is not None, "it is on a real disk"
        target = Target(direct.records, {}, direct.files)
        left, damaged = batch.read(lambda chain, version: target, wait=True)
        for position in (*left, *damaged):
            item = batch.item(position)
            self.store.read(item.chunk, item.offset, batch.into[position])

    def in_a_row(self, batch: Batch, size: int) -> None:
        """Read and sum the same amount from the block file, one after another."""
        self._part(list(range(len(batch.into))), size)

    def by_threads(self, batch: Batch, size: int) -> None:
        """The same, by several threads."""
        numbers = range(len(batch.into))
        parts = [list(numbers[first::THREADS]) for first in range(THREADS)]
        list(self.pool.map(lambda part: self._part(part, size), parts))

    def _part(self, numbers: list[int], size: int) -> None:
        view = self.region.view
        for number in numbers:
            into = view[number * size : number * size + size]
            place = self.chance.randrange(CHUNKS * MIB // size) * size
            os.preadv(self.fd, (into,), place)
            pure.crc32c(into)

    def row(
        self,
        name: str,
        read: Callable[[Batch, int], None],
        size: int,
        count: int,
        seconds: float,
        cold: bool,
    ) -> None:
        """Print the medians of one way of reading."""
        walls: list[float] = []
        times: list[float] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(walls) < 3:
            batch = self.ask(self.wanted(size, count), size)
            if cold:
                self.empty_cache()
            wall, processor = time.perf_counter(), time.process_time()
            read(batch, size)
            walls.append((time.perf_counter() - wall) / count)
            times.append((time.process_time() - processor) / count)
        wall, processor = statistics.median(walls), statistics.median(times)
        us, cpu_us, rate = wall * 1e6, processor * 1e6, size / wall / 2**30
        what = f"{name:<50}{size // KIB:>6} KiB x{count:<4}"
        print(f"{what}{us:>9.1f} µs{cpu_us:>9.1f} µs{rate:>8.2f} GiB/s", flush=True)


def main() -> None:
    """Print the table."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    where = sys.argv[2] if len(sys.argv) > 2 else None
    extension = "native extension" if native.FAST else "pure twin"
    python = platform.python_version()
    print(f"reads at the store, {extension}, Python {python}, {os.cpu_count()} cores")
    print(f"{'':<50}{'':>15}{'wall an item':>12}{'CPU':>12}")
    for how in ("buffered writes", "random reads"):
        with tempfile.TemporaryDirectory(dir=where) as name:
            bench = Bench(Path(name), buffered=how == "buffered writes")
            if how == "random reads":
                bench.empty_cache()
                for index in bench.chance.sample(range(CHUNKS), CHUNKS):
                    bench.batch(bench.ask([(bench.names[index], 0)], MIB), MIB)
            for size, count in SIZES:
                limit = f"limit: preadv, crc32c; cached by {how}"
                bench.row(limit, bench.in_a_row, size, count, seconds, False)
                bench.row(f"batch; cached by {how}", bench.batch, size, count, seconds, False)
            bench.close()
    for direct in (False, True):
        with tempfile.TemporaryDirectory(dir=where) as name:
            bench = Bench(Path(name), buffered=False, direct_reads=direct)
            for size, count in SIZES:
                if not direct:
                    bench.row("cold: preadv in a row", bench.in_a_row, size, count, seconds, True)
                    threads = f"cold: preadv by {THREADS} threads"
                    bench.row(threads, bench.by_threads, size, count, seconds, True)
                title = "cold: batch" + (", direct_reads" if direct else "")
                bench.row(title, bench.batch, size, count, seconds, True)
            bench.close()


if __name__ == "__main__":
    main()
