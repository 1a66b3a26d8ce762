"""What makes names durable: the one call that the files' own ``fsync`` does not include.

It stands on the floor because the manager's leadership, the metadata engine and the copies of its
log all need it; the chunk store has its own among its recordable system calls.
"""

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive the loss of the host's power.

    Raises:
        OSError: as the kernel says; whoever calls knows what it means.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
