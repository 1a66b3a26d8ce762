"""Target: one replica's place on this node's disk through all its lives, and its local state.

The rules of design.md section 5: a target that was opened again is *online* and takes up nothing
until the routing shows it as not serving; one whose replica stopped comes back as online through
a sync, unless its store failed, which takes it offline; a syncing one is *up to date* once its
predecessor said so under the present chain version.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from hillfire.cluster import Chain, LocalState, PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.proto import cluster_pb2
from hillfire.proto import manager_pb2 as pb
from hillfire.storage.craq.effects import Stop
from hillfire.storage.peers import Peers
from hillfire.storage.pool import Pools
from hillfire.storage.resync import resync
from hillfire.storage.shell import TargetShell
from hillfire.storage.store.base import ChunkStore, Space
from hillfire.types import ChainId, TargetId

log = logging.getLogger(__name__)

NEW_CHAIN_VERSION = 1
"""Of a chain that never served: only then may a target without a store count as up to date."""
REOPEN_S = 0.5
SPACE_S = 1.0
"""How long a look at the disk's free space is good for."""

_FATAL = (Code.IO, Code.NO_SPACE)
"""Why a target stays offline until the node is started again."""


class Target:
    """One target of this node."""

    def __init__(
        self,
        target: TargetId,
        chain: ChainId,
        directory: Path,
        *,
        open_store: Callable[[Path], ChunkStore],
        peers: Peers,
        pools: Pools,
        executor: Executor,
        routing: Callable[[], Routing],
        poke: Callable[[], None],
    ) -> None:
        """Prepare; ``start`` opens the store."""
        self.id = target
        self.chain = chain
        self.local = LocalState.OFFLINE
        self.shell: TargetShell | None = None
        self.settled = False
        """whether it is known if its store opens; before, nothing is reported of it"""
        self._directory = directory
        self._open_store = open_store
        self._peers = peers
        self._pools = pools
        self._executor = executor
        self._routing = routing
        self._poke = poke
        self._loop = asyncio.get_running_loop()
        self._store: ChunkStore | None = None
        self._fresh = False
        self._taken_up = False
        self._sync: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._space = Space(0, 0)
        self._space_until = 0.0
        self._closing = False

    def __repr__(self) -> str:
        """Tell its local state and its replica's."""
        replica = self.shell.replica if self.shell else None
        state = f"{replica.state.name} at {replica.version}" if replica else "closed"
        return f"<Target {self.id} {self.local.name} {state}>"

    # ------------------------------------------------------------------ lives

    async def start(self) -> None:
        """Open the store; a failure leaves the target offline and the node alive."""
        await self._open()
        self.settled = True
        self._poke()

    async def _open(self) -> None:
        new = not self._directory.exists()
        state = self._chain().state_of(self.id)
        serves = state in (PublicState.SERVING, PublicState.LAST_SERVING)
        if new and serves:
            log.critical(
                "event=store_missing target=%d directory=%s remedy=%r", self.id, self._directory,
                "its disk is not there; mount it and start the node again",
            )  # fmt: skip
            return
        try:
            self._store = await self._loop.run_in_executor(
                self._executor, self._open_store, self._directory
            )
        except Error as exc:
            log.critical("event=store_failed target=%d cause=%r", self.id, exc.strerror)
            return
        self._fresh = new and self._chain().version == NEW_CHAIN_VERSION
        self._taken_up = self._fresh
        self._begin()

    def _begin(self) -> None:
        """Begin a life: a new replica on the open store."""
        assert self._store is not None
        self.local = LocalState.UP_TO_DATE if self._fresh else LocalState.ONLINE
        self.shell = TargetShell(
            self.id,
            self._store,
            peers=self._peers,
            pools=self._pools,
            executor=self._executor,
            routing=self._routing,
            stopped=self._stopped,
            poke=self._poke,
        )
        self.routing_changed()
        self._poke()

    def _chain(self) -> Chain:
        return self._routing().chain(self.chain)

    def routing_changed(self) -> None:
        """Act on the newest routing."""
        shell = self.shell
        if shell is None:
            return
        chain = self._chain()
        state = chain.state_of(self.id)
        if not self._taken_up:
            if state is PublicState.SERVING:
                # An earlier process's service: said to be over, so that the manager ends it.
                self.local = LocalState.OFFLINE
                self._poke()
                return
            self._taken_up = True
            self.local = LocalState.ONLINE
        if chain.version <= shell.replica.version:
            return
        # "Up to date" is said of one chain version: a sync begins anew with the next.
        if state is PublicState.SERVING:
            self.local = LocalState.UP_TO_DATE
        elif not (self._fresh and chain.version == NEW_CHAIN_VERSION):
            self.local = LocalState.ONLINE
        shell.routing_changed(chain)
        if self.shell is shell:
            self._resync(shell, chain)
        self._poke()

    def synced(self, chain_version: int) -> None:
        """Take note that the predecessor has made this target equal.

        Raises:
            Error: WRONG_CHAIN_VERSION, NOT_SERVING.
        """
        replica = self.active(chain_version).replica
        if replica.state is PublicState.SYNCING:
            self.local = LocalState.UP_TO_DATE
            self._poke()

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

    def _resync(self, shell: TargetShell, chain: Chain) -> None:
        if self._sync is not None:
            self._sync.cancel()
            self._sync = None
        successor = chain.successor(self.id)
        if successor is None or chain.state_of(successor) is not PublicState.SYNCING:
            return
        try:
            node = self._routing().node_of(successor)
        except Error as exc:
            log.warning("event=resync_without_node target=%d cause=%r", self.id, exc.strerror)
            return
        self._sync = self._loop.create_task(resync(shell, chain, node, self._peers))

    def _stopped(self, shell: TargetShell, stop: Stop) -> None:
        """Go offline, or straight back online if it was the routing that ended this life."""
        if shell is not self.shell:
            return
        level = logging.WARNING if stop.code == Code.NOT_SERVING else logging.CRITICAL
        log.log(level, "event=target_stopped target=%d code=%s reason=%r story=%r",
                self.id, Code(stop.code).name, stop.reason, stop.story)  # fmt: skip
        self.shell = None
        self._fresh = False
        self.local = LocalState.OFFLINE
        if self._sync is not None:
            self._sync.cancel()
            self._sync = None
        task = self._loop.create_task(self._again(shell, stop))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._poke()

    async def _again(self, shell: TargetShell, stop: Stop) -> None:
        """Begin the next life once the last has let go and the routing has taken note."""
        await shell.drained()
        if stop.code in _FATAL:
            return
        while self._chain().state_of(self.id) is PublicState.SERVING:
            self._poke()
            await asyncio.sleep(REOPEN_S)
        if not self._closing:
            self._taken_up = True
            self._begin()

    async def stop(self) -> None:
        """Close the store once nothing works on it."""
        self._closing = True
        for task in [*self._tasks, *([self._sync] if self._sync else [])]:
            task.cancel()
        shell, self.shell = self.shell, None
        if shell is not None:
            shell.fail(Error(Code.NOT_SERVING, "the node is stopping"))  # answers who waits
            await shell.drained()
        self.local = LocalState.OFFLINE
        if self._store is not None:
            await self._loop.run_in_executor(self._executor, self._store.close)
            self._store = None

    # ------------------------------------------------------------------ reports

    def report(self) -> pb.TargetReport:
        """Return what the next heartbeat says of this target."""
        if self._store is not None and self._loop.time() > self._space_until:
            self._space_until = self._loop.time() + SPACE_S
            try:
                self._space = self._store.space()
            except Error as exc:
                log.warning("event=space_unknown target=%d cause=%r", self.id, exc.strerror)
        shell = self.shell
        return pb.TargetReport(
            target=self.id,
            local=cluster_pb2.LocalState.ValueType(int(self.local)),
            used_bytes=self._space.used_bytes,
            capacity_bytes=self._space.capacity_bytes,
            chain_version=shell.replica.version if shell is not None else 0,
        )
