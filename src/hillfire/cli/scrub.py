"""``hillfire scrub``: check all chunks now, and see what is found."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from hillfire.cli.connect import connect_manager, last_cluster
from hillfire.cli.details import FINDINGS, ask_nodes
from hillfire.cluster import Routing
from hillfire.config import format_size
from hillfire.errors import Code, Error
from hillfire.local.directory import ClusterDirectory
from hillfire.proto.convert import routing_from_message
from hillfire.proto.manager_pb2 import GetRoutingRequest
from hillfire.proto.service import decode, encode, method
from hillfire.proto.storage_pb2 import ScrubReply, ScrubRequest

CALL_TIMEOUT_S = 5.0
POLL_S = 0.5
_GET_ROUTING = method("Manager", "GetRouting")


def run_scrub(
    path: Path | None, address: str | None, chain: int, *, as_json: bool, start: bool
) -> None:
    """Start a scrub, follow it to its end, and print what was found.

    Exit status 2 if chunks were found that no replica has a good copy of, or a pass failed.
    """
    where = address or (ClusterDirectory(path).shape().address if path else last_cluster())
    routing = _routing(where)
    if chain and chain not in routing.chains:
        raise Error(Code.NOT_FOUND, f"no chain {chain}; `hillfire status` lists them")
    before: dict[int, int] = {}
    if start:
        before = {state["target"]: state["passes"] for state in _states(routing, chain, False)}
        _states(routing, chain, True)
    shown = 0.0
    while True:
        states = _states(routing, chain, False)
        going = [s for s in states if start and s["passes"] == before.get(s["target"], -1)]
        if not going or not any(state["running"] for state in going):
            break
        if not as_json and sys.stderr.isatty() and time.monotonic() - shown > 1:
            shown = time.monotonic()
            print(f"\r{_summary(states)}", end="", file=sys.stderr, flush=True)
        time.sleep(POLL_S)
    if as_json:
        print(json.dumps({"targets": states}, indent=2))
    else:
        _print(states)
    sys.exit(2 if any(state["lost"] or (start and state["failure"]) for state in states) else 0)


def _routing(where: str) -> Routing:
    connection = connect_manager(where)
    try:
        ticket = connection.start(encode(_GET_ROUTING, GetRoutingRequest()), CALL_TIMEOUT_S)
        return routing_from_message(decode(_GET_ROUTING, connection.finish(ticket, CALL_TIMEOUT_S)))
    finally:
        connection.close()


def _states(routing: Routing, chain: int, start: bool) -> list[dict[str, Any]]:
    """Return what each target's scrubber says; a node that does not answer says why."""
    states = []
    for node, reply in ask_nodes(
        routing, lambda node: ScrubRequest(start=start, chain=chain)
    ).items():
        if not isinstance(reply, ScrubReply):
            print(f"storage-{node} does not answer: {reply.strerror}", file=sys.stderr)
            continue
        for state in reply.targets:
            told = {f.name: getattr(state, f.name) for f in state.DESCRIPTOR.fields}
            states.append({"node": node, **told, "findings": list(state.findings)})
    return states


def _summary(states: list[dict[str, Any]]) -> str:
    done = sum(state["bytes_done"] for state in states)
    total = sum(state["bytes_total"] for state in states)
    found = [f"{sum(s[name] for s in states)} {name}" for name in FINDINGS]
    return f"{format_size(done)} of {format_size(max(done, total))} checked; {', '.join(found)}"


def _print(states: list[dict[str, Any]]) -> None:
    for state in states:
        name = f"target {state['target']} of chain {state['chain']} on storage-{state['node']}"
        if state["failure"]:
            print(f"{name}: not checked to its end: {state['failure']}")
        for line in state["findings"]:
            print(f"{name}: {line}")
    print(_summary(states))
