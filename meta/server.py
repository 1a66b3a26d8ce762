"""The metadata service as a process: its directory, its ports, its membership, its life."""

import asyncio
import contextlib
import logging
import os
import secrets
from time import time_ns

from hillfire.clock import SYSTEM, Clock
from hillfire.cluster import Endpoint, NodeKind, Routing
from hillfire.config import MetaConfig
from hillfire.errors import Code, Error
from hillfire.meta import keys
from hillfire.meta.clients import Clients
from hillfire.meta.collector import Collector
from hillfire.meta.directory import Directory
from hillfire.meta.engine.base import Engine, Transaction
from hillfire.meta.engine.memory import MemoryEngine
from hillfire.meta.engine.retry import transact
from hillfire.meta.engine.rocksdb import RocksEngine
from hillfire.meta.host import Host
from hillfire.meta.journal import Journal
from hillfire.meta.service import MetaService
from hillfire.meta.ship import Shipper, refused_by
from hillfire.meta.storage_client import StorageClient
from hillfire.meta.truncates import Truncates
from hillfire.proto.membership import Membership
from hillfire.proto.meta_pb2 import DIRECTORY, Inode
from hillfire.proto.process import ProcessService
from hillfire.proto.service import Dispatcher, GrpcServer, serve_grpc
from hillfire.proto.wire.pick import host_id
from hillfire.proto.wire.server import WireServer
from hillfire.types import ROOT_INODE, NodeId

log = logging.getLogger(__name__)

CHAIN_TABLE = 1
SKIPPED_SEQUENCES = 1 << 20
"""At each start: the last numbers may have been lost with the host's power, clients know them."""
ASK_COPIES_S = 2.0
"""How long a database looks for a newer one that it would take the place of."""
DRAIN_S = 2.0
"""At the end, for the copies to get the last records."""


class MetaServer:
    """One metadata service: ``start`` opens and joins, ``stop`` leaves and closes."""

    def __init__(self, config: MetaConfig, *, clock: Clock = SYSTEM) -> None:
        """Prepare; nothing is opened yet."""
        self._config = config
        self._clock = clock
        self._directory: Directory | None = None
        self._engine: Engine | None = None
        self._host: Host | None = None
        self._grpc: GrpcServer | None = None
        self._wire: WireServer | None = None
        self._membership: Membership | None = None
        self._storage: StorageClient | None = None
        self._collecting: asyncio.Task[None] | None = None
        self._journal: Journal | None = None
        self._shipper: Shipper | None = None
        self._cluster = ""
        self._admitted = False
        """nothing is answered before it is sure that this database is the cluster's"""
        self._shipping: asyncio.Task[None] | None = None
        self.failed = asyncio.Event()
        """set when this process has to end: the cluster will have it no more, or it is broken"""

    @property
    def address(self) -> str:
        """``host:port`` of the wire."""
        assert self._wire is not None, "not started"
        return self._wire.tcp_address

    async def start(self) -> None:
        """Open the directory, listen, join the cluster and serve.

        Raises:
            Error: BUSY when the directory or a port is taken; WRONG_CLUSTER, CORRUPT, IO;
                CONNECTION or TIMED_OUT when no manager answers.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config = self._config
        self._directory = directory = Directory(config.directory)
        self._engine = engine = _open(config)
        if config.engine != "memory":
            self._journal = Journal(engine, keep=config.copies > 0)
        tag = transact(engine, prepare, sync=True)
        self._host = host = Host(engine, chunk_bytes=config.chunk_bytes, stripe=config.stripe)
        clients = Clients(config.session_lease_ms, self._clock.boot_ns)
        self._storage = storage = StorageClient(self._routing, tag)
        truncates = Truncates(engine, storage)
        service = MetaService(
            engine, host, clients, truncates, lease_valid=self._lease_valid, routing=self._routing
        )
        dispatcher = Dispatcher()
        dispatcher.add("Meta", service)
        dispatcher.add("Process", ProcessService())
        if self._journal is not None and config.copies:
            self._shipper = Shipper(
                engine,
                self._journal,
                config.copies,
                routing=self._routing,
                cluster=lambda: self._cluster,
                host=host_id(),
                refused=self._refused,
            )
            dispatcher.add("MetaCopies", self._shipper)
        self._grpc = await serve_grpc(dispatcher, config.grpc_listen)
        socket = str(config.directory / "wire.sock")
        self._wire = WireServer(dispatcher.handle, tcp=config.listen, shm=socket)
        await self._wire.start()
        self._membership = Membership(
            manager=config.manager,
            node=NodeId(config.node),
            kind=NodeKind.META,
            endpoint=Endpoint(
                self._grpc.address, self._wire.tcp_address, self._wire.shm_path, host_id()
            ),
            incarnation=time_ns(),
            cluster=directory.cluster,
            report=tuple,
            on_routing=self._on_routing,
            directory=config.directory,
            on_failure=lambda error: self.failed.set(),
        )
        await self._membership.start()
        self._cluster = self._membership.cluster
        await self._require_newest()
        self._admitted = True
        directory.join(self._membership.cluster)
        collector = Collector(
            engine,
            host,
            clients,
            truncates,
            storage,
            self._lease_valid,
            self._shipper.settled if self._shipper is not None else None,
        )
        self._collecting = asyncio.create_task(collector.run(), name="collector")
        self._collecting.add_done_callback(self._on_task_end)
        if self._shipper is not None:
            self._shipping = asyncio.create_task(self._shipper.run(), name="shipper")
            self._shipping.add_done_callback(self._on_task_end)
        log.info(
            "event=started node=%d address=%s grpc=%s cluster=%s",
            config.node,
            self._wire.tcp_address,
            self._grpc.address,
            self._membership.cluster,
        )

    async def stop(self) -> None:
        """Stop collecting, leave, stop answering, close the engine. Idempotent."""
        await _end(self._collecting)
        self._collecting = None
        reachable = any(node.alive for node in self._routing().nodes.values())
        if self._membership is not None:
            await self._membership.stop()
            self._membership = None
        if self._wire is not None:
            await self._wire.stop()
            self._wire = None
        if self._grpc is not None:
            await self._grpc.stop()
            self._grpc = None
        if self._shipper is not None and self._engine is not None and self._shipping is not None:
            if self._host is not None:
                _write_count(self._engine, self._host.inodes)
            if reachable:
                await self._shipper.drain(DRAIN_S)
        await _end(self._shipping)
        self._shipper = self._shipping = None
        if self._storage is not None:
            await self._storage.close()
            self._storage = None
        if self._engine is not None:
            if self._host is not None:
                _write_count(self._engine, self._host.inodes)
            self._engine.close()
            self._engine = None
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """End: it was a defect, and better a new process than one that leaves work undone."""
        if not task.cancelled():
            log.critical("event=%s_died", task.get_name(), exc_info=task.exception())
            self.failed.set()

    def _refused(self, error: Error) -> None:
        """End: this database is older than what was already served of this cluster."""
        log.critical("event=metadata_outdated error=%r", str(error))
        self.failed.set()

    async def _require_newest(self) -> None:
        """Refuse to serve an empty or an older database in a cluster that has a newer one.

        Raises:
            Error: CONFIGURATION.
        """
        if self._journal is None:
            return
        nodes = self._routing().nodes.values()
        ask = [(int(n.id), n.endpoint) for n in nodes if n.kind is NodeKind.STORAGE and n.alive]
        if reason := await refused_by(self._journal, self._cluster, ask, ASK_COPIES_S):
            raise Error(
                Code.CONFIGURATION,
                f"the database in {self._config.directory} is not the cluster's newest, {reason}: "
                f"rebuild it with `hillfire meta restore --address {self._config.manager} --dir "
                f"{self._config.directory}` (with --force if it is to be put aside)",
            )

    def _lease_valid(self) -> bool:
        member = self._membership
        return member is not None and self._admitted and member.lease_valid()

    def _routing(self) -> Routing:
        return self._membership.routing if self._membership is not None else Routing("", 0)

    def _on_routing(self, routing: Routing) -> None:
        table = routing.tables.get(CHAIN_TABLE)
        if self._host is not None and table is not None:
            self._host.set_chains(table.chains)


def prepare(txn: Transaction) -> int:
    """Make a new engine's root, owned by this process's user; return the service's tag.

    Raises:
        Error: WRONG_PEER_VERSION when another version of hillfire wrote the engine.
    """
    found = keys.read_number(txn.get(keys.FORMAT))
    if not found:
        now_ns = time_ns()
        root = Inode(
            id=ROOT_INODE,
            type=DIRECTORY,
            mode=0o755,
            uid=os.geteuid(),
            gid=os.getegid(),
            links=2,
            atime_ns=now_ns,
            mtime_ns=now_ns,
            ctime_ns=now_ns,
            parent=ROOT_INODE,
        )
        keys.put_inode(txn, root)
        txn.set(keys.FORMAT, keys.number(keys.FORMAT_VERSION))
        txn.set(keys.SERVICE_TAG, keys.number(secrets.randbits(63) | 1))
    elif found != keys.FORMAT_VERSION:
        raise Error(
            Code.WRONG_PEER_VERSION,
            f"the metadata has format {found}, this hillfire knows {keys.FORMAT_VERSION}: "
            "run the version that wrote it",
        )
    else:
        keys.take_number(txn, keys.NEXT_SEQUENCE, SKIPPED_SEQUENCES, keys.FIRST_SEQUENCE)
    return keys.read_number(txn.get(keys.SERVICE_TAG))


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):  # it was logged
            await task


def _open(config: MetaConfig) -> Engine:
    if config.engine == "memory":
        return MemoryEngine()
    return RocksEngine(config.directory / "db")


def _write_count(engine: Engine, inodes: int) -> None:
    """Leave the number of inodes for the next start; a killed process counts anew."""
    transact(engine, lambda txn: txn.set(keys.INODE_COUNT, keys.number(inodes)))
