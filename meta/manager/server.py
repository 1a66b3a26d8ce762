"""The manager as a server: its directory, its sockets, its life. The mind is in service.py."""

import asyncio
import contextlib
import logging

from hillfire.clock import SYSTEM, Clock
from hillfire.cluster import Endpoint, Routing
from hillfire.config import ManagerConfig
from hillfire.meta.manager.service import ManagerService
from hillfire.meta.manager.state import Store
from hillfire.proto.service import Dispatcher, GrpcServer, serve_grpc
from hillfire.proto.wire.pick import host_id
from hillfire.proto.wire.server import WireServer

log = logging.getLogger(__name__)


class ManagerServer:
    """One manager: ``start`` opens its directory and its ports, ``stop`` closes them in turn."""

    def __init__(self, config: ManagerConfig, *, clock: Clock = SYSTEM) -> None:
        """Prepare; nothing is opened yet."""
        self._config = config
        self._clock = clock
        self._store: Store | None = None
        self._service: ManagerService | None = None
        self._grpc: GrpcServer | None = None
        self._wire: WireServer | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """``host:port`` of the wire: the cluster's one address."""
        assert self._wire is not None, "not started"
        return self._wire.tcp_address

    @property
    def routing(self) -> Routing:
        """What is published now."""
        assert self._service is not None, "not started"
        return self._service.routing

    async def start(self) -> None:
        """Open the directory, listen, publish where, and begin to watch the leases.

        Raises:
            Error: BUSY when the directory or a port is taken; WRONG_CLUSTER, CORRUPT, IO.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config = self._config
        self._store = Store(config.directory, durable=config.durable)
        self._service = service = ManagerService(self._store, config, self._clock)
        dispatcher = Dispatcher()
        dispatcher.add("Manager", service)
        self._grpc = await serve_grpc(dispatcher, config.grpc_listen)
        socket = str(config.directory / "wire.sock")
        self._wire = WireServer(dispatcher.handle, tcp=config.listen, shm=socket)
        await self._wire.start()
        await service.announce(
            Endpoint(
                self._grpc.address, self._wire.tcp_address, self._wire.shm_path or "", host_id()
            )
        )
        self._watch = asyncio.create_task(service.watch(), name="manager-watch")
        log.info(
            "event=started address=%s grpc=%s cluster=%s routing=%d",
            self.address,
            self._grpc.address,
            self.routing.cluster,
            self.routing.version,
        )

    async def stop(self) -> None:
        """Stop deciding, then answering, then close the database. Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        if self._service is not None:
            await self._service.close()
        if self._wire is not None:
            await self._wire.stop()
            self._wire = None
        if self._grpc is not None:
            await self._grpc.stop()
            self._grpc = None
        if self._store is not None:
            self._store.close()
            self._store = None
