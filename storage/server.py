"""StorageServer: one storage node, a process with a directory, its targets and its place."""

import asyncio
import fcntl
import logging
import os
import socket
from collections.abc import Awaitable, Sequence
from functools import partial

from hillfire.clock import wall_ns
from hillfire.cluster import Endpoint, NodeKind, Routing
from hillfire.config import StorageConfig
from hillfire.errors import Code, Error
from hillfire.proto import manager_pb2 as pb
from hillfire.proto.membership import Membership
from hillfire.proto.process import ProcessService
from hillfire.proto.service import Dispatcher, GrpcServer, serve_grpc
from hillfire.proto.wire import part_arrays
from hillfire.proto.wire.base import FIRST_SERVICE_METHOD, Answer, Incoming
from hillfire.proto.wire.pick import host_id, open_door
from hillfire.proto.wire.server import WireServer
from hillfire.storage.dataplane import DataPlane
from hillfire.storage.disks import Disk, find_place, open_disks
from hillfire.storage.metalog import MetaLogService
from hillfire.storage.peers import Peers
from hillfire.storage.pool import Pools
from hillfire.storage.resync import Recovery
from hillfire.storage.scrub import Scrubber
from hillfire.storage.services import StorageService
from hillfire.storage.sessions import Sessions
from hillfire.storage.shell import TargetShell
from hillfire.storage.store.engine import open_store
from hillfire.storage.targets import Target
from hillfire.storage.throttle import Limits
from hillfire.storage.turns import Turns
from hillfire.types import ChainId, NodeId, TargetId

log = logging.getLogger(__name__)

_ = part_arrays  # NumPy takes 100 ms to import: not on the event loop, in the first large batch


class StorageServer:
    """Serves the targets that the routing assigns to this node."""

    def __init__(self, config: StorageConfig) -> None:
        """Prepare; ``start`` opens everything."""
        self.config = config
        self.targets: dict[TargetId, Target] = {}
        self._by_chain: dict[int, Target] = {}
        self._lock_fd = -1
        self._wire: WireServer | None = None
        self._grpc: GrpcServer | None = None
        self._membership: Membership | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._forgetting: asyncio.Task[None] | None = None
        self._sessions = Sessions(self._shells)
        self._closing = False
        self.failed = asyncio.Event()
        """set when the cluster takes this process no more: it has to end"""

    def __repr__(self) -> str:
        """Tell node and targets."""
        return f"<StorageServer {self.config.node} {list(self.targets.values())}>"

    @property
    def tcp_address(self) -> str:
        """``host:port`` of the wire."""
        return self._wire.tcp_address if self._wire else ""

    @property
    def membership(self) -> Membership:
        """The node's place in the cluster, once started."""
        assert self._membership is not None, "not started"
        return self._membership

    async def start(self) -> None:
        """Take the directory, listen, register, and open the targets that are known.

        Raises:
            Error: BUSY (another process has the directory), WRONG_CLUSTER, CONFIGURATION, and
                CONNECTION if no manager answers.
        """
        config = self.config
        cluster = self._take_directory()
        self._peers = Peers()
        self._pools = Pools(config.pool_bytes)
        self._turns = Turns(Limits(config.recovery_share, config.recovery_bytes_per_s))
        self._recovery = Recovery(self._turns, config.recovery_chains, self._routing)
        self._scrubber = Scrubber(config, self._turns, self._peers, self._routing)
        self._data = DataPlane(self._shell_of, self._lease_valid, self._turns.meter)
        self._dispatcher = Dispatcher()
        self._dispatcher.add(
            "Storage",
            StorageService(
                self._by_chain.get, self._data, self._lease_valid, self._turns, self._scrubber
            ),
        )
        self._disks = open_disks(config, self._disk_changed)
        self._metalog = MetaLogService(config.directory, self._cluster, self._disks[0].executor)
        self._dispatcher.add("MetaLog", self._metalog)
        self._dispatcher.add("Process", ProcessService())
        try:
            self._wire = WireServer(
                self._handle,
                tcp=config.listen,
                shm=str(config.directory / "wire.sock"),
                rdma=open_door(config.rdma, config.rdma_listen, config.listen, config.rdma_poll_us),
            )
            await self._wire.start()
            self._grpc = await serve_grpc(self._dispatcher, config.grpc_listen)
            self._membership = Membership(
                config.manager,
                NodeId(config.node),
                NodeKind.STORAGE,
                Endpoint(
                    self._grpc.address,
                    self._wire.tcp_address,
                    self._wire.shm_path,
                    host_id(),
                    self._wire.rdma_address,
                ),
                wall_ns(),  # grows with each start
                cluster,
                self._report,
                self._routing_changed,
                directory=config.directory,
                on_failure=lambda error: self.failed.set(),
                rack=config.rack,
                host=socket.gethostname(),
                disks=len(self._disks),
                idle_clients=self._sessions.idle,
                on_ended_clients=self._sessions_ended,
            )
            await self._membership.start()
            if not cluster:
                path = config.directory / "cluster"
                path.write_text(self._membership.cluster + "\n")
            await asyncio.gather(*self._starting)
            self._forgetting = asyncio.create_task(self._forget(), name="forget-tags")
            for disk in self._disks:
                disk.probe.start()
        except BaseException:
            await self.stop()
            raise
        log.info("event=started node=%d tcp=%s grpc=%s targets=%d", config.node,
                 self._wire.tcp_address, self._grpc.address, len(self.targets))  # fmt: skip

    async def stop(self) -> None:
        """Serve no more and close every store. Idempotent."""
        self._closing = True
        if self._membership is not None:
            await self._membership.stop()
        for task in [*self._starting, *([self._forgetting] if self._forgetting else [])]:
            task.cancel()
        if self._lock_fd >= 0:
            await self._scrubber.stop()
        await asyncio.gather(*(target.stop() for target in self.targets.values()))
        if self._wire is not None:
            await self._wire.stop()
        if self._grpc is not None:
            await self._grpc.stop()
        if self._lock_fd >= 0:
            await self._peers.close()
            await asyncio.gather(*(disk.stop() for disk in self._disks))
            self._metalog.close()
            self._pools.close()
            os.close(self._lock_fd)
            self._lock_fd = -1

    # ------------------------------------------------------------------ the directory

    def _take_directory(self) -> str:
        """Lock the directory and return the id of the cluster that it belongs to."""
        directory = self.config.directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock_fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise Error(Code.CONFIGURATION, f"cannot use {directory}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._lock_fd)
            self._lock_fd = -1
            text = f"another process serves {directory}; stop it first"
            raise Error(Code.BUSY, text) from exc
        path = directory / "cluster"
        return path.read_text().strip() if path.exists() else ""

    async def _forget(self) -> None:
        """Note once a session's length which clients were idle; heartbeats ask about them."""
        while True:
            await asyncio.sleep(self.membership.session_s)
            self._sessions.turn()

    def _sessions_ended(self, clients: Sequence[int]) -> None:
        """Drop the tags of clients whose sessions are over."""
        task = asyncio.get_running_loop().create_task(self._sessions.ended(clients))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    def _shells(self) -> list[TargetShell]:
        return [t.shell for t in self.targets.values() if t.shell is not None]

    # ------------------------------------------------------------------ requests

    def _handle(self, incoming: Incoming) -> Answer | Awaitable[Answer]:
        if incoming.method < FIRST_SERVICE_METHOD:
            return self._data.handle(incoming)
        return self._dispatcher.handle(incoming)

    def _shell_of(self, chain: int) -> TargetShell | None:
        target = self._by_chain.get(chain)
        return target.shell if target is not None else None

    def _cluster(self) -> str:
        return self._membership.cluster if self._membership is not None else ""

    def _lease_valid(self) -> bool:
        return self._membership is not None and self._membership.lease_valid()

    # ------------------------------------------------------------------ membership

    def _report(self) -> Sequence[pb.TargetReport]:
        return [target.report() for target in self.targets.values() if target.settled]

    def _poke(self) -> None:
        if self._membership is not None and not self._closing:
            self._membership.poke()

    def _routing(self) -> Routing:
        assert self._membership is not None
        return self._membership.routing

    def _routing_changed(self, routing: Routing) -> None:
        """Act on a new routing, before the lease that came with it counts."""
        if self._closing:
            return
        self._peers.routing(routing)
        for number, assigned in routing.targets.items():
            if assigned.node == self.config.node and number not in self.targets:
                self._add(number, assigned.chain, assigned.disk)
        for target in self.targets.values():
            target.routing_changed()

    def _add(self, number: TargetId, chain: ChainId, disk: int) -> None:
        """Open a target that this node has to serve."""
        config = self.config
        target = Target(
            number,
            chain,
            find_place(self._disks, disk, number),
            open_store=partial(
                open_store,
                direct=config.direct_io,
                direct_reads=config.direct_reads,
                durable=config.durability == "always",
                no_new_chunks_part=config.no_new_chunks_percent / 100,
                no_writes_part=config.no_writes_percent / 100,
            ),
            peers=self._peers,
            pools=self._pools,
            recovery=self._recovery,
            routing=self._routing,
            poke=self._poke,
        )
        self.targets[number] = target
        self._by_chain[chain] = target
        self._scrubber.add(target)
        task = asyncio.get_running_loop().create_task(target.start())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    def _disk_changed(self, disk: Disk) -> None:
        """Act on a disk that failed, or works."""
        for target in self.targets.values():
            if target.disk is disk:
                target.disk_changed()
