"""A real cluster for a test: the supervisor and its services as processes, ended by pid."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hillfire.cluster import Endpoint, PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.local import daemon, mounts
from hillfire.local.control import ask
from hillfire.local.directory import ClusterDirectory
from hillfire.proto.convert import routing_from_message
from hillfire.proto.manager_pb2 import GetRoutingRequest
from hillfire.proto.service import decode, encode, method
from hillfire.proto.wire.pick import connect_blocking

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 5.0


class LocalCluster:
    """Handles to a running cluster. Made by :func:`cluster`."""

    def __init__(self, directory: Path, options: list[str]) -> None:
        self.directory = ClusterDirectory(directory)
        self.environment = {
            **os.environ,
            "XDG_STATE_HOME": str(directory.parent / f"{directory.name}-state"),
        }
        self._options = options
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._mounts: dict[Path, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """What ``hillfire.connect`` takes."""
        return self.directory.shape().address

    @property
    def storage_names(self) -> list[str]:
        return [f"storage-{node}" for node in self.directory.shape().storage_nodes]

    def up(self) -> None:
        """Start all; return when every chain serves (and the mount of ``--mount`` is there)."""
        arguments = ["up", "--dir", str(self.directory.path), *self._options]
        self._supervisor = self._spawn(arguments, "supervisor.log")

    def stop(self) -> None:
        """Stop all cleanly; the data stays for the next :meth:`up`."""
        for directory in list(self._mounts):
            self.unmount(directory)
        if self._supervisor is not None:
            self._supervisor.send_signal(signal.SIGTERM)
            _end(self._supervisor)
            self._supervisor = None

    def kill_supervisor(self) -> None:
        """SIGKILL the supervisor; its children end by themselves."""
        assert self._supervisor is not None
        self._supervisor.kill()
        self._supervisor.wait()
        self._supervisor = None

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run ``hillfire ARGUMENTS``."""
        return subprocess.run(
            [sys.executable, "-m", "hillfire.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
        )

    def kill(self, name: str) -> None:
        """SIGKILL a process ("storage-101") and leave it down."""
        self._node(name, "kill")

    def crash(self, name: str) -> None:
        """SIGKILL a process, which the supervisor starts again."""
        self._node(name, "crash")

    def start(self, name: str) -> None:
        """Start a process that is down; return when it is ready."""
        self._node(name, "start")

    def pid(self, name: str) -> int:
        """Return the pid of a process that runs."""
        for service in self.services():
            if service["name"] == name and service["pid"]:
                return int(service["pid"])
        raise Error(Code.NOT_FOUND, f"{name} does not run")

    def services(self) -> list[dict[str, Any]]:
        """Return what the supervisor says of each process: name, state, pid, restarts."""
        services: list[dict[str, Any]] = self._ask({"do": "status"})["services"]
        return services

    def routing(self, known: int = 0, wait_ms: int = 0) -> Routing:
        """Return what the manager publishes, once it is newer than ``known``."""
        endpoint = Endpoint(grpc="", tcp=self.address, shm="", host="")
        connection = connect_blocking(endpoint, CALL_TIMEOUT_S, transport="tcp")
        try:
            call = method("Manager", "GetRouting")
            request = GetRoutingRequest(known_version=known, wait_ms=wait_ms)
            ticket = connection.start(encode(call, request), CALL_TIMEOUT_S)
            reply = connection.finish(ticket, CALL_TIMEOUT_S)
            routing: Routing = routing_from_message(decode(call, reply))
            return routing
        finally:
            connection.close()

    def wait_serving(self, replicas: int | None = None, timeout_s: float = 60.0) -> Routing:
        """Wait until every chain has ``replicas`` (all of its) targets serving on live nodes."""
        deadline = time.monotonic() + timeout_s
        known = 0
        while True:
            try:
                routing = self.routing(known, 500)
            except Error as error:  # the manager itself may be on its way back
                if not error.retry or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
                continue
            known = routing.version
            up = [
                sum(
                    state is PublicState.SERVING and routing.node_of(target).alive
                    for target, state in chain.targets
                )
                - (len(chain.targets) if replicas is None else replicas)
                for chain in routing.chains.values()
            ]
            if up and min(up) >= 0:
                return routing
            if time.monotonic() > deadline:
                raise Error(Code.TIMED_OUT, f"chains do not serve: {routing.chains}")

    def mount(self, directory: Path, *options: str) -> Path:
        """Mount on ``directory``, made if missing, in a process that ends with the cluster."""
        directory.mkdir(parents=True, exist_ok=True)
        arguments = ["mount", str(directory), "--foreground", "--address", self.address, *options]
        self._mounts[directory] = self._spawn(arguments, f"mount-{len(self._mounts)}.log")
        return directory

    def mount_pid(self, directory: Path) -> int:
        """Return the process that serves a mount made by :meth:`mount`."""
        return self._mounts[directory].pid

    def unmount(self, directory: Path) -> None:
        """Take a mount off that :meth:`mount` made."""
        process = self._mounts.pop(directory)
        try:
            if mounts.is_mounted(directory):
                with contextlib.suppress(Error):
                    mounts.unmount(directory)
        finally:
            _end(process)
            if mounts.is_mounted(directory):
                mounts.unmount(directory, lazy=True)

    def _node(self, name: str, action: str) -> None:
        self._ask({"do": "node", "name": name, "action": action}, START_TIMEOUT_S)

    def _ask(self, request: dict[str, Any], timeout_s: float = CALL_TIMEOUT_S) -> dict[str, Any]:
        return ask(self.directory.control_path, request, timeout_s)

    def _spawn(self, arguments: list[str], log_name: str) -> "subprocess.Popen[bytes]":
        """Start a process of ours and wait for its ready line."""
        log = self.directory.path.with_name(f"{self.directory.path.name}-{log_name}")
        read_fd, write_fd = os.pipe()
        command = [sys.executable, "-m", "hillfire.cli", *arguments]
        command += ["--ready-fd", str(write_fd), "--parent", str(os.getpid())]
        try:
            with open(log, "ab") as stderr:
                process = subprocess.Popen(
                    command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    pass_fds=[write_fd],
                    process_group=0,
                )
        finally:
            os.close(write_fd)
        with open(read_fd, "rb", buffering=0):
            said: dict[str, Any] = {}
            for said in daemon.steps(read_fd, START_TIMEOUT_S):
                if said.get("ready"):
                    return process
                if "code" in said:
                    break
        _end(process)
        if "code" in said:
            raise Error(Code(said["code"]), said["message"])
        raise Error(Code.UNAVAILABLE, f"{arguments[0]} did not start: {log.read_text()[-4000:]}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the end of a process that was told to stop, and see to it."""
    try:
        process.wait(STOP_TIMEOUT_S / 4)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def cluster(
    tmp_path: Path,
    *,
    nodes: int = 3,
    replicas: int = 3,
    targets_per_node: int = 2,
    options: tuple[str, ...] = (),
) -> Iterator[LocalCluster]:
    """Run a cluster in ``tmp_path / "cluster"``; all of it is gone when the block ends."""
    shape = ["--nodes", str(nodes), "--replicas", str(replicas), "--port", "0"]
    shape += ["--targets-per-node", str(targets_per_node), *options]
    local = LocalCluster(tmp_path / "cluster", shape)
    try:
        local.up()
        local._options = list(options)  # the rest is remembered in the directory
        yield local
    finally:
        local.stop()
        with contextlib.suppress(Error):  # the data is large, the logs are worth keeping
            for name in local.storage_names:
                shutil.rmtree(local.directory.path / name, ignore_errors=True)
