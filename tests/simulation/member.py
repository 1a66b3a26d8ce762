"""Member: a process's place in the cluster, as ``proto/membership.py`` keeps it.

It registers, sends heartbeats, holds the production lease and hears of changes. Two orders matter
here as there: a routing that came with a heartbeat's answer is acted on before the lease is
extended, and the lease counts from when the heartbeat was sent.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hillfire.cluster import Endpoint, Node, NodeKind, Routing
from hillfire.errors import Code, Error
from hillfire.meta.manager.decide import Status
from hillfire.proto.lease import Lease
from hillfire.types import NodeId, TargetId
from tests.simulation.manager_node import said
from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

FIND_TIMEOUT_S = 1.0
REGISTER_TIMEOUT_S = 15.0
RETRY_S = 0.05
MIN_GAP_S = 0.002
POLL_S = 10.0
POLL_TIMEOUT_S = 15.0
_FINAL = (Code.WRONG_CLUSTER, Code.STALE, Code.INVALID, Code.CONFIGURATION)


class Member(Process):
    """A storage node or a metadata service."""

    def __init__(self, world: "World", node: NodeId, kind: NodeKind, rack: str = "") -> None:
        super().__init__(f"n{node}", world.scheduler, world.story, world.rate())
        self.world = world
        self.network = world.network
        self.node = node
        self.kind = kind
        self.rack = rack
        self.endpoint = Endpoint(self.name, self.name, "", f"host-{node}")
        self.incarnation = 0
        self.routing = Routing("", 0)
        self.lease = Lease(self.clock)

    def report(self) -> Mapping[TargetId, Status]:
        """Say what the next heartbeat says of each target."""
        return {}

    def take(self, routing: Routing) -> None:
        """Act on a newer routing."""

    # ------------------------------------------------------------------ life

    def boot(self) -> None:
        self.world.incarnations += 1
        self.incarnation = self.world.incarnations
        self.routing = Routing(self.world.cluster, 0)
        self.lease = Lease(self.clock)
        self._registered = False
        self._under_way = False
        self._poked = False
        self._turn = 0
        self._beat_at = 0
        self._slow = False
        self._polling = False
        self._register()

    def expelled(self, error: Error) -> None:
        """End: the manager says that this process can be a member no more."""
        self.lease.end()
        self.world.checks.expelled(self, error)
        self.world.coverage.count("expelled")
        self.kill(f"ends, expelled: {error.strerror}")
        self.scheduler.later(RETRY_S, lambda: None if self.alive else self.start())

    def poke(self) -> None:
        """Send a heartbeat now: what it says has changed."""
        if not self._poked and self._registered:
            self._poked = True
            if not self._under_way:
                self.after(MIN_GAP_S, self._next)

    # ------------------------------------------------------------------ registration

    def _register(self) -> None:
        """Find the manager that leads, as ``proto/discovery.py`` does, and register there."""
        self._registered, self._under_way = False, True

        def found(reply: Any) -> None:
            if isinstance(reply, Error):
                self._turn += 1
                self.after(RETRY_S, self._register)
            else:
                self._enter()

        self._ask("get_routing", (0, 0.0), FIND_TIMEOUT_S, found)

    def _enter(self) -> None:
        node = Node(
            self.node, self.kind, self.endpoint, self.incarnation, True, rack=self.rack,
            host=self.endpoint.host,
        )  # fmt: skip
        body = node, self.world.cluster, True
        self._ask("register", body, REGISTER_TIMEOUT_S, self._entered)

    def _ask(self, method: str, body: Any, timeout_s: float, answered: Any) -> None:
        managers = self.world.managers
        manager = managers[self._turn % len(managers)]
        self.network.call(self, manager, method, body, timeout_s, answered)

    def _entered(self, reply: Any) -> None:
        if isinstance(reply, Error):
            if reply.code in _FINAL:
                self.expelled(reply)
            else:
                self.after(RETRY_S, self._register)
            return
        self._registered, self._under_way = True, False
        self._newer(reply.routing)
        self._next()
        if not self._polling:
            self._poll()

    # ------------------------------------------------------------------ heartbeats

    def _next(self) -> None:
        """Send a heartbeat, unless one is under way."""
        if not self._registered or self._under_way:
            return
        self._poked, self._under_way = False, True
        self._beat_at += 1
        turn = self._beat_at
        sent_ns, plan = self.boot_ns(), self.world.plan
        body = (self.node, self.incarnation, self.routing.version, self.report())

        story = self.world.story
        if story.verbose:
            story.tell(self.name, f"heartbeat {self._beat_at}: {said(body[3])}")

        def answered(reply: Any) -> None:
            if story.verbose:
                story.tell(self.name, f"heartbeat {turn} answered: {type(reply).__name__}")
            self._under_way = False
            if isinstance(reply, Error):
                self._lost(reply)
                return
            self._slow = False
            self._newer(reply.routing)
            self.lease.extend(sent_ns, plan.lease_ms)
            self._wait(MIN_GAP_S if self._poked else plan.heartbeat_ms / 1000)

        self._ask("heartbeat", body, plan.lease_ms / 1000 * 0.4, answered)

    def _wait(self, seconds: float) -> None:
        turn = self._beat_at

        def due() -> None:
            if self._beat_at == turn:
                self._next()

        self.after(seconds, due)

    def _lost(self, error: Error) -> None:
        if error.code in _FINAL:
            self.expelled(error)
            return
        slow = error.code is Code.TIMED_OUT and not self._slow
        self._slow = slow
        if slow:
            self._wait(RETRY_S)
        else:
            self._registered, self._under_way = False, True
            self.after(RETRY_S, self._register)

    # ------------------------------------------------------------------ routing

    def _poll(self) -> None:
        self._polling = True

        def answered(reply: Any) -> None:
            if isinstance(reply, Error):
                self.after(RETRY_S, self._poll)
            else:
                self._newer(reply)
                self._poll()

        self._ask("get_routing", (self.routing.version, POLL_S), POLL_TIMEOUT_S, answered)

    def _newer(self, routing: Routing | None) -> None:
        if routing is not None and routing.version > self.routing.version:
            self.routing = routing
            self.take(routing)
