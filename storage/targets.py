"""Target: one replica's place on this node's disk, and the shell of its ``Lifecycle``.

The lifecycle decides when a store is opened, when a replica begins and ends and what is reported;
here it is done. Events that arise meanwhile are queued, so that each is decided on alone.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path

from hillfire.cluster import Chain, LocalState, Routing
from hillfire.errors import Code, Error
from hillfire.proto import cluster_pb2
from hillfire.proto import manager_pb2 as pb
from hillfire.storage import lifecycle, recovery
from hillfire.storage.craq.effects import Stop
from hillfire.storage.disks import Disk
from hillfire.storage.lifecycle import Lifecycle
from hillfire.storage.peers import Peers
from hillfire.storage.pool import Pools
from hillfire.storage.repairs import Counters, Repairs
from hillfire.storage.resync import Recovery, Resync
from hillfire.storage.shell import TargetShell
from hillfire.storage.store.base import ChunkStore, Space
from hillfire.types import ChainId, ChunkId, TargetId

log = logging.getLogger(__name__)

REOPEN_S = 0.5
FULL_MIN_S = 5.0
FULL_MAX_S = 300.0
"""Between two attempts to come back while the disk is full."""
SPACE_S = 1.0
"""How long a look at the disk's free space is good for."""

_TROUBLE = {
    Code.IO: "its disk fails: see dmesg, replace it if it does not come back by itself",
    Code.NO_SPACE: "its disk is full: it comes back by itself when there is room",
}
"""What an operator is told besides why a target stopped."""


class Target:
    """One target of this node."""

    def __init__(
        self,
        target: TargetId,
        chain: ChainId,
        disk: Disk,
        *,
        open_store: Callable[[Path], ChunkStore],
        peers: Peers,
        pools: Pools,
        recovery: Recovery,
        routing: Callable[[], Routing],
        poke: Callable[[], None],
    ) -> None:
        """Prepare; ``start`` opens the store."""
        self.id = target
        self.chain = chain
        self.life = Lifecycle(target)
        self.disk = disk
        self.counters = Counters()
        self.shell: TargetShell | None = None
        self.repairs: Repairs | None = None
        """of the present life"""
        self._directory = disk.place(target)
        self._open_store = open_store
        self._peers = peers
        self._pools = pools
        self._executor = disk.executor
        self._recovery = recovery
        self._routing = routing
        self._poke = poke
        self._loop = asyncio.get_running_loop()
        self._store: ChunkStore | None = None
        self._events: deque[lifecycle.Event] = deque()
        self._handling = False
        self._defect = ""
        """why this target is out for good"""
        self._opened = asyncio.Event()
        self._resync: tuple[Resync, asyncio.Task[None]] | None = None
        self._last: TargetShell | None = None
        """the shell of the last life, until it has let go"""
        self._tasks: set[asyncio.Task[None]] = set()
        self._space = Space(0, 0)
        self._looked = 0.0
        self._full_s = FULL_MIN_S
        self._full_until = 0.0
        self._closing = False

    def __repr__(self) -> str:
        """Tell its local state and its replica's."""
        return f"<Target {self.life!r}>"

    @property
    def local(self) -> LocalState:
        """Its state as it is reported."""
        return LocalState.OFFLINE if self._defect else self.life.local

    @property
    def settled(self) -> bool:
        """Whether it is known if its store opens; before, nothing is reported of it."""
        return self.life.settled or bool(self._defect)

    @property
    def progress(self) -> recovery.Progress | None:
        """How far the sync of its successor is, None without one."""
        return self._resync[0].sync.progress if self._resync is not None else None

    # ------------------------------------------------------------------ what happens to it

    async def start(self) -> None:
        """Open the store; a failure leaves the target offline and the node alive."""
        self.handle(self._look())
        while not self.settled:
            self._opened.clear()
            await self._opened.wait()

    def routing_changed(self) -> None:
        """Act on the newest routing."""
        self.handle(lifecycle.Routed(self._chain(), self._withdrawn()))

    def synced(self, chain_version: int) -> None:
        """Take note that the predecessor has made this target equal.

        Raises:
            Error: WRONG_CHAIN_VERSION, NOT_SERVING.
        """
        self.active(chain_version)
        self.handle(lifecycle.Synced(chain_version))

    def refused(self, chain_version: int, reason: str) -> None:
        """Take note that no resync can decide what differs: this target stops.

        Raises:
            Error: WRONG_CHAIN_VERSION, NOT_SERVING.
        """
        self.active(chain_version)
        self.handle(lifecycle.Refused(chain_version, reason))

    def active(self, chain_version: int) -> TargetShell:
        """Return the shell if it acts on this chain version.

        Raises:
            Error: WRONG_CHAIN_VERSION, NOT_SERVING.
        """
        shell = self.shell
        if shell is None or shell.replica.stopped is not None:
            raise Error(Code.NOT_SERVING, f"target {self.id} is not up")
        if shell.replica.version != chain_version:
            text = f"target {self.id} is at chain version {shell.replica.version}"
            raise Error(Code.WRONG_CHAIN_VERSION, text)
        return shell

    def handle(self, event: lifecycle.Event) -> None:
        """Give the lifecycle an event and carry out what it wants."""
        self._events.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._events and not self._closing and not self._defect:
                for effect in self.life.handle(self._events.popleft()):
                    self._carry(effect)
        except Exception as exc:
            self._give_up(exc)
        finally:
            self._handling = False

    def _give_up(self, exc: Exception) -> None:
        """Stay out after an exception that should not be: it costs this target, not the node."""
        log.critical("event=defect target=%d", self.id, exc_info=exc)
        self._defect = f"a defect, see the node's log and start it again: {exc!r}"
        self._events.clear()
        self._end_sync()
        if self.shell is not None:
            self.shell.fail(Error(Code.INTERNAL, self._defect))
            self.shell = None
        self._opened.set()
        self._poke()

    # ------------------------------------------------------------------ effects

    def _carry(self, effect: lifecycle.Effect) -> None:
        match effect:
            case lifecycle.Look():
                self._events.append(self._look())
            case lifecycle.Open():
                self._spawn(self._open())
            case lifecycle.Begin():
                self._begin()
            case lifecycle.Route():
                if self.shell is not None:
                    self.shell.routing_changed(effect.chain)
            case lifecycle.Sync():
                self._start_sync(effect)
            case lifecycle.EndSync():
                self._end_sync()
            case lifecycle.StopReplica():
                if self.shell is not None:
                    self.shell.fail(Error(Code(effect.code), effect.reason))
            case lifecycle.Drain():
                self._spawn(self._drain())
            case lifecycle.LookLater():
                self._loop.call_later(REOPEN_S, self.handle, lifecycle.LookDue())
            case lifecycle.Report():
                self._poke()
                self._opened.set()
            case lifecycle.Alarm():
                log.critical("event=target_held target=%d directory=%s code=%s reason=%r",
                             self.id, self._directory, Code(effect.code).name,
                             effect.reason)  # fmt: skip

    def _look(self) -> lifecycle.Found:
        try:
            new = not self._directory.exists()
        except OSError:  # opening it will say what is wrong
            new = False
        return lifecycle.Found(new, self._chain(), self._withdrawn())

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        if self.disk.failure:
            reason = f"its disk {self.disk.directory} fails: {self.disk.failure}"
            self.handle(lifecycle.OpenFailed(Code.IO, reason))
            return
        try:
            if self._store is not None:
                store, self._store = self._store, None
                await self._close_failed(store)
            self._store = await self._loop.run_in_executor(
                self._executor, self._open_store, self._directory
            )
        except Error as exc:
            reason = exc.strerror or exc.code.name
            self.handle(lifecycle.OpenFailed(exc.code, f"its store does not open: {reason}"))
            return
        except Exception as exc:
            log.critical("event=defect target=%d", self.id, exc_info=exc)
            self.handle(lifecycle.OpenFailed(Code.INTERNAL, f"its store does not open: {exc!r}"))
            return
        self.handle(lifecycle.Opened())

    async def _close_failed(self, store: ChunkStore) -> None:
        """Close a store whose disk failed; it may fail at that, too."""
        try:
            await self._loop.run_in_executor(self._executor, store.close)
        except Exception as exc:
            log.warning("event=store_not_closed target=%d cause=%r", self.id, exc)

    def _begin(self) -> None:
        assert self._store is not None
        self.shell = TargetShell(
            self.id,
            self._store,
            peers=self._peers,
            pools=self._pools,
            executor=self._executor,
            routing=self._routing,
            stopped=self._stopped,
            poke=self._poke,
            damaged=self.damaged,
            inline=self.disk.alone,
        )
        self.repairs = Repairs(self.shell, self.counters)

    def damaged(self, chunk: ChunkId, why: str) -> None:
        """Have a chunk repaired whose bytes failed their checksums."""
        if self.repairs is not None:
            self.repairs.schedule(chunk, why)

    def disk_changed(self) -> None:
        """Act on what the disk's probes say: stop while it fails, come back when it works."""
        failure = self.disk.failure
        if failure and self.shell is not None:
            self.shell.fail(Error(Code.IO, f"its disk {self.disk.directory} fails: {failure}"))
        elif not failure and self._has_room():
            self.handle(lifecycle.Healed())

    def _has_room(self) -> bool:
        """Tell whether a target that found its disk full should try again.

        Without room too, now and then: the others may have removed what fills it here.
        """
        if self.life.code is not Code.NO_SPACE:
            self._full_s = FULL_MIN_S
            return True
        now = self._loop.time()
        space = self.space
        if now < self._full_until and (space.no_writes or space.no_new_chunks):
            return False
        self._full_until = now + self._full_s
        self._full_s = min(FULL_MAX_S, self._full_s * 2)
        return True

    def _chain(self) -> Chain:
        return self._routing().chain(self.chain)

    def _withdrawn(self) -> bool:
        known = self._routing().targets.get(self.id)
        return known is not None and known.withdrawn

    def _start_sync(self, effect: lifecycle.Sync) -> None:
        self._end_sync()
        shell = self.shell
        if shell is None or shell.replica.stopped is not None:
            return
        try:
            node = self._routing().node_of(effect.successor)
        except Error as exc:
            log.warning("event=resync_without_node target=%d cause=%r", self.id, exc.strerror)
            return
        resync = Resync(shell, effect.chain, node, self._peers, self._recovery)
        task = self._loop.create_task(resync.run())
        self._resync = resync, task

        def ended(task: asyncio.Task[None]) -> None:
            # A defect of the resync: without it the chain would wait for it for ever.
            if not task.cancelled() and (failure := task.exception()) is not None:
                log.error("event=resync_failed target=%d", self.id, exc_info=failure)
                shell.fail(Error(Code.INTERNAL, f"the resync failed: {failure!r}"))

        task.add_done_callback(ended)

    def _end_sync(self) -> None:
        if self._resync is not None:
            self._resync[1].cancel()
            self._resync = None

    def _stopped(self, shell: TargetShell, stop: Stop) -> None:
        if shell is not self.shell:
            return
        level = logging.WARNING if stop.code == Code.NOT_SERVING else logging.CRITICAL
        log.log(level, "event=target_stopped target=%d code=%s reason=%r story=%r",
                self.id, Code(stop.code).name, stop.reason, stop.story)  # fmt: skip
        self.shell, self._last = None, shell
        self.handle(lifecycle.Stopped(stop.code, stop.reason))

    async def _drain(self) -> None:
        if self.repairs is not None:
            repairs, self.repairs = self.repairs, None
            await repairs.end()
        if self._last is not None:
            await self._last.drained()
            self._last = None
        self.handle(lifecycle.Drained())

    async def stop(self) -> None:
        """Close the store once nothing works on it."""
        self._closing = True
        self._end_sync()
        for task in self._tasks:
            task.cancel()
        shell, self.shell = self.shell, None
        if shell is not None:
            shell.fail(Error(Code.NOT_SERVING, "the node is stopping"))  # answers who waits
            if self.repairs is not None:
                await self.repairs.end()
            await shell.drained()
        if self._store is not None:
            store, self._store = self._store, None
            await self._close_failed(store)

    # ------------------------------------------------------------------ reports

    @property
    def space(self) -> Space:
        """How full its disk is, as of a moment ago."""
        if self._store is not None and not self.disk.failure and self._loop.time() > self._looked:
            self._looked = self._loop.time() + SPACE_S
            try:
                self._space = self._store.space()
            except Error as exc:
                log.warning("event=space_unknown target=%d cause=%r", self.id, exc.strerror)
        return self._space

    def report(self) -> pb.TargetReport:
        """Return what the next heartbeat says of this target."""
        space, resync = self.space, self._resync
        reason = self._defect or self.life.reason
        if reason and self.life.code in _TROUBLE:
            reason = f"{_TROUBLE[self.life.code]} ({reason})"
        if not reason and space.no_new_chunks:
            reason = "its disk is nearly full: it takes no new chunks"
        return pb.TargetReport(
            target=self.id,
            local=cluster_pb2.LocalState.ValueType(int(self.local)),
            used_bytes=space.used_bytes,
            capacity_bytes=space.capacity_bytes,
            # A defect holds under every version: the lifecycle, which has ended, knows an old one.
            chain_version=self._chain().version if self._defect else self.life.said_at,
            device=self.disk.device,
            reason=reason,
            progress=resync[0].progress() if resync is not None else None,
        )
