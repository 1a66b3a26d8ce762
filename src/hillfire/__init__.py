"""hillfire: a distributed file system for AI training and inference.

    import hillfire
    fs = hillfire.connect()                 # HILLFIRE_ADDRESS, or what `hillfire up` started
    with fs.open("/dataset/part-0", "rb") as f:
        ...

``connect_async`` gives the same with ``await``. Both, and the names of what they return, are
imported lazily, so that importing a pure core of the package never drags in a client.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hillfire.errors import Code, Error
from hillfire.region import Region

if TYPE_CHECKING:
    from hillfire.client.aio_file import AsyncFile
    from hillfire.client.aio_filesystem import AsyncFileSystem
    from hillfire.client.aio_queue import AsyncQueue, AsyncTransfer
    from hillfire.client.file import File
    from hillfire.client.filesystem import FileSystem
    from hillfire.client.queue import Queue, Transfer
    from hillfire.client.results import Results

__all__ = [
    "AsyncFile",
    "AsyncFileSystem",
    "AsyncQueue",
    "AsyncTransfer",
    "Code",
    "Error",
    "File",
    "FileSystem",
    "Queue",
    "Region",
    "Results",
    "Transfer",
    "connect",
    "connect_async",
]

_LAZY = {
    "AsyncFile": "aio_file",
    "AsyncFileSystem": "aio_filesystem",
    "AsyncQueue": "aio_queue",
    "AsyncTransfer": "aio_queue",
    "File": "file",
    "FileSystem": "filesystem",
    "Queue": "queue",
    "Results": "results",
    "Transfer": "queue",
}


def __getattr__(name: str) -> Any:
    """Import a class of the client when it is first named."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"hillfire.client.{_LAZY[name]}"), name)


def connect(address: str | None = None, **options: Any) -> "FileSystem":
    """Connect to a cluster by its manager's address (``host:port``).

    Without one: ``HILLFIRE_ADDRESS``, else the cluster last started by this user's `hillfire up`.
    Options: ``transport`` ("shm", "rdma", "tcp"; chosen by itself), ``io_timeout_s`` (60: how long
    an operation goes on trying), ``staging_bytes`` (32 MiB: memory for file objects).

    Raises:
        Error: UNAVAILABLE if no manager answers there, CONFIGURATION if there is no address.
    """
    from hillfire.client import filesystem

    return filesystem.connect(address, **options)


async def connect_async(address: str | None = None, **options: Any) -> "AsyncFileSystem":
    """Connect as ``connect`` does; the same methods, to be awaited."""
    from hillfire.client import aio_filesystem

    return await aio_filesystem.connect(address, **options)
