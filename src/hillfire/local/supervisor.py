"""All services of a cluster under one process: start, keep up, attest their ends, stop in order.

The order of a stop matters: first the mount, so that nothing is written any more; then the
manager, so that the chains stay in its database as they were while all served; then the rest.
"""

import asyncio
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.message import Message

from hillfire.cluster import PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.local import mounts, ports
from hillfire.local.control import ControlServer
from hillfire.local.directory import (
    ClusterDirectory,
    Service,
    Shape,
    is_locked,
    remember_last_cluster,
)
from hillfire.local.keeper import START_TIMEOUT_S, Keeper
from hillfire.proto.convert import routing_from_message
from hillfire.proto.manager_pb2 import AttestExitRequest, CreateChainsRequest, GetRoutingRequest
from hillfire.proto.service import GrpcClient, method

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 5.0
ATTEST_TIMEOUT_S = 1.0
SERVE_TIMEOUT_S = START_TIMEOUT_S
REPLICAS_TIMEOUT_S = 20.0
"""How long a start waits for the replicas that are not up to date; the cluster serves already."""
POLL_MS = 500
MOUNT = "mount"
MOUNT_STOP_TIMEOUT_S = 40.0
"""What was written and not yet stored is stored first."""
PREDECESSORS_TIMEOUT_S = 45.0
"""A mount may take ``MOUNT_STOP_TIMEOUT_S`` to end."""
PREDECESSORS_POLL_S = 0.05
NAMED = 5
"""Users of a mount that a message names."""


class Progress(Protocol):
    """Told what the start or the stop is doing."""

    def __call__(self, text: str, *, done: bool = False, bad: bool = False) -> None:
        """Take a line to show: what goes on now, or what is finished (``done``) or went wrong."""


class Supervisor:
    """Runs a cluster. The caller holds the directory's lock."""

    def __init__(
        self,
        directory: ClusterDirectory,
        shape: Shape,
        mountpoint: Path | None,
        progress: Progress,
    ) -> None:
        """Take what to run and whom to tell about it."""
        self._directory = directory
        self._shape = shape
        self._mountpoint = mountpoint
        self._progress = progress
        self._keepers: dict[str, Keeper] = {}
        self._services: dict[str, Service] = {s.name: s for s in shape.services}
        self._manager = GrpcClient(shape.manager_grpc)
        self._stop = asyncio.Event()
        self._stopped = asyncio.Event()
        self._serving = False
        self._warnings: list[str] = []
        """what went wrong during the stop, for whoever asked for it"""

    async def run(self, on_serving: Callable[[], None]) -> None:
        """Start all, call ``on_serving``, keep all up until a signal or ``hillfire down``.

        Raises:
            Error: why the cluster could not start; what had started is stopped again.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        control = ControlServer(self._directory.control_path, self._answer)
        try:
            await control.start()
            starting = asyncio.create_task(self._start())
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                self._serving = True
                remember_last_cluster(self._shape.address, self._directory.path)
                on_serving()
            else:
                starting.cancel()
                with suppress(asyncio.CancelledError):
                    await starting
            await stopping
        finally:
            await self._stop_all()
            self._stopped.set()
            await asyncio.sleep(0)  # whoever asked for the stop is answered
            await control.stop()
            await self._manager.close()

    async def _start(self) -> None:
        self._check_disk()
        await self._await_predecessors()
        for service in self._services.values():
            for port in (service.port, service.port + 1):
                ports.check_free(self._shape.host, port)
        if self._mountpoint is not None:
            mounts.check_fuse()
            with suppress(OSError):  # it is there, or the next line says what is wrong with it
                self._mountpoint.mkdir(parents=True)
            mounts.check_mountpoint(self._mountpoint)
        self._directory.write_configs(self._shape)
        for service in self._services.values():
            arguments = ["serve", service.kind]
            arguments += ["--config", str(self._directory.service_config(service.name))]
            self._add(service.name, arguments, self._on_service_end)
        self._progress("starting the cluster manager")
        await self._keepers["manager"].start()
        self._progress(f"the cluster manager is up at {self._shape.address}", done=True)
        others = [keeper for name, keeper in self._keepers.items() if name != "manager"]
        self._progress("starting the metadata service and the storage nodes")
        await _all(keeper.start() for keeper in others)
        self._progress(
            f"the metadata service and {_count(self._shape.nodes, 'storage node')} are up",
            done=True,
        )
        self._progress("placing the chains")
        create = CreateChainsRequest(
            replicas=self._shape.replicas,
            targets_per_node=self._shape.targets_per_node,
            nodes=self._shape.nodes,
        )
        await self._call("CreateChains", create, SERVE_TIMEOUT_S)
        await self._wait_serving()
        if self._mountpoint is not None:
            self._progress(f"mounting on {self._mountpoint}")
            await self._mount(self._mountpoint)
            self._progress(f"mounted on {self._mountpoint}", done=True)

    async def _await_predecessors(self) -> None:
        """Let the processes of a supervisor that was killed come to their ends.

        Raises:
            Error: BUSY if one does not.
        """
        deadline = time.monotonic() + PREDECESSORS_TIMEOUT_S
        while running := await asyncio.to_thread(self._predecessors):
            self._progress(f"waiting for {running} of an earlier start to end")
            if time.monotonic() > deadline:
                raise Error(
                    Code.BUSY,
                    f"{running} of an earlier start did not end within "
                    f"{PREDECESSORS_TIMEOUT_S:g} s: end it, then start again",
                )
            await asyncio.sleep(PREDECESSORS_POLL_S)

    def _predecessors(self) -> str:
        """Return what still runs of an earlier start, nothing if nothing does."""
        for service in self._services.values():
            if is_locked(self._directory.path / service.name / "lock"):
                return service.name
        if self._mountpoint is not None and mounts.is_alive(self._mountpoint, self._shape.address):
            return f"the mount on {self._mountpoint}"
        return ""

    async def _wait_serving(self) -> None:
        """Wait until every chain serves, and a little longer for all of its replicas.

        Raises:
            Error: TIMED_OUT if some chain does not serve.
        """
        loop = asyncio.get_running_loop()
        start = loop.time()
        known = 0
        while True:
            waited_s = loop.time() - start
            routing = await self._routing(known, POLL_MS)
            known = routing.version
            total, serving, complete = count_chains(routing)
            self._progress(
                f"waiting for the chains: {serving} of {total} serve, {complete} with all replicas"
            )
            if total and complete == total:
                self._progress(
                    f"all {total} chains serve, {_count(self._shape.replicas, 'replica')} each",
                    done=True,
                )
                return
            if total and serving == total and waited_s > REPLICAS_TIMEOUT_S:
                self._progress(
                    f"all {total} chains serve; {total - complete} still bring replicas up to "
                    "date (`hillfire status --watch`)",
                    done=True,
                )
                return
            if waited_s > SERVE_TIMEOUT_S:
                raise Error(
                    Code.TIMED_OUT,
                    f"{total - serving} of {total} chains do not serve after "
                    f"{SERVE_TIMEOUT_S:g} s; logs: {self._directory.path / 'logs'}",
                )

    async def _routing(self, known: int, wait_ms: int) -> Routing:
        request = GetRoutingRequest(known_version=known, wait_ms=wait_ms)
        routing: Routing = routing_from_message(
            await self._call("GetRouting", request, CALL_TIMEOUT_S)
        )
        return routing

    async def _call(self, name: str, message: Message, timeout_s: float) -> Any:
        return await self._manager.call(method("Manager", name), message, timeout_s)

    def _add(
        self,
        name: str,
        arguments: list[str],
        on_end: Callable[[Keeper], Coroutine[Any, Any, None]],
        *,
        may_leave: bool = False,
    ) -> Keeper:
        log_path = self._directory.service_log(name)
        self._keepers[name] = Keeper(name, arguments, log_path, on_end, may_leave=may_leave)
        return self._keepers[name]

    async def _mount(self, directory: Path) -> None:
        arguments = ["mount", "--foreground", "--address", self._shape.address, str(directory)]
        await self._add(MOUNT, arguments, self._on_mount_end, may_leave=True).start()

    async def _on_service_end(self, keeper: Keeper) -> None:
        """Attest the end to the manager, so that nobody waits for a lease to run out."""
        node = self._services[keeper.name].node
        if node is None or self._keepers["manager"].pid is None:
            return
        try:
            routing = await asyncio.wait_for(self._routing(0, 0), ATTEST_TIMEOUT_S)
            known = {int(each.id): each for each in routing.nodes.values()}.get(node)
            if known is not None:
                attest = AttestExitRequest(node=node, incarnation=known.incarnation)
                await self._call("AttestExit", attest, ATTEST_TIMEOUT_S)
        except (Error, TimeoutError) as error:
            log.warning("event=attest_failed service=%s error=%r", keeper.name, str(error))

    async def _on_mount_end(self, keeper: Keeper) -> None:
        """Free the directory of a mount whose process ended, so that it can be mounted again."""
        if self._mountpoint is not None and mounts.is_ours(self._mountpoint):
            with suppress(Error):
                await asyncio.to_thread(mounts.unmount, self._mountpoint, lazy=True)

    async def _stop_all(self) -> None:
        served, self._serving = self._serving, False
        mount = self._keepers.get(MOUNT)
        if mount is not None:
            self._progress("unmounting")
            await self._stop_mount(mount)
        if "manager" in self._keepers:
            self._progress("stopping the services")
            await self._keepers["manager"].stop()
            await _all(keeper.stop() for keeper in self._keepers.values())
        if served:
            self._progress(f"stopped; the data stays in {self._directory.path}", done=True)

    async def _stop_mount(self, mount: Keeper) -> None:
        """End the mount, and say what that cost those who were using it."""
        where, child = self._mountpoint, mount.child
        assert where is not None
        running = mount.pid is not None
        users = await asyncio.to_thread(mounts.users, where) if running else []
        await mount.stop(MOUNT_STOP_TIMEOUT_S)
        await self._on_mount_end(mount)
        if child is None or not running:
            return
        if users := [user for user in users if f"(pid {child.pid})" not in user]:
            more = ", ..." if len(users) > NAMED else ""
            self._warn(
                f"{where} was in use by {', '.join(users[:NAMED])}{more}: it was taken off all the "
                "same, and the files that they had open there are closed to them"
            )
        status = child.ended.result()
        if status == -signal.SIGKILL:
            self._warn(
                f"the mount did not end within {MOUNT_STOP_TIMEOUT_S:g} s and was killed: what was "
                f"written without fsync or close may be lost; its log: {mount.log_path}"
            )
        elif status:
            self._warn(child.last_words(1).removeprefix("hillfire: "))

    def _warn(self, text: str) -> None:
        log.warning("event=stopped_badly cause=%r", text)
        self._warnings.append(text)
        self._progress(text, bad=True)

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._directory.path).free
        if free < 16 << 20:
            raise Error(
                Code.NO_SPACE,
                f"the disk of {self._directory.path} is full ({free >> 20} MiB free): the services "
                "could not write their databases; free some space first",
            )

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request on the control socket."""
        match request:
            case {"do": "status"}:
                return self._status()
            case {"do": "stop"}:
                self._stop.set()
                await self._stopped.wait()
                return {"stopped": True, "warnings": self._warnings}
            case {"do": "node", "name": str(name), "action": str(action)}:
                return await self._node(name, action)
        raise Error(Code.INVALID, f"the supervisor does not understand {request!r}")

    async def _node(self, name: str, action: str) -> dict[str, Any]:
        keeper = self._keepers.get(name)
        if keeper is None:
            known = ", ".join(self._keepers)
            raise Error(Code.NOT_FOUND, f"there is no node {name!r} here; there are {known}")
        pid = keeper.pid
        match action:
            case "start":
                await keeper.start()
            case "stop":
                await keeper.stop()
            case "kill":
                await keeper.stop(0)
            case "crash":  # like kill, but nobody says to leave it down
                if keeper.child is not None:
                    keeper.child.signal(signal.SIGKILL)
            case _:
                raise Error(Code.INVALID, f"a node can start, stop, kill or crash, not {action}")
        return {"name": name, "state": keeper.state, "pid": keeper.pid, "was": pid}

    def _status(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "address": self._shape.address,
            "serving": self._serving,
            "mount": str(self._mountpoint) if self._mountpoint else None,
            "services": [
                {
                    "name": name,
                    "node": self._services[name].node if name in self._services else None,
                    "state": keeper.state,
                    "pid": keeper.pid,
                    "restarts": keeper.restarts,
                    "log": str(keeper.log_path),
                }
                for name, keeper in self._keepers.items()
            ],
        }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def count_chains(routing: Routing) -> tuple[int, int, int]:
    """Return how many chains there are, how many serve, and how many with all their targets.

    A target counts when it is serving on a node that lives.
    """
    serving = complete = 0
    for chain in routing.chains.values():
        up = 0
        for target, state in chain.targets:
            node = routing.nodes.get(routing.targets[target].node)
            up += state is PublicState.SERVING and node is not None and node.alive
        serving += up > 0
        complete += up == len(chain.targets)
    return len(routing.chains), serving, complete


async def _all(steps: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run all to their ends, then raise the first error if there was one."""
    done = await asyncio.gather(*steps, return_exceptions=True)
    for result in done:
        if isinstance(result, BaseException):
            raise result
