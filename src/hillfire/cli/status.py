"""``hillfire status``: what the manager publishes, and for a local cluster its processes."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.markup import escape

from hillfire.cli.connect import connect_manager, last_cluster, last_local
from hillfire.cli.decisions import fetch_losses, line
from hillfire.cli.details import FINDINGS, fetch_checks, fetch_connections, fetch_progress
from hillfire.cli.meta import fetch_copies
from hillfire.cli.report import report
from hillfire.config import format_size
from hillfire.local.control import ask
from hillfire.local.directory import ClusterDirectory
from hillfire.meta.ops.stat_file_system import stat_file_system
from hillfire.proto.convert import routing_from_message
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
    directory = ClusterDirectory(path) if path is not None else last_local(address)
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
    found = report(
        address,
        routing,
        (space.capacity_bytes, space.used_bytes),
        local,
        progress=fetch_progress(connection),
        checks=fetch_checks(routing),
        connections=fetch_connections(routing),
        metadata=fetch_copies(routing),
    )
    found["losses"] = fetch_losses(connection)
    return found


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

    Console().print(_render(current), crop=False)


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
        nodes.add_column(column, justify=side, no_wrap=column not in ("state", "targets"))
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
    return Group(
        head,
        *_mount(current),
        nodes,
        chains,
        *_syncs(current),
        *_connections(current),
        *_checks(current),
        *(f"[red]! {escape(line(each))}[/red]" for each in current["losses"]),
        verdict,
    )


def _mount(current: dict[str, Any]) -> list[Any]:
    """Return a line about the mount: its directory would leave a table no room."""
    from rich.text import Text

    mount = current["mount"]
    if not mount:
        return []
    state = _state(mount["process"] or "", mount["restarts"])
    pid = f", pid {mount['pid']}" if mount["pid"] else ""
    line = Text.from_markup(f"mount {state}{pid}: ")
    line.append(mount["directory"])
    line.no_wrap, line.overflow = True, "ignore"
    return [line]


def _syncs(current: dict[str, Any]) -> list[str]:
    """Return a line for each target that is being brought up to date."""
    lines = []
    for chain in current["chains"]:
        for target in chain["targets"]:
            if target["state"] != "syncing":
                continue
            name = f"chain {chain['id']}: target {target['id']} on storage-{target['node']}"
            lines.append(f"{name} is brought up to date, {_how_far(target['progress'])}")
    return [*lines, ""] if lines else []


def _how_far(progress: dict[str, Any] | None) -> str:
    if progress is None:
        return "not begun"
    done, total = progress["bytes_done"], progress["bytes_total"]
    part = f" ({done / total:.0%})" if total else ""
    text = f"{format_size(done)} of {format_size(total)}{part}"
    if progress["chunks_total"]:
        text += f", {progress['chunks_done']} of {progress['chunks_total']} chunks"
    if progress["bytes_per_s"]:
        text += f", {format_size(progress['bytes_per_s'])}/s"
    if progress["seconds_left"] is not None:
        text += f", {progress['seconds_left']:.0f} s left"
    return text


def _checks(current: dict[str, Any]) -> list[str]:
    """Return a line for each node where something was found wrong."""
    lines = []
    for node in current["nodes"]:
        found = node["checks"] or {}
        wrong = [f"{found[name]} {name}" for name in FINDINGS if found.get(name)]
        if wrong:
            lines.append(f"{node['name']}: chunks {', '.join(wrong)} (`hillfire scrub` tells more)")
    return [*lines, ""] if lines else []


def _connections(current: dict[str, Any]) -> list[str]:
    """Return a line about the transports in use; storage nodes that are out of line are named."""
    clients: dict[str, int] = {}
    pairs: dict[str, list[str]] = {}
    storage = {node["name"]: node["connections"] or {} for node in current["nodes"]
               if node["kind"] == "storage"}  # fmt: skip
    for name, told in storage.items():
        for transport, count in told.get("clients", {}).items():
            clients[transport] = clients.get(transport, 0) + count
        for peer, counts in told.get("peers", {}).items():
            if peer in storage:
                for transport, count in counts.items():
                    pairs.setdefault(transport, []).append(f"{name} to {peer}")
                    clients[transport] = clients.get(transport, 0) - count
    line = []
    if any(count > 0 for count in clients.values()):
        counted = (f"{n} by {each}" for each, n in sorted(clients.items()) if n > 0)
        line.append(f"clients' connections: {', '.join(counted)}")
    if pairs:
        most = max(pairs, key=lambda transport: len(pairs[transport]))
        line.append(f"storage nodes reach each other by {most}")
        line += [f"{', '.join(sorted(pairs[each]))} by {each}" for each in pairs if each != most]
    return ["; ".join(line), ""] if line else []


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
