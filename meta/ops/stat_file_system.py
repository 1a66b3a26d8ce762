"""StatFileSystem: how much user data fits, and is there; replicas are counted once."""

from collections import Counter

from hillfire.cluster import PublicState, Routing
from hillfire.proto.meta_pb2 import FileSystemStatus
from hillfire.types import TargetId

_HAS_DATA = (PublicState.SERVING, PublicState.LAST_SERVING)


def stat_file_system(routing: Routing, inodes: int) -> FileSystemStatus:
    """Add the chains up: each holds as much as the least of its targets' shares of their disks.

    A target reports its whole disk, which all targets there share, those of other nodes of the
    same host too. Those that report nothing (no heartbeat yet) do not count.
    """
    sharing = _sharing(routing)
    capacity = used = 0
    for chain in routing.chains.values():
        shares = [
            (
                routing.targets[target].capacity_bytes // sharing[target],
                routing.targets[target].used_bytes // sharing[target],
            )
            for target, state in chain.targets
            if state in _HAS_DATA and target in sharing
        ]
        if shares:
            capacity += min(share for share, _ in shares)
            used += max(share for _, share in shares)
    return FileSystemStatus(capacity_bytes=capacity, used_bytes=used, inodes=inodes)


def _sharing(routing: Routing) -> dict[TargetId, int]:
    """Return for each target that reports its space how many targets its disk carries."""
    disks: dict[TargetId, tuple[object, ...]] = {}
    for target in routing.targets.values():
        node = routing.nodes.get(target.node)
        if target.capacity_bytes and node is not None:
            known = (node.endpoint.host, target.device)
            disks[target.id] = known if target.device else ("", node.id, target.disk)
    carried = Counter(disks.values())
    return {target: carried[disk] for target, disk in disks.items()}
