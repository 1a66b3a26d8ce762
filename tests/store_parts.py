"""A simulated disk: the three parts that a chunk store stands on, in memory, that can lose power.

Everything is written twice: to what the process sees, and to a list of what no ``sync`` has brought
to the disk yet. ``crash`` keeps a random part of the latter: of block files and log any sectors, in
any order; of the database a first few batches. ``others_bytes`` and ``capacity_bytes`` make it
full, ``hook`` sees every step by name before it happens and may raise: an ``Error`` for a disk that
fails, anything else for a process that dies right there.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.storage.store.parts import Buffer, Disk, Parts

PAGE = 4096
SECTOR = 512
UNIT = 64 * 1024
Name = tuple[str, int]


class Write(NamedTuple):
    """Bytes that may or may not be on the disk."""

    at: int
    data: bytes


class SparseFile:
    """A file by pages; what was never written is zeros."""

    def __init__(self) -> None:
        self.size = 0
        self.pages: dict[int, bytes] = {}

    def write(self, at: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            page, within = divmod(at + done, PAGE)
            piece = data[done : done + PAGE - within]
            if len(piece) < PAGE:
                old = self.pages.get(page, bytes(PAGE))
                self.pages[page] = old[:within] + piece + old[within + len(piece) :]
            else:
                self.pages[page] = piece
            done += len(piece)
        self.size = max(self.size, at + len(data))

    def read(self, at: int, n_bytes: int) -> bytes:
        n_bytes = max(0, min(n_bytes, self.size - at))
        parts, done = [], 0
        while done < n_bytes:
            page, within = divmod(at + done, PAGE)
            piece = self.pages.get(page, bytes(PAGE))[within : within + n_bytes - done]
            parts.append(piece)
            done += len(piece)
        return b"".join(parts)

    def copy(self) -> "SparseFile":
        other = SparseFile()
        other.size, other.pages = self.size, dict(self.pages)
        return other


class SimulatedDisk:
    """What one store has on its disk."""

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.capacity_bytes = capacity_bytes
        self.others_bytes = 0
        self.hook: Callable[[str], None] = lambda step: None
        self.is_cached: Callable[[], bool] = lambda: True
        """whether a read that must not wait finds its bytes in memory"""
        self.steps = 0
        self.read_bytes = 0
        """of block files"""
        self.read_records = 0
        self._seen: dict[Name, SparseFile] = {}
        self._safe: dict[Name, SparseFile] = {}
        self._unsafe: dict[Name, list[Write]] = {}
        self._units: dict[int, set[int]] = {}
        self.records: dict[bytes, bytes] = {}
        self._safe_records: dict[bytes, bytes] = {}
        self._unsafe_batches: list[tuple[list[tuple[bytes, bytes]], list[bytes]]] = []
        self._spare_bytes = 0
        self._life = 0

    def parts(self) -> Parts:
        """Open what is there; parts that were handed out before must not be used any more."""
        self._life += 1
        return Parts(_Records(self, self._life), _Blocks(self, self._life), _Log(self, self._life))

    def crash(self, rng: Random, survives: float = 0.5) -> None:
        """Lose power: of what was not synced each piece survives with this probability, or half."""
        self._life += 1
        for name, writes in self._unsafe.items():
            file = self._safe[name]
            if file.size < self._seen[name].size and rng.random() < survives:
                file.size = self._seen[name].size
            for write in writes:
                self._keep_some(file, write, rng, survives)
        for name, file in list(self._safe.items()):
            self._seen[name] = file.copy()
        self._unsafe = {name: [] for name in self._safe}
        for puts, deletes in self._unsafe_batches:
            if rng.random() >= survives:
                break
            _change(self._safe_records, puts, deletes)
        self.records = dict(self._safe_records)
        self._unsafe_batches = []

    @staticmethod
    def _keep_some(file: SparseFile, write: Write, rng: Random, survives: float) -> None:
        size = file.size
        at, end = write.at, write.at + len(write.data)
        while at < end:
            stop = min(end, (at // PAGE + 1) * PAGE)
            if rng.random() < survives:
                if rng.random() < 0.2:  # torn within the page
                    first = rng.randrange(at // SECTOR, -(-stop // SECTOR)) * SECTOR
                    file.write(
                        max(at, first), write.data[max(at, first) - write.at : stop - write.at]
                    )
                else:
                    file.write(at, write.data[at - write.at : stop - write.at])
            at = stop
        if file.size > size and rng.random() >= survives:
            file.size = size

    def flip(self, rng: Random, kind: str = "blocks") -> bool:
        """Flip a bit of a page that was written, in memory and on the disk; False if none was."""
        names = [n for n in sorted(self._seen) if n[0] == kind and self._seen[n].pages]
        if not names:
            return False
        name = rng.choice(names)
        page = rng.choice(sorted(self._seen[name].pages))
        at, bit = rng.randrange(PAGE), 1 << rng.randrange(8)
        for file in (self._seen[name], self._safe[name]):
            data = bytearray(file.pages.get(page, bytes(PAGE)))
            data[at] ^= bit
            file.pages[page] = bytes(data)
        self._unsafe[name] = [
            self._flipped(write, page * PAGE + at, bit) for write in self._unsafe[name]
        ]
        return True

    @staticmethod
    def _flipped(write: Write, at: int, bit: int) -> Write:
        if not write.at <= at < write.at + len(write.data):
            return write
        data = bytearray(write.data)
        data[at - write.at] ^= bit
        return Write(write.at, bytes(data))

    # ------------------------------------------------------------------ for the parts

    def step(self, life: int, what: str) -> None:
        assert life == self._life, "parts are used after a crash, or after they were opened again"
        self.steps += 1
        self.hook(what)

    def make(self, name: Name) -> None:
        for files in (self._seen, self._safe):
            files.setdefault(name, SparseFile())
        self._unsafe.setdefault(name, [])

    def remove(self, name: Name) -> None:
        for files in (self._seen, self._safe, self._unsafe):
            files.pop(name, None)

    def names(self, kind: str) -> list[int]:
        return sorted(number for what, number in self._seen if what == kind)

    def seen(self, name: Name) -> SparseFile:
        return self._seen[name]

    def write(self, name: Name, at: int, data: bytes) -> None:
        self._seen[name].write(at, data)
        self._unsafe[name].append(Write(at, data))

    def resize(self, name: Name, size: int, *, safe: bool) -> None:
        self._seen[name].size = size
        if safe:
            self._safe[name].size = size

    def sync(self, name: Name) -> None:
        file = self._safe[name]
        for write in self._unsafe[name]:
            file.write(write.at, write.data)
        file.size = self._seen[name].size
        self._unsafe[name] = []

    def take(self, size_class: int, at: int, n_bytes: int) -> None:
        """Set space aside; all of it or none."""
        units = self._units.setdefault(size_class, set())
        wanted = set(range(at // UNIT, -(-(at + n_bytes) // UNIT))) - units
        if len(wanted) * UNIT > self.available_bytes():
            raise Error(Code.NO_SPACE, "the simulated disk is full")
        units |= wanted

    def give(self, size_class: int, at: int, n_bytes: int) -> None:
        self._units.setdefault(size_class, set()).difference_update(
            range(at // UNIT, (at + n_bytes) // UNIT)
        )

    def block_bytes(self) -> int:
        return sum(map(len, self._units.values())) * UNIT

    def available_bytes(self) -> int:
        log = sum(file.size for (kind, _), file in self._seen.items() if kind == "log")
        taken = self.block_bytes() + log + self._spare_bytes + self.others_bytes
        return max(0, self.capacity_bytes - taken)

    def need(self, n_bytes: int) -> None:
        if n_bytes > self.available_bytes():
            raise Error(Code.NO_SPACE, "the simulated disk is full")

    def reserve(self, n_bytes: int) -> bool:
        if n_bytes > self._spare_bytes + self.available_bytes():
            return False
        self._spare_bytes = n_bytes
        return True

    def change_records(self, puts: list[tuple[bytes, bytes]], deletes: list[bytes]) -> None:
        _change(self.records, puts, deletes)
        self._unsafe_batches.append((puts, deletes))

    def sync_records(self) -> None:
        for puts, deletes in self._unsafe_batches:
            _change(self._safe_records, puts, deletes)
        self._unsafe_batches = []


def _change(
    records: dict[bytes, bytes], puts: list[tuple[bytes, bytes]], deletes: list[bytes]
) -> None:
    for key in deletes:
        records.pop(key, None)
    records.update(puts)


class _Records:
    """See ``parts.RecordsDatabase``."""

    def __init__(self, disk: SimulatedDisk, life: int) -> None:
        self._disk, self._life = disk, life
        self._keys = sorted(disk.records)

    def get(self, key: bytes) -> bytes | None:
        self._disk.step(self._life, "records.get")
        return self._disk.records.get(key)

    def write(
        self, puts: Iterable[tuple[bytes, bytes]] = (), deletes: Iterable[bytes] = ()
    ) -> None:
        self._disk.step(self._life, "records.write")
        puts, deletes = list(puts), list(deletes)
        self._disk.need(sum(len(key) + len(value) for key, value in puts))
        known = self._disk.records
        for key in sorted({key for key, _ in puts if key not in known}):
            insort(self._keys, key)
        gone = {key for key in deletes if key in known} - {key for key, _ in puts}
        if gone:
            self._keys = [key for key in self._keys if key not in gone]
        self._disk.change_records(puts, deletes)

    def items(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        self._disk.step(self._life, "records.items")
        keys = self._keys[bisect_left(self._keys, max(prefix, after)) :]
        found = [(key, self._disk.records[key]) for key in keys if key.startswith(prefix)]
        self._disk.read_records += len(found)
        return iter(found)

    def sync(self) -> None:
        self._disk.step(self._life, "records.sync")
        self._disk.sync_records()

    def close(self) -> None:
        pass


class _Blocks:
    """See ``parts.BlockFiles``."""

    def __init__(self, disk: SimulatedDisk, life: int) -> None:
        self._disk, self._life = disk, life

    def sizes(self) -> dict[int, int]:
        names = self._disk.names("blocks")
        return {name: self._disk.seen(("blocks", name)).size for name in names}

    def grow(self, size_class: int, size: int) -> None:
        self._disk.step(self._life, "blocks.grow")
        name = ("blocks", size_class)
        self._disk.make(name)
        old = self._disk.seen(name).size
        self._disk.take(size_class, old, size - old)
        self._disk.resize(name, size, safe=False)

    def shrink(self, size_class: int, size: int) -> None:
        self._disk.step(self._life, "blocks.shrink")
        name = ("blocks", size_class)
        self._disk.give(size_class, size, self._disk.seen(name).size - size)
        self._disk.resize(name, size, safe=True)

    def punch(self, size_class: int, offset: int, n_bytes: int) -> bool:
        self._disk.step(self._life, "blocks.punch")
        self._disk.give(size_class, offset, n_bytes)
        self._disk.write(("blocks", size_class), offset, bytes(n_bytes))
        return True

    def fill(self, size_class: int, offset: int, n_bytes: int) -> None:
        self._disk.step(self._life, "blocks.fill")
        self._disk.take(size_class, offset, n_bytes)

    def write(self, size_class: int, offset: int, data: memoryview) -> None:
        self._disk.step(self._life, "blocks.write")
        name = ("blocks", size_class)
        assert offset + len(data) <= self._disk.seen(name).size, "a write beyond the file"
        self._disk.write(name, offset, bytes(data))

    def scatter(self, size_class: int, pieces: list[tuple[int, bytes]]) -> None:
        for offset, data in pieces:
            self.write(size_class, offset, memoryview(data))

    def read(
        self,
        size_class: int,
        offset: int,
        into: Sequence[memoryview],
        n_bytes: int,
        *,
        nowait: bool = False,
    ) -> int:
        self._disk.step(self._life, "blocks.read")
        if nowait and not self._disk.is_cached():
            raise BlockingIOError
        self._disk.read_bytes += n_bytes
        data = self._disk.seen(("blocks", size_class)).read(offset, n_bytes)
        done = 0
        for view in into:
            piece = data[done : done + len(view)]
            view[: len(piece)] = piece
            done += len(piece)
        return done

    def table(self) -> None:
        return None

    def drop_cache(self, size_class: int, offset: int, n_bytes: int) -> None:
        pass

    def sync(self, size_class: int) -> None:
        self._disk.step(self._life, "blocks.sync")
        self._disk.sync(("blocks", size_class))

    def disk(self) -> Disk:
        disk = self._disk
        return Disk(disk.capacity_bytes, disk.available_bytes())

    def taken_bytes(self) -> int:
        return self._disk.block_bytes()

    def reserve(self, n_bytes: int) -> bool:
        return self._disk.reserve(n_bytes)

    def close(self) -> None:
        pass


class _Log:
    """See ``parts.LogFiles``."""

    def __init__(self, disk: SimulatedDisk, life: int) -> None:
        self._disk, self._life = disk, life

    def segments(self) -> list[int]:
        return self._disk.names("log")

    def create(self, number: int) -> None:
        self._disk.step(self._life, "log.create")
        self._disk.make(("log", number))

    def write(self, number: int, at: int, data: Sequence[Buffer]) -> None:
        self._disk.step(self._life, "log.write")
        whole = b"".join(data)
        size = self._disk.seen(("log", number)).size
        self._disk.need(at + len(whole) - size)
        self._disk.write(("log", number), at, whole)

    def read(self, number: int) -> bytes:
        self._disk.step(self._life, "log.read")
        file = self._disk.seen(("log", number))
        return file.read(0, file.size)

    def sync(self, number: int) -> None:
        self._disk.step(self._life, "log.sync")
        self._disk.sync(("log", number))

    def remove(self, number: int) -> None:
        self._disk.step(self._life, "log.remove")
        self._disk.remove(("log", number))

    def close(self) -> None:
        pass
