"""A mount as a process runs it: checks, the kernel's side, signals, and leaving nothing behind.

Which binding speaks to the kernel is chosen here and known nowhere else.
"""

import asyncio
import contextlib
import ctypes
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
from hillfire.config import MountConfig, format_size
from hillfire.errors import Code, Error
from hillfire.fuse.operations import Operations
from hillfire.fuse.writeback import WriteBehind
from hillfire.proto import process
from hillfire.types import ROOT_INODE

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 4096
"""The kernel's read-ahead: four requests of 1 MiB under way for a sequential reader."""
UNMOUNT_S = 10.0
STALL_S = 8.0
"""A mount that ends gives up on what was written last when for so long nothing of it is stored."""
FINISH_S = 5.0
"""For what is left to tell the metadata service then."""
LINGER_S = 3.0
"""How long files that are still open are served after a lazy unmount."""
NAMED = 8
"""Files that a message names."""
FSTYPE = "hillfire"
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_LIBC = ctypes.CDLL(None, use_errno=True)


async def run(config: MountConfig, ready: Callable[[], None]) -> None:
    """Mount the cluster and answer until unmounted, SIGTERM or SIGINT; ``ready`` once it works.

    Raises:
        Error: CONFIGURATION with cause and remedy when it cannot be mounted, UNAVAILABLE when
            no manager answers; IO, once it was told to end, if something that was written could
            not be stored.
    """
    mountpoint = check(config.mountpoint)
    process.watch()
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
    loop, ended, told = asyncio.get_running_loop(), False, False
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
            told = True
            log.info("unmounting mountpoint=%s", mountpoint)
            await _store(operations.behind)
            ended = await asyncio.to_thread(unmount, mountpoint)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0 if operations.behind.lost else LINGER_S):
                    await asyncio.shield(serving)
        if serving.done():
            serving.result()
    finally:
        idle.cancel()
        if not serving.done():
            binding.stop()
            await asyncio.wait((serving,), timeout=UNMOUNT_S)
        try:
            if not operations.behind.lost:
                await _store(operations.behind)
            lost = bool(operations.behind.lost)
            await _within(FINISH_S if lost else config.io_timeout_s, operations.finish())
        finally:
            binding.detach(unmount=not ended)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    if operations.behind.lost and told:
        raise Error(Code.IO, _loss(operations.behind))


async def _store(behind: WriteBehind) -> None:
    """Store what was written, for as long as the cluster takes some of it."""
    storing = asyncio.create_task(behind.flush_all())
    left = behind.unsent()
    while not (await asyncio.wait((storing,), timeout=STALL_S))[0]:
        before, left = left, behind.unsent()
        if sum(left.values()) >= sum(before.values()):
            storing.cancel()
            await asyncio.wait((storing,))
            behind.lost.update(left)
            log.error("what was written last is lost: %s", _loss(behind))
            return


def _loss(behind: WriteBehind) -> str:
    """Say what could not be stored."""
    unsent, lost = behind.unsent(), sorted(behind.lost)
    names = ", ".join(map(str, lost[:NAMED])) + (", ..." if len(lost) > NAMED else "")
    size = f"{format_size(sum(unsent.values()))} written to " if unsent else "something written to "
    return (
        f"{size}{len(lost)} open file{'s' * (len(lost) > 1)} (inode {names}) could not be stored "
        "and is lost: the storage nodes did not take it; what fsync or close had confirmed is safe"
    )


async def _within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Do the last things, but not for ever: a cluster that is down must not keep the mount."""
    try:
        await asyncio.wait_for(work, seconds)
    except TimeoutError:
        log.error("the metadata service did not answer in %.0f s", seconds)


async def _flush_idle(operations: Operations) -> None:
    while True:
        await asyncio.sleep(0.5)
        operations.behind.flush_idle()
        operations.close_some()


def options(config: MountConfig) -> set[str]:
    """Return the mount's options as libfuse takes them."""
    address = config.address.replace(",", "\\,")  # a comma ends an option
    chosen = {f"fsname={FSTYPE}@{address}", f"subtype={FSTYPE}"}
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
    """Unmount, lazily if something still uses it; tell whether it is gone.

    Root asks the kernel itself: umount(8) looks at the directory first, which only this mount,
    whose cluster may be gone, could answer.
    """
    if os.geteuid() == 0:
        for flags in (0, _MNT_DETACH):
            if _LIBC.umount2(os.fsencode(mountpoint), flags | _UMOUNT_NOFOLLOW) == 0:
                return True
            log.info("unmount flags=%d error=%s", flags, os.strerror(ctypes.get_errno()))
    for command in _unmounters(mountpoint):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, timeout=UNMOUNT_S)
            if done.returncode == 0:
                return True
            log.info("command=%s error=%s", command[0], done.stderr.decode().strip())
    return False


def _unmounters(mountpoint: Path) -> list[list[str]]:
    where = str(mountpoint)
    return [["fusermount3", "-u", where], ["fusermount3", "-u", "-z", where]]


def _tune(mountpoint: Path) -> None:
    """Raise the kernel's read-ahead where this user may."""
    device = os.stat(mountpoint).st_dev
    knob = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        knob.write_text(str(READ_AHEAD_KIB))
    except OSError as exc:
        log.info("read-ahead stays as it is file=%s error=%s", knob, exc)
