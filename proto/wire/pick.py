"""Which transport to take to a server: shared memory where it will do, then RDMA, else tcp.

``HILLFIRE_TRANSPORTS`` in the environment (``rdma,tcp``) allows a process only some of them.
"""

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hillfire.cluster import Endpoint
from hillfire.errors import Code, Error
from hillfire.proto.wire import census
from hillfire.proto.wire.address import connect_unix, host_id, split_address
from hillfire.proto.wire.aio import AsyncConnection
from hillfire.proto.wire.blocking import BlockingConnection
from hillfire.proto.wire.stream import Stream
from hillfire.proto.wire.tcp import tune

if TYPE_CHECKING:
    from hillfire.proto.wire.rdma import Door

__all__ = ["connect_async", "connect_blocking", "host_id", "open_door"]

RETRY_S = 0.01
"""Between tries while a server's UNIX socket has too many connections waiting."""
TRANSPORTS = ("shm", "rdma", "tcp")
"""Best first."""
ENVIRONMENT = "HILLFIRE_TRANSPORTS"


def _allowed() -> tuple[str, ...]:
    """Return what the environment allows.

    Raises:
        Error: CONFIGURATION for a transport that does not exist.
    """
    given = os.environ.get(ENVIRONMENT, "")
    if not given:
        return TRANSPORTS
    allowed = tuple(each.strip() for each in given.split(","))
    unknown = set(allowed) - set(TRANSPORTS)
    if unknown:
        text = f"{ENVIRONMENT}={given}: unknown {', '.join(sorted(unknown))}; known: shm, rdma, tcp"
        raise Error(Code.CONFIGURATION, text)
    return allowed


def choices(endpoint: Endpoint, transport: str | None) -> list[str]:
    """Return the transports to try, best first; ``transport`` allows only that one.

    Raises:
        Error: CONFIGURATION for an unknown transport, CONNECTION if the server lacks it.
    """
    if transport is not None and transport not in TRANSPORTS:
        raise Error(Code.CONFIGURATION, f"unknown transport {transport!r}: shm, rdma or tcp")
    allowed = _allowed() if transport is None else (transport,)
    offered = []
    if endpoint.shm and (transport == "shm" or endpoint.host == host_id()):
        offered.append("shm")
    if endpoint.rdma and "rdma" in allowed and (transport == "rdma" or _has_device()):
        offered.append("rdma")
    if endpoint.tcp:
        offered.append("tcp")
    found = [kind for kind in offered if kind in allowed]
    if not found:
        raise Error(Code.CONNECTION, f"no way to {endpoint}")
    return found


DEVICES = Path("/sys/class/infiniband")
"""Where the kernel lists RDMA devices."""


def _has_device() -> bool:
    if not DEVICES.is_dir():
        return False
    from hillfire.proto.wire.rdma import available  # only who needs it waits for its import

    return available()


def open_door(wanted: str, address: str, listen: str, poll_us: int) -> "tuple[str, Door] | None":
    """Return what ``WireServer`` takes for ``rdma``, by a service's configuration.

    Raises:
        Error: CONFIGURATION if the device that it names is not there.
    """
    if wanted == "off" or (wanted == "auto" and not _has_device()):
        return None
    from hillfire.proto.wire.rdma import find_door

    door = find_door("" if wanted == "auto" else wanted, split_address(listen)[0], poll_us)
    if door is None:
        return None
    return address or f"{listen.rpartition(':')[0]}:0", door


def _gone(where: str, exc: OSError) -> Error:
    if isinstance(exc, TimeoutError):
        return Error(Code.TIMED_OUT, f"no connection to {where} in time")
    return Error(Code.CONNECTION, f"no connection to {where}: {exc.strerror or exc}")


def _open_shm(path: str, timeout_s: float) -> socket.socket:
    """Connect to a UNIX socket, which takes no time unless the server is overrun."""
    deadline = time.monotonic() + timeout_s
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        connect_unix(sock, path)
        return sock
    except OSError as exc:
        sock.close()
        raise _gone(path, exc) from exc


def _open_tcp(address: str, timeout_s: float) -> socket.socket:
    try:
        sock = socket.create_connection(split_address(address), timeout_s)
    except Error:
        raise
    except OSError as exc:
        raise _gone(address, exc) from exc
    tune(sock)
    return sock


def _open_rdma(address: str, timeout_s: float) -> Stream:
    """Meet a server at its door for RDMA."""
    from hillfire.proto.wire.rdma import connect_stream

    deadline = time.monotonic() + timeout_s
    sock = _open_tcp(address, timeout_s)
    try:
        return connect_stream(sock, max(0.001, deadline - time.monotonic()))
    except BaseException:
        sock.close()
        raise


def connect_blocking(
    endpoint: Endpoint, timeout_s: float, *, transport: str | None = None
) -> BlockingConnection:
    """Connect by the best transport that works.

    Raises:
        Error: CONNECTION, TIMED_OUT, WRONG_PEER_VERSION, UNAUTHENTICATED (of the last try).
    """
    deadline = time.monotonic() + timeout_s
    kinds = choices(endpoint, transport)
    for kind in kinds:
        left = max(0.001, deadline - time.monotonic())
        try:
            stream: socket.socket | Stream
            if kind == "shm":
                stream = _open_shm(endpoint.shm, left)
            elif kind == "rdma":
                stream = _open_rdma(endpoint.rdma, left)
            else:
                stream = _open_tcp(endpoint.tcp, left)
            connection = BlockingConnection(stream, max(0.001, deadline - time.monotonic()))
            census.connected(connection, endpoint.tcp)
            return connection
        except Error:
            if kind == kinds[-1]:
                raise
    raise AssertionError("choices() is never empty")


async def connect_async(
    endpoint: Endpoint, timeout_s: float, *, transport: str | None = None
) -> AsyncConnection:
    """Connect by the best transport that works.

    Raises:
        Error: as ``connect_blocking``.
    """
    deadline = time.monotonic() + timeout_s
    kinds = choices(endpoint, transport)
    for kind in kinds:
        left = max(0.001, deadline - time.monotonic())
        try:
            if kind == "shm":
                connection = AsyncConnection(await _reach_shm(endpoint.shm, left))
            elif kind == "rdma":
                connection = AsyncConnection(await _reach_rdma(endpoint.rdma, left))
            else:
                connection = AsyncConnection(await _reach_tcp(endpoint.tcp, left))
            await connection.greet(max(0.001, deadline - time.monotonic()))
            census.connected(connection, endpoint.tcp)
            return connection
        except Error:
            if kind == kinds[-1]:
                raise
    raise AssertionError("choices() is never empty")


async def _reach_shm(path: str, timeout_s: float) -> socket.socket:
    """Connect without holding up the event loop."""
    deadline = time.monotonic() + timeout_s
    while True:
        sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            connect_unix(sock, path)
            return sock
        except BlockingIOError as exc:
            sock.close()
            if time.monotonic() >= deadline:
                raise _gone(path, TimeoutError()) from exc
            await asyncio.sleep(RETRY_S)
        except OSError as exc:
            sock.close()
            raise _gone(path, exc) from exc


async def _reach_rdma(address: str, timeout_s: float) -> Stream:
    from hillfire.proto.wire.rdma import connect_stream_async

    deadline = time.monotonic() + timeout_s
    sock = await _reach_tcp(address, timeout_s)
    try:
        return await connect_stream_async(sock, max(0.001, deadline - time.monotonic()))
    except BaseException:
        sock.close()
        raise


async def _reach_tcp(address: str, timeout_s: float) -> socket.socket:
    loop = asyncio.get_running_loop()
    host, port = split_address(address)
    sock: socket.socket | None = None
    try:
        async with asyncio.timeout(timeout_s):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, where = found[0]
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            await loop.sock_connect(sock, where)
            tune(sock)
            return sock
    except BaseException as exc:
        if sock is not None:
            sock.close()
        if isinstance(exc, OSError) and not isinstance(exc, Error):
            raise _gone(address, exc) from exc
        raise
