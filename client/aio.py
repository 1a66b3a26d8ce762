"""The asyncio shell, and the client that the mount is built on.

One connection a node carries any number of requests at once. The same operations as in
``sync.py`` are driven here; what they decide cannot differ between the two faces.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from google.protobuf.message import Message

from hillfire.client import reading, writing
from hillfire.client.actions import (
    Abandon,
    Await,
    Call,
    Exchange,
    Flying,
    Join,
    Operation,
    Outcome,
    Pause,
    Spawn,
    Start,
)
from hillfire.client.buffers import DEFAULT_BYTES, Buffers
from hillfire.client.connections import (
    TCP_CALLS,
    TCP_CONNECTIONS,
    allowed,
    manager_endpoint,
)
from hillfire.client.core import Core
from hillfire.client.session import Session
from hillfire.client.sync import new_client, own_identity
from hillfire.cluster import Endpoint
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2
from hillfire.proto.wire.base import AsyncConnection, Part, Reply
from hillfire.proto.wire.pick import connect_async, host_id

log = logging.getLogger(__name__)

T = TypeVar("T")

Lane: TypeAlias = tuple[Endpoint, int]
"""A node, and which of the connections to it."""

CONNECT_TIMEOUT_S = 2.0

_BROKEN = frozenset({Code.CONNECTION, Code.PROTOCOL})


class _Handle:
    """What a call that was started here knows of itself."""

    __slots__ = ("give_up", "waiter")

    def __init__(self) -> None:
        self.give_up: Callable[[], object] | None = None
        self.waiter: asyncio.Future[None] | None = None
        """of who awaits it"""


def _settle(flying: Flying, outcome: Outcome) -> None:
    """Give a call its outcome, and wake who awaits it."""
    if flying.outcome is None:
        flying.outcome = outcome
        waiter = flying.handle.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _carried_out(flying: Flying, task: "asyncio.Task[Outcome]") -> None:
    """Give a call the outcome of its task, which cannot fail unless it was cancelled."""
    if not task.cancelled():
        failure = task.exception()
        error = None if failure is None else Error(Code.INTERNAL, f"a call failed: {failure!r}")
        _settle(flying, task.result() if error is None else Outcome(b"", error, True))


async def _first(flying: Sequence[Flying], timeout_s: float | None) -> None:
    """Wait until any of these has its outcome, at most for a time."""
    waiting = [each.handle for each in flying if each.outcome is None]
    if not waiting:
        return
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    for handle in waiting:
        handle.waiter = waiter
    timer = None if timeout_s is None else loop.call_later(timeout_s, _wake, waiter)
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def _abandon(flying: Sequence[Flying]) -> None:
    """Give up what has no outcome yet, which puts its parts into quarantine."""
    for each in flying:
        if each.outcome is None:
            each.outcome = Outcome(b"", Error(Code.CANCELLED, "nobody waits for this answer"), True)
            if each.handle.give_up is not None:
                each.handle.give_up()


class Client:
    """A cluster, by inode: metadata calls, chunk reads and writes, one session.

    ``hold`` is the set of inodes that the owner has open: keep it up to date, and inodes whose
    last name goes elsewhere stay until they leave it *and* are settled with ``close``.
    """

    def __init__(
        self,
        address: str,
        *,
        transport: str | None = None,
        io_timeout_s: float = 60.0,
        staging_bytes: int = DEFAULT_BYTES,
    ) -> None:
        """Use ``connect``."""
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
        self.on_orphans: Callable[[list[int]], None] | None = None
        """told of inodes in ``hold`` that lost their last name"""
        self.session = Session(self.core)
        self._transport = transport
        self._staging_bytes = staging_bytes
        self._buffers: Buffers | None = None
        self.core.pool = self
        self._connections: dict[Lane, AsyncConnection] = {}
        self._connecting: dict[Lane, asyncio.Task[AsyncConnection]] = {}
        self._beating: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def connect(
        cls,
        address: str,
        transport: str | None = None,
        io_timeout_s: float = 60.0,
        *,
        staging_bytes: int = DEFAULT_BYTES,
        session: bool = True,
    ) -> "Client":
        """Return a client of the cluster whose manager listens at ``address``.

        ``session``: begin the heartbeats at once, as a mount wants it; else at the first open.

        Raises:
            Error: UNAVAILABLE if no manager answers, CONFIGURATION for a malformed address.
        """
        client = cls(
            address, transport=transport, io_timeout_s=io_timeout_s, staging_bytes=staging_bytes
        )
        try:
            await client.run(client.core.first_routing())
        except BaseException:
            await client.close()
            raise
        if session:
            client.keep_session()
        return client

    def __repr__(self) -> str:
        """Name the cluster."""
        return f"<hillfire client {self.core.client:#x} of {self.address}>"

    @property
    def id(self) -> int:
        """The client id: of its session, its update tags and its request numbers."""
        return self.core.client

    @property
    def hold(self) -> set[int]:
        """Inodes that the owner has open."""
        return self.core.hold

    @property
    def buffers(self) -> Buffers:
        """Staging memory that servers on this host fill directly; made at its first use."""
        if self._buffers is None:
            self._buffers = Buffers(self._staging_bytes)
        return self._buffers

    def try_acquire(self, length: int) -> Part | None:
        """Take staging memory for an operation of the core."""
        if length > self._staging_bytes:
            return None
        return self.buffers.try_acquire(length)

    def release(self, part: Part) -> None:
        """Take it back."""
        self.buffers.release(part)

    # --- operations

    async def meta(self, name: str, request: Message) -> Any:
        """Call the metadata service: ``await client.meta("Create", CreateRequest(...))``.

        Fills in ``caller.client`` and ``caller.request`` of mutations where they are not set,
        and retries with the same request number.

        Raises:
            Error: the service's, or the last one after ``io_timeout_s``.
        """
        return await self.run(self.core.meta(name, request))

    async def read(self, inode: meta_pb2.Inode, offset: int, into: Part) -> int:
        """Fill ``into`` from ``offset`` up to the inode's length as it says; return the count.

        Holes are filled with zeros.

        Raises:
            Error: as for a batch's entry.
        """
        operation = reading.read_batch(self.core, [(self.core.extent(inode), offset, into)])
        return reading.only(await self.run(operation))

    async def fetch(self, inode: meta_pb2.Inode, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``: ``read`` through staging memory.

        Unlike ``read`` it also answers in time when a server stopped while it was filling the
        memory: the bytes are read again from another replica, to another place.

        Raises:
            Error: as ``read``.
        """
        return await self.run(reading.fetch(self.core, self.core.extent(inode), offset, length))

    async def write(self, inode: meta_pb2.Inode, offset: int, source: Part) -> None:
        """Write ``source`` at ``offset`` to all replicas; the length is settled by the caller.

        Raises:
            Error: as for a batch's entry.
        """
        operation = writing.write_batch(self.core, [(self.core.extent(inode), offset, source)])
        reading.only(await self.run(operation))

    async def read_batch(
        self, entries: Sequence[tuple[meta_pb2.Inode, int, Part]]
    ) -> list[int | Error]:
        """Read (inode, offset, part) entries at once: a byte count or an error for each."""
        extent = self.core.extent
        plain = [(extent(inode), offset, part) for inode, offset, part in entries]
        return await self.run(reading.read_batch(self.core, plain))

    async def write_batch(
        self, entries: Sequence[tuple[meta_pb2.Inode, int, Part]]
    ) -> list[int | Error]:
        """Write (inode, offset, part) entries at once: a byte count or an error for each."""
        extent = self.core.extent
        plain = [(extent(inode), offset, part) for inode, offset, part in entries]
        return await self.run(writing.write_batch(self.core, plain))

    async def sync(self, inode: meta_pb2.Inode, start: int, end: int) -> None:
        """Make [start, end) durable on every serving replica of the chains it touches.

        Raises:
            Error: the first that does not pass before the deadline.
        """
        await self.run(writing.sync(self.core, self.core.extent(inode), start, end))

    # --- the shell

    async def run(self, operation: Operation[T]) -> T:
        """Drive an operation to its end."""
        started: list[Flying] = []
        try:
            action = operation.send(None)
            while True:
                kind = type(action)
                try:
                    if kind is Exchange:
                        calls = action.calls  # type: ignore[union-attr]
                        value: Any = (
                            [await self._call(calls[0])]
                            if len(calls) == 1
                            else await self._exchange(calls, started)
                        )
                    elif kind is Pause:
                        await asyncio.sleep(action.seconds)  # type: ignore[union-attr]
                        value = None
                    else:
                        value = await self._perform(action, started)
                except Error as exc:
                    action = operation.throw(exc)
                else:
                    action = operation.send(value)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            operation.close()
            _abandon(started)

    async def _exchange(self, calls: Sequence[Call], started: list[Flying]) -> list[Outcome | None]:
        flying = [self._begin(call) for call in calls]
        started[:] = [each for each in started if each.outcome is None] + flying
        waiting = flying
        while waiting := [each for each in waiting if each.outcome is None]:
            await _first(waiting, None)
        return [each.outcome for each in flying]

    async def _perform(self, action: Any, started: list[Flying]) -> Any:
        """Carry out an action that is neither an exchange nor a pause."""
        if type(action) is Start:
            flying = [self._begin(call) for call in action.calls]
            started += flying
            return flying
        if type(action) is Await:
            await _first(action.flying, action.timeout_s)
            return None
        if type(action) is Abandon:
            _abandon(action.flying)
            return None
        if type(action) is Spawn:
            return asyncio.ensure_future(self.run(action.operation))
        assert type(action) is Join
        return await action.handle

    def _begin(self, call: Call) -> Flying:
        """Start a call: by its connection, or as a task if that is still to be made."""
        endpoint, request, timeout_s = call
        flying = Flying(call)
        handle = flying.handle = _Handle()
        lane, connection = self._connection(endpoint)
        if connection is None:
            task = asyncio.ensure_future(self._call(call))
            task.add_done_callback(lambda done: _carried_out(flying, done))
            handle.give_up = task.cancel
            return flying
        kind = connection.kind

        def done(reply: Reply | Error) -> None:
            if not isinstance(reply, Error):
                _settle(flying, Outcome(reply.body, None, kind == "shm"))
                return
            if reply.code in _BROKEN:
                self._drop(lane, connection)
            _settle(flying, Outcome(b"", reply, True))

        try:
            handle.give_up = connection.submit(request, timeout_s, done)
        except Error as exc:
            done(exc)
        return flying

    def _connection(self, endpoint: Endpoint) -> tuple[Lane, AsyncConnection | None]:
        """Return the connection to a node that has least to do, None if there is none yet."""
        lane = endpoint, 0
        connection = self._connections.get(lane)
        if connection is not None and connection.kind == "tcp":
            lane = self._least_busy(endpoint)
            connection = self._connections.get(lane)
        return lane, connection

    async def _call(self, call: Call) -> Outcome:
        endpoint, request, timeout_s = call
        lane, connection = self._connection(endpoint)
        try:
            if connection is None:
                connection = await self._connect(lane)
            reply = await connection.request(request, timeout_s)
        except Error as exc:
            if connection is not None and exc.code in _BROKEN:
                self._drop(lane, connection)
            return Outcome(b"", exc, True)
        return Outcome(reply.body, None, connection.kind == "shm")

    def _least_busy(self, endpoint: Endpoint) -> Lane:
        """Return which of the tcp connections to a node to use; have another made if all are busy.

        Nobody waits for that one: it is there for later calls.
        """
        lanes = [(endpoint, number) for number in range(TCP_CONNECTIONS)]
        for lane in lanes[1:]:
            extra = self._connections.get(lane)
            if extra is not None and not extra.usable:
                self._drop(lane, extra)  # the first one tells its caller that the node is gone
        known = [lane for lane in lanes if lane in self._connections]
        least = min(known, key=lambda lane: self._connections[lane].outstanding)
        if self._connections[least].outstanding >= TCP_CALLS and len(known) < len(lanes):
            self._attempt(next(lane for lane in lanes if lane not in self._connections))
        return least

    def _attempt(self, lane: Lane) -> "asyncio.Task[AsyncConnection]":
        """Begin to make one of a node's connections, unless somebody has."""
        task = self._connecting.get(lane)
        if task is None:
            transport = allowed(self._transport, lane[0])
            attempt = connect_async(lane[0], CONNECT_TIMEOUT_S, transport=transport)
            task = self._connecting[lane] = asyncio.create_task(attempt)
            task.add_done_callback(lambda done: self._connected(lane, done))
        return task

    async def _connect(self, lane: Lane) -> AsyncConnection:
        """Return a node's first connection; callers at the same moment share one attempt."""
        if self._closed:
            raise Error(Code.INVALID, "this client is closed")
        return await asyncio.shield(self._attempt(lane))

    def _connected(self, lane: Lane, task: "asyncio.Task[AsyncConnection]") -> None:
        self._connecting.pop(lane, None)
        if task.cancelled() or task.exception() is not None:
            return
        if self._closed:
            task.result().close()
        else:
            self._connections[lane] = task.result()

    def _drop(self, lane: Lane, connection: AsyncConnection) -> None:
        if self._connections.get(lane) is connection:
            del self._connections[lane]
        connection.close()

    # --- the session

    def keep_session(self) -> None:
        """Begin the heartbeats unless they run."""
        if self._beating is None and not self._closed:
            self._beating = asyncio.create_task(self._beat(), name="hillfire-session")

    async def _beat(self) -> None:
        while True:
            due_s, orphans = await self.run(self.session.beat())
            if orphans and self.on_orphans is not None:
                self.on_orphans(orphans)
            if due_s:
                await asyncio.sleep(due_s)

    async def close(self) -> None:
        """End the session and close every connection."""
        if self._closed:
            return
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
            self._beating = None
            await self.run(self.session.end())
        self._closed = True
        for task in list(self._connecting.values()):
            task.cancel()
        for connection in self._connections.values():
            connection.close()
        self._connections = {}
