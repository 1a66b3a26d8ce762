"""Ports of this host: find free ones, and say who holds one that is not.

They are chosen once, at a cluster's first start, from below the range that the kernel hands out
to outgoing connections, so that a cluster finds its ports free again at its next start.
"""

import errno
import os
import random
import socket
from pathlib import Path

from hillfire.errors import Code, Error

FIRST_CHOICE = 9700
"""Where the first cluster of a host listens."""
_RANGE = (10_000, 30_000)
_ATTEMPTS = 200
_CHANGE = "change the port in the cluster's directory (cluster.json and *.toml)"


def choose(count: int, wanted: int | None = None, host: str = "127.0.0.1") -> int:
    """Return the first of ``count`` consecutive free ports.

    ``wanted`` is taken as it is; without it 9700 if that is free; 0 means anywhere.

    Raises:
        Error: BUSY if a wanted port is taken, UNAVAILABLE if nothing was found.
    """
    if wanted:
        for port in range(wanted, wanted + count):
            check_free(host, port, f"name another --port ({count} from it on are used)")
        return wanted
    if wanted is None and _all_free(host, FIRST_CHOICE, count):
        return FIRST_CHOICE
    for _ in range(_ATTEMPTS):
        first = random.randrange(*_RANGE)
        if _all_free(host, first, count):
            return first
    raise Error(Code.UNAVAILABLE, f"no {count} consecutive free ports on {host}; name one: --port")


def check_free(host: str, port: int, remedy: str = _CHANGE) -> None:
    """Check that a port can be listened on; ``remedy`` is what else than waiting helps.

    Raises:
        Error: BUSY, naming the port and the process that holds it where that can be found.
    """
    if _is_free(host, port):
        return
    raise Error(
        Code.BUSY,
        f"port {port} is taken{_held_by(port)}: stop that process, or {remedy}",
    )


def _all_free(host: str, first: int, count: int) -> bool:
    return all(_is_free(host, port) for port in range(first, first + count))


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise Error(
                Code.CONFIGURATION, f"cannot listen on {host}:{port}: {error.strerror}"
            ) from error
    return True


def _held_by(port: int) -> str:
    """Return " by process NAME (pid N)" if this user may know, else nothing."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            if columns[3] == "0A" and int(columns[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{columns[9]}]")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if inodes & {_link(entry) for entry in (process / "fd").iterdir()}:
                name = (process / "comm").read_text().strip()
                return f" by process {name} (pid {process.name})"
        except OSError:  # gone meanwhile, or another user's
            continue
    return ""


def _link(entry: Path) -> str:
    try:
        return os.readlink(entry)
    except OSError:  # closed meanwhile
        return ""
