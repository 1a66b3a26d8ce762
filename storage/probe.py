"""Probe: a small write, sync and read of a disk every few seconds, in a thread of its own.

The thread belongs to no pool: one that hangs in the kernel must not take a thread from those who
serve other disks. What the probes mean is decided by ``health.py``; here they are made and timed.
"""

import asyncio
import contextlib
import errno
import logging
import mmap
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from hillfire.storage.health import Disk, Health

log = logging.getLogger(__name__)

PROBE_BYTES = 4096
RETRY_PART = 6
"""After a failed probe the next one comes after that part of the interval."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""A full disk is no failing one: the store has thresholds of its own."""


class Probe:
    """Watches one disk, by one file in a directory on it."""

    def __init__(
        self,
        directory: Path,
        interval_s: float,
        timeout_s: float,
        changed: Callable[["Probe"], None],
        *,
        attempt: Callable[[Path], None] | None = None,
    ) -> None:
        """Call ``changed`` when ``health.state`` changed, and after each good probe.

        The good ones are told because a target that stopped by itself waits for one. ``attempt``
        makes one probe; tests pass their own.
        """
        self.directory = directory
        self.health = Health()
        self.probes = 0
        """ended ones"""
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._changed = changed
        self._attempt = attempt or write_and_read
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Tell the directory and its disk's state."""
        return f"<Probe {self.directory} {self.health.state.value} {self.health.reason}>"

    def start(self) -> None:
        """Probe from now on."""
        self._task = asyncio.create_task(self._run(), name=f"probe-{self.directory}")

    async def stop(self) -> None:
        """Probe no more; a probe that hangs is left to itself."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def fail(self, reason: str) -> None:
        """Take the disk for failed, before the first probe."""
        while self.health.state is Disk.WORKS:
            self.health.failed(reason)
        self._tell()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            ended: asyncio.Future[str] = loop.create_future()
            began = loop.time()
            thread = threading.Thread(
                target=self._probe, args=(loop, ended), name="disk-probe", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as exc:  # no thread to be had: says nothing of the disk
                log.warning("event=not_probed directory=%s cause=%r", self.directory, str(exc))
                await asyncio.sleep(self._interval_s)
                continue
            while not ended.done():
                await asyncio.wait([ended], timeout=self._timeout_s)
                if not ended.done() and self.health.overdue(loop.time() - began):
                    self._tell()
            self.probes += 1
            failure = ended.result()
            if failure:
                level = logging.WARNING if self.health.state is Disk.WORKS else logging.DEBUG
                changed = self.health.failed(failure)
                log.log(level, "event=probe_failed directory=%s cause=%r", self.directory, failure)
            else:
                changed = self.health.succeeded()
            if changed:
                self._tell()
            elif not failure and self.health.state is Disk.WORKS:
                self._changed(self)
            sound = not failure and self.health.state is Disk.WORKS
            await asyncio.sleep(self._interval_s if sound else self._interval_s / RETRY_PART)

    def _tell(self) -> None:
        health = self.health
        if health.state is Disk.WORKS:
            log.warning("event=disk_works_again directory=%s", self.directory)
        else:
            log.critical(
                "event=disk_%s directory=%s reason=%r remedy=%r", health.state.value,
                self.directory, health.reason,
                "its targets are offline and come back when it works; see dmesg, replace it",
            )  # fmt: skip
        self._changed(self)

    def _probe(self, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[str]") -> None:
        """Make one probe, in a thread."""
        try:
            self._attempt(self.directory)
        except OSError as exc:
            failure = "" if exc.errno in _NO_ROOM else f"{exc.strerror or exc} (probe)"
        except Exception as exc:
            failure = f"{type(exc).__name__}: {exc}"
        else:
            failure = ""
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(_set, ended, failure)


def _set(future: "asyncio.Future[str]", value: str) -> None:
    if not future.done():
        future.set_result(value)


def write_and_read(directory: Path) -> None:
    """Write new bytes over a file's old ones, sync them, and read them back from the disk.

    Raises:
        OSError: whatever the disk says; EIO if the bytes are not those that were written.
    """
    path = directory / "probe"
    wanted = secrets.token_bytes(64).ljust(PROBE_BYTES, b"\0")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, wanted, 0)
        os.fdatasync(fd)
    finally:
        os.close(fd)
    with mmap.mmap(-1, PROBE_BYTES) as page:  # aligned, as O_DIRECT wants it
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:  # a file system without O_DIRECT: from the page cache, then
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            count = os.preadv(fd, [page], 0)
        finally:
            os.close(fd)
        if count != PROBE_BYTES or page[:] != wanted:
            raise OSError(errno.EIO, "what was written is not what is read", str(path))
