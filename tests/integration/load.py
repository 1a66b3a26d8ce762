"""Records that are written and read through a mount while things are killed under them.

A record is 1 MiB: its slot, its generation and a CRC in front, noise behind. A writer overwrites
its own slots in turn; readers read slots that are not being written, past the kernel's cache
(O_DIRECT), and check that the generation is the one that was last written. Every call is timed,
so that the test can say what was on its way at the instant of a kill.
"""

import mmap
import os
import random
import struct
import threading
import time
import zlib
from collections import deque
from pathlib import Path

RECORD = 1 << 20
_HEADER = struct.Struct("<QQII")
_WINDOW_S = 1.0


class Meter:
    """Counts bytes, knows the rate of the last second, what is on its way, and the longest wait."""

    def __init__(self) -> None:
        self.on_their_way = 0
        self.total = 0
        self.longest_s = 0.0
        self._recent: deque[tuple[float, int]] = deque(maxlen=10_000)
        self._lock = threading.Lock()

    def begin(self) -> float:
        with self._lock:
            self.on_their_way += 1
        return time.monotonic()

    def end(self, began: float, n_bytes: int) -> None:
        now = time.monotonic()
        with self._lock:
            self.on_their_way -= 1
            self.total += n_bytes
            self.longest_s = max(self.longest_s, now - began)
            self._recent.append((now, n_bytes))

    def rate(self) -> float:
        """Return bytes a second over the last second."""
        now = time.monotonic()
        with self._lock:
            return sum(n for at, n in self._recent if now - at <= _WINDOW_S) / _WINDOW_S


class Load:
    """Writers and readers over one file each writer; used as a context manager."""

    def __init__(
        self,
        directory: Path,
        *,
        writers: int = 2,
        readers: int = 2,
        slots: int = 96,
        bytes_per_s: float = 90 * RECORD,
    ) -> None:
        self.paths = [directory / f"records-{i}" for i in range(writers)]
        self.written = Meter()
        self.read = Meter()
        self.errors: list[str] = []
        self._slots = slots
        self._pause_s = RECORD * max(writers, readers) / bytes_per_s
        self._stop = threading.Event()
        self._generations = [[0] * slots for _ in range(writers)]
        self._noise = random.Random(7).randbytes(RECORD)
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._write, i)) for i in range(writers)
        ]
        self._threads += [
            threading.Thread(target=self._guarded, args=(self._read, i % writers))
            for i in range(readers)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_rate(self, bytes_per_s: float, timeout_s: float) -> None:
        """Wait until as much is being written and read; fail if it never is."""
        deadline = time.monotonic() + timeout_s
        while min(self.written.rate(), self.read.rate()) < bytes_per_s:
            assert not self.errors, self.errors
            assert time.monotonic() < deadline, (
                f"only {self.written.rate() / RECORD:.0f} MiB/s written and "
                f"{self.read.rate() / RECORD:.0f} read: too little is on its way to test a kill"
            )
            time.sleep(0.05)

    def wait_until_both_are_on_their_way(self, timeout_s: float) -> None:
        """Wait for an instant at which a write and a read have begun and not ended."""
        deadline = time.monotonic() + timeout_s
        while not (self.written.on_their_way and self.read.on_their_way):
            assert time.monotonic() < deadline, "nothing is on its way: the kill would test nothing"
            time.sleep(0.0001)

    def wait_for_more(self, n_bytes: int, timeout_s: float) -> None:
        """Wait until as much again was written and read."""
        deadline = time.monotonic() + timeout_s
        goals = [self.written.total + n_bytes, self.read.total + n_bytes]
        while self.written.total < goals[0] or self.read.total < goals[1]:
            assert not self.errors, self.errors
            assert time.monotonic() < deadline, "writing or reading did not go on"
            time.sleep(0.02)

    def check_all(self) -> int:
        """Read every slot and compare; returns how many records there are."""
        count = 0
        for i, path in enumerate(self.paths):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                for slot, generation in enumerate(self._generations[i]):
                    if generation:
                        found = os.pread(fd, RECORD, slot * RECORD)
                        assert found == self._record(i, slot, generation), (path, slot)
                        count += 1
            finally:
                os.close(fd)
        return count

    def _record(self, writer: int, slot: int, generation: int) -> bytes:
        body = memoryview(self._noise)[generation % 4096 : RECORD - 4096]
        body_and_rest = bytes(body) + bytes(RECORD - _HEADER.size - len(body))
        return _HEADER.pack(slot, generation, writer, zlib.crc32(body_and_rest)) + body_and_rest

    def _guarded(self, work: "object", writer: int) -> None:
        try:
            work(writer)  # type: ignore[operator]
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    def _write(self, writer: int) -> None:
        fd = os.open(self.paths[writer], os.O_RDWR | os.O_CREAT, 0o644)
        generations = self._generations[writer]
        try:
            generation = 0
            while True:
                generation += 1
                for slot in range(self._slots):
                    if self._stop.is_set():
                        os.fsync(fd)
                        return
                    record = self._record(writer, slot, generation)
                    generations[slot] = -generation  # being written
                    began = self.written.begin()
                    done = os.pwrite(fd, record, slot * RECORD)
                    self.written.end(began, done)
                    assert done == RECORD, f"wrote {done} bytes of a record"
                    generations[slot] = generation
                    self._wait(began)
        finally:
            os.close(fd)

    def _read(self, writer: int) -> None:
        source = random.Random(writer)
        generations = self._generations[writer]
        while not any(each > 0 for each in generations):
            if self._stop.wait(0.01):
                return
        buffer = mmap.mmap(-1, RECORD)
        fd = os.open(self.paths[writer], os.O_RDONLY | os.O_DIRECT)
        try:
            while not self._stop.is_set():
                slot = source.randrange(self._slots)
                before = generations[slot]
                if before <= 0:
                    time.sleep(0.0005)
                    continue
                began = self.read.begin()
                done = os.preadv(fd, [buffer], slot * RECORD)
                self.read.end(began, done)
                if generations[slot] == before:  # else it was overwritten meanwhile
                    assert done == RECORD, f"read {done} bytes of a record"
                    head = _HEADER.unpack_from(buffer)
                    assert head[:3] == (slot, before, writer), (head, slot, before, writer)
                    crc = zlib.crc32(memoryview(buffer)[_HEADER.size :])
                    assert crc == head[3], f"record {slot} of {writer} is damaged"
                self._wait(began)
        finally:
            os.close(fd)

    def _wait(self, began: float) -> None:
        self._stop.wait(max(0.0, self._pause_s - (time.monotonic() - began)))
