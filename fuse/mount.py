"""A mount as a process runs it: checks, the kernel's side, signals, and leaving nothing behind.

Which binding speaks to the kernel is chosen here and known nowhere else.
"""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from hillfire.client.aio import Client
from hillfire.config import MountConfig
from hillfire.errors import Code, Error
from hillfire.fuse.operations import Operations
from hillfire.types import ROOT_INODE

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 4096
"""The kernel's read-ahead: four requests of 1 MiB under way for a sequential reader."""
UNMOUNT_S = 10.0
LINGER_S = 3.0
"""How long files that are still open are served after a lazy unmount."""
FSTYPE = "hillfire"


async def run(config: MountConfig, ready: Callable[[], None]) -> None:
    """Mount the cluster and answer until unmounted, SIGTERM or SIGINT; ``ready`` once it works.

    Raises:
        Error: CONFIGURATION with cause and remedy when it cannot be mounted, UNAVAILABLE when
            no manager answers.
    """
    mountpoint = check(config.mountpoint)
    client = await Client.connect(
        config.address, transport=config.transport, io_timeout_s=config.io_timeout_s
    )
    try:
        operations = Operations(client, config)
        await operations.fetch(ROOT_INODE)
        await _serve(operations, config, mountpoint, ready)
    finally:
        await client.close()


async def _serve(
    operations: Operations, config: MountConfig, mountpoint: Path, ready: Callable[[], None]
) -> None:
    from hillfire.fuse import binding_pyfuse3 as binding

    binding.attach(operations, str(mountpoint), options(config))
    loop, ended = asyncio.get_running_loop(), False
    serving = asyncio.create_task(binding.serve(), name="fuse")
    idle = asyncio.create_task(_flush_idle(operations), name="write-behind")
    stop = asyncio.Event()
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await asyncio.to_thread(_tune, mountpoint)
        ready()
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if serving.done():
            ended = True
        else:
            log.info("unmounting mountpoint=%s", mountpoint)
            await _within(config.io_timeout_s, operations.behind.flush_all())
            ended = await asyncio.to_thread(unmount, mountpoint)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await asyncio.shield(serving)
        if serving.done():
            serving.result()
    finally:
        idle.cancel()
        if not serving.done():
            binding.stop()
            await asyncio.wait((serving,), timeout=UNMOUNT_S)
        try:
            await _within(config.io_timeout_s, operations.finish())
        finally:
            binding.detach(unmount=not ended)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Do the last things, but not for ever: a cluster that is down must not keep the mount."""
    try:
        await asyncio.wait_for(work, seconds)
    except TimeoutError:
        log.error("what was written last is lost: the cluster did not take it in %.0f s", seconds)


async def _flush_idle(operations: Operations) -> None:
    while True:
        await asyncio.sleep(0.5)
        operations.behind.flush_idle()
        operations.close_some()


def options(config: MountConfig) -> set[str]:
    """Return the mount's options as libfuse takes them."""
    chosen = {f"fsname={FSTYPE}@{config.address}", f"subtype={FSTYPE}"}
    if config.allow_other:
        chosen.add("allow_other")
    return chosen


def check(mountpoint: Path) -> Path:
    """Return the real path of a directory that can be mounted on; clear away a dead mount.

    Raises:
        Error: CONFIGURATION with cause and remedy.
    """
    if not os.path.exists("/dev/fuse"):
        text = "there is no /dev/fuse: load the module (`modprobe fuse`), or give the container it"
        raise Error(Code.CONFIGURATION, text)
    if shutil.which("fusermount3") is None and os.geteuid() != 0:
        raise Error(Code.CONFIGURATION, "fusermount3 is missing: install the package fuse3")
    try:
        found = os.stat(mountpoint)
        os.statvfs(mountpoint)  # never answered from a cache that a dead mount left
    except OSError as exc:
        if exc.errno == errno.ENOTCONN:
            log.warning("a dead mount is cleared away mountpoint=%s", mountpoint)
            unmount(mountpoint)
            return check(mountpoint)
        text = f"cannot mount at {mountpoint}: {exc.strerror}; make the directory first"
        raise Error(Code.CONFIGURATION, text) from exc
    if not stat.S_ISDIR(found.st_mode):
        raise Error(Code.CONFIGURATION, f"cannot mount at {mountpoint}: it is not a directory")
    real = Path(os.path.realpath(mountpoint))
    kind = mounted_as(real)
    if kind is not None and kind.startswith("fuse."):
        text = f"{mountpoint} is already a mount ({kind}): `umount {mountpoint}`, or take another"
        raise Error(Code.CONFIGURATION, text)
    return real


def mounted_as(mountpoint: Path) -> str | None:
    """Return the type of the file system mounted at a path, None if it is no mount point."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, after = line.partition(" - ")
        where = fields.split()[4].encode().decode("unicode_escape")
        if where == str(mountpoint):
            found = after.split()[0]
    return found


def unmount(mountpoint: Path) -> bool:
    """Unmount, lazily if something still uses it; tell whether it is gone."""
    for command in _unmounters(mountpoint):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, timeout=UNMOUNT_S)
            if done.returncode == 0:
                return True
            log.info("command=%s error=%s", command[0], done.stderr.decode().strip())
    return False


def _unmounters(mountpoint: Path) -> list[list[str]]:
    where = str(mountpoint)
    helper = [["fusermount3", "-u", where], ["fusermount3", "-u", "-z", where]]
    if os.geteuid() == 0:
        return [["umount", where], ["umount", "-l", where], *helper]
    return helper


def _tune(mountpoint: Path) -> None:
    """Raise the kernel's read-ahead where this user may."""
    device = os.stat(mountpoint).st_dev
    knob = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        knob.write_text(str(READ_AHEAD_KIB))
    except OSError as exc:
        log.info("read-ahead stays as it is file=%s error=%s", knob, exc)
