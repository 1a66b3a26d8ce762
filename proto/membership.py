"""A node's membership: it registers, sends heartbeats, holds its lease and hears of changes.

Storage nodes and metadata services hold one each. Heartbeats extend the lease; a long poll beside
them brings a new routing within milliseconds. The manager may die and come back at another port:
its wire address stays, there its present gRPC address is asked for.

Two orders matter. A routing that came with a heartbeat's answer is handed on *before* the lease is
extended, so that nobody acts on an old routing under a new lease. And the lease counts from when
the heartbeat was *sent*.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from hillfire.clock import NS_PER_S, SYSTEM, Clock, happens
from hillfire.cluster import Endpoint, NodeKind, Routing
from hillfire.errors import Code, Error
from hillfire.proto import cluster_pb2, convert, service
from hillfire.proto import manager_pb2 as pb
from hillfire.proto.discovery import find_manager
from hillfire.proto.lease import Lease
from hillfire.types import NodeId

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
REGISTER_TIMEOUT_S = 15.0
"""A registration that replaces a dead process may have to wait for a manager's first lease."""
RETRY_S = 0.05
"""Between attempts while the manager does not answer."""
POLL_MS = 10_000
POLL_MARGIN_S = 5.0
FIRST_SESSION_S = 600.0
"""Of a client, until the manager has named it."""
MIN_GAP_S = 0.002
"""Between heartbeats, however often somebody pokes."""
_FINAL = (Code.WRONG_CLUSTER, Code.STALE, Code.INVALID, Code.CONFIGURATION)
"""Answers that trying again does not change."""

_GET_ROUTING = service.method("Manager", "GetRouting")
_REGISTER = service.method("Manager", "Register")
_HEARTBEAT = service.method("Manager", "Heartbeat")


class Membership:
    """One process's place in the cluster. All methods belong to the event loop's thread."""

    routing: Routing
    """the newest that is known; version 0 before ``start``"""
    cluster: str
    """the id of the cluster that it is a member of"""
    failure: Error | None
    """why this process can be a member no more: it has to end"""
    session_s: float
    """a client session's length, as the manager said last"""

    def __init__(
        self,
        manager: str,
        node: NodeId,
        kind: NodeKind,
        endpoint: Endpoint,
        incarnation: int,
        cluster: str,
        report: Callable[[], Sequence[pb.TargetReport]],
        on_routing: Callable[[Routing], None],
        *,
        directory: Path | None = None,
        exclusive: bool = True,
        on_failure: Callable[[Error], None] | None = None,
        rack: str = "",
        host: str = "",
        disks: int = 1,
        idle_clients: Callable[[], Sequence[int]] | None = None,
        on_ended_clients: Callable[[Sequence[int]], None] | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        """Prepare; ``start`` registers.

        ``rack``, ``host``: failure domains; ``disks``: over which targets may be spread.
        ``idle_clients``: asked with each heartbeat whose tags might be dropped, those of whom
        nothing was heard for ``session_s``; ``on_ended_clients``: told whose sessions are over.

        ``manager``: the wire address, host:port. ``cluster``: empty if the node's ``directory``
        belongs to none yet. ``exclusive``: this process holds that directory's lock.
        ``report``: called for each heartbeat; ``on_routing``: for each newer routing;
        ``on_failure``: once, when the process has to end.
        """
        self.routing = Routing(cluster, 0)
        self.cluster = cluster
        self.failure = None
        self._manager = manager
        self._node = node
        self._kind = kind
        self._endpoint = endpoint
        self._incarnation = incarnation
        self._report = report
        self._on_routing = on_routing
        self._directory = directory
        self._exclusive = exclusive
        self._on_failure = on_failure
        self._labels = rack, host, disks
        self._idle_clients = idle_clients
        self._on_ended_clients = on_ended_clients
        self.session_s = FIRST_SESSION_S
        self._clock = clock
        self._lease = Lease(clock)
        self._lease_ms = 0
        self._interval_s = 0.0
        self._failing = False
        self._slow = False
        self._client: service.GrpcClient | None = None
        self._poke = asyncio.Event()
        self._connected = asyncio.Event()
        self._answered = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.lease_valid = self._lease.valid

    def __repr__(self) -> str:
        """Tell who it is and how it stands."""
        state = "failed" if self.failure else "leased" if self.lease_valid() else "no lease"
        return f"<Membership {self._node} of {self.cluster} at {self.routing.version} {state}>"

    async def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Register, hand on the first routing, and keep the lease from here on.

        Raises:
            Error: WRONG_CLUSTER, STALE, BUSY, INVALID, CONFIGURATION as the manager says;
                CONNECTION or TIMED_OUT when no manager answers in time.
        """
        deadline_ns = self._clock.boot_ns() + int(timeout_s * NS_PER_S)
        while True:
            try:
                await self._register()
                break
            except Error as error:
                if error.code in _FINAL:
                    raise
                if self._clock.boot_ns() > deadline_ns:
                    text = f"no manager takes this node at {self._manager}: {error.strerror}"
                    raise Error(error.code, text) from error
                await asyncio.sleep(RETRY_S)
        self._tasks = [
            asyncio.create_task(self._heartbeats(), name=f"heartbeats-{self._node}"),
            asyncio.create_task(self._polls(), name=f"routing-{self._node}"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def leased(self, timeout_s: float) -> None:
        """Wait until the lease runs.

        Raises:
            Error: TIMED_OUT, or the failure that ended the membership.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self.lease_valid():
                    if self.failure is not None:
                        raise self.failure
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError as exc:
            if isinstance(exc, Error):
                raise
            text = f"the manager at {self._manager} has not answered for {timeout_s:.1f} s"
            raise Error(Code.TIMED_OUT, text) from exc

    def poke(self) -> None:
        """Send a heartbeat now: what ``report`` returns has changed."""
        self._poke.set()

    async def stop(self) -> None:
        """Send no more heartbeats and act no more. Idempotent."""
        self._lease.end()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):  # _ended has told
                await task
        self._tasks = []
        await self._disconnect()

    async def _heartbeats(self) -> None:
        """Send one each interval, or when poked; find the manager again when one fails."""
        while self.failure is None:
            self._poke.clear()
            try:
                if self._client is None:
                    await self._register()
                await self._heartbeat()
                self._slow = False
                if self._failing:
                    self._failing = False
                    log.info("event=manager_back node=%d", self._node)
                pause_s = self._interval_s
            except Error as error:
                await self._lost(error)
                pause_s = RETRY_S
            await asyncio.sleep(min(MIN_GAP_S, pause_s))
            await happens(self._poke, pause_s)

    async def _heartbeat(self) -> None:
        """Send one; the routing first, then the lease."""
        assert self._client is not None
        request = pb.HeartbeatRequest(
            node=self._node,
            incarnation=self._incarnation,
            known_version=self.routing.version,
            targets=self._report(),
            idle_clients=self._idle_clients() if self._idle_clients else (),
        )
        sent_ns = self._clock.boot_ns()
        timeout_s = self._lease_ms / 1000 * 0.4
        reply = await self._client.call(_HEARTBEAT, request, timeout_s)
        if reply.HasField("routing"):
            self._take(convert.routing_from_message(reply.routing))
        self._lease_ms = reply.lease_ms
        self._lease.extend(sent_ns, reply.lease_ms)
        self.session_s = reply.session_ms / 1000 or self.session_s
        if reply.ended_clients and self._on_ended_clients is not None:
            self._on_ended_clients(list(reply.ended_clients))
        self._answered.set()

    async def _polls(self) -> None:
        """Keep one GetRouting waiting at the manager."""
        while self.failure is None:
            await self._connected.wait()
            client, known = self._client, self.routing.version
            if client is None:
                self._connected.clear()
                continue
            request = pb.GetRoutingRequest(known_version=known, wait_ms=POLL_MS)
            try:
                timeout_s = POLL_MS / 1000 + POLL_MARGIN_S
                message = await client.call(_GET_ROUTING, request, timeout_s)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                continue  # the heartbeats' task has closed the channel
            except Error as error:
                log.debug("event=poll_failed node=%d error=%r", self._node, str(error))
                await asyncio.sleep(RETRY_S)
                continue
            if message.version > self.routing.version:
                self._take(convert.routing_from_message(message))

    async def _register(self) -> None:
        """Find the manager's gRPC address at its wire address, and register there."""
        await self._disconnect()
        where = f"node {self._node} in {self._directory or 'its directory'}"
        client = service.GrpcClient(await find_manager(self._manager, self.cluster, where))
        rack, host, disks = self._labels
        request = pb.RegisterRequest(
            cluster=self.cluster,
            node=self._node,
            kind=cluster_pb2.NodeKind.ValueType(self._kind),
            endpoint=convert.endpoint_to_message(self._endpoint),
            incarnation=self._incarnation,
            exclusive=self._exclusive,
            rack=rack,
            host=host,
            disks=disks,
        )
        try:
            reply = await client.call(_REGISTER, request, REGISTER_TIMEOUT_S)
        except BaseException:
            await client.close()
            raise
        self._client = client
        self._connected.set()
        self.cluster = reply.cluster
        self._lease_ms = reply.lease_ms
        self._interval_s = reply.heartbeat_interval_ms / 1000
        self.session_s = reply.session_ms / 1000 or self.session_s
        self._take(convert.routing_from_message(reply.routing))

    async def _lost(self, error: Error) -> None:
        """After a failed heartbeat: find the manager anew, or give up for good."""
        level = logging.DEBUG if self._failing else logging.WARNING  # an outage is told once
        self._failing = True
        log.log(level, "event=heartbeat_failed node=%d error=%r", self._node, str(error))
        if error.code in _FINAL:
            self._fail(error)
        slow = error.code is Code.TIMED_OUT and not self._slow  # once: it may only be busy
        self._slow = slow
        if not slow:
            await self._disconnect()

    def _fail(self, error: Error) -> None:
        """End the membership."""
        self.failure = error
        self._lease.end()
        self._answered.set()
        log.critical("event=expelled node=%d error=%r", self._node, str(error))
        if self._on_failure is not None:
            self._on_failure(error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """End the membership when an exception ended a task of ours: better out than unsure."""
        if not task.cancelled() and (cause := task.exception()) is not None:
            log.error("event=membership_failed node=%d", self._node, exc_info=cause)
            if self.failure is None:
                self._fail(Error(Code.INTERNAL, f"{task.get_name()}: {cause!r}"))

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        self._connected.clear()
        if client is not None:
            await client.close()

    def _take(self, routing: Routing) -> None:
        """Hand on a newer routing."""
        if routing.version <= self.routing.version:
            return
        self.routing = routing
        self._on_routing(routing)
