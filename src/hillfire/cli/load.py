"""One client of ``hillfire bench io``: a file, a region, and calls until the time is over.

A call is timed by itself, and calls are counted in slices of the time, so that a figure is the
median of slices: what else a machine does falls into few of them.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

import hillfire
from hillfire import metrics
from hillfire.cli.workload import Workload
from hillfire.client.filesystem import FileSystem
from hillfire.client.results import Results
from hillfire.config import MIB
from hillfire.region import Region

Call: TypeAlias = Callable[[], "list[int] | None"]
"""Does one call; or waits for some of several, and returns how long those took that ended."""
Offsets: TypeAlias = npt.NDArray[np.int64]

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
    samples: list[metrics.Sample]
    """what this process counted and timed meanwhile"""


def warm(call: Call, seconds: float = WARM_S) -> None:
    """Call for a while: what is needed once is made, and the page cache is filled."""
    until = time.monotonic() + min(WARM_S, seconds)
    call()
    while time.monotonic() < until:
        call()


def run_for(seconds: float, call: Call) -> Taken:
    """Call again and again for about so long."""
    clock, slice_ns = time.perf_counter_ns, int(seconds / SLICES * 1e9)
    rates, calls_ns = [], []
    before_all = metrics.REGISTRY.collect()
    cpu_ns, begun = time.process_time_ns(), clock()
    for _ in range(SLICES):
        started = now = clock()
        count = 0
        while now - started < slice_ns:
            before = now
            ended = call()
            now = clock()
            if ended is None:
                calls_ns.append(now - before)
                count += 1
            else:
                calls_ns += ended
                count += len(ended)
        rates.append(count / (now - started) * 1e9)
    cpu_ns, wall_s = time.process_time_ns() - cpu_ns, (clock() - begun) / 1e9
    samples = metrics.since(metrics.REGISTRY.collect(), before_all)
    return Taken(rates, calls_ns, cpu_ns, wall_s, samples)


def offsets(workload: Workload, size: int, seed: int) -> Iterator[Offsets]:
    """Yield where in a file of ``size`` bytes the blocks of the next call lie."""
    blocks, batch = size // workload.block, workload.batch
    if workload.sequential:
        order = np.arange(batch, dtype=np.int64)
        while True:
            yield order % blocks * workload.block
            order += batch
    chance = np.random.default_rng(seed)
    while True:
        yield chance.integers(blocks, size=batch) * workload.block


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
        """Open the file and take memory."""
        self._workload = workload
        self._fs = fs
        self._regions: list[Region] = []
        self._rows = [self._memory() for _ in range(workload.queue or 1)]
        self._offsets = offsets(workload, size, seed)
        self._file = fs.open(path, "r+b" if workload.write else "rb")
        self._queue = fs.queue(workload.queue * workload.batch) if workload.queue else None

    def __enter__(self) -> Call:
        """Return the call."""
        if self._queue is not None:
            for rows in self._rows:
                self._submit(rows)
            return self._queued
        single = self._workload.batch == 1 and not self._workload.foreign
        return self._single if single and not self._workload.write else self._batch

    def __exit__(self, *exc: object) -> None:
        """Wait for what is on its way, and close the file."""
        if self._queue is not None:
            self._queue.drain()
            self._queue.close()
        self._file.close()

    def _memory(self) -> Any:
        """Return an array with a row for each block of a call."""
        shape = (self._workload.batch, self._workload.block)
        if self._workload.foreign:
            rows: Any = np.empty(shape, np.uint8)
        else:
            region = self._fs.register(self._workload.call_bytes)
            self._regions.append(region)
            rows = region.numpy(shape=shape)
        rows[:] = np.random.default_rng(0).integers(256, size=shape[1], dtype=np.uint8)
        return rows

    def _single(self) -> None:
        """Read one block as most programs do: bytes are returned."""
        block = self._workload.block
        assert len(self._file.read_at(int(next(self._offsets)[0]), block)) == block

    def _batch(self) -> None:
        do = self._fs.write_many if self._workload.write else self._fs.read_many
        self._check(do(self._file, next(self._offsets), self._rows[0]))

    def _submit(self, rows: Any) -> None:
        assert self._queue is not None
        do = self._queue.write if self._workload.write else self._queue.read
        do(self._file, next(self._offsets), rows, tag=(rows, time.perf_counter_ns()))

    def _queued(self) -> list[int]:
        """Wait for a call and submit the next; returns how long those took that ended."""
        assert self._queue is not None
        ended = []
        for transfer in self._queue.wait():
            rows, begun = transfer.tag
            ended.append(time.perf_counter_ns() - begun)
            self._check(transfer.result())
            self._submit(rows)
        return ended

    def _check(self, results: Results) -> None:
        """See that all was done.

        Raises:
            Error: the first of the call's.
        """
        results.check()
        assert (results.counts == self._workload.block).all(), "short of a block"
        if self._workload.fsync:
            self._file.fsync()


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
