"""Disks: the places of a node's targets, each with threads and a probe of its own.

A disk that hangs keeps its own threads busy and nobody else's. It is known to others by the file
system that it carries, so that several targets of one disk count once in what the cluster holds.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hillfire.config import StorageConfig
from hillfire.errors import Code, Error
from hillfire.storage.health import Disk as State
from hillfire.storage.probe import Probe

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
    directories = config.disks or (config.directory,)
    for directory in directories:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise Error(
                Code.CONFIGURATION, f"cannot use the disk at {directory}: {exc.strerror}"
            ) from exc
    return [Disk(directory, config, changed) for directory in directories]


def find_place(disks: Sequence[Disk], number: int, target: int) -> Disk:
    """Return the disk of a target: where its store is, else the one that the table names."""
    for disk in disks:
        if disk.place(target).exists():
            return disk
    return disks[number % len(disks)]


def _device(directory: Path) -> int:
    """Return a number for the file system below a directory, the same for all who share it."""
    try:
        status = os.statvfs(directory)
        return (status.f_fsid or os.stat(directory).st_dev) & _DEVICE_BITS
    except OSError:
        return 0
