"""What a disk holds after a crash, from a recorder's journal (``recorder.py``).

Two crashes. The *process* dies: the kernel has every call that returned, and of a write that was
under way a part. The host loses its *power*: of each file there is what was synced, and of the
writes since any part, page by page, torn at sectors; of each directory the entries that were
synced, and of the changes since a prefix. That is less than common file systems keep (they order
more), so what survives it survives them.
"""

import contextlib
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hillfire.local.mounts import is_mounted, unmount

PAGE, SECTOR = 4096, 512
ROOT = 1
HERE = Path(__file__).parent

Call = tuple[Any, ...]
"""("write", inode, offset, bytes), ("size", inode, n), ("sync", inode), ("mark", text),
("add", parent, name, inode, is_directory), ("remove", parent, name), ("link", parent, name, inode)
or ("rename", parent, name, new parent, new name)"""


class Recording:
    """A mounted recorder: a directory to work in, and afterwards the calls that were made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.calls: list[Call] = []

    def mark(self, text: str) -> None:
        """Write a mark between the calls: what happened before it is before it in the journal."""
        with contextlib.suppress(FileNotFoundError):
            os.lstat(self.directory / f".mark-{text}")


@contextmanager
def recording(scratch: Path) -> Iterator[Recording]:
    """Mount a recorder; its calls are there when the block has ended."""
    mountpoint, journal = scratch / "recorded", scratch / "journal"
    mountpoint.mkdir()
    server = subprocess.Popen(
        [sys.executable, str(HERE / "recorder.py"), str(mountpoint), str(journal)],
        stdout=subprocess.PIPE,
    )
    made = Recording(mountpoint)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == b"ready\n", "no recorder: is there /dev/fuse?"
        yield made
    finally:
        try:
            unmount(mountpoint)
            server.wait(30)
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
            if is_mounted(mountpoint):
                unmount(mountpoint, lazy=True)
    with journal.open("rb") as file, contextlib.suppress(EOFError):
        while True:
            made.calls.append(pickle.load(file))


class _File:
    __slots__ = ("pending", "synced")

    def __init__(self) -> None:
        self.synced = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []
        """writes (offset, bytes) and sizes (size, None) since the last sync"""


class _Directory:
    __slots__ = ("pending", "synced")

    def __init__(self) -> None:
        self.synced: dict[bytes, int] = {}
        self.pending: list[list[tuple[bytes, int | None]]] = []
        """changes since the last sync, each of names to inodes, None for one that goes"""

    def live(self) -> dict[bytes, int]:
        return _with(self.synced, self.pending)


class Power(NamedTuple):
    """How much of what was not synced survives a loss of power."""

    kept: float
    """share of the pages; 0: only what was synced"""
    torn: float
    """share of those that are cut at a sector"""


LEAST = Power(0, 0)
MOST = Power(1, 0)


class Disk:
    """The state after a prefix of the calls."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._directories: dict[int, _Directory] = {ROOT: _Directory()}

    def apply(self, call: Call) -> None:
        """Carry a call out."""
        what = call[0]
        if what == "write":
            self._files[call[1]].pending.append((call[2], call[3]))
        elif what == "size":
            self._files[call[1]].pending.append((call[2], None))
        elif what == "sync":
            self._sync(call[1])
        elif what == "add":
            _, parent, name, inode, is_directory = call
            if is_directory:
                self._directories[inode] = _Directory()
            else:
                self._files[inode] = _File()
            self._directories[parent].pending.append([(name, inode)])
        elif what == "link":
            self._directories[call[1]].pending.append([(call[2], call[3])])
        elif what == "remove":
            self._directories[call[1]].pending.append([(call[2], None)])
        elif what == "rename":
            _, parent, name, to, new_name = call
            assert parent == to, "a rename between directories: nothing here does that"
            inode = self._directories[parent].live()[name]
            self._directories[parent].pending.append([(name, None), (new_name, inode)])
        else:
            assert what == "mark", call

    def after_kill(self, under_way: Call | None = None, part: float = 0.5) -> dict[str, bytes]:
        """Return the files after the process died, perhaps in the middle of a write."""
        cut: dict[int, tuple[int, bytes]] = {}
        if under_way is not None and under_way[0] == "write":
            _, inode, offset, data = under_way
            cut[inode] = offset, data[: int(len(data) * part)]
        found = {}
        for path, inode in self._walk(lambda each: each.live()):
            state = self._files[inode]
            more = [cut[inode]] if inode in cut else []
            found[path] = _replayed(state.synced, [*state.pending, *more])
        return found

    def after_power_loss(self, rng: random.Random, power: Power) -> dict[str, bytes]:
        """Return the files after the host's power went."""

        def names(directory: _Directory) -> dict[bytes, int]:
            count = len(directory.pending)
            if power.kept == 0:
                count = 0
            elif power.kept < 1:
                count = rng.randint(0, count)
            return _with(directory.synced, directory.pending[:count])

        found = {}
        for path, inode in self._walk(names):
            state = self._files[inode]
            kept: list[tuple[int, bytes | None]] = []
            for at, data in state.pending:
                if data is None:
                    if rng.random() < power.kept:
                        kept.append((at, None))
                else:
                    kept += _survivors(rng, power, at, data)
            found[path] = _replayed(state.synced, kept)
        return found

    def _walk(self, names: Any) -> Iterator[tuple[str, int]]:
        """Yield (path, inode) of every file that can be reached."""
        todo = [("", ROOT)]
        while todo:
            path, inode = todo.pop()
            for name, child in sorted(names(self._directories[inode]).items()):
                below = f"{path}/{os.fsdecode(name)}"
                if child in self._directories:
                    todo.append((below, child))
                else:
                    yield below, child

    def _sync(self, inode: int) -> None:
        if inode in self._directories:
            directory = self._directories[inode]
            directory.synced, directory.pending = directory.live(), []
        else:
            state = self._files[inode]
            for at, data in state.pending:
                _put(state.synced, at, data)
            state.pending = []


def lay_out(files: dict[str, bytes], directory: Path) -> None:
    """Write an image's files."""
    for path, data in files.items():
        target = directory / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


@contextmanager
def image(files: dict[str, bytes]) -> Iterator[Path]:
    """Lay an image out in memory if there is room for it, else in the temporary directory."""
    shm = Path("/dev/shm")
    place = shm if os.access(shm, os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="hillfire-image-", dir=place))
    try:
        lay_out(files, directory)
        yield directory
    finally:
        shutil.rmtree(directory)


class Cut(NamedTuple):
    """A crash: before call number ``at``, which was perhaps under way."""

    at: int
    power: Power | None
    """None: the process was killed"""


def cuts(calls: list[Call], rng: random.Random, sample: int | None) -> list[Cut]:
    """Return every crash that is tried, or a sample of so many, in order.

    Each prefix gets one kill and two losses of power: the worst, and a random one.
    """
    random_power = [Power(kept, torn) for kept in (0.2, 0.5, 0.8, 1) for torn in (0, 0.3)]
    found = []
    for at in range(len(calls) + 1):
        if at < len(calls) and calls[at][0] == "mark":
            continue  # as one call later, when more is promised
        found += [Cut(at, None), Cut(at, LEAST), Cut(at, rng.choice(random_power))]
    if sample is not None and sample < len(found):
        found = sorted(rng.sample(found, sample), key=lambda cut: cut.at)
    return found


def crashes(
    calls: list[Call], rng: random.Random, sample: int | None
) -> Iterator[tuple[Cut, dict[str, bytes], list[str]]]:
    """Yield each crash with the files that it leaves and the marks that were made before it."""
    disk, at, marks = Disk(), 0, list[str]()
    for cut in cuts(calls, rng, sample):
        while at < cut.at:
            disk.apply(calls[at])
            if calls[at][0] == "mark":
                marks.append(calls[at][1])
            at += 1
        if cut.power is None:
            under_way = calls[at] if at < len(calls) else None
            files = disk.after_kill(under_way, rng.random())
        else:
            files = disk.after_power_loss(rng, cut.power)
        yield cut, files, marks


def _with(
    names: dict[bytes, int], changes: list[list[tuple[bytes, int | None]]]
) -> dict[bytes, int]:
    made = dict(names)
    for change in changes:
        for name, inode in change:
            if inode is None:
                made.pop(name, None)
            else:
                made[name] = inode
    return made


def _survivors(
    rng: random.Random, power: Power, at: int, data: bytes
) -> list[tuple[int, bytes | None]]:
    """Return the pages of a write that reached the disk."""
    if power.kept >= 1 and not power.torn:
        return [(at, data)]
    found: list[tuple[int, bytes | None]] = []
    start = 0
    while start < len(data):
        end = min(len(data), start + PAGE - (at + start) % PAGE)
        if rng.random() < power.kept:
            stop = end
            if rng.random() < power.torn:  # a tail of the page did not make it
                first = SECTOR - (at + start) % SECTOR
                sectors = list(range(start + first, end, SECTOR))
                stop = rng.choice(sectors) if sectors else start
            if stop > start:
                found.append((at + start, data[start:stop]))
        start = end
    return found


def _replayed(synced: bytearray, changes: list[Any]) -> bytes:
    if not changes:
        return bytes(synced)
    made = bytearray(synced)
    for at, data in changes:
        _put(made, at, data)
    return bytes(made)


def _put(into: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        del into[at:]
        into.extend(bytes(at - len(into)))
        return
    if len(into) < at:
        into.extend(bytes(at - len(into)))
    into[at : at + len(data)] = data
