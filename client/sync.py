"""The synchronous shell: actions carried out on the caller's own thread over blocking sockets.

A thread hop costs 50 µs and an event loop as much again, so there is neither: an echo over a
blocking UNIX socket is 16 µs. Any number of threads may call at once; a connection serves one
thread at a time and then goes back to its node's pool.

After a fork the child is a client of its own: it drops what it inherited (descriptors are closed,
nothing is said over the parent's sockets), takes a new client id and a new staging region, and
connects lazily.

Session heartbeats run on one small daemon thread, begun when the first file is opened and begun
again lazily in a forked child; a process that never opens a file has none.
"""

import logging
import os
import secrets
import threading
import time
import weakref
from typing import Any, TypeVar

from hillfire import metrics
from hillfire.client.actions import Abandon, Await, Exchange, Join, Operation, Pause, Spawn, Start
from hillfire.client.buffers import DEFAULT_BYTES, Buffers
from hillfire.client.connections import Connections, manager_endpoint
from hillfire.client.core import Core, Identity
from hillfire.client.flight import Flight
from hillfire.client.lanes import Lanes
from hillfire.client.session import Session
from hillfire.errors import Error
from hillfire.proto.wire.base import Part
from hillfire.proto.wire.pick import host_id

log = logging.getLogger(__name__)

T = TypeVar("T")


def new_client() -> int:
    """Return a random client id, never 0."""
    return secrets.randbits(63) + 1


def own_identity() -> Identity:
    """Return the process's user and groups."""
    umask = 0o022
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                umask = int(line.split()[1], 8)
    return Identity(os.geteuid(), os.getegid(), os.getgroups(), umask)


class Shell:
    """One client: its core, its connections, its staging memory, its session."""

    def __init__(
        self,
        address: str,
        *,
        transport: str | None = None,
        io_timeout_s: float = 60.0,
        staging_bytes: int = DEFAULT_BYTES,
    ) -> None:
        """Fetch the first routing from the manager at ``address``.

        Raises:
            Error: UNAVAILABLE if no manager answers, CONFIGURATION for a malformed address.
        """
        self.core = Core(
            manager_endpoint(address),
            new_client(),
            clock=time.monotonic,
            wall_ns=time.time_ns,
            host=host_id(),
            identity=own_identity(),
            io_timeout_s=io_timeout_s,
        )
        self.address = address
        self.generation = 0
        """grows with each fork: what an older one had begun belongs to the parent"""
        self._transport = transport
        self.staging_bytes = staging_bytes
        self._closed = False
        self._fresh()
        _shells.add(self)
        self.run(self.core.first_routing())

    def __repr__(self) -> str:
        """Name the cluster."""
        return f"<hillfire client {self.core.client:#x} of {self.address}>"

    def _fresh(self) -> None:
        self.wires = Connections(self._transport)
        self._lock = threading.Lock()
        self._buffers: Buffers | None = None
        self.core.pool = _LazyPool(self)
        self._beating: threading.Thread | None = None
        self._stop = threading.Event()
        self.session = Session(self.core)

    def after_fork(self) -> None:
        """Become a client of one's own in a forked child."""
        self.wires.abandon()
        if self._buffers is not None:
            self._buffers.abandon()
        self.generation += 1
        self.core.renew(new_client())
        self._fresh()

    # --- operations

    def run(self, operation: Operation[T]) -> T:
        """Drive an operation to its end on this thread."""
        lanes: Lanes | None = None
        try:
            action = operation.send(None)
            while True:
                kind = type(action)
                if kind is Exchange:
                    calls = action.calls  # type: ignore[union-attr]
                    if len(calls) == 1:
                        action = operation.send([self.wires.single(calls[0])])
                    else:
                        action = operation.send(self.wires.exchange(calls))
                elif kind is Pause:
                    time.sleep(action.seconds)  # type: ignore[union-attr]
                    action = operation.send(None)
                elif kind is Start:
                    if lanes is None:
                        lanes = Lanes(self.wires)
                    action = operation.send(lanes.start(action.calls))  # type: ignore[union-attr]
                elif kind is Await:
                    if lanes is not None:
                        lanes.wait(action.flying, action.timeout_s)  # type: ignore[union-attr]
                    action = operation.send(None)
                elif kind is Abandon:
                    if lanes is not None:
                        lanes.abandon(action.flying)  # type: ignore[union-attr]
                    action = operation.send(None)
                else:
                    action = self._perform(operation, action)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            operation.close()
            if lanes is not None:
                lanes.close()

    def _perform(self, operation: Operation[Any], action: Any) -> Any:
        """Spawn or join; return the operation's next action."""
        try:
            if type(action) is Spawn:
                value: Any = Flight(self.wires, action.operation)
            else:
                assert type(action) is Join
                value = action.handle.result()
        except Error as exc:
            return operation.throw(exc)
        return operation.send(value)

    # --- memory

    @property
    def buffers(self) -> Buffers:
        """The staging memory, made at its first use."""
        buffers = self._buffers
        if buffers is None:
            with self._lock:
                buffers = self._buffers
                if buffers is None:
                    buffers = self._buffers = Buffers(self.staging_bytes)
        return buffers

    # --- the session

    def keep_session(self) -> None:
        """Begin the heartbeats unless they run."""
        if self._beating is None:
            with self._lock:
                if self._beating is None and not self._closed:
                    self._beating = threading.Thread(
                        target=_beat, args=(weakref.ref(self), self._stop), daemon=True
                    )
                    self._beating.name = "hillfire-session"
                    self._beating.start()

    def close(self) -> None:
        """End the session and close every connection; files must be closed before."""
        if self._closed:
            return
        self._stop.set()
        if self._beating is not None:
            self._beating.join()
            self.run(self.session.end())
        self._closed = True
        self.wires.close()
        _shells.discard(self)


class _LazyPool:
    """The shell's staging memory, as the core sees it."""

    def __init__(self, shell: Shell) -> None:
        self._shell = weakref.ref(shell)

    def try_acquire(self, length: int) -> Part | None:
        shell = self._shell()
        if shell is None or length > shell.staging_bytes:
            return None
        return shell.buffers.try_acquire(length)

    def release(self, part: Part) -> None:
        shell = self._shell()
        if shell is not None and part.region.fd >= 0:
            shell.buffers.release(part)


_shells: "weakref.WeakSet[Shell]" = weakref.WeakSet()


def _beat(shell: "weakref.ref[Shell]", stop: threading.Event) -> None:
    """Send heartbeats until the client is closed or forgotten."""
    due_s = 0.0
    while not stop.wait(due_s):
        alive = shell()
        if alive is None:
            return
        try:
            due_s, _ = alive.run(alive.session.beat())
        except Error as exc:
            log.warning("heartbeat failed client=%d cause=%s", alive.core.client, exc)
            due_s = 1.0
        del alive


def _in_child() -> None:
    metrics.REGISTRY.reset()
    for shell in list(_shells):
        shell.after_fork()


os.register_at_fork(after_in_child=_in_child)
