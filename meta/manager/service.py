"""The manager's rpcs: takes in what nodes say, has it decided, and publishes what follows.

All of it runs on one event loop. Heartbeats only note things and are answered at once; whatever
changes the routing is decided by pure code under the publisher's lock, stored, and only then
visible.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping

from hillfire.clock import NS_PER_MS, NS_PER_S, SYSTEM, Clock, happens
from hillfire.cluster import Endpoint, Node, Routing
from hillfire.config import ManagerConfig
from hillfire.errors import Code, Error
from hillfire.meta.manager import decide, intake
from hillfire.meta.manager.chains import Report
from hillfire.meta.manager.decide import Status
from hillfire.meta.manager.lease import Admission, Leases, admission
from hillfire.meta.manager.publish import Publisher
from hillfire.meta.manager.state import Store
from hillfire.proto import cluster_pb2 as pb
from hillfire.proto import manager_pb2 as manager
from hillfire.proto.service import CallContext
from hillfire.types import NodeId, TargetId

log = logging.getLogger(__name__)

MAX_WAIT_S = 60.0
"""The longest that a GetRouting is held open."""
MAX_ENDED = 64
"""Ended incarnations remembered a node, to refuse what they may have left in the network."""
SPACE_INTERVAL_NS = 2 * NS_PER_S
"""How often the targets' use of space may be published anew."""
MAX_TICK_S = 0.05
STORE_RETRY_S = 1.0
SETTLE_MARGIN_S = 5.0
"""How much longer than a lease a registration waits until its predecessor's death is stored."""


class ManagerService:
    """One manager's mind: what is published, who was heard of when, and what they said."""

    def __init__(self, store: Store, config: ManagerConfig, clock: Clock = SYSTEM) -> None:
        """Grant every node that was alive a full lease; nothing is answered before ``announce``."""
        self._config = config
        self._clock = clock
        self._publisher = Publisher(store)
        self._announced = False
        self._lease_ns = config.lease_ms * NS_PER_MS
        self._leases = Leases(self._lease_ns, clock.boot_ns())
        self._said: dict[TargetId, Status] = {}
        self._ended: dict[NodeId, deque[int]] = {}
        self._wake = asyncio.Event()
        self._space_ns = 0
        self._recall()

    @property
    def routing(self) -> Routing:
        """The routing as it is published."""
        return self._publisher.routing

    async def announce(self, endpoint: Endpoint) -> None:
        """Publish where this manager listens, and begin to answer."""
        async with self._publisher.lock:
            await self._publish(decide.with_manager(self.routing, endpoint))
            self._announced = True

    def close(self) -> None:
        """Answer nothing any more, and let those go who wait for news."""
        self._announced = False
        self._publisher.close()

    async def watch(self) -> None:
        """Evaluate whenever something happened or a lease ran out, until cancelled."""
        tick_s = min(MAX_TICK_S, self._lease_ns / NS_PER_S / 8)
        seen: frozenset[NodeId] = frozenset()
        while True:
            await happens(self._wake, tick_s)
            now_ns = self._clock.boot_ns()
            self._leases.look(now_ns)
            alive = self._leases.alive(now_ns)
            if alive == seen and not self._wake.is_set() and now_ns < self._space_ns:
                continue
            self._wake.clear()
            try:
                if await self._evaluate():
                    seen = alive
            except Error as error:
                log.critical("event=cannot_store error=%r remedy='see the disk'", str(error))
                await asyncio.sleep(STORE_RETRY_S)

    async def get_routing(
        self, request: manager.GetRoutingRequest, context: CallContext
    ) -> pb.Routing:
        """Answer once there is something newer than the caller knows, or its time is over."""
        self._require_announced()
        wait_s = min(request.wait_ms / 1000, MAX_WAIT_S, context.timeout_s * 0.9)
        return await self._publisher.newer(request.known_version, wait_s)

    async def register(
        self, request: manager.RegisterRequest, context: CallContext
    ) -> manager.RegisterReply:
        """Enter a process; when it replaces another, that one's death is published first."""
        self._require_announced()
        node = intake.node_of(request)
        cluster = self.routing.cluster
        if request.cluster not in ("", cluster):
            raise Error(
                Code.WRONG_CLUSTER,
                f"node {node.id} belongs to cluster {intake.shown(request.cluster)}, but the "
                f"manager in {self._config.directory} serves cluster {cluster}: give it that "
                "cluster's manager, or a new directory",
            )
        self._refuse_ended(node.id, node.incarnation)
        await self._bury(node, request.exclusive)
        async with self._publisher.lock:
            self._refuse_ended(node.id, node.incarnation)
            if node.id in self._publisher.condemned:
                raise Error(Code.UNAVAILABLE, f"node {node.id} is being declared dead: try again")
            known = self.routing.nodes.get(node.id)
            if known is not None and known.alive and known.incarnation != node.incarnation:
                raise Error(Code.BUSY, f"another process has just become node {node.id}")
            new = decide.with_node(self.routing, node)
            self._leases.renew(node.id, self._clock.boot_ns())
            if new is not None:
                await self._publish(new)
                log.info("event=registered node=%d incarnation=%d", node.id, node.incarnation)
        self._wake.set()
        return manager.RegisterReply(
            cluster=cluster,
            lease_ms=self._config.lease_ms,
            heartbeat_interval_ms=self._config.heartbeat_interval_ms,
            routing=self._publisher.message,
        )

    def heartbeat(
        self, request: manager.HeartbeatRequest, context: CallContext
    ) -> manager.HeartbeatReply:
        """Extend a node's lease and note what it says of its targets."""
        self._require_announced()
        id = NodeId(request.node)
        node = self.routing.nodes.get(id)
        if node is None:
            text = f"node {id} is not known in cluster {self.routing.cluster}: register first"
            raise Error(Code.NOT_FOUND, text)
        self._refuse_ended(id, request.incarnation)
        if node.incarnation != request.incarnation:
            raise Error(Code.NOT_FOUND, f"another process is node {id}: register first")
        if id in self._publisher.condemned:
            raise Error(Code.UNAVAILABLE, f"node {id} is being declared dead: try again")
        said = intake.statuses_of(request)
        now_ns = self._clock.boot_ns()
        self._leases.look(now_ns)
        self._leases.renew(id, now_ns)
        if self._note(id, said) or not node.alive:
            self._wake.set()
        reply = manager.HeartbeatReply(lease_ms=self._config.lease_ms)
        if request.known_version < self.routing.version:
            reply.routing.CopyFrom(self._publisher.message)
        return reply

    async def attest_exit(
        self, request: manager.AttestExitRequest, context: CallContext
    ) -> pb.Empty:
        """Take a supervisor's word that a process has ended; its removal is published at once."""
        self._require_announced()
        node = self.routing.nodes.get(NodeId(request.node))
        if node is None:
            raise Error(Code.NOT_FOUND, f"node {request.node} is not known")
        if node.incarnation == request.incarnation:
            log.info("event=exit_attested node=%d incarnation=%d", node.id, node.incarnation)
            self._end(node)
            await self._evaluate()
        return pb.Empty()

    async def create_chains(
        self, request: manager.CreateChainsRequest, context: CallContext
    ) -> pb.Routing:
        """Place chains over the storage nodes, once."""
        self._require_announced()
        numbers = (request.nodes, request.targets_per_node, request.replicas)
        async with self._publisher.lock:
            new = await asyncio.to_thread(decide.with_chains, self.routing, *numbers)
            if new is not None:
                await self._publish(new)
                log.info("event=chains_created chains=%d", len(new.chains))
        self._wake.set()
        return self._publisher.message

    async def _bury(self, node: Node, exclusive: bool) -> None:
        """If a process takes another's place, see to it that the other's death is published."""
        known = self.routing.nodes.get(node.id)
        now_ns = self._clock.boot_ns()
        self._leases.look(now_ns)
        running = self._leases.running(node.id, now_ns)
        match admission(known, node.incarnation, exclusive, running):
            case Admission.TOO_EARLY:
                raise Error(
                    Code.BUSY,
                    f"another process is node {node.id} and may be alive: stop it, or wait "
                    f"{self._config.lease_ms} ms",
                )
            case Admission.REPLACES:
                assert known is not None
                self._end(known)
                deadline_ns = self._clock.boot_ns() + self._lease_ns
                while self.routing.nodes[node.id].alive:
                    news = self._publisher.news
                    await self._evaluate()
                    if not self.routing.nodes[node.id].alive:
                        break
                    left_s = (deadline_ns - self._clock.boot_ns()) / NS_PER_S + SETTLE_MARGIN_S
                    if not await happens(news, left_s):
                        text = f"the end of node {node.id}'s last process cannot be stored"
                        raise Error(Code.UNAVAILABLE, text)

    async def _evaluate(self) -> bool:
        """Apply all that is known now; False while a new manager has yet to hear of everyone."""
        async with self._publisher.lock:
            now_ns = self._clock.boot_ns()
            self._leases.look(now_ns)
            if not self._leases.settled(now_ns) or not self._announced:
                return False
            alive = self._leases.alive(now_ns) - self._publisher.condemned
            space = now_ns >= self._space_ns
            new = decide.evaluate(self.routing, alive, self._said, space=space)
            if space:
                self._space_ns = now_ns + SPACE_INTERVAL_NS
            if new is not None:
                await self._publish(new)
                self._wake.set()
            return True

    async def _publish(self, routing: Routing) -> None:
        """Publish; forget what those said whom the routing declares dead."""
        dead = await self._publisher.publish(routing)
        for target in routing.targets.values():
            if target.node in dead:
                self._said.pop(target.id, None)

    def _recall(self) -> None:
        """Begin with what the last manager stored: who was alive, and in which state."""
        nodes = self.routing.nodes
        now_ns = self._clock.boot_ns()
        for target in self.routing.targets.values():
            if nodes[target.node].alive:
                space = (target.used_bytes, target.capacity_bytes)
                self._said[target.id] = Status(Report(target.local, 0), *space)
        holders = {t.node for t in self.routing.targets.values() if nodes[t.node].alive}
        self._leases.grant(holders, now_ns)
        for node in nodes.values():
            if node.alive:
                self._leases.extend(node.id, now_ns)

    def _end(self, node: Node) -> None:
        """Note that a process has ended: what it said is void, what it may still say too."""
        ended = self._ended.setdefault(node.id, deque(maxlen=MAX_ENDED))
        if node.incarnation not in ended:
            ended.append(node.incarnation)
        self._leases.end(node.id)
        self._wake.set()
        for target in self.routing.targets.values():
            if target.node == node.id:
                self._said.pop(target.id, None)

    def _note(self, node: NodeId, said: Mapping[TargetId, Status]) -> bool:
        """Keep what a node says of its own targets; tell whether it may change a chain."""
        changed = False
        for id, status in said.items():
            target = self.routing.targets.get(id)
            if target is not None and target.node == node:
                known = self._said.get(id)
                changed = changed or known is None or known.report != status.report
                self._said[id] = status
        return changed

    def _refuse_ended(self, node: NodeId, incarnation: int) -> None:
        if incarnation in self._ended.get(node, ()):
            text = f"this process was replaced, or reported as ended, as node {node}: start it anew"
            raise Error(Code.STALE, text)

    def _require_announced(self) -> None:
        if not self._announced:
            raise Error(Code.UNAVAILABLE, "the manager is starting: try again")
