"""``hillfire status``: what the manager publishes, and for a local cluster its processes."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from hillfire.cli.report import report
from hillfire.config import format_size
from hillfire.errors import Code, Error
from hillfire.local.control import ask
from hillfire.local.directory import ClusterDirectory, last_cluster_path, last_directory
from hillfire.meta.ops.stat_file_system import stat_file_system
from hillfire.proto.convert import routing_from_message
from hillfire.proto.discovery import connect_leader
from hillfire.proto.manager_pb2 import GetRoutingRequest
from hillfire.proto.service import decode, encode, method
from hillfire.proto.wire.base import BlockingConnection

CALL_TIMEOUT_S = 5.0
WATCH_MS = 2000
_UNHEALTHY = 2
_GET_ROUTING = method("Manager", "GetRouting")


def run_status(
    path: Path | None, address: str | None, *, as_json: bool, watch: bool, wait_s: float
) -> None:
    """Print a cluster's status, once or at each change."""
    directory = ClusterDirectory(path) if path is not None else _last_local(address)
    where = directory.shape().address if directory else address or last_cluster()
    local = _ask_supervisor(directory)
    connection = connect_manager(where)
    try:
        current = _fetch(connection, where, local, 0, 0)
        deadline = time.monotonic() + wait_s
        while not current["healthy"] and time.monotonic() < deadline:
            current = _fetch(connection, where, local, current["version"], WATCH_MS)
        if watch:
            _watch(connection, where, directory, current, as_json=as_json)
        elif as_json:
            print(json.dumps(current, indent=2))
        else:
            _print(current)
    finally:
        connection.close()
    sys.exit(0 if current["healthy"] else _UNHEALTHY)


def connect_manager(address: str) -> BlockingConnection:
    """Connect to a cluster's manager.

    Raises:
        Error: what the connection failed with, in words of what to do.
    """
    try:
        return connect_leader(address, CALL_TIMEOUT_S)
    except Error as error:
        raise Error(
            error.code,
            f"no cluster manager answers at {address} ({error.strerror}): start the cluster with "
            f"`hillfire up{_directory_option(address)}`, or name another one with --address",
        ) from error


def _directory_option(address: str) -> str:
    """Return " --dir DIR" for the cluster started last, for a command to be typed."""
    try:
        directory = ClusterDirectory(last_directory())
        return f" --dir {directory.path}" if directory.shape().address == address else ""
    except Error:
        return ""


def last_cluster() -> str:
    """Return the address of the cluster that this user started last.

    Raises:
        Error: CONFIGURATION if there was none.
    """
    try:
        return last_cluster_path().read_text().strip()
    except OSError:
        raise Error(
            Code.CONFIGURATION,
            "which cluster? Name it with --dir or --address, or start one with `hillfire up`",
        ) from None


def _last_local(address: str | None) -> ClusterDirectory | None:
    """Return the directory of the cluster started last, if it is the one asked for and it runs."""
    try:
        directory = ClusterDirectory(last_directory())
        if address not in (None, directory.shape().address):
            return None
        _ask_supervisor(directory)
    except Error:
        return None
    return directory


def _ask_supervisor(directory: ClusterDirectory | None) -> dict[str, Any] | None:
    if directory is None:
        return None
    return ask(directory.control_path, {"do": "status"}, CALL_TIMEOUT_S)


def _fetch(
    connection: BlockingConnection,
    address: str,
    local: dict[str, Any] | None,
    known: int,
    wait_ms: int,
) -> dict[str, Any]:
    request = GetRoutingRequest(known_version=known, wait_ms=wait_ms)
    timeout_s = CALL_TIMEOUT_S + wait_ms / 1000
    ticket = connection.start(encode(_GET_ROUTING, request), timeout_s)
    reply = connection.finish(ticket, timeout_s)
    routing = routing_from_message(decode(_GET_ROUTING, reply))
    space = stat_file_system(routing, 0)
    return report(address, routing, (space.capacity_bytes, space.used_bytes), local)


def _watch(
    connection: BlockingConnection,
    address: str,
    directory: ClusterDirectory | None,
    current: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Show the status again whenever it changes, until Ctrl-C."""
    from rich.live import Live

    try:
        if as_json:
            while True:
                print(json.dumps(current), flush=True)
                known = current["version"]
                while current["version"] == known:
                    current = _fetch(connection, address, None, known, WATCH_MS)
        with Live(_render(current), auto_refresh=False) as live:
            while True:
                local = _ask_supervisor(directory)
                current = _fetch(connection, address, local, current["version"], WATCH_MS)
                live.update(_render(current), refresh=True)
    except KeyboardInterrupt:
        return


def _print(current: dict[str, Any]) -> None:
    from rich.console import Console

    Console().print(_render(current))


_COLOURS = {
    "alive": "green",
    "running": "green",
    "serving": "green",
    "syncing": "yellow",
    "waiting": "yellow",
    "starting": "yellow",
    "last-serving": "red",
    "offline": "red",
    "dead": "red",
    "failed": "red",
}


def _coloured(state: str) -> str:
    colour = _COLOURS.get(state)
    return f"[{colour}]{state}[/{colour}]" if colour else state


def _render(current: dict[str, Any]) -> Any:
    """Return what rich prints."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    space = current["space"]
    nodes = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("node", "state", "pid", "wire", "disk", "targets"):
        side: Any = "right" if column in ("pid", "disk") else "left"
        nodes.add_column(column, justify=side, no_wrap=True)
    manager = current["manager"]
    nodes.add_row(
        "manager",
        _state(manager["process"] or "alive", manager["restarts"]),
        _text(manager["pid"]),
        current["address"],
    )
    targets = [target for chain in current["chains"] for target in chain["targets"]]
    for node in current["nodes"]:
        held = [t for t in targets if t["node"] == node["id"]]
        state = node["state"] if node["process"] in (None, "running") else node["process"]
        nodes.add_row(
            node["name"],
            _state(state, node["restarts"]),
            _text(node["pid"]),
            node["tcp"],
            _disk(held),
            _counts([t["state"] for t in held]),
        )
    if mount := current["mount"]:
        state = _state(mount["process"] or "", mount["restarts"])
        nodes.add_row("mount", state, _text(mount["pid"]), mount["directory"])
    chains = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("chain", "version", "targets, head first (target@node)"):
        chains.add_column(column)
    for chain in current["chains"]:
        members = (f"{t['id']}@{t['node']} {_coloured(t['state'])}" for t in chain["targets"])
        chains.add_row(str(chain["id"]), str(chain["version"]), "  ".join(members))
    head = (
        f"cluster {current['cluster']} at {current['address']}, routing {current['version']}\n"
        f"space: {format_size(space['used_bytes'])} of {format_size(space['capacity_bytes'])} used"
    )
    if current["healthy"]:
        verdict = "[green]healthy: every chain serves with all its replicas[/green]"
    else:
        problems = current["problems"]
        shown = [f"[yellow]! {problem}[/yellow]" for problem in problems[:8]]
        if len(problems) > len(shown):
            shown.append(f"[yellow]! and {len(problems) - len(shown)} more[/yellow]")
        verdict = "\n".join(shown)
    return Group(head, nodes, chains, verdict)


def _state(state: str, restarts: int | None) -> str:
    return _coloured(state) + (f", restarted {restarts}x" if restarts else "")


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _disk(targets: list[dict[str, Any]]) -> str:
    """Return how full the fullest disk of a node is."""
    parts = [
        t["disk_used_bytes"] / t["disk_capacity_bytes"] for t in targets if t["disk_capacity_bytes"]
    ]
    return f"{max(parts):.0%} full" if parts else ""


def _counts(states: list[str]) -> str:
    return ", ".join(
        f"{states.count(state)} {_coloured(state)}" for state in dict.fromkeys(sorted(states))
    )
