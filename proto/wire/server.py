"""The wire's server: listens on tcp and on a UNIX socket, and has a handler answer.

Where there is an RDMA device it has a door as well: a tcp listener of its own, at which the ends
of a connection over RDMA meet.
"""

import asyncio
import contextlib
import logging
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from hillfire.errors import Code, Error
from hillfire.proto.wire import census
from hillfire.proto.wire.address import bind_unix, split_address
from hillfire.proto.wire.base import Handler
from hillfire.proto.wire.connection import Connection
from hillfire.proto.wire.limits import Limits
from hillfire.proto.wire.shm import ShmSide, peer_of
from hillfire.proto.wire.tcp import BufferPool, TcpSide, tune

if TYPE_CHECKING:
    from hillfire.proto.wire.rdma import Door

log = logging.getLogger(__name__)

BACKLOG = 1024
ACCEPTS = 64
"""Connections taken in one turn of the event loop."""
GRACE_S = 5.0
"""How long ``stop`` lets handlers end by themselves."""


class WireServer:
    """Serves one handler over both transports.

    A handler that works in another thread must not end, by cancellation either, before that
    thread has let go of the request's memory: shield it.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        tcp: str | None,
        shm: str | None,
        rdma: "tuple[str, Door] | None" = None,
        limits: Limits | None = None,
    ) -> None:
        """Listen at ``tcp`` (``host:port``, port 0 for any) and at the path ``shm``.

        ``rdma``: where clients meet a door for RDMA, and the door.
        """
        self.handler = handler
        self.limits = limits or Limits()
        self.loop: asyncio.AbstractEventLoop
        self.tasks: set[asyncio.Task[None]] = set()
        self.bytes = 0
        self._tcp = tcp
        self._shm = shm
        self._pool = BufferPool()
        self._listeners: list[socket.socket] = []
        self._connections: set[Connection] = set()
        self._tcp_address = ""
        self._rdma = rdma
        self._rdma_address = ""
        self._door_listener: socket.socket | None = None
        self._meeting: set[asyncio.Task[None]] = set()
        self._shm_inode = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._accepting = False

    @property
    def tcp_address(self) -> str:
        """``host:port`` with the real port; empty if it does not listen on tcp."""
        return self._tcp_address

    @property
    def rdma_address(self) -> str:
        """``host:port`` of the door for RDMA; empty if there is none."""
        return self._rdma_address

    @property
    def shm_path(self) -> str:
        """The UNIX socket's path; empty if there is none."""
        return self._shm or ""

    def kinds(self) -> list[str]:
        """Return the transport of each connection."""
        return [connection.kind for connection in list(self._connections) if connection.kind]

    async def start(self) -> None:
        """Listen.

        Raises:
            Error: CONFIGURATION if an address is taken or of no use.
        """
        self.loop = asyncio.get_running_loop()
        try:
            if self._tcp is not None:
                self._tcp_address = self._listen_tcp(self._tcp)
            if self._rdma is not None:
                self._rdma_address = self._listen_tcp(self._rdma[0])
                self._door_listener = self._listeners[-1]
            if self._shm is not None:
                self._listen_shm(self._shm)
        except BaseException:
            self._close_listeners()
            raise
        self._accepting = True
        for listener in self._listeners:
            self.loop.add_reader(listener, self._accept, listener)
        census.serves(self)

    def _listen_tcp(self, address: str) -> str:
        """Listen, and return the address with its real port."""
        host, port = split_address(address)
        try:
            family, _, _, _, where = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(BACKLOG)
        except OSError as exc:
            text = f"cannot listen on {address}: {exc.strerror}; choose another address or port"
            raise Error(Code.CONFIGURATION, text) from exc
        host, port = listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _listen_shm(self, path: str) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    os.unlink(path)  # of a process that is gone: the directory's lock is ours
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._listeners.append(listener)
            bind_unix(listener, path)
            os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
            listener.listen(BACKLOG)
            self._shm_inode = os.lstat(path).st_ino
        except OSError as exc:
            text = f"cannot listen on {path}: {exc.strerror}"
            raise Error(Code.CONFIGURATION, text) from exc

    def _accept(self, listener: socket.socket) -> None:
        """Take the connections that wait."""
        for _ in range(ACCEPTS):
            if len(self._connections) + len(self._meeting) >= self.limits.connections:
                self._pause_accepting()
                return
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                # Out of descriptors: the listener stays readable, so wait before the next try.
                log.error("accept failed cause=%s", exc)
                self._pause_accepting()
                self.loop.call_later(1.0, self._resume_accepting)
                return
            sock.setblocking(False)
            try:
                if listener is self._door_listener:
                    self._receive_at_door(sock, address)
                else:
                    self._welcome(sock, address)
            except OSError as exc:
                log.info("connection lost at once cause=%s", exc)
                sock.close()

    def _welcome(self, sock: socket.socket, address: object) -> None:
        """Make a connection of an accepted socket."""
        pid = os.getpid()
        side: ShmSide | TcpSide
        if sock.family == socket.AF_UNIX:
            peer_pid, uid = peer_of(sock)
            peer = f"shm:pid={peer_pid} uid={uid}"
            side = ShmSide(sock, self.limits.regions, self.limits.region_bytes)
            connection = Connection(self, sock, side, peer, pid)
            self._add(connection)
            if uid not in (0, os.geteuid()):
                text = f"user {uid} may not use the shared memory of user {os.geteuid()}"
                connection.refuse(Error(Code.UNAUTHENTICATED, text))
            return
        tune(sock)
        host, port = address[:2] if isinstance(address, tuple) else (address, 0)
        side = TcpSide(sock, self._pool)
        self._add(Connection(self, sock, side, f"tcp:{host}:{port}", pid))

    def _receive_at_door(self, sock: socket.socket, address: object) -> None:
        """Have a client meet the door for RDMA."""
        tune(sock)
        host, port = address[:2] if isinstance(address, tuple) else (address, 0)
        task = self.loop.create_task(self._meet(sock, f"rdma:{host}:{port}"))
        self._meeting.add(task)
        task.add_done_callback(self._meeting.discard)

    async def _meet(self, sock: socket.socket, peer: str) -> None:
        assert self._rdma is not None
        try:
            async with asyncio.timeout(self.limits.hello_s):
                stream, side = await self._rdma[1].meet(sock)
        except BaseException as exc:
            sock.close()
            if not isinstance(exc, OSError):  # an ``Error`` is one, and so is a time-out
                raise
            log.info("no connection peer=%s cause=%s", peer, exc)
            return
        self._add(Connection(self, stream, side, peer, os.getpid()))

    def _add(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._empty.clear()

    def ended(self, connection: Connection) -> None:
        """Take note that a connection's socket is closed."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()
        if not self._accepting and len(self._connections) < self.limits.connections:
            self._resume_accepting()

    def _pause_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            for listener in self._listeners:
                self.loop.remove_reader(listener)

    def _resume_accepting(self) -> None:
        if not self._accepting and self._listeners:
            self._accepting = True
            for listener in self._listeners:
                self.loop.add_reader(listener, self._accept, listener)

    def _close_listeners(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            if self._accepting:
                self.loop.remove_reader(listener)
            listener.close()
        self._accepting = False
        if self._shm_inode:
            with contextlib.suppress(OSError):
                if os.lstat(self.shm_path).st_ino == self._shm_inode:
                    Path(self.shm_path).unlink()
            self._shm_inode = 0

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Listen no more, let handlers end, cancel those that do not, close every connection."""
        self._close_listeners()
        for task in list(self._meeting):
            task.cancel()
        if self.tasks:
            await asyncio.wait(set(self.tasks), timeout=grace_s)
        for connection in list(self._connections):
            connection.end("the server stops")
        for task in list(self.tasks):
            task.cancel()
        await self._empty.wait()
