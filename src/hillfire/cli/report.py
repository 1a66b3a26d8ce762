"""What ``hillfire status`` says, as plain data: routing and local processes in, a dict out.

The keys are an interface (``--json``): they may grow, they do not change.
"""

from collections.abc import Mapping
from typing import Any

from hillfire.cluster import LocalState, NodeKind, PublicState, Routing


def node_name(kind: NodeKind, node: int) -> str:
    """Return the name that a local cluster gives to a node."""
    return "meta" if kind is NodeKind.META else f"storage-{node}"


def report(
    address: str,
    routing: Routing,
    space: tuple[int, int],
    local: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a cluster.

    ``space``: bytes of user data that fit and that are there. ``local`` is what the cluster's
    supervisor says, for one on this machine.
    """
    processes = {each["name"]: each for each in (local or {}).get("services", [])}
    nodes = []
    for node in sorted(routing.nodes.values(), key=lambda each: each.id):
        name = node_name(node.kind, node.id)
        process = processes.get(name, {})
        nodes.append(
            {
                "id": int(node.id),
                "name": name,
                "kind": node.kind.name.lower(),
                "state": "alive" if node.alive else "dead",
                "process": process.get("state"),
                "pid": process.get("pid"),
                "restarts": process.get("restarts"),
                "incarnation": node.incarnation,
                "tcp": node.endpoint.tcp,
                "grpc": node.endpoint.grpc,
                "shm": node.endpoint.shm,
            }
        )
    chains = [
        {
            "id": int(chain.id),
            "version": chain.version,
            "targets": [_target(routing, target, state) for target, state in chain.targets],
        }
        for chain in sorted(routing.chains.values(), key=lambda each: each.id)
    ]
    problems = _problems(nodes, chains)
    manager = processes.get("manager", {})
    return {
        "address": address,
        "cluster": routing.cluster,
        "version": routing.version,
        "healthy": not problems,
        "problems": problems,
        "manager": {
            "grpc": routing.manager.grpc if routing.manager else None,
            "process": manager.get("state"),
            "pid": manager.get("pid"),
            "restarts": manager.get("restarts"),
        },
        "supervisor": {"pid": local["pid"]} if local else None,
        "mount": _mount(local, processes),
        "nodes": nodes,
        "chains": chains,
        "space": {"capacity_bytes": space[0], "used_bytes": space[1]},
    }


def _target(routing: Routing, target: int, state: PublicState) -> dict[str, Any]:
    known = {int(each.id): each for each in routing.targets.values()}.get(target)
    return {
        "id": int(target),
        "node": int(known.node) if known else None,
        "state": state.name.lower().replace("_", "-"),
        "local": (known.local if known else LocalState.OFFLINE).name.lower().replace("_", "-"),
        "disk_used_bytes": known.used_bytes if known else 0,
        "disk_capacity_bytes": known.capacity_bytes if known else 0,
    }


def _problems(nodes: list[dict[str, Any]], chains: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each thing that is not as it should be."""
    problems = [f"{node['name']} is dead" for node in nodes if node["state"] == "dead"]
    if not chains:
        problems.append(
            "there are no chains yet: `hillfire up` makes them, or `hillfire create-chains`"
        )
    for chain in chains:
        states = [target["state"] for target in chain["targets"]]
        if "serving" not in states:
            problems.append(f"chain {chain['id']} does not serve: its files cannot be read")
        elif behind := len(states) - states.count("serving"):
            problems.append(
                f"chain {chain['id']} lacks {behind} of {len(states)} replicas"
                + (", one is being brought up to date" if "syncing" in states else "")
            )
    return problems


def _mount(
    local: Mapping[str, Any] | None, processes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    if not local or not local.get("mount"):
        return None
    process = processes.get("mount", {})
    return {
        "directory": local["mount"],
        "process": process.get("state"),
        "pid": process.get("pid"),
        "restarts": process.get("restarts"),
    }
