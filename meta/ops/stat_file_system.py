"""StatFileSystem: how much user data fits, and is there; replicas are counted once."""

from collections.abc import Sequence

from hillfire.cluster import PublicState, Routing, Target
from hillfire.proto.meta_pb2 import FileSystemStatus
from hillfire.types import TargetId

_HAS_DATA = (PublicState.SERVING, PublicState.LAST_SERVING)
SAME_DISK_PARTS = 256
"""Targets of one host whose disks are equally large, and equally full but for a part of this many,
are taken to lie on one disk: several nodes of a small cluster often do, and nothing tells."""


def stat_file_system(routing: Routing, inodes: int) -> FileSystemStatus:
    """Add the chains up: each holds as much as the least of its targets' shares of their disks.

    A target reports its whole disk, which all targets there share. Those that report nothing (no
    heartbeat yet) do not count.
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
    """Return for each target how many targets its disk carries."""
    alike: dict[tuple[str, int], list[Target]] = {}
    for target in routing.targets.values():
        node = routing.nodes.get(target.node)
        if target.capacity_bytes and node is not None:
            alike.setdefault((node.endpoint.host, target.capacity_bytes), []).append(target)
    sharing: dict[TargetId, int] = {}
    for (_, size), targets in alike.items():
        targets.sort(key=lambda target: target.used_bytes)
        disk: list[Target] = []
        for target in targets:
            if disk and target.used_bytes - disk[-1].used_bytes > size // SAME_DISK_PARTS:
                _count(disk, sharing)
                disk = []
            disk.append(target)
        _count(disk, sharing)
    return sharing


def _count(disk: Sequence[Target], sharing: dict[TargetId, int]) -> None:
    sharing.update((target.id, len(disk)) for target in disk)
