"""The manager as a server: its sockets, its terms as leader. The mind is in ``core.py``.

Several of them may be started over one directory: one leads, the others answer that they do not,
and take its place when it is gone or silent (``leadership.py``).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from hillfire.clock import NS_PER_MS, NS_PER_S, SYSTEM, Clock
from hillfire.cluster import Endpoint, Routing
from hillfire.config import ManagerConfig
from hillfire.errors import Code, Error
from hillfire.meta.directory import Directory
from hillfire.meta.manager.leadership import BEATS_A_LEASE, Candidate, Epoch
from hillfire.meta.manager.service import ManagerService
from hillfire.meta.manager.state import Store
from hillfire.proto.dispatch import methods
from hillfire.proto.process import ProcessService
from hillfire.proto.service import CallContext, Dispatcher, GrpcServer, serve_grpc
from hillfire.proto.wire.pick import host_id
from hillfire.proto.wire.server import WireServer

T = TypeVar("T")

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""Before a manager that could not lead tries again."""


class Front:
    """What the sockets call: the present term's service, or a refusal while there is none."""

    def __init__(self) -> None:
        """Begin without a term."""
        self.service: ManagerService | None = None
        self.why_not = Error(Code.UNAVAILABLE, "the manager is starting: try again")
        for each in methods("Manager"):
            setattr(self, each.function, partial(self._call, each.function))

    def _call(self, function: str, request: Any, context: CallContext) -> Any:
        if self.service is None:
            raise Error(self.why_not.code, str(self.why_not.strerror))
        called: Any = getattr(self.service, function)
        return called(request, context)


class ManagerServer:
    """One manager: ``start`` opens its ports and leads or stands by, ``stop`` ends both."""

    def __init__(self, config: ManagerConfig, *, clock: Clock = SYSTEM) -> None:
        """Prepare; nothing is opened yet."""
        self._config = config
        self._clock = clock
        self._front = Front()
        self._held: Directory | None = None
        self._grpc: GrpcServer | None = None
        self._wire: WireServer | None = None
        self._terms: asyncio.Task[None] | None = None
        self._settled: asyncio.Future[None] | None = None
        self._disk = ThreadPoolExecutor(1, "leader-lease")

    @property
    def address(self) -> str:
        """``host:port`` of the wire: the cluster's one address."""
        assert self._wire is not None, "not started"
        return self._wire.tcp_address

    @property
    def leads(self) -> bool:
        """Whether this is the manager that decides."""
        return self._front.service is not None

    @property
    def routing(self) -> Routing:
        """What is published now, by this manager."""
        assert self._front.service is not None, "does not lead"
        return self._front.service.routing

    async def start(self) -> None:
        """Listen, and lead if nobody else does, else stand by.

        Raises:
            Error: BUSY when a port is taken; WRONG_CLUSTER, CORRUPT, NO_SPACE, IO.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        config = self._config
        self._held = Directory(config.directory, "manager", shared=True)
        dispatcher = Dispatcher()
        dispatcher.add("Manager", self._front)
        dispatcher.add("Process", ProcessService())
        self._grpc = await serve_grpc(dispatcher, config.grpc_listen)
        port = config.listen.rpartition(":")[2]
        # The directory may be shared with managers of other hosts, at the same port.
        name = "wire.sock" if port == "0" else f"wire-{host_id()[:8]}-{port}.sock"
        self._wire = WireServer(
            dispatcher.handle, tcp=config.listen, shm=str(config.directory / name)
        )
        await self._wire.start()
        self._settled = asyncio.get_running_loop().create_future()
        self._terms = asyncio.create_task(self._serve_terms(), name="manager-terms")
        await self._settled

    async def stop(self) -> None:
        """Stop deciding, then answering, then close the database. Idempotent."""
        if self._terms is not None:
            self._terms.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._terms
            self._terms = None
        if self._wire is not None:
            await self._wire.stop()
            self._wire = None
        if self._grpc is not None:
            await self._grpc.stop()
            self._grpc = None
        if self._held is not None:
            self._held.close()
            self._held = None
        self._disk.shutdown(wait=False)

    # ------------------------------------------------------------------ terms

    async def _serve_terms(self) -> None:
        """Stand by, lead, and stand by again, until cancelled."""
        while True:
            try:
                epoch = await self._win()
                await self._lead(epoch)
            except Error as error:
                assert self._settled is not None
                if not self._settled.done():
                    self._settled.set_exception(error)
                    return
                log.critical("event=term_failed error=%r", str(error))
                self._front.why_not = error
                await asyncio.sleep(RETRY_S)

    async def _win(self) -> Epoch:
        """Wait until this manager may lead, and claim the next epoch."""
        lease_ns = self._config.lease_ms * NS_PER_MS
        candidate = Candidate(self._config.directory, lease_ns, self._clock.boot_ns)
        told = 0
        while (epoch := await self._off_loop(candidate.try_claim)) is None:
            if candidate.leader != told:
                told = candidate.leader
                text = f"this manager stands by; another one leads, by epoch {told}"
                self._front.why_not = Error(Code.NOT_LEADER, text)
                log.info("event=standby address=%s epoch=%d", self.address, told)
            self._tell_settled()
            await asyncio.sleep(lease_ns / NS_PER_S / BEATS_A_LEASE)
        return epoch

    async def _lead(self, epoch: Epoch) -> None:
        """Lead until a newer epoch is claimed.

        Raises:
            Error: why it cannot, if not that.
        """
        keeping = asyncio.create_task(self._keep_lease(epoch), name="leader-lease")
        term = asyncio.create_task(self._term(epoch), name="manager-term")
        try:
            await asyncio.wait((keeping, term), return_when=asyncio.FIRST_COMPLETED)
            for task in (keeping, term):
                if task.done():
                    await task
        except Error as error:
            if error.code is not Code.NOT_LEADER:
                raise
            log.critical("event=deposed epoch=%d reason=%r", epoch.number, str(error.strerror))
        finally:
            self._front.service = None
            self._front.why_not = Error(Code.NOT_LEADER, "this manager leads no more: try again")
            for task in (keeping, term):
                task.cancel()
            await asyncio.gather(keeping, term, return_exceptions=True)
            epoch.close()

    async def _keep_lease(self, epoch: Epoch) -> None:
        """Renew the lease eight times in its length, until a newer epoch is claimed."""
        pause_s = self._config.lease_ms / 1000 / BEATS_A_LEASE
        while True:
            try:
                until_ns = await self._off_loop(epoch.renew)
            except Error as error:
                if error.code is Code.NOT_LEADER:
                    raise
                log.critical("event=lease_not_renewed error=%r", str(error.strerror))
            else:
                if self._front.service is not None:
                    self._front.service.led(until_ns)
            await asyncio.sleep(pause_s)

    async def _term(self, epoch: Epoch) -> None:
        """Take over what the last leader stored, publish where this one is, and decide."""
        config = self._config
        store = await self._open(epoch)
        service = None
        try:
            service = ManagerService(store, config, self._clock, epoch.led_until_ns)
            self._front.service = service
            await service.announce(self._endpoint())
            log.info(
                "event=started address=%s cluster=%s routing=%d epoch=%d",
                self.address,
                service.routing.cluster,
                service.routing.version,
                epoch.number,
            )
            self._tell_settled()
            await service.watch()
        finally:
            self._front.service = None
            if service is not None:
                await service.close()
            store.close()

    async def _open(self, epoch: Epoch) -> Store:
        """Open the store on another thread, and close it again if nobody waits any more."""
        config = self._config
        opened = partial(Store, config.directory, durable=config.durable, epoch=epoch)
        opening = asyncio.create_task(asyncio.to_thread(opened))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            with contextlib.suppress(Error):
                (await opening).close()
            raise

    def _endpoint(self) -> Endpoint:
        assert self._grpc is not None and self._wire is not None
        shm = self._wire.shm_path or ""
        return Endpoint(self._grpc.address, self._wire.tcp_address, shm, host_id())

    async def _off_loop(self, work: Callable[[], T]) -> T:
        """Do what may wait for the disk on a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def _tell_settled(self) -> None:
        assert self._settled is not None
        if not self._settled.done():
            self._settled.set_result(None)
