"""One client of ``hillfire bench io``: a file, a region, and calls until the time is over.

A call is timed by itself, and calls are counted in slices of the time, so that a figure is the
median of slices: what else a machine does falls into few of them.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import hillfire
from hillfire.cli.workload import Workload
from hillfire.client.filesystem import FileSystem
from hillfire.config import MIB
from hillfire.errors import Error
from hillfire.region import Region

SLICES = 10
WARM_S = 0.3
"""How long a workload runs before it is timed, at least one call."""
FILL_BYTES = 32 * MIB


class Taken(NamedTuple):
    """What one client measured."""

    rates: list[float]
    """calls a second, slice by slice"""
    calls_ns: list[int]
    """each call's time"""
    cpu_ns: int
    """of this process"""
    wall_s: float


def warm(call: Callable[[], None], seconds: float = WARM_S) -> None:
    """Call for a while: what is needed once is made, and the page cache is filled."""
    until = time.monotonic() + min(WARM_S, seconds)
    call()
    while time.monotonic() < until:
        call()


def run_for(seconds: float, call: Callable[[], None]) -> Taken:
    """Call again and again for about so long."""
    clock, slice_ns = time.perf_counter_ns, int(seconds / SLICES * 1e9)
    rates, calls_ns = [], []
    cpu_ns, begun = time.process_time_ns(), clock()
    for _ in range(SLICES):
        started = now = clock()
        count = 0
        while now - started < slice_ns:
            before = now
            call()
            now = clock()
            calls_ns.append(now - before)
            count += 1
        rates.append(count / (now - started) * 1e9)
    return Taken(rates, calls_ns, time.process_time_ns() - cpu_ns, (clock() - begun) / 1e9)


def offsets(workload: Workload, size: int, seed: int) -> Iterator[int]:
    """Yield where in a file of ``size`` bytes the next block lies."""
    blocks = size // workload.block
    if workload.sequential:
        while True:
            yield from range(0, blocks * workload.block, workload.block)
    chance = random.Random(seed)
    while True:
        yield chance.randrange(blocks) * workload.block


def memory(workload: Workload, fs: FileSystem) -> Region:
    """Return the memory that a call's blocks lie in."""
    size = workload.call_bytes
    region = Region.wrap(bytearray(size)) if workload.foreign else fs.register(size)
    pattern = random.Random(0).randbytes(min(size, MIB))
    for place in range(0, size, len(pattern)):
        part = region.view[place : place + len(pattern)]
        part[:] = pattern[: len(part)]
    return region


def fill(fs: FileSystem, path: str, size: int, told: Callable[[int], None]) -> None:
    """Write a file of ``size`` bytes in pieces of 1 MiB."""
    piece = random.Random(1).randbytes(MIB) * (FILL_BYTES // MIB)
    with fs.open(path, "wb") as file:
        for place in range(0, size, FILL_BYTES):
            file.write(memoryview(piece)[: min(FILL_BYTES, size - place)])
            told(place)
        file.fsync()


class Caller:
    """Does one workload's calls on an open file: ``with Caller(...) as call``."""

    def __init__(self, workload: Workload, fs: FileSystem, path: str, size: int, seed: int) -> None:
        """Open the file."""
        self._workload = workload
        self._fs = fs
        self._region = memory(workload, fs)
        self._offsets = offsets(workload, size, seed)
        self._file = fs.open(path, "r+b" if workload.write else "rb")

    def __enter__(self) -> Callable[[], None]:
        """Return the call."""
        single = self._workload.batch == 1 and not self._workload.foreign
        return self._single if single and not self._workload.write else self._batch

    def __exit__(self, *exc: object) -> None:
        """Close the file."""
        self._file.close()

    def _single(self) -> None:
        """Read one block as most programs do: bytes are returned."""
        block = self._workload.block
        assert len(self._file.read_at(next(self._offsets), block)) == block

    def _batch(self) -> None:
        workload, file, block = self._workload, self._file, self._workload.block
        places = range(0, workload.call_bytes, block)
        entries = [(file, next(self._offsets), place, block) for place in places]
        do = self._fs.write_batch if workload.write else self._fs.read_batch
        results = do(entries, self._region)
        if results != [block] * workload.batch:
            raise next((each for each in results if isinstance(each, Error)), None) or (
                AssertionError(f"short of {block} bytes: {min(results)}")  # type: ignore[type-var]
            )
        if workload.fsync:
            file.fsync()


def client(
    address: str,
    transport: str | None,
    workload: Workload,
    path: str,
    size: int,
    seconds: float,
    seed: int,
    together: Callable[[], object],
) -> Taken:
    """Be one of several clients: connect, wait for the others, and run."""
    with (
        hillfire.connect(address, transport=transport) as fs,
        Caller(workload, fs, path, size, seed) as call,
    ):
        warm(call, seconds)
        together()
        return run_for(seconds, call)
