"""A checkpoint: saved with fsync by several writers, restored by as many readers. No pass or fail.

Usage: python tests/bench/bench_checkpoint.py [directory] [--gib 4] [--processes 4] [--rounds 3]

Beside it, in the same run on the same disk: O_DIRECT writes into preallocated files (whose rate,
divided by the replicas, is what a save could reach), local buffered files with fsync, local reads,
and GlusterFS with as many replicas. Every process has its file, and memory that was faulted in (to
restore by hillfire: and registered) before the clock starts; a figure is all bytes over the time
from the start to the last one's end. *Cold* means that the page cache was dropped before (root),
*warm* that all copies are in it. What is restored is compared with what was saved, after the clock
has stopped.
"""

import argparse
import contextlib
import mmap
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import hillfire
from tests.bench import peers
from tests.cluster import LocalCluster, cluster

MIB = 1 << 20
BLOCK = MIB
WINDOW = 32 * MIB
"""Of one batch."""
TIMEOUT_S = 300.0
REPLICAS = 3

FORK = multiprocessing.get_context("fork")
Work = Callable[[int, Any], None]


class Sizes:
    """How much, by how many, how often."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.processes: int = options.processes
        self.each = int(options.gib * 1024) // options.processes * MIB
        self.rounds: int = options.rounds

    @property
    def gib(self) -> float:
        return float(self.each * self.processes / (1 << 30))


def stamp(rank: int, view: memoryview) -> None:
    """Fill memory: the same noise, and in each MiB whose it is and which."""
    noise = os.urandom(MIB)
    for place in range(0, len(view), MIB):
        view[place : place + MIB] = noise
        view[place : place + 16] = _mark(rank, place)


def verify(rank: int, view: memoryview) -> None:
    """Tell whether each MiB is what its writer stamped."""
    noise = view[16:MIB]
    for place in range(0, len(view), MIB):
        assert view[place : place + 16] == _mark(rank, place), f"rank {rank}: MiB {place // MIB}"
        assert view[place + 16 : place + MIB] == noise, f"rank {rank}: MiB {place // MIB}"


def _mark(rank: int, place: int) -> bytes:
    return rank.to_bytes(8) + place.to_bytes(8)


def memory(n_bytes: int) -> memoryview:
    """Return page-aligned memory that is faulted in."""
    return memoryview(
        mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    )


def together(sizes: Sizes, prepare: Callable[[int], Any], work: Work, after: Work) -> float:
    """Do ``work`` in every process at once; return seconds from the start to the last end."""
    barrier = FORK.Barrier(sizes.processes + 1)
    ends = FORK.Array("d", sizes.processes)

    def process(rank: int) -> None:
        ready = prepare(rank)
        barrier.wait(TIMEOUT_S)
        work(rank, ready)
        ends[rank] = time.monotonic()
        after(rank, ready)

    running = [FORK.Process(target=process, args=(rank,)) for rank in range(sizes.processes)]
    for each in running:
        each.start()
    barrier.wait(TIMEOUT_S)
    began = time.monotonic()
    for each in running:
        each.join(TIMEOUT_S)
    if any(each.exitcode for each in running):
        raise SystemExit("a process of the benchmark failed: see above")
    return float(max(ends[:])) - began


def nothing(rank: int, ready: Any) -> None:
    """Have nothing to do afterwards."""


def drop_caches() -> bool:
    """Empty the page cache; tell whether that is allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def row(what: str, rates: list[float], note: str, limit: float = 0.0) -> float:
    """Print one line of the table and return the median."""
    rate = statistics.median(rates)
    share = f"{100 * rate / limit:.0f} % of its limit; " if limit else ""
    spread = f"{min(rates):.2f}-{max(rates):.2f}"
    print(f"{what:<52} {rate:>7.2f} GiB/s ({spread})  {share}{note}", flush=True)
    return rate


class Files:
    """A directory: local, or another file system's mount point."""

    def __init__(self, directory: Path, sizes: Sizes, direct: bool = False) -> None:
        self._directory = directory
        self._sizes = sizes
        self._direct = direct

    def _path(self, rank: int) -> Path:
        return self._directory / f"rank-{rank}"

    def save(self) -> float:
        """Write every file and sync it; return the seconds."""

        def prepare(rank: int) -> tuple[int, memoryview]:
            flags = os.O_RDWR | os.O_CREAT | (os.O_DIRECT if self._direct else os.O_TRUNC)
            fd = os.open(self._path(rank), flags)
            if self._direct:
                os.posix_fallocate(fd, 0, self._sizes.each)
                os.fsync(fd)
            view = memory(self._sizes.each)
            stamp(rank, view)
            return fd, view

        def work(rank: int, ready: tuple[int, memoryview]) -> None:
            fd, view = ready
            for place in range(0, len(view), BLOCK):
                assert os.pwrite(fd, view[place : place + BLOCK], place) == BLOCK
            os.fsync(fd)

        return together(self._sizes, prepare, work, nothing)

    def restore(self) -> float:
        """Read every file; return the seconds."""

        def prepare(rank: int) -> tuple[int, memoryview]:
            return os.open(self._path(rank), os.O_RDONLY), memory(self._sizes.each)

        def work(rank: int, ready: tuple[int, memoryview]) -> None:
            fd, view = ready
            for place in range(0, len(view), BLOCK):
                assert os.preadv(fd, [view[place : place + BLOCK]], place) == BLOCK

        return together(self._sizes, prepare, work, lambda rank, ready: verify(rank, ready[1]))

    def warm(self) -> None:
        """Bring all of it into the page cache."""
        self.restore()

    def remove(self) -> None:
        """Take the files away."""
        for rank in range(self._sizes.processes):
            self._path(rank).unlink()


class Batches:
    """hillfire's own interface: batches of 1 MiB out of its memory and into it."""

    def __init__(self, local: LocalCluster, sizes: Sizes) -> None:
        self._local = local
        self._address = local.address
        self._sizes = sizes

    def save(self) -> float:
        """Write every file and sync it; return the seconds."""

        def prepare(rank: int) -> tuple[Any, Any]:
            fs = hillfire.connect(self._address)
            region = fs.register(self._sizes.each)
            stamp(rank, region.view)
            return fs, region

        def work(rank: int, ready: tuple[Any, Any]) -> None:
            fs, region = ready
            with fs.open(f"/rank-{rank}", "wb") as file:
                for start in range(0, region.size, WINDOW):
                    places = range(start, min(start + WINDOW, region.size), BLOCK)
                    done = fs.write_batch([(file, at, at, BLOCK) for at in places], region)
                    assert set(done) == {BLOCK}, done
                file.fsync()

        return together(self._sizes, prepare, work, nothing)

    def restore(self) -> float:
        """Read every file; return the seconds."""

        def prepare(rank: int) -> tuple[Any, Any]:
            fs = hillfire.connect(self._address)
            region = fs.register(self._sizes.each)
            with fs.open(f"/rank-{rank}", "rb") as file:  # so that every node knows the region
                fs.read_batch([(file, at * BLOCK, at, 1) for at in range(12)], region)
            return fs, region

        def work(rank: int, ready: tuple[Any, Any]) -> None:
            fs, region = ready
            with fs.open(f"/rank-{rank}", "rb") as file:
                for start in range(0, region.size, WINDOW):
                    places = range(start, min(start + WINDOW, region.size), BLOCK)
                    done = fs.read_batch([(file, at, at, BLOCK) for at in places], region)
                    assert set(done) == {BLOCK}, done

        return together(self._sizes, prepare, work, lambda rank, ready: verify(rank, ready[1].view))

    def warm(self) -> None:
        """Bring every replica's bytes into the page cache."""
        for name in self._local.storage_names:
            for path in (self._local.directory.path / name).rglob("*"):
                if path.is_file() and path.stat().st_size >= MIB:
                    read_through(path)

    def remove(self) -> None:
        """Take the files away."""
        with hillfire.connect(self._address) as fs:
            for rank in range(self._sizes.processes):
                fs.unlink(f"/rank-{rank}")


def read_through(path: Path) -> None:
    """Read what is stored of a file that was allocated beforehand."""
    into, at = memory(BLOCK), 0
    with open(path, "rb", buffering=0) as file:
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                return
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < end:
                at += os.preadv(file.fileno(), [into], at)


Measured = Files | Batches


def measure(what: str, it: Measured, sizes: Sizes, note: str, limits: dict[str, float]) -> None:
    """Save and restore several times and print the rows; files are gone afterwards."""
    saves, cold, warm = [], [], []
    for _ in range(sizes.rounds):
        saves.append(sizes.gib / it.save())
        if drop_caches():
            cold.append(sizes.gib / it.restore())
        it.warm()
        warm.append(sizes.gib / it.restore())
        it.remove()
    limits[f"{what}: save"] = row(f"{what}: save, fsync", saves, note, limits.get("save", 0.0))
    if cold:
        name = f"{what}: restore, cold"
        limits[name] = row(name, cold, note, limits.get("local files: restore, cold", 0.0))
    name = f"{what}: restore, warm"
    limits[name] = row(name, warm, note, limits.get("local files: restore, warm", 0.0))


@contextlib.contextmanager
def running(directory: Path) -> Iterator[tuple[LocalCluster, Path | None]]:
    """A cluster of three storage nodes, and a mount of it where there is FUSE."""
    with cluster(directory, nodes=3, replicas=REPLICAS) as local:
        mount = None
        if os.path.exists("/dev/fuse"):
            mount = local.mount(directory / "mount")
        yield local, mount


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-peers", action="store_true")
    options = parser.parse_args()
    sizes, limits = Sizes(options), dict[str, float]()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        directory = Path(name)
        print(
            f"# checkpoint: {sizes.gib:g} GiB by {sizes.processes} processes, medians of "
            f"{sizes.rounds}; Python {platform.python_version()}, Linux {platform.release()}, "
            f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
        )
        direct = Files(directory, sizes, direct=True)
        rates = [sizes.gib / direct.save() for _ in range(sizes.rounds)]
        direct.remove()
        rate = row("limit: O_DIRECT into preallocated files", rates, "one copy; fsync")
        measure("local files", Files(directory, sizes), sizes, "one copy", limits)
        limits["save"] = rate / REPLICAS
        note = f"{REPLICAS} replicas"
        with running(directory) as (local, mount):
            measure("hillfire, batches", Batches(local, sizes), sizes, note, limits)
            if mount is not None:
                measure("hillfire, mounted", Files(mount, sizes), sizes, note, limits)
        if options.without_peers:
            return
        try:
            version = peers.first_line("glusterd", "--version")
            with peers.glusterfs(directory / "gluster", REPLICAS) as mount:
                measure("GlusterFS", Files(mount, sizes), sizes, f"{note}; {version}", limits)
        except OSError as error:
            print(f"# no GlusterFS: {error}")
            return
        for how in ("save", "restore, cold", "restore, warm"):
            ours, theirs = (
                limits.get(f"{who}: {how}") for who in ("hillfire, batches", "GlusterFS")
            )
            if ours and theirs:
                print(f"# {how}: {ours / theirs:.1f} times GlusterFS")


if __name__ == "__main__":
    main()
