"""The wire over RDMA: how its connections come about, at both ends.

The client's regions are registered with its device (``calls_rdma.py``); a request names key,
address and length of each part. The server moves the data (``rdma_side.py``); frames travel by
SEND (``rdma_stream.py`` over ``rdma_channel.py`` over ``rdma_link.py``). What can be decided
without a device is pure: ``rdma_offer.py``, ``rdma_flow.py``, ``rdma_window.py``, ``rdma_runs.py``.

A server may read and write everything that a client registered with the device, not only what a
request names: keys are per process. Storage nodes are trusted so far, as they are with the data.
"""

import asyncio
import contextlib
import os
import socket
import time

from hillfire.errors import Code, Error
from hillfire.proto.wire.calls_rdma import RdmaCalls
from hillfire.proto.wire.rdma_device import ENVIRONMENT as DEVICE_ENVIRONMENT
from hillfire.proto.wire.rdma_device import available, enums, find, has, prefer
from hillfire.proto.wire.rdma_link import Link
from hillfire.proto.wire.rdma_offer import (
    HEADER,
    Offer,
    body_bytes,
    decode,
    encode_offer,
    encode_refusal,
)
from hillfire.proto.wire.rdma_offer import (
    MAX_BODY_BYTES as MAX_OFFER_BYTES,
)
from hillfire.proto.wire.rdma_side import RdmaSide, Room
from hillfire.proto.wire.rdma_stream import RdmaStream

__all__ = ["Door", "available", "connect_stream", "connect_stream_async", "find_door"]

PULLED_BYTES = 256 * 1024 * 1024
"""On their way from clients to one server at once."""
PUSHED_BYTES = 256 * 1024 * 1024
"""On their way from one server to clients at once."""
POLL_ENVIRONMENT = "HILLFIRE_RDMA_POLL_US"
"""How long a client's blocking face polls for an answer before it sleeps; none by default."""


class Door:
    """Where clients of a server meet it for a connection over RDMA."""

    def __init__(self, wanted: str = "", poll_us: int = 0) -> None:
        """``wanted``: ``device[:port[:GID index]]``; empty: by the address that is connected to.

        ``poll_us``: how long the loop polls after each completion before it sleeps.
        """
        self._wanted = wanted
        self._poll_us = poll_us
        self._pulled = Room(PULLED_BYTES)
        self._pushed = Room(PUSHED_BYTES)

    async def meet(self, sock: socket.socket) -> tuple[RdmaStream, RdmaSide]:
        """Take a client's offer and answer it; the stream owns ``sock`` from then on.

        Raises:
            Error: there will be no connection; the client was told.
            OSError: it is gone.
        """
        loop = asyncio.get_running_loop()
        link = None
        try:
            header = await _receive(loop, sock, HEADER.size)
            peer = decode(header, await _receive(loop, sock, body_bytes(header)))
            device = find(sock.getsockname()[0], self._wanted)
            link = Link(device)
            link.connect(peer, 0)
            await loop.sock_sendall(sock, encode_offer(link.offer()))
        except BaseException as exc:
            if link is not None:
                link.close()
            if isinstance(exc, Error):
                with contextlib.suppress(BlockingIOError):
                    sock.recv(MAX_OFFER_BYTES)  # what is unread would reset the connection
                await loop.sock_sendall(sock, encode_refusal(exc))
            raise
        stream = RdmaStream(link, peer, sock, poll_us=self._poll_us, hold_back=True)
        stream.attach(loop)
        return stream, RdmaSide(stream, device, self._pulled, self._pushed)


def find_door(wanted: str, host: str, poll_us: int) -> Door | None:
    """Return a server's door, None if no device has the address that it listens on.

    Raises:
        Error: CONFIGURATION if the device ``wanted`` (``device[:port[:GID index]]``) is not there.
    """
    if wanted:
        numbers = wanted.split(":")[1:]
        if len(numbers) > 2 or not all(number.isdigit() for number in numbers):
            text = f'rdma = "{wanted}" is no device: write device, device:port or device:port:index'
            raise Error(Code.CONFIGURATION, text)
        if not available() or not has("", wanted):
            text = f"there is no RDMA device {wanted} here; `rdma link` lists them"
            raise Error(Code.CONFIGURATION, text)
        prefer(wanted)
        return Door(wanted, poll_us)
    if os.environ.get(DEVICE_ENVIRONMENT):
        return Door("", poll_us)
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return None  # the listener says what is wrong with it
    return Door("", poll_us) if has(str(found[0][4][0])) else None


async def _receive(loop: asyncio.AbstractEventLoop, sock: socket.socket, n_bytes: int) -> bytes:
    """Receive exactly so many bytes.

    Raises:
        Error: CONNECTION.
    """
    data = b""
    while len(data) < n_bytes:
        more = await loop.sock_recv(sock, n_bytes - len(data))
        if not more:
            raise Error(Code.CONNECTION, "the peer left during the rendezvous")
        data += more
    return data


def _begin(sock: socket.socket) -> Link:
    """Return a new link by the device that leads where ``sock`` does."""
    return Link(find(sock.getsockname()[0]))


def _finish(link: Link, peer: Offer, sock: socket.socket) -> RdmaStream:
    link.connect(peer, enums.IBV_ACCESS_REMOTE_READ | enums.IBV_ACCESS_REMOTE_WRITE)
    poll_us = int(os.environ.get(POLL_ENVIRONMENT, "0"))
    stream = RdmaStream(link, peer, sock, poll_us=poll_us, hold_back=False)
    stream.new_calls = lambda: RdmaCalls(stream, link.device)
    return stream


def connect_stream(sock: socket.socket, timeout_s: float) -> RdmaStream:
    """Return a client's stream; ``sock`` is connected to the server's door, and the stream's then.

    Raises:
        Error: CONNECTION, TIMED_OUT; NOT_SUPPORTED if no device leads there.
    """
    deadline = time.monotonic() + timeout_s
    link = _begin(sock)
    try:
        sock.settimeout(max(0.001, timeout_s))
        sock.sendall(encode_offer(link.offer()))

        def receive(n_bytes: int) -> bytes:
            data = b""
            while len(data) < n_bytes:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                more = sock.recv(n_bytes - len(data))
                if not more:
                    raise Error(Code.CONNECTION, "the peer left during the rendezvous")
                data += more
            return data

        header = receive(HEADER.size)
        return _finish(link, decode(header, receive(body_bytes(header))), sock)
    except BaseException as exc:
        link.close()
        raise _translated(exc) from exc


async def connect_stream_async(sock: socket.socket, timeout_s: float) -> RdmaStream:
    """Do the same without holding up the event loop.

    Raises:
        Error: as ``connect_stream``.
    """
    loop = asyncio.get_running_loop()
    link = _begin(sock)
    try:
        async with asyncio.timeout(timeout_s):
            await loop.sock_sendall(sock, encode_offer(link.offer()))
            header = await _receive(loop, sock, HEADER.size)
            body = await _receive(loop, sock, body_bytes(header))
        return _finish(link, decode(header, body), sock)
    except BaseException as exc:
        link.close()
        raise _translated(exc) from exc


def _translated(exc: BaseException) -> BaseException:
    if isinstance(exc, Error) or not isinstance(exc, OSError):
        return exc
    if isinstance(exc, TimeoutError):
        return Error(Code.TIMED_OUT, "no answer to the rendezvous in time")
    return Error(Code.CONNECTION, f"the peer left during the rendezvous: {exc.strerror or exc}")
