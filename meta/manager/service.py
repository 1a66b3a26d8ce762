"""The manager's rpcs: takes in what nodes say, has it decided, stores it, then tells everyone.

All of it runs on one event loop. Heartbeats only note things and are answered at once; whatever
changes the routing goes through :meth:`ManagerService._publish`, one change at a time: decided by
pure code, on the disk, and only then visible. Between a node's declared death and its publication
no heartbeat of that node is answered, so that it cannot gain a lease that outlives the removal.
"""

import asyncio
import logging
from collections import deque

from hillfire.clock import NS_PER_MS, NS_PER_S, SYSTEM, Clock, happens
from hillfire.cluster import Endpoint, LocalState, Node, NodeKind, Routing
from hillfire.config import ManagerConfig
from hillfire.errors import Code, Error
from hillfire.meta.manager import decide, intake
from hillfire.meta.manager.chains import Report
from hillfire.meta.manager.decide import Status
from hillfire.meta.manager.lease import Admission, Leases, admission
from hillfire.meta.manager.state import Store
from hillfire.proto import cluster_pb2 as pb
from hillfire.proto import convert
from hillfire.proto import manager_pb2 as manager
from hillfire.proto.service import CallContext
from hillfire.types import NodeId, TargetId

log = logging.getLogger(__name__)

MAX_WAIT_S = 60.0
"""The longest that a GetRouting is held open."""
MAX_WAITERS = 10_000
"""GetRouting calls held open at once; further ones are answered at once."""
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
        self._store = store
        self._config = config
        self._clock = clock
        self._routing = store.routing
        self._message = pb.Routing()
        self._announced = False
        self._lease_ns = config.lease_ms * NS_PER_MS
        self._leases = Leases(self._lease_ns, clock.boot_ns())
        self._said: dict[TargetId, Status] = {}
        self._ended: dict[NodeId, deque[int]] = {}
        self._condemned: frozenset[NodeId] = frozenset()
        self._change = asyncio.Lock()
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._waiting = 0
        self._space_ns = 0
        self._recall()

    @property
    def routing(self) -> Routing:
        """The routing as it is published."""
        return self._routing

    async def announce(self, endpoint: Endpoint) -> None:
        """Publish where this manager listens, and begin to answer."""
        async with self._change:
            await self._publish(decide.with_manager(self._routing, endpoint))
            self._announced = True

    def close(self) -> None:
        """Answer nothing any more, and let those go who wait for news."""
        self._announced = False
        self._news.set()

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
        if request.known_version >= self._routing.version and self._waiting < MAX_WAITERS:
            self._waiting += 1
            try:
                await happens(self._news, wait_s)
            finally:
                self._waiting -= 1
        return self._message

    async def register(
        self, request: manager.RegisterRequest, context: CallContext
    ) -> manager.RegisterReply:
        """Enter a process; when it replaces another, that one's death is published first."""
        self._require_announced()
        node = intake.node_of(request)
        cluster = self._routing.cluster
        if request.cluster not in ("", cluster):
            raise Error(
                Code.WRONG_CLUSTER,
                f"node {node.id} belongs to cluster {intake.shown(request.cluster)}, but the "
                f"manager in {self._config.directory} serves cluster {cluster}: give it that "
                "cluster's manager, or a new directory",
            )
        self._refuse_ended(node.id, node.incarnation)
        await self._bury(node, request.exclusive)
        async with self._change:
            self._refuse_ended(node.id, node.incarnation)
            if node.id in self._condemned:
                raise Error(Code.UNAVAILABLE, f"node {node.id} is being declared dead: try again")
            known = self._routing.nodes.get(node.id)
            if known is not None and known.alive and known.incarnation != node.incarnation:
                raise Error(Code.BUSY, f"another process has just become node {node.id}")
            new = decide.with_node(self._routing, node)
            self._leases.renew(node.id, self._clock.boot_ns())
            if new is not None:
                await self._publish(new)
                log.info("event=registered node=%d incarnation=%d", node.id, node.incarnation)
        self._wake.set()
        return manager.RegisterReply(
            cluster=cluster,
            lease_ms=self._config.lease_ms,
            heartbeat_interval_ms=self._config.heartbeat_interval_ms,
            routing=self._message,
        )

    def heartbeat(
        self, request: manager.HeartbeatRequest, context: CallContext
    ) -> manager.HeartbeatReply:
        """Extend a node's lease and note what it says of its targets."""
        self._require_announced()
        id = NodeId(request.node)
        node = self._routing.nodes.get(id)
        if node is None:
            text = f"node {id} is not known in cluster {self._routing.cluster}: register first"
            raise Error(Code.NOT_FOUND, text)
        self._refuse_ended(id, request.incarnation)
        if node.incarnation != request.incarnation:
            raise Error(Code.NOT_FOUND, f"another process is node {id}: register first")
        if id in self._condemned:
            raise Error(Code.UNAVAILABLE, f"node {id} is being declared dead: try again")
        now_ns = self._clock.boot_ns()
        self._leases.look(now_ns)
        self._leases.renew(id, now_ns)
        if self._note(id, request) or not node.alive:
            self._wake.set()
        reply = manager.HeartbeatReply(lease_ms=self._config.lease_ms)
        if request.known_version < self._routing.version:
            reply.routing.CopyFrom(self._message)
        return reply

    async def attest_exit(
        self, request: manager.AttestExitRequest, context: CallContext
    ) -> pb.Empty:
        """Take a supervisor's word that a process has ended; its removal is published at once."""
        self._require_announced()
        node = self._routing.nodes.get(NodeId(request.node))
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
        async with self._change:
            new = await asyncio.to_thread(decide.with_chains, self._routing, *numbers)
            if new is not None:
                await self._publish(new)
                log.info("event=chains_created chains=%d", len(new.chains))
        self._wake.set()
        return self._message

    async def _bury(self, node: Node, exclusive: bool) -> None:
        """If a process takes another's place, see to it that the other's death is published."""
        known = self._routing.nodes.get(node.id)
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
                while self._routing.nodes[node.id].alive:
                    news = self._news
                    await self._evaluate()
                    if not self._routing.nodes[node.id].alive:
                        break
                    left_s = (deadline_ns - self._clock.boot_ns()) / NS_PER_S + SETTLE_MARGIN_S
                    if not await happens(news, left_s):
                        text = f"the end of node {node.id}'s last process cannot be stored"
                        raise Error(Code.UNAVAILABLE, text)

    async def _evaluate(self) -> bool:
        """Apply all that is known now; False while a new manager has yet to hear of everyone."""
        async with self._change:
            now_ns = self._clock.boot_ns()
            self._leases.look(now_ns)
            if not self._leases.settled(now_ns) or not self._announced:
                return False
            alive = self._leases.alive(now_ns) - self._condemned
            space = now_ns >= self._space_ns
            new = decide.evaluate(self._routing, alive, self._said, space=space)
            if space:
                self._space_ns = now_ns + SPACE_INTERVAL_NS
            if new is not None:
                await self._publish(new)
                self._wake.set()
            return True

    async def _publish(self, routing: Routing) -> None:
        """Store a routing, then let everyone see it. Called with the change lock held.

        If it cannot be stored, those it declares dead stay without answers until one can.
        """
        before = self._routing
        self._condemned |= {
            n.id for n in routing.nodes.values() if not n.alive and _lives(n, before)
        }
        await self._store.save(routing)
        self._routing, self._message = routing, convert.routing_to_message(routing)
        for target in routing.targets.values():
            if target.node in self._condemned:
                self._said.pop(target.id, None)
        self._condemned = frozenset()
        self._news.set()
        self._news = asyncio.Event()
        _tell(before, routing)

    def _recall(self) -> None:
        """Begin with what the last manager stored: who was alive, and in which state."""
        nodes = self._routing.nodes
        now_ns = self._clock.boot_ns()
        for target in self._routing.targets.values():
            if nodes[target.node].alive:
                space = (target.used_bytes, target.capacity_bytes)
                self._said[target.id] = Status(Report(target.local, 0), *space)
        holders = {t.node for t in self._routing.targets.values() if nodes[t.node].alive}
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
        for target in self._routing.targets.values():
            if target.node == node.id:
                self._said.pop(target.id, None)

    def _note(self, node: NodeId, request: manager.HeartbeatRequest) -> bool:
        """Keep a heartbeat's reports; tell whether one may change a chain."""
        changed = False
        for said in request.targets:
            target = self._routing.targets.get(TargetId(said.target))
            if target is None or target.node != node or not said.local:
                continue
            report = Report(LocalState(said.local), said.chain_version)
            known = self._said.get(target.id)
            changed = changed or known is None or known.report != report
            self._said[target.id] = Status(report, said.used_bytes, said.capacity_bytes)
        return changed

    def _refuse_ended(self, node: NodeId, incarnation: int) -> None:
        if incarnation in self._ended.get(node, ()):
            text = f"this process was replaced, or reported as ended, as node {node}: start it anew"
            raise Error(Code.STALE, text)

    def _require_announced(self) -> None:
        if not self._announced:
            raise Error(Code.UNAVAILABLE, "the manager is starting: try again")


def _lives(node: Node, routing: Routing) -> bool:
    known = routing.nodes.get(node.id)
    return known is not None and known.alive


def _tell(before: Routing, after: Routing) -> None:
    """Log what changed for nodes and chains."""
    for node in after.nodes.values():
        known = before.nodes.get(node.id)
        if known is None or known.alive is not node.alive:
            kind = NodeKind(node.kind).name.lower()
            log.info("event=%s kind=%s node=%d", "up" if node.alive else "dead", kind, node.id)
    for chain in after.chains.values():
        if before.chains.get(chain.id) != chain:
            states = " ".join(f"{t}:{s.name.lower()}" for t, s in chain.targets)
            log.info(
                "event=chain chain=%d version=%d targets='%s'", chain.id, chain.version, states
            )
