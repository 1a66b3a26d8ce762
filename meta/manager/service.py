"""The manager's rpcs: each becomes an event of the pure machine, each effect is carried out here.

All of it runs on one event loop. Heartbeats are answered at once; whatever changes the routing is
answered when the machine says so, after the disk has it.
"""

import asyncio
import logging
from typing import Any

from hillfire.clock import NS_PER_MS, NS_PER_S, SYSTEM, Clock, happens
from hillfire.cluster import Endpoint, Routing
from hillfire.config import ManagerConfig
from hillfire.errors import Code, Error
from hillfire.meta.manager import decide, intake
from hillfire.meta.manager import events as ev
from hillfire.meta.manager.core import Manager, Settings
from hillfire.meta.manager.state import Store
from hillfire.proto import cluster_pb2 as pb
from hillfire.proto import convert
from hillfire.proto import manager_pb2 as manager
from hillfire.proto.service import CallContext
from hillfire.types import NodeId

log = logging.getLogger(__name__)

MAX_WAIT_S = 60.0
"""The longest that a GetRouting is held open."""
MAX_WAITERS = 10_000
"""GetRouting calls held open at once; further ones are answered at once."""
ANSWER_MARGIN = 0.9
"""Of a caller's patience is used before it is told that nothing came."""


class ManagerService:
    """One manager: the machine, and what it stands on: clock, disk and callers."""

    def __init__(
        self,
        store: Store,
        config: ManagerConfig,
        clock: Clock = SYSTEM,
        led_until_ns: int = ev.FOREVER,
    ) -> None:
        """Begin with what is stored; nothing is answered before ``announce``."""
        self._store = store
        self._config = config
        self._clock = clock
        settings = Settings(
            lease_ns=config.lease_ms * NS_PER_MS,
            session_ns=config.client_session_ms * NS_PER_MS,
            name=str(config.directory),
            rotate=config.rotate,
        )
        now_ns = clock.boot_ns()
        self.core = Manager(settings, store.routing, store.decisions, now_ns, led_until_ns)
        self.failed = asyncio.Event()
        """set when this manager can lead no more"""
        self._message = convert.routing_to_message(store.routing)
        self._requests = 0
        self._asking: dict[int, asyncio.Future[ev.Done | ev.Registration | ev.Beat]] = {}
        self._news = asyncio.Event()
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._trouble: Error | None = None
        self._woken = False
        self._closed = False

    @property
    def routing(self) -> Routing:
        """The routing as it is published."""
        return self.core.routing

    # ------------------------------------------------------------------ life

    async def announce(self, endpoint: Endpoint) -> None:
        """Publish where this manager listens, and begin to answer.

        Raises:
            Error: NOT_LEADER, NO_SPACE, IO if that cannot be stored.
        """
        self.do(ev.Announced(self._clock.boot_ns(), endpoint))
        await self.saved()
        if self.routing.manager != endpoint:
            raise self._trouble or Error(Code.INTERNAL, "the manager could not begin: see its log")

    async def saved(self) -> None:
        """Wait until nothing is on its way to the disk or being planned."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def tick(self) -> None:
        """Let the machine see what time it is."""
        self._woken = False
        if not self._closed:
            self.do(ev.Tick(self._clock.boot_ns()))

    async def watch(self) -> None:
        """Tick until this manager can lead no more, or until cancelled.

        Raises:
            Error: why it can lead no more.
        """
        tick_s = self.core.settings.tick_ns / NS_PER_S
        while not await happens(self.failed, tick_s):
            self.tick()
        ended = self.core.ended
        raise Error(ended.code, ended.text) if ended else Error(Code.INTERNAL, "see the log")

    def led(self, until_ns: int) -> None:
        """Take note that this manager leads until then."""
        self.do(ev.Led(self._clock.boot_ns(), until_ns))

    async def close(self) -> None:
        """Answer nothing any more, and let those go who wait."""
        self._closed = True
        for future in self._asking.values():
            if not future.done():
                future.set_exception(Error(Code.UNAVAILABLE, "the manager is stopping"))
        self._tell_waiters()
        await self.saved()

    # ------------------------------------------------------------------ rpcs

    async def get_routing(
        self, request: manager.GetRoutingRequest, context: CallContext
    ) -> pb.Routing:
        """Answer once there is something newer than the caller knows, or its time is over."""
        self._require_leader()
        wait_s = min(request.wait_ms / 1000, MAX_WAIT_S, context.timeout_s * ANSWER_MARGIN)
        if request.known_version >= self.routing.version and self._waiting < MAX_WAITERS:
            self._waiting += 1
            try:
                await happens(self._news, wait_s)
            finally:
                self._waiting -= 1
            self._require_leader()
        return self._message

    async def register(
        self, request: manager.RegisterRequest, context: CallContext
    ) -> manager.RegisterReply:
        """Enter a process; when it replaces another, that one's death is published too."""
        node = intake.node_of(request)
        shown = intake.shown(request.cluster)
        number, now_ns = self._next(), self._clock.boot_ns()
        event = ev.Registered(now_ns, number, node, shown, request.exclusive)
        await self._ask(event, context)
        log.info("event=registered node=%d incarnation=%d", node.id, node.incarnation)
        return manager.RegisterReply(
            cluster=self.routing.cluster,
            lease_ms=self._config.lease_ms,
            heartbeat_interval_ms=self._config.heartbeat_interval_ms,
            session_ms=self._config.client_session_ms,
            routing=self._message,
        )

    def heartbeat(
        self, request: manager.HeartbeatRequest, context: CallContext
    ) -> manager.HeartbeatReply:
        """Extend a node's lease and note what it says of its targets."""
        event = ev.Heartbeat(
            self._clock.boot_ns(),
            self._next(),
            NodeId(request.node),
            request.incarnation,
            request.known_version,
            intake.statuses_of(request),
            request.idle_clients[: intake.MAX_IDLE_CLIENTS],
        )
        beat = self.do(event)
        assert isinstance(beat, ev.Beat), "heartbeats are answered at once"
        reply = manager.HeartbeatReply(
            lease_ms=self._config.lease_ms,
            session_ms=self._config.client_session_ms,
            ended_clients=beat.ended_clients,
        )
        if beat.routing is not None:
            reply.routing.CopyFrom(self._message)
        return reply

    async def attest_exit(
        self, request: manager.AttestExitRequest, context: CallContext
    ) -> pb.Empty:
        """Take a supervisor's word that a process has ended; its removal is published at once."""
        now_ns, node = self._clock.boot_ns(), NodeId(request.node)
        await self._ask(ev.ExitAttested(now_ns, self._next(), node, request.incarnation), context)
        return pb.Empty()

    async def create_chains(
        self, request: manager.CreateChainsRequest, context: CallContext
    ) -> pb.Routing:
        """Place chains over the storage nodes, once."""
        wish = intake.wish_of(request)
        now_ns, wall_ms = self._clock.boot_ns(), self._clock.wall_ns() // NS_PER_MS
        await self._ask(
            ev.ChainsWanted(now_ns, self._next(), wish, "create-chains", wall_ms), context
        )
        return self._message

    def session(
        self, request: manager.ClientSessionRequest, context: CallContext
    ) -> manager.ClientSessionReply:
        """Keep a client's session, or end it."""
        now_ns = self._clock.boot_ns()
        self.do(ev.SessionCame(now_ns, self._next(), request.client, request.end))
        return manager.ClientSessionReply(session_ms=self._config.client_session_ms)

    async def command(
        self, request: manager.CommandRequest, context: CallContext
    ) -> manager.CommandReply:
        """Take an operator's command; the routing shows how far it is carried out."""
        command = intake.command_of(request)
        now_ns, wall_ms = self._clock.boot_ns(), self._clock.wall_ns() // NS_PER_MS
        done = await self._ask(ev.Commanded(now_ns, self._next(), command, wall_ms), context)
        assert isinstance(done, ev.Done)
        log.warning("event=command kind=%s who=%r why=%r said=%r", command.kind.name.lower(),
                    command.who, command.why, done.text)  # fmt: skip
        return manager.CommandReply(version=done.routing.version, text=done.text)

    def describe(
        self, request: manager.DescribeRequest, context: CallContext
    ) -> manager.Description:
        """Tell what is too restless for the routing."""
        self._require_leader()
        core = self.core
        latest = list(core.decisions)[-request.decisions :] if request.decisions else []
        return manager.Description(
            targets=[intake.report_of(target, said) for target, said in core.said.items()],
            decisions=[convert.decision_to_message(each) for each in latest],
            epoch=self._store.epoch,
            clients=len(core.sessions),
        )

    # ------------------------------------------------------------------ the machine's two sides

    def do(self, event: ev.Event) -> ev.Done | ev.Registration | ev.Beat | None:
        """Hand an event in and carry the effects out; return the answer to it, if there is one.

        Raises:
            Error: if the event is refused.
        """
        mine: ev.Answer | ev.Refuse | None = None
        request = getattr(event, "request", 0)
        for effect in self.core.handle(event):
            if isinstance(effect, ev.Answer | ev.Refuse) and effect.request == request:
                mine = effect
            else:
                self._carry_out(effect)
        if isinstance(mine, ev.Refuse):
            raise Error(mine.code, mine.text)
        return None if mine is None else mine.reply

    def _carry_out(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Answer():
                future = self._asking.get(effect.request)
                if future is not None and not future.done():
                    future.set_result(effect.reply)
            case ev.Refuse():
                future = self._asking.get(effect.request)
                if future is not None and not future.done():
                    future.set_exception(Error(effect.code, effect.text))
            case ev.Save():
                self._start(self._save(effect))
            case ev.Plan():
                self._start(self._plan(effect))
            case ev.Publish():
                self._message = convert.routing_to_message(effect.routing)
                self._tell_waiters()
            case ev.Log():
                log.log(logging.CRITICAL if effect.severe else logging.INFO, "%s", effect.text)
            case ev.Wake():
                if not self._woken:
                    self._woken = True
                    asyncio.get_running_loop().call_soon(self.tick)
            case ev.Ended():
                log.critical("event=deposed reason=%r", effect.text)
                self._tell_waiters()
                self.failed.set()

    async def _save(self, effect: ev.Save) -> None:
        try:
            await self._store.save(effect.routing, effect.decisions)
        except Error as error:
            self._trouble = error
            event: ev.Event = ev.StoreFailed(
                self._clock.boot_ns(), effect.save, error.code, str(error.strerror)
            )
        else:
            event = ev.Stored(self._clock.boot_ns(), effect.save)
        self.do(event)

    async def _plan(self, effect: ev.Plan) -> None:
        routing, code, text = None, Code.OK, ""
        try:
            routing = await asyncio.to_thread(decide.with_chains, effect.routing, effect.wish)
        except Error as error:
            code, text = error.code, str(error.strerror)
        now_ns = self._clock.boot_ns()
        # Its answer goes to the caller's future, not to this task.
        for done in self.core.handle(ev.Planned(now_ns, effect.request, routing, code, text)):
            self._carry_out(done)

    async def _ask(self, event: Any, context: CallContext) -> ev.Done | ev.Registration | ev.Beat:
        """Hand a request in and wait until the machine answers it."""
        future: asyncio.Future[ev.Done | ev.Registration | ev.Beat]
        future = asyncio.get_running_loop().create_future()
        self._asking[event.request] = future
        try:
            answer = self.do(event)
            if answer is not None:
                return answer
            async with asyncio.timeout(context.timeout_s * ANSWER_MARGIN):
                return await future
        except TimeoutError as error:
            if isinstance(error, Error):
                raise
            text = "the manager has not decided in time: see its log and its disk"
            raise Error(Code.UNAVAILABLE, text) from error
        finally:
            del self._asking[event.request]

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        """End with a defect rather than go on without what the machine waits for."""
        self._tasks.discard(task)
        if not task.cancelled() and (cause := task.exception()) is not None:
            log.critical("event=manager_failed task=%s", task.get_name(), exc_info=cause)
            self.failed.set()

    def _next(self) -> int:
        self._requests += 1
        return self._requests

    def _tell_waiters(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _require_leader(self) -> None:
        if self._closed:
            raise Error(Code.UNAVAILABLE, "the manager is stopping: try again")
        if (refusal := self.core.refusal(self._clock.boot_ns())) is not None:
            raise refusal
