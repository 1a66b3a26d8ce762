"""The mount's figures beside their limits, in one run: a local directory, a bare FUSE loop.

    tests/bench/bench_mount.py [--nodes 3] [--replicas 3] [--mib 512] [--files 2000] [--rounds 3]
                               [--peer]

Each row: what, durability, cache state, the median of the rounds for each place, and hillfire's
share of what the bare loop reached. ``bare`` is pyfuse3 alone, which answers from memory and keeps
nothing: what no mount through it can beat. ``local`` keeps one copy, hillfire three. The places
take turns, so that a noisy moment hits them all. Never a pass or fail.
"""

import argparse
import contextlib
import os
import platform
import random
import shutil
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

MIB = 1 << 20
BLOCK = random.Random(1).randbytes(MIB)
SMALL = BLOCK[:4096]
READS = 6000
THREADS = 8


class Place(NamedTuple):
    """Where something is measured."""

    name: str
    root: Path
    replicas: int
    keeps: bool
    """what is written can be read back"""


class Table:
    """Gathers figures over the rounds and prints their medians."""

    def __init__(self) -> None:
        self.unit: dict[tuple[str, str, str], str] = {}
        self.figures: dict[tuple[str, str, str], dict[str, list[float]]] = {}

    def row(
        self, what: str, place: Place, durability: str, cache: str, figure: float, unit: str = "/s"
    ) -> None:
        key = (what, durability, cache)
        self.unit[key] = unit
        self.figures.setdefault(key, {}).setdefault(place.name, []).append(figure)
        print(f"  {place.name:9} {what:38} {cache:5} {figure:>10,.0f}{unit}", flush=True)

    def show(self, replicas: int) -> None:
        mine = f"hillfire x{replicas}"
        print(
            f"\n{'what':38} {'durability':17} {'cache':5} {'local x1':>12} {'bare':>12}"
            f" {f'gluster x{replicas}':>12} {mine:>12} {'of bare':>8} {'spread':>14}"
        )
        for (what, durability, cache), by_place in self.figures.items():
            unit = self.unit[what, durability, cache]
            median = {name: statistics.median(each) for name, each in by_place.items()}
            cells = [
                f"{median[name]:,.0f}{unit}" if name in median else "-"
                for name in ("local", "bare", "glusterfs", "hillfire")
            ]
            share = f"{median['hillfire'] / median['bare']:.0%}" if "bare" in median else "-"
            rounds = by_place["hillfire"]
            spread = f"{min(rounds):,.0f}-{max(rounds):,.0f}"
            print(
                f"{what:38} {durability:17} {cache:5} {cells[0]:>12} {cells[1]:>12}"
                f" {cells[2]:>12} {cells[3]:>12} {share:>8} {spread:>14}"
            )


def drop_caches() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def sequential(table: Table, place: Place, mib: int) -> None:
    """1 MiB writes with one fsync at the end; 1 MiB reads."""
    path = place.root / "large"

    def write() -> None:
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for _ in range(mib):
            os.write(fd, BLOCK)
        os.fsync(fd)
        os.close(fd)

    def read() -> None:
        fd, buffer = os.open(path, os.O_RDONLY), bytearray(MIB)
        while os.readv(fd, [buffer]):
            pass
        os.close(fd)

    unit = " MiB/s"
    table.row("write 1 MiB", place, "fsync at the end", "-", mib / seconds(write), unit)
    cold = "cold" if drop_caches() else "?"
    table.row("read 1 MiB", place, "-", cold, mib / seconds(read), unit)
    table.row("read 1 MiB", place, "-", "warm", mib / seconds(read), unit)


def random_reads(table: Table, place: Place, mib: int) -> None:
    """4 KiB ``pread`` at random offsets, by one thread and by eight."""

    def read(seed: int, count: int) -> None:
        rng = random.Random(seed)
        fd = os.open(place.root / "large", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(count):
            os.pread(fd, 4096, rng.randrange(mib * 256) * 4096)
        os.close(fd)

    for threads in (1, THREADS):
        cold = "cold" if drop_caches() else "?"
        with ThreadPoolExecutor(threads) as pool:

            def work(pool: ThreadPoolExecutor = pool, threads: int = threads) -> None:
                list(pool.map(read, range(threads), [READS // threads] * threads))

            figure = READS / seconds(work)
        table.row(f"read 4 KiB random, {threads} thread(s)", place, "-", cold, figure)


def small_files(table: Table, place: Place, files: int) -> None:
    """Names and small files, by one thread and by four."""
    root = place.root / "small"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()

    def create(prefix: str = "e", count: int = files) -> None:
        for number in range(count):
            os.close(os.open(root / f"{prefix}{number}", os.O_CREAT | os.O_WRONLY))

    def write(prefix: str = "w", count: int = files) -> None:
        for number in range(count):
            fd = os.open(root / f"{prefix}{number}", os.O_CREAT | os.O_WRONLY)
            os.write(fd, SMALL)
            os.close(fd)

    def by_four(work: Callable[[str, int], None], prefix: str) -> Callable[[], object]:
        """Four threads in directories of their own: within one the kernel creates in turn."""
        folders = [f"{prefix}-{thread}/" for thread in range(4)]
        for folder in folders:
            (root / folder).mkdir()

        def shared() -> None:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(work, folders, [files // 4] * 4))

        return shared

    def read() -> None:
        for number in range(files):
            fd = os.open(root / f"w{number}", os.O_RDONLY)
            os.read(fd, 8192)
            os.close(fd)

    def status() -> None:
        for number in range(files):
            os.stat(root / f"w{number}")

    def rename() -> None:
        for number in range(files):
            os.rename(root / f"e{number}", root / f"r{number}")

    def unlink() -> None:
        for number in range(files):
            os.unlink(root / f"r{number}")

    def scan() -> None:
        with os.scandir(root) as entries:
            assert sum(entry.stat().st_size >= 0 for entry in entries) >= files

    rows: list[tuple[str, str, str, Callable[[], object], bool]] = [
        ("create and close, 1 thread", "close", "-", create, False),
        ("create and close, 4 threads", "close", "-", by_four(create, "f"), False),
        ("create, write 4 KiB, close, 1 thread", "close", "-", write, False),
        ("create, write 4 KiB, close, 4 threads", "close", "-", by_four(write, "v"), False),
        ("read 4 KiB files", "-", "cold", read, True),
        ("stat", "-", "cold", status, True),
        ("readdir with attributes", "-", "cold", scan, True),
        ("rename", "-", "-", rename, True),
        ("unlink", "-", "-", unlink, True),
    ]
    for what, durability, cache, work, needs in rows:
        if needs and not place.keeps:
            continue
        if cache == "cold" and not drop_caches():
            cache = "?"
        table.row(what, place, durability, cache, files / seconds(work))


def measure(table: Table, place: Place, mib: int, files: int) -> None:
    sequential(table, place, mib)
    random_reads(table, place, mib)
    small_files(table, place, files)


def serve_bare(mountpoint: str) -> None:
    """Answer from memory at once, whatever is asked."""
    import pyfuse3
    import trio

    size, block = BARE_MIB * MIB, bytes(MIB)

    class Bare(pyfuse3.Operations):
        def __init__(self) -> None:
            super().__init__()
            self.made = 0
            self.kept: dict[bytes, int] = {}

        def entry(self, inode: int, folder: bool = False) -> Any:
            found = pyfuse3.EntryAttributes()
            found.st_ino, found.generation = inode, 0
            found.entry_timeout = found.attr_timeout = 1
            found.st_mode = (stat.S_IFDIR | 0o755) if folder else (stat.S_IFREG | 0o644)
            found.st_nlink, found.st_size, found.st_blksize = 1, size, MIB
            return found

        async def getattr(self, inode: int, ctx: Any = None) -> Any:
            return self.entry(inode, inode < 1000)

        async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
            if (inode := self.kept.get(name)) is None:
                raise pyfuse3.FUSEError(2)
            return self.entry(inode, inode < 1000)

        async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
            self.made += 1
            inode = 1000 + self.made
            if name == b"large":
                self.kept[name] = inode
            return pyfuse3.FileInfo(fh=inode), self.entry(inode)

        async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> Any:
            self.kept[name] = 2 + len(self.kept)
            return self.entry(self.kept[name], True)

        async def open(self, inode: int, flags: int, ctx: Any) -> Any:
            return pyfuse3.FileInfo(fh=inode)

        async def read(self, fh: int, off: int, length: int) -> bytes:
            return block[: min(length, max(0, BARE_MIB * MIB - off))]

        async def write(self, fh: int, off: int, buf: bytes) -> int:
            return len(buf)

        async def flush(self, fh: int) -> None: ...

        async def release(self, fh: int) -> None: ...

        async def fsync(self, fh: int, datasync: bool) -> None: ...

    pyfuse3.init(Bare(), mountpoint, set(pyfuse3.default_options) | {"fsname=bare"})
    print("ready", flush=True)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


BARE_MIB = int(os.environ.get("BARE_MIB", "512"))


@contextlib.contextmanager
def bare(root: Path, mib: int) -> Iterator[Place]:
    root.mkdir()
    process = subprocess.Popen(
        [sys.executable, __file__, "--bare", str(root)],
        stdout=subprocess.PIPE,
        env={**os.environ, "BARE_MIB": str(mib)},
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield Place("bare", root, 0, False)
    finally:
        if subprocess.run(["umount", str(root)]).returncode:
            process.terminate()
        process.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="GlusterFS too, with as many replicas")
    parser.add_argument("--bare")
    chosen = parser.parse_args()
    if chosen.bare:
        serve_bare(chosen.bare)
        return
    from tests.bench.peers import glusterfs
    from tests.cluster import cluster

    names = ("hillfire", "pyfuse3", "rocksdict", "protobuf")
    versions = " ".join(f"{name}={version(name)}" for name in names)
    print(f"python={platform.python_version()} linux={platform.release()} {versions}")
    print(f"cpus={os.cpu_count()} nodes={chosen.nodes} write-behind=64 MiB load={os.getloadavg()}")
    home = Path(tempfile.mkdtemp(prefix="hillfire-bench-"))
    table = Table()
    try:
        local = home / "local"
        local.mkdir()
        with contextlib.ExitStack() as stack:
            peer: Place | None = None
            if chosen.peer:
                try:
                    root = stack.enter_context(glusterfs(home / "glusterfs", chosen.replicas))
                    peer = Place("glusterfs", root, chosen.replicas, True)
                except OSError as exc:
                    print(f"no peer: {exc}")
            live = stack.enter_context(cluster(home, nodes=chosen.nodes, replicas=chosen.replicas))
            mount = live.mount(home / "mnt")
            mine = Place("hillfire", mount, chosen.replicas, True)
            for turn in range(chosen.rounds):
                measure(table, Place("local", local, 1, True), chosen.mib, chosen.files)
                with bare(home / f"bare{turn}", chosen.mib) as place:
                    measure(table, place, chosen.mib, chosen.files)
                if peer is not None:
                    measure(table, peer, chosen.mib, chosen.files)
                measure(table, mine, chosen.mib, chosen.files)
            live.unmount(mount)
        table.show(chosen.replicas)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
