"""What the host says about mounting: is there FUSE, is a directory fit, how is one taken off."""

import errno
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from hillfire.errors import Code, Error

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
_UNMOUNT_TIMEOUT_S = 20
_ANSWER_TIMEOUT_S = 1.0


def check_fuse() -> None:
    """Check that this host can mount at all.

    Raises:
        Error: NOT_SUPPORTED with what to install or to allow.
    """
    if not FUSE_DEVICE.exists():
        raise Error(
            Code.NOT_SUPPORTED,
            "there is no /dev/fuse: load the kernel's module (`sudo modprobe fuse`); in a "
            "container, start it with `--device /dev/fuse --cap-add SYS_ADMIN`. Without a mount "
            "the cluster can be used from Python: `hillfire.connect()`",
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise Error(
            Code.NOT_SUPPORTED,
            "/dev/fuse may not be opened by this user: `sudo chmod 666 /dev/fuse`, or run as root",
        )
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise Error(
            Code.NOT_SUPPORTED,
            "there is no fusermount3, which users need to mount: `sudo apt-get install fuse3`",
        )


def check_allow_other() -> None:
    """Check that this user may let other users into a mount.

    Raises:
        Error: CONFIGURATION with what root has to allow.
    """
    if os.geteuid() == 0:
        return
    try:
        lines = FUSE_CONF.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if "user_allow_other" not in (line.strip() for line in lines):
        raise Error(
            Code.CONFIGURATION,
            f"other users may be let in by root only, as {FUSE_CONF} is: `echo user_allow_other | "
            f"sudo tee -a {FUSE_CONF}`, or mount without --allow-other",
        )


def check_mountpoint(directory: Path) -> None:
    """Check that a directory can be mounted on; one left by a dead mount is freed first.

    Raises:
        Error: NOT_FOUND, NOT_DIRECTORY, BUSY, NOT_EMPTY or CONFIGURATION, with the remedy.
    """
    try:
        status = directory.stat()
        os.statvfs(directory)  # never answered from a cache that a dead mount left
    except FileNotFoundError:
        raise Error(
            Code.NOT_FOUND, f"the mount directory {directory} is missing: `mkdir -p {directory}`"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.EIO) or not is_ours(directory):
            raise Error(Code.BUSY, f"{directory} cannot be mounted on: {error.strerror}") from error
        unmount(directory, lazy=True)
        status = directory.stat()
    if not directory.is_dir():
        raise Error(Code.NOT_DIRECTORY, f"{directory} is no directory: name one to mount on")
    if is_mounted(directory):
        raise Error(
            Code.BUSY,
            f"something is mounted on {directory} already: `hillfire umount {directory}`, or name "
            "another directory",
        )
    if os.geteuid() != 0 and not _may_mount_on(directory):
        raise Error(
            Code.CONFIGURATION,
            f"{directory} belongs to somebody else, and a user mounts only on what is theirs to "
            "write: name a directory of yours, or mount as root",
        )
    if any(directory.iterdir()):
        raise Error(
            Code.NOT_EMPTY,
            f"the mount directory {directory} is busy: it is not empty, and a mount would hide "
            "what is in it; name an empty one",
        )
    assert status is not None


def _may_mount_on(directory: Path) -> bool:
    """Whether fusermount3 lets this user: who may write it, and owns it where it is sticky."""
    status = directory.stat()
    sticky = bool(status.st_mode & stat.S_ISVTX)
    return os.access(directory, os.W_OK) and (not sticky or status.st_uid == os.getuid())


def mounted_type(directory: Path) -> str | None:
    """Return the type and source of what is mounted exactly on ``directory``, as "type source"."""
    wanted = os.fsencode(os.path.join(os.path.realpath(directory.parent), directory.name))
    found = None
    with open("/proc/self/mountinfo", "rb") as rows:
        for row in rows:
            before, _, after = row.partition(b" - ")
            point = re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), before.split(b" ")[4])
            if point == wanted:
                found = b" ".join(after.split(b" ")[:2]).decode(errors="replace")
    return found


def is_mounted(directory: Path) -> bool:
    """Whether something is mounted exactly on ``directory``."""
    return mounted_type(directory) is not None


def is_ours(directory: Path) -> bool:
    """Whether a hillfire is mounted exactly on ``directory``, alive or dead."""
    return "hillfire" in (mounted_type(directory) or "")


def is_alive(directory: Path, address: str) -> bool:
    """Whether a process serves a mount of the cluster at ``address`` exactly on ``directory``.

    Another process asks, since a mount whose cluster is down may take long to answer.
    """
    if not (mounted_type(directory) or "").endswith(f"hillfire@{address}"):
        return False
    command = ["stat", "--file-system", str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_ANSWER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode == 0


def users(directory: Path) -> list[str]:
    """Return who has something below ``directory`` open, as "program (pid N)", as far as is known.

    Nothing below it is touched: a mount that does not answer must not stop whoever asks.
    """
    wanted, found = os.path.realpath(directory.parent) + "/" + directory.name, []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            links = [process / "cwd", *(process / "fd").iterdir()]
            if any(_is_below(_link(link), wanted) for link in links):
                name = (process / "comm").read_text().strip()
                found.append(f"{name} (pid {process.name})")
        except OSError:  # gone meanwhile, or another user's
            continue
    return found


def _link(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed meanwhile
        return ""


def _is_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def unmount(directory: Path, *, lazy: bool = False) -> None:
    """Take a mount off. ``lazy``: now for new users of it, for others when they are done.

    Raises:
        Error: NOT_FOUND if none is there, BUSY if it is in use, IO.
    """
    if not is_mounted(directory):
        raise Error(Code.NOT_FOUND, f"nothing is mounted on {directory}")
    flag = "-uz" if lazy else "-u"
    if shutil.which("fusermount3"):
        command = ["fusermount3", flag, str(directory)]
    else:
        command = ["umount", *(["-l"] if lazy else []), str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_UNMOUNT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Error(Code.IO, f"{' '.join(command)}: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        if "busy" in said.lower():
            raise Error(
                Code.BUSY,
                f"{directory} is in use: `fuser -vm {directory}` shows by whom; close that, or "
                "`hillfire umount --lazy`",
            )
        raise Error(Code.IO, said or f"{' '.join(command)} failed")
