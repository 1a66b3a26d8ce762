"""hillfire: a distributed file system for AI training and inference.

    import hillfire
    fs = hillfire.connect()                 # HILLFIRE_ADDRESS, or what `hillfire up` started
    with fs.open("/dataset/part-0", "rb") as f:
        ...

``connect_async`` gives the same with ``await``. Both are imported lazily, so that importing a
pure core of the package never drags in a client.
"""

from typing import TYPE_CHECKING, Any

from hillfire.errors import Code, Error
from hillfire.region import Region

if TYPE_CHECKING:
    from hillfire.client.aio_filesystem import AsyncFileSystem
    from hillfire.client.filesystem import FileSystem

__all__ = ["Code", "Error", "Region", "connect", "connect_async"]


def connect(address: str | None = None, **options: Any) -> "FileSystem":
    """Connect to a cluster by its manager's address (``host:port``).

    Without one: ``HILLFIRE_ADDRESS``, else the cluster last started by this user's `hillfire up`.
    Options: ``transport`` ("shm", "tcp"; chosen by itself), ``io_timeout_s`` (60: how long an
    operation goes on trying), ``staging_bytes`` (32 MiB: memory for file objects).

    Raises:
        Error: UNAVAILABLE if no manager answers there, CONFIGURATION if there is no address.
    """
    from hillfire.client import filesystem

    return filesystem.connect(address, **options)


async def connect_async(address: str | None = None, **options: Any) -> "AsyncFileSystem":
    """Connect as ``connect`` does; the same methods, to be awaited."""
    from hillfire.client import aio_filesystem

    return await aio_filesystem.connect(address, **options)
