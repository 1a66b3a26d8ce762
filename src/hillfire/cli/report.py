"""What ``hillfire status`` says, as plain data: routing and local processes in, a dict out.

The keys are an interface (``--json``): they may grow, they do not change.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from hillfire.cluster import Chain, LocalState, NodeKind, Progress, PublicState, Routing
from hillfire.types import TargetId


def node_name(kind: NodeKind, node: int) -> str:
    """Return the name that a local cluster gives to a node."""
    return "meta" if kind is NodeKind.META else f"storage-{node}"


def report(
    address: str,
    routing: Routing,
    space: tuple[int, int],
    local: Mapping[str, Any] | None = None,
    *,
    progress: Mapping[int, Progress] = MappingProxyType({}),
    checks: Mapping[int, Mapping[str, Any]] = MappingProxyType({}),
    connections: Mapping[int, Mapping[str, Any]] = MappingProxyType({}),
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a cluster.

    ``space``: bytes of user data that fit and that are there. ``local`` is what the cluster's
    supervisor says, for one on this machine. ``progress``: by target, of the sync that it makes of
    its successor. ``checks``: by node, what its scrubber and its reads found.
    ``connections``: by node, of its clients by transport, and to its peers. ``metadata``: how its
    copies stand.
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
                "rdma": node.endpoint.rdma,
                "rack": node.rack,
                "draining": node.draining,
                "checks": checks.get(int(node.id)),
                "connections": connections.get(int(node.id)),
            }
        )
    chains = [
        {
            "id": int(chain.id),
            "version": chain.version,
            "targets": [_target(routing, chain, target, progress) for target, _ in chain.targets],
        }
        for chain in sorted(routing.chains.values(), key=lambda each: each.id)
    ]
    problems = _problems(nodes, chains) + list((metadata or {}).get("problems", ()))
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
        "metadata": dict(metadata) if metadata is not None else None,
    }


def _target(
    routing: Routing, chain: Chain, target: TargetId, progress: Mapping[int, Progress]
) -> dict[str, Any]:
    known = routing.targets.get(target)
    state = chain.state_of(target)
    return {
        "id": int(target),
        "node": int(known.node) if known else None,
        "state": state.name.lower().replace("_", "-"),
        "local": (known.local if known else LocalState.OFFLINE).name.lower().replace("_", "-"),
        "reason": known.reason if known else "",
        "order": known.order.name.lower() if known and known.withdrawn else None,
        "disk_used_bytes": known.used_bytes if known else 0,
        "disk_capacity_bytes": known.capacity_bytes if known else 0,
        "progress": _progress(chain, progress) if state is PublicState.SYNCING else None,
    }


def _progress(chain: Chain, progress: Mapping[int, Progress]) -> dict[str, Any] | None:
    """Return how far the sync of a chain's syncing target is; its predecessor makes it."""
    found = progress.get(chain.serving[-1]) if chain.serving else None
    if found is None:
        return None
    left = max(0, found.bytes_total - found.bytes_done)
    return {
        "bytes_done": found.bytes_done,
        "bytes_total": found.bytes_total,
        "chunks_done": found.chunks_done,
        "chunks_total": found.chunks_total,
        "bytes_per_s": found.bytes_per_s,
        "seconds_left": left / found.bytes_per_s if found.bytes_per_s else None,
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
        problems += _held(chain)
    for node in nodes:
        if lost := (node["checks"] or {}).get("lost", 0):
            problems.append(
                f"{node['name']} has lost {lost} chunks: no replica has a good copy of them; "
                "`hillfire scrub` names them, restore their files"
            )
    return problems


def _held(chain: dict[str, Any]) -> list[str]:
    """Name each target of a chain that is out, and why."""
    found = []
    for target in chain["targets"]:
        name = f"target {target['id']} on storage-{target['node']}"
        if target["order"]:
            found.append(f"{name} is out by order ({target['order']})")
        elif target["reason"] and target["local"] == "offline":
            found.append(f"{name} is out: {target['reason']}")
        elif target["reason"]:
            found.append(f"{name}: {target['reason']}")
    return found


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
