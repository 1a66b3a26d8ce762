"""Addresses of the wire: ``host:port``, UNIX socket paths of any length, and which host this is."""

import os
import socket
from pathlib import Path

from hillfire.errors import Code, Error

MAX_UNIX_PATH_BYTES = 107
"""What fits the kernel's socket address; longer paths go through /proc/self/fd."""


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[host]:port``.

    Raises:
        Error: CONFIGURATION if it is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise Error(Code.CONFIGURATION, f"{address!r} is no address: expected host:port")
    return host.strip("[]"), int(port)


def _reach(path: str) -> tuple[str, int]:
    """Return a path short enough for a socket address and a descriptor that it depends on."""
    if len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES:
        return path, -1
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{fd}/{name}", fd


def bind_unix(sock: socket.socket, path: str) -> None:
    """Bind to a path of any length.

    Raises:
        OSError: as ``bind``.
    """
    short, fd = _reach(path)
    try:
        sock.bind(short)
    finally:
        if fd >= 0:
            os.close(fd)


def connect_unix(sock: socket.socket, path: str) -> None:
    """Connect to a path of any length.

    Raises:
        OSError: as ``connect``.
    """
    short, fd = _reach(path)
    try:
        sock.connect(short)
    finally:
        if fd >= 0:
            os.close(fd)


def host_id() -> str:
    """Return the boot id, which two processes share exactly if they share memory."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
