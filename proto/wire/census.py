"""Which connections this process has, and by which transport: for metrics and ``hillfire status``.

Nobody has to report an end: connections and servers are known weakly, and looked at when somebody
asks.
"""

import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from hillfire import metrics

_lock = threading.Lock()


class Client(Protocol):
    """A client's end of a connection."""

    kind: str

    @property
    def usable(self) -> bool:
        """Whether requests can be sent on it."""


class Server(Protocol):
    """A server, with the transports of its clients."""

    def kinds(self) -> Iterable[str]:
        """Return the transport of each connection."""


_clients: "weakref.WeakKeyDictionary[Client, str]" = weakref.WeakKeyDictionary()
_servers: "weakref.WeakSet[Server]" = weakref.WeakSet()


def connected(connection: Client, where: str) -> None:
    """Take note of a new connection to the server whose wire listens at ``where``."""
    with _lock:
        _clients[connection] = where


def serves(server: Server) -> None:
    """Take note of a server."""
    with _lock:
        _servers.add(server)


def _count() -> Mapping[metrics.Labels, float]:
    counts: Counter[metrics.Labels] = Counter()
    with _lock:
        clients, servers = list(_clients.items()), list(_servers)
    for connection, where in clients:
        if connection.usable:
            labels = ("peer", where), ("side", "client"), ("transport", connection.kind)
            counts[labels] += 1
    for server in servers:
        for kind in server.kinds():
            counts[("side", "server"), ("transport", kind)] += 1
    return counts


def _forked() -> None:
    """Begin anew: what was inherited is the parent's. A lock may have been held by its threads."""
    global _lock
    _lock = threading.Lock()
    _clients.clear()
    _servers.clear()


os.register_at_fork(after_in_child=_forked)

metrics.gauges(
    "hillfire_connections",
    "Connections of the wire; peer: where the server listens, told at the client's side.",
    _count,
)
