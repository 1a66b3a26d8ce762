"""What all processes of a cluster have measured, asked for side by side, again and again.

Connections are kept between two looks, so that a look costs each process some 0.2 ms.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hillfire import metrics
from hillfire.cli.connect import connect_manager, fetch_routing
from hillfire.cli.report import node_name
from hillfire.cluster import Node, Routing
from hillfire.errors import Code, Error
from hillfire.proto import convert
from hillfire.proto import process_pb2 as pb
from hillfire.proto.service import decode, encode, method
from hillfire.proto.wire.base import BlockingConnection
from hillfire.proto.wire.pick import connect_blocking

AT_ONCE = 16
"""Processes asked at a time."""
TIMEOUT_S = 3.0
MOUNT_ATTRIBUTE = "user.hillfire.metrics"
"""A mount tells its own process's metrics as this attribute of its root."""

_GET_METRICS = method("Process", "GetMetrics")


class Look(NamedTuple):
    """One process at one moment."""

    name: str
    pid: int
    age_s: float
    """of the process; or of the time between two looks, in what ``between`` returns"""
    samples: Sequence[metrics.Sample]


class Looks(NamedTuple):
    """All processes at about one moment."""

    at_s: float
    """on the monotonic clock"""
    found: Mapping[str, Look]
    missing: Mapping[str, str]
    """why a process did not answer, by name"""

    def since(self, before: "Looks") -> "Looks":
        """Return what was done between two looks. A process that was started anew counts whole."""
        found = {}
        for name, look in self.found.items():
            old = before.found.get(name)
            if old is not None and old.pid == look.pid:
                done = metrics.since(look.samples, old.samples)
                look = look._replace(age_s=self.at_s - before.at_s, samples=done)
            found[name] = look
        return self._replace(found=found)


class Gatherer:
    """Asks every process of a cluster, and a mount if there is one to ask."""

    def __init__(self, address: str, mounts: Sequence[Path] = ()) -> None:
        """Ask the manager at ``address`` whom to ask.

        Raises:
            Error: if the manager does not answer.
        """
        self._manager = connect_manager(address)
        self._mounts = mounts
        self._connections: dict[str, BlockingConnection] = {}
        self._threads = ThreadPoolExecutor(AT_ONCE)

    def close(self) -> None:
        """Close every connection."""
        self._threads.shutdown()
        for connection in (self._manager, *self._connections.values()):
            connection.close()

    def __enter__(self) -> "Gatherer":
        """Return itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close."""
        self.close()

    def routing(self) -> Routing:
        """Return what the manager publishes."""
        return fetch_routing(self._manager)

    def look(self) -> Looks:
        """Ask all of them.

        Raises:
            Error: if the manager does not answer; others that do not are named in ``missing``.
        """
        routing = self.routing()
        jobs: dict[str, Callable[[], Look]] = {"manager": lambda: _ask("manager", self._manager)}
        missing = {}
        for node in sorted(routing.nodes.values(), key=lambda each: (each.kind, each.id)):
            name = node_name(node.kind, node.id)
            if node.alive:
                jobs[name] = partial(self._ask_node, name, node)
            else:
                missing[name] = "it is dead"
        for path in self._mounts:
            jobs[f"mount {path}"] = partial(look_at_mount, path)
        at_s = time.monotonic()
        found = {}
        for name, result in zip(jobs, self._threads.map(_attempt, jobs.values()), strict=True):
            if isinstance(result, Error):
                missing[name] = result.strerror or result.code.name
            else:
                found[name] = result
        return Looks(at_s, found, missing)

    def _ask_node(self, name: str, node: Node) -> Look:
        connection = self._connections.get(name)
        if connection is None:
            connection = connect_blocking(node.endpoint, TIMEOUT_S)
            self._connections[name] = connection
        try:
            return _ask(name, connection)
        except Error:
            self._connections.pop(name).close()
            raise


def _attempt(job: Callable[[], Look]) -> Look | Error:
    try:
        return job()
    except Error as error:
        return error


def _ask(name: str, connection: BlockingConnection) -> Look:
    ticket = connection.start(encode(_GET_METRICS, pb.GetMetricsRequest()), TIMEOUT_S)
    return _look(name, decode(_GET_METRICS, connection.finish(ticket, TIMEOUT_S)))


def ask_metrics(connection: BlockingConnection) -> Sequence[metrics.Sample]:
    """Return what the process behind a connection has measured.

    Raises:
        Error: if it does not answer.
    """
    return _ask("", connection).samples


def _look(name: str, reply: pb.GetMetricsReply) -> Look:
    samples = list(map(convert.metric_from_message, reply.metrics))
    return Look(name, reply.pid, reply.age_ns / 1e9, samples)


def look_at_mount(path: Path) -> Look:
    """Return what the process behind a mount has measured.

    Raises:
        Error: INVALID if it is no mount of hillfire.
    """
    try:
        body = os.getxattr(path, MOUNT_ATTRIBUTE)
    except OSError as exc:
        text = f"{path} is no mount of hillfire, or of an older one: {exc.strerror}"
        raise Error(Code.INVALID, text) from exc
    return _look(f"mount {path}", pb.GetMetricsReply.FromString(body))


def own() -> Look:
    """Return what this process has measured."""
    from hillfire.proto.process import snapshot

    return _look("this process", snapshot())
