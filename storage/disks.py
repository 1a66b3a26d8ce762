"""Disks: the places of a node's targets, each with threads and a probe of its own.

A disk that hangs keeps its own threads busy and nobody else's. It is known to others by the file
system that it carries, so that several targets of one disk count once in what the cluster holds.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hillfire.config import StorageConfig
from hillfire.errors import Code, Error
from hillfire.storage.health import Disk as State
from hillfire.storage.probe import Probe, write_and_read

MARKER = "hillfire-disk"
"""A file on each of several disks: where it is missing, the disk is not mounted."""
KNOWN = "disks"
"""A file in the node's directory: the disks that were given their marker."""
_DEVICE_BITS = (1 << 63) - 1


class Disk:
    """One directory on a disk, its threads and its health."""

    def __init__(
        self, directory: Path, config: StorageConfig, changed: Callable[["Disk"], None]
    ) -> None:
        """Call ``changed`` when the disk failed, and after each good probe."""
        self.directory = directory
        self.alone = len(config.disks) < 2
        """the node's only one: if it hangs there is nobody else whom the event loop serves"""
        self.executor = ThreadPoolExecutor(config.io_threads, f"disk-{directory.name}")
        self.probe = Probe(
            directory,
            config.probe_interval_ms / 1000,
            config.probe_timeout_ms / 1000,
            lambda probe: changed(self),
            attempt=self._attempt,
        )
        self.device = _device(directory)

    def __repr__(self) -> str:
        """Tell the directory and its health."""
        return f"<Disk {self.directory} {self.probe.health.state.value}>"

    @property
    def failure(self) -> str:
        """Why it cannot be used now; empty if it can."""
        return "" if self.probe.health.state is State.WORKS else self.probe.health.reason

    def place(self, target: int) -> Path:
        """Return where a target's store is on this disk."""
        return self.directory / "targets" / str(target)

    def _attempt(self, directory: Path) -> None:
        """Make a probe; a disk that is not mounted fails it.

        Raises:
            OSError: see ``write_and_read``.
        """
        if not self.alone and not (directory / MARKER).exists():
            raise OSError(errno.ENODEV, f"no {MARKER} there: is it mounted?", str(directory))
        write_and_read(directory)
        self.device = _device(directory)

    async def stop(self) -> None:
        """Probe no more and end the threads; those that hang in the kernel are left behind."""
        await self.probe.stop()
        hangs = self.probe.health.state is State.HANGS
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: self.executor.shutdown(wait=not hangs))


def open_disks(config: StorageConfig, changed: Callable[[Disk], None]) -> list[Disk]:
    """Return a node's disks, the first one first.

    Raises:
        Error: CONFIGURATION if a directory cannot be used.
    """
    disks = [Disk(each, config, changed) for each in config.disks or (config.directory,)]
    if len(disks) > 1:
        _mark(config.directory / KNOWN, disks)
    else:
        _make(disks[0].directory)
    return disks


def _make(directory: Path) -> None:
    """Make a directory.

    Raises:
        Error: CONFIGURATION.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        text = f"cannot use the disk at {directory}: {exc.strerror}"
        raise Error(Code.CONFIGURATION, text) from exc


def _mark(known_file: Path, disks: Sequence[Disk]) -> None:
    """Give new disks their marker; one that had it and lacks it now is not mounted, and fails.

    Without that a node would fill the directory below a mount point with all that was on the disk.
    """
    known = set(known_file.read_text().splitlines()) if known_file.exists() else set()
    for disk in disks:
        marker = disk.directory / MARKER
        try:
            if str(disk.directory) not in known:
                disk.directory.mkdir(parents=True, exist_ok=True)
                marker.touch()
                known.add(str(disk.directory))
            there = marker.exists()
        except OSError as exc:
            disk.probe.fail(f"cannot be used: {exc.strerror}")
        else:
            if not there:
                disk.probe.fail(f"no {MARKER} in it: is it mounted?")
    known_file.write_text("".join(f"{each}\n" for each in sorted(known)))


def find_place(disks: Sequence[Disk], number: int, target: int) -> Disk:
    """Return the disk of a target: where its store is, else the one that the table names."""
    for disk in disks:
        try:
            if disk.place(target).exists():
                return disk
        except OSError:  # it fails: another one does not have what is not found there
            continue
    return disks[number % len(disks)]


def _device(directory: Path) -> int:
    """Return a number for the file system below a directory, the same for all who share it."""
    try:
        status = os.statvfs(directory)
        return (status.f_fsid or os.stat(directory).st_dev) & _DEVICE_BITS
    except OSError:
        return 0
