"""StatFileSystem: how much user data fits, and is there; replicas are counted once."""

from hillfire.cluster import PublicState, Routing
from hillfire.proto.meta_pb2 import FileSystemStatus

_HAS_DATA = (PublicState.SERVING, PublicState.LAST_SERVING)


def stat_file_system(routing: Routing, inodes: int) -> FileSystemStatus:
    """Add the chains up: each holds as much as its smallest target, and uses what its fullest does.

    Targets that report nothing (no heartbeat yet) do not count.
    """
    capacity = used = 0
    for chain in routing.chains.values():
        targets = [
            routing.targets[target]
            for target, state in chain.targets
            if state in _HAS_DATA and target in routing.targets
        ]
        sizes = [target.capacity_bytes for target in targets if target.capacity_bytes]
        if sizes:
            capacity += min(sizes)
            used += max(target.used_bytes for target in targets)
    return FileSystemStatus(capacity_bytes=capacity, used_bytes=used, inodes=inodes)
