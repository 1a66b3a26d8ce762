"""The synchronous shell's connections: a pool a node, one thread a connection at a time.

Requests to several nodes are all sent before the first answer is waited for. Taking from and
giving back to a pool are single operations on a list, which need no lock.
"""

import time
import weakref
from collections.abc import Sequence
from typing import TypeAlias

from hillfire.client.actions import Call, Outcome
from hillfire.cluster import Endpoint
from hillfire.errors import Code, Error
from hillfire.proto.discovery import addresses
from hillfire.proto.wire.blocking import BlockingConnection
from hillfire.proto.wire.pick import connect_blocking

CONNECT_TIMEOUT_S = 2.0
TCP_CONNECTIONS = 4
"""To one node over tcp, of one thread or event loop: one alone fills no fast network."""
TCP_CALLS = 2
"""On each of them, before there is another."""
MAX_IDLE = 16
"""Connections kept open to a node while no thread uses them."""

BROKEN = frozenset({Code.CONNECTION, Code.TIMED_OUT, Code.PROTOCOL})
"""After these a connection is not used again."""

Started: TypeAlias = tuple[Endpoint, BlockingConnection | None, int, float, Error | None]
"""A call that was sent: where, by what, its ticket, until when; or the error that it met."""


def manager_endpoint(address: str) -> Endpoint:
    """Return the endpoint of a manager, or of several (with commas), known by address only.

    Raises:
        Error: CONFIGURATION if it is not ``host:port``.
    """
    return Endpoint(grpc="", tcp=",".join(addresses(address)), shm="", host="")


def allowed(transport: str | None, endpoint: Endpoint) -> str | None:
    """Return the transport to insist on: a server that does not have it is reached as it can be."""
    lacking = transport in ("shm", "rdma") and not getattr(endpoint, transport)
    return None if lacking else transport


class Connections:
    """Every connection of one client."""

    def __init__(self, transport: str | None) -> None:
        """``transport``: insist on "shm", "rdma" or "tcp"."""
        self._transport = transport
        self._pools: dict[Endpoint, list[BlockingConnection]] = {}
        self._all: weakref.WeakSet[BlockingConnection] = weakref.WeakSet()
        self._closed = False

    def abandon(self) -> None:
        """Drop what a fork inherited, without a word over the parent's sockets."""
        for connection in list(self._all):
            connection.abandon()

    def close(self) -> None:
        """Close all that are idle; the others follow when they come back."""
        self._closed = True
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            for connection in pool:
                connection.close()

    def exchange(self, calls: Sequence[Call]) -> list[Outcome]:
        """Do all calls at once."""
        return self.finish(self.begin(calls))

    def single(self, call: Call) -> Outcome:
        """Do one call: the fast path."""
        endpoint, request, timeout_s = call
        try:
            connection = self.take(endpoint)
        except Error as exc:
            return Outcome(b"", exc, True)
        try:
            ticket = connection.start(request, timeout_s)
            body = connection.finish(ticket, timeout_s).body
        except Error as exc:
            if exc.code in BROKEN:
                self.drop(endpoint, connection, exc)
            else:
                self.give(endpoint, connection)
            return Outcome(b"", exc, True)
        except BaseException:
            connection.close()
            raise
        verified = connection.kind == "shm"
        self.give(endpoint, connection)
        return Outcome(body, None, verified)

    def begin(self, calls: Sequence[Call]) -> list[Started]:
        """Send several calls; those to one node share a connection."""
        connections: dict[Endpoint, BlockingConnection | Error] = {}
        started: list[Started] = []
        now = time.monotonic()
        for endpoint, request, timeout_s in calls:
            connection = connections.get(endpoint)
            if connection is None:
                try:
                    connection = self.take(endpoint)
                except Error as exc:
                    connection = exc
                connections[endpoint] = connection
            if isinstance(connection, Error):
                started.append((endpoint, None, 0, 0.0, connection))
                continue
            try:
                ticket = connection.start(request, timeout_s)
            except Error as exc:
                started.append((endpoint, connection, 0, 0.0, exc))
                continue
            started.append((endpoint, connection, ticket, now + timeout_s, None))
        return started

    def finish(self, started: list[Started]) -> list[Outcome]:
        """Wait for the answers of calls that ``begin`` sent."""
        outcomes: list[Outcome] = []
        used: dict[int, tuple[Endpoint, BlockingConnection, Error | None]] = {}
        try:
            for endpoint, connection, ticket, until, failed in started:
                if connection is None:
                    outcomes.append(Outcome(b"", failed, True))
                    continue
                broken = used[id(connection)][2] if id(connection) in used else None
                used[id(connection)] = (endpoint, connection, broken)
                if failed is None:
                    try:
                        # A lost connection still has to account for each of its requests.
                        reply = connection.finish(ticket, max(0.001, until - time.monotonic()))
                        outcomes.append(Outcome(reply.body, None, connection.kind == "shm"))
                        continue
                    except Error as exc:
                        failed = exc
                if failed.code in BROKEN:
                    used[id(connection)] = (endpoint, connection, failed)
                outcomes.append(Outcome(b"", failed, True))
        except BaseException:
            for _, connection, _, _, _ in started:
                if connection is not None:
                    connection.close()
            raise
        for endpoint, connection, broken in used.values():
            if broken is None:
                self.give(endpoint, connection)
            else:
                self.drop(endpoint, connection, broken)
        return outcomes

    def take(self, endpoint: Endpoint) -> BlockingConnection:
        """Return a connection for the caller alone: ``give`` it back, or ``drop`` it.

        Raises:
            Error: INVALID if this client is closed; what connecting raises.
        """
        pool = self._pools.get(endpoint)
        if pool is not None:
            try:
                return pool.pop()
            except IndexError:
                pass
        if self._closed:
            raise Error(Code.INVALID, "this client is closed")
        transport = allowed(self._transport, endpoint)
        connection = connect_blocking(endpoint, CONNECT_TIMEOUT_S, transport=transport)
        self._all.add(connection)
        return connection

    def give(self, endpoint: Endpoint, connection: BlockingConnection) -> None:
        """Take a connection back that works."""
        pool = self._pools.get(endpoint)
        if pool is None:
            pool = self._pools.setdefault(endpoint, [])
        if len(pool) < MAX_IDLE and not self._closed:
            pool.append(connection)
        else:
            connection.close()

    def drop(self, endpoint: Endpoint, connection: BlockingConnection, cause: Error) -> None:
        """Close a broken connection, and the idle ones to a peer that is gone."""
        connection.close()
        if cause.code is Code.CONNECTION:
            for idle in self._pools.pop(endpoint, []):
                idle.close()
