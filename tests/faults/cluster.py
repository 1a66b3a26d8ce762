"""A cluster of real processes, each on a host of its own: started, killed, paused and cut by name.

Nobody attests a process's end here, as on machines without a supervisor: leases alone tell.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hillfire.cli.connect import connect_manager
from hillfire.cluster import PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.local import daemon
from hillfire.proto.convert import routing_from_message
from hillfire.proto.manager_pb2 import CreateChainsRequest, GetRoutingRequest
from hillfire.proto.service import decode, encode, method
from tests.faults.hosts import Host, Network, network, unavailable

FIRST_NODE = 101
MANAGER_PORT, SERVICE_PORT = 9700, 9800
START_TIMEOUT_S, STOP_TIMEOUT_S, CALL_TIMEOUT_S = 60.0, 30.0, 5.0
_GET, _CREATE = method("Manager", "GetRouting"), method("Manager", "CreateChains")


class Cluster:
    """Processes by name: ``manager``, ``standby``, ``meta``, and nodes ``101``, ``102``, ..."""

    def __init__(self, directory: Path, net: Network | None, nodes: int) -> None:
        """Take where data and logs go, and the network (None: all on this host's loopback)."""
        self.directory = directory
        self.net = net
        self.nodes = [str(FIRST_NODE + i) for i in range(nodes)]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.options: dict[str, str] = {}
        """more lines of a service's configuration, by name"""
        self.managers = ["manager", "standby"]
        """over one directory: one of them leads"""
        self.address = ",".join(
            f"{self._host(name).address}:{MANAGER_PORT}" for name in self.managers
        )

    # ------------------------------------------------------------------ processes

    def start(self, *names: str) -> None:
        """Start processes at once; return when each is ready."""
        pipes = {name: self._spawn(name) for name in names}
        for name, pipe in pipes.items():
            with open(pipe, "rb", buffering=0):
                said: dict[str, Any] = {}
                for said in daemon.steps(pipe, START_TIMEOUT_S):
                    if said.get("ready") or "code" in said:
                        break
                if not said.get("ready"):
                    raise AssertionError(f"{name} did not start: {said}\n{self.log_tail(name)}")

    def kill(self, *names: str) -> None:
        """SIGKILL processes, together."""
        for name in names:
            self.processes[name].send_signal(signal.SIGKILL)
        for name in names:
            self.processes.pop(name).wait()

    def pause(self, name: str) -> None:
        """SIGSTOP a process."""
        self.processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT a process."""
        self.processes[name].send_signal(signal.SIGCONT)

    def ended(self) -> list[str]:
        """Return the processes that ended though nobody killed them."""
        return [name for name, process in self.processes.items() if process.poll() is not None]

    def stop(self) -> None:
        """Stop everything cleanly, the manager first so that the chains stay as they are."""
        others = [name for name in self.processes if name not in self.managers]
        order = [*reversed(self.managers), *others]
        for name in order:
            process = self.processes.pop(name, None)
            if process is None:
                continue
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log_tail(self, name: str, n_bytes: int = 3000) -> str:
        """Return the end of a process's log."""
        path = self.directory / f"{name}.log"
        return path.read_text(errors="replace")[-n_bytes:] if path.exists() else ""

    def _host(self, name: str) -> Host:
        if self.net is not None:
            return self.net.hosts[name]
        number = ["manager", "standby", "meta", *self.nodes].index(name) + 2
        return Host(name, number, f"127.213.{os.getpid() % 250}.{number}", None)

    def _spawn(self, name: str) -> int:
        """Start one process; return the pipe on which it says that it is ready."""
        host = self._host(name)
        kind = "storage" if name in self.nodes else "manager" if name != "meta" else "meta"
        config = self.directory / f"{name}.toml"
        config.write_text(self._config(name, kind, host))
        read_fd, write_fd = os.pipe()
        command = [sys.executable, "-m", "hillfire.cli", "serve", kind, "--config", str(config)]
        command += ["--ready-fd", str(write_fd), "--parent", str(os.getpid())]
        try:
            with open(self.directory / f"{name}.log", "ab") as log:
                self.processes[name] = subprocess.Popen(
                    host.command(*command),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[write_fd],
                    process_group=0,
                )
        finally:
            os.close(write_fd)
        return read_fd

    def _config(self, name: str, kind: str, host: Host) -> str:
        port = MANAGER_PORT if kind == "manager" else SERVICE_PORT
        place = "manager" if kind == "manager" else name
        lines = [
            f'directory = "{self.directory / place}"',
            f'listen = "{host.address}:{port}"',
            f'grpc_listen = "{host.address}:{port + 1}"',
        ]
        if kind != "manager":
            lines.append(f'manager = "{self.address}"')
        if kind == "storage":
            lines.append(f"node = {name}")
        if name in self.options:
            lines.append(self.options[name])
        return "\n".join(lines) + "\n"

    def root_of(self, name: str) -> Path:
        """Return where a host's files are seen from here, its small disks included."""
        holder = self._host(name).holder
        return Path("/") if holder is None else Path(f"/proc/{holder}/root")

    def store_of(self, node: str, target: int) -> Path:
        """Return where a target's store is, as seen from here."""
        inside = self.directory / node / "targets" / str(target)
        return self.root_of(node) / inside.relative_to("/")

    # ------------------------------------------------------------------ what the manager says

    def routing(self, known: int = 0, wait_ms: int = 0) -> Routing:
        """Return what the manager publishes, once it is newer than ``known``."""
        request = GetRoutingRequest(known_version=known, wait_ms=wait_ms)
        routing: Routing = routing_from_message(self._call(_GET, request))
        return routing

    def leader(self) -> str:
        """Return the manager that leads."""
        endpoint = self.routing().manager
        assert endpoint is not None, "routing names the manager that leads"
        for name in self.managers:
            if endpoint.tcp == f"{self._host(name).address}:{MANAGER_PORT}":
                return name
        raise AssertionError(f"nobody is at {endpoint}")

    def wait_serving(self, timeout_s: float) -> Routing:
        """Wait until all targets of every chain serve, on live nodes."""

        def complete(routing: Routing) -> bool:
            return all(
                state is PublicState.SERVING and routing.node_of(target).alive
                for chain in routing.chains.values()
                for target, state in chain.targets
            )

        return self.wait(complete, timeout_s)

    def wait(self, wanted: Callable[[Routing], bool], timeout_s: float) -> Routing:
        """Wait until what the manager publishes is as wanted.

        Raises:
            AssertionError: it never was.
        """
        deadline = time.monotonic() + timeout_s
        known, routing = 0, None
        while time.monotonic() < deadline:
            try:
                routing = self.routing(known, 500)
            except Error as error:
                if not error.retry:
                    raise
                time.sleep(0.05)
                continue
            known = routing.version
            if routing.chains and wanted(routing):
                return routing
        chains = "\n".join(map(str, routing.chains.values())) if routing else "no manager"
        logs = "\n".join(f"--- {name}\n{self.log_tail(name)}" for name in self.processes)
        raise AssertionError(f"not so within {timeout_s:g} s:\n{chains}\n{logs}")

    def create_chains(self, replicas: int, targets_per_node: int) -> None:
        """Place the chains over all nodes."""
        request = CreateChainsRequest(
            replicas=replicas, targets_per_node=targets_per_node, nodes=len(self.nodes)
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self._call(_CREATE, request, START_TIMEOUT_S)
                return
            except Error as error:
                if error.code is not Code.UNAVAILABLE or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _call(self, called: Any, message: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        connection = connect_manager(self.address)
        try:
            return decode(called, connection.finish(_start(connection, called, message), timeout_s))
        finally:
            connection.close()


def _start(connection: Any, called: Any, message: Any) -> Any:
    return connection.start(encode(called, message), CALL_TIMEOUT_S)


@contextmanager
def cluster(
    directory: Path,
    *,
    nodes: int = 3,
    replicas: int = 3,
    targets_per_node: int = 2,
    small_disks: Sequence[tuple[str, int]] = (),
    options: dict[str, str] | None = None,
) -> Iterator[Cluster]:
    """Run a cluster, on hosts of its own where this machine lets us; nothing is left of it.

    ``small_disks``: (node, bytes): the node's directory is a disk of that size.
    """
    names = ["manager", "standby", "meta", *(str(FIRST_NODE + i) for i in range(nodes))]
    with contextlib.ExitStack() as stack:
        net = None if unavailable() else stack.enter_context(network(names))
        made = Cluster(directory, net, nodes)
        made.options.update(options or {})
        if net is not None:
            for name, n_bytes in small_disks:
                (directory / name).mkdir()
                line = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "small"]
                net.hosts[name].run(*line, str(directory / name))
        try:
            made.start("manager")
            made.start("standby", "meta", *made.nodes)
            made.create_chains(replicas, targets_per_node)
            made.wait_serving(START_TIMEOUT_S)
            yield made
        finally:
            made.stop()
            for name in made.nodes:  # the data is large, the logs are worth keeping
                shutil.rmtree(directory / name, ignore_errors=True)
