"""The asyncio face: ``fs = await hillfire.connect_async()``; the same methods, to be awaited.

Any number of tasks of one event loop may use it. Each method drives the operation that the
synchronous face drives.
"""

import os
import posixpath
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

from hillfire.client import batches, namespace
from hillfire.client.aio import Client
from hillfire.client.aio_file import AsyncFile
from hillfire.client.aio_queue import AsyncQueue
from hillfire.client.attributes import Entry
from hillfire.client.batches import Files
from hillfire.client.filesystem import default_address
from hillfire.client.memory import register
from hillfire.client.namespace import Path
from hillfire.client.opening import open_stream
from hillfire.client.queue import DEFAULT_DEPTH
from hillfire.client.results import Results
from hillfire.errors import Error
from hillfire.proto import meta_pb2
from hillfire.region import Region

IoList: TypeAlias = Sequence[tuple[AsyncFile, int, int, int]]


class AsyncFileSystem:
    """A hillfire file system on an event loop. Paths begin at its root."""

    def __init__(self, client: Client) -> None:
        """Use ``hillfire.connect_async``."""
        self._client = client
        self._core = client.core
        self._run = client.run

    def __repr__(self) -> str:
        """Name the cluster."""
        return f"<hillfire file system at {self._client.address}>"

    async def __aenter__(self) -> "AsyncFileSystem":
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """End the session and close every connection; close files before."""
        await self._client.close()

    # --- files

    async def open(self, path: Path, mode: str = "rb") -> AsyncFile:
        """Open a file in one of the binary modes of the built-in ``open``.

        Raises:
            Error: which is a FileNotFoundError, FileExistsError, ... where there is one.
        """
        if "t" in mode:
            raise ValueError("the asyncio face reads and writes bytes: decode them yourself")
        stream = await self._run(open_stream(self._core, path, mode))
        self._client.keep_session()
        return AsyncFile(self._client, stream, os.fsdecode(path), mode)

    async def truncate(self, path: Path, length: int) -> None:
        """Cut or extend a file."""
        await self._run(namespace.truncate(self._core, path, length))

    async def read_bytes(self, path: Path) -> bytes:
        """Return a whole file."""
        async with await self.open(path, "rb") as file:
            return await file.read()

    async def write_bytes(self, path: Path, data: Any) -> None:
        """Write a whole file."""
        async with await self.open(path, "wb") as file:
            await file.write(data)

    # --- batches

    def register(self, memory: object) -> Region:
        """Return a region: of so many bytes of hillfire's own memory, or over a buffer.

        Own memory is filled by storage nodes on the same host directly; a buffer costs one memcpy.
        ``region.numpy(...)`` and ``region.torch(...)`` are arrays over it.
        """
        return register(memory)

    async def read_batch(
        self, reads: IoList, region: Region, *, deadline_s: float | None = None
    ) -> list[int | Error]:
        """Read many (file, offset, region offset, length) at once.

        Returns a byte count or an error for each, short at a file's end; holes are zeros.
        """
        deadline = self._core.deadline(deadline_s)
        return await self._run(batches.read(self._core, reads, region, deadline))

    async def write_batch(
        self, writes: IoList, region: Region, *, deadline_s: float | None = None
    ) -> list[int | Error]:
        """Write many (file, offset, region offset, length) at once.

        Returns a byte count or an error for each. Lengths are settled by flush, fsync or close.
        """
        deadline = self._core.deadline(deadline_s)
        return await self._run(batches.write(self._core, writes, region, deadline))

    async def read_many(
        self,
        file: Files,
        offsets: Any,
        into: Any,
        *,
        lengths: Any = None,
        places: Any = None,
        which: Any = None,
        deadline_s: float | None = None,
    ) -> Results:
        """Read many ranges at once, given as arrays.

        ``file`` is one open file, or a sequence of them: then ``which[i]`` is the position of the
        one that I/O ``i`` reads, by default the i-th. ``offsets`` are whole numbers, an array for
        many, one number for one I/O. ``into`` is where the bytes go: an array or tensor with a row
        for each I/O (in memory of ``register``: without a copy), or a region, with ``lengths``
        and, unless they follow one another, ``places`` in it. ``deadline_s`` is how long to go on
        trying, ``io_timeout_s`` by default.

        Returns a byte count or an error for each: short at a file's end; holes are zeros.

        Raises:
            Error: INVALID for arguments that do not fit together.
        """
        order = batches.order(file, offsets, into, lengths, places, which, False)
        return await self._run(
            batches.carry_out(self._core, order, self._core.deadline(deadline_s))
        )

    async def write_many(
        self,
        file: Files,
        offsets: Any,
        source: Any,
        *,
        lengths: Any = None,
        places: Any = None,
        which: Any = None,
        deadline_s: float | None = None,
    ) -> Results:
        """Write many ranges at once, given as arrays; see ``read_many``.

        Lengths of files are settled by flush, fsync or close.
        """
        order = batches.order(file, offsets, source, lengths, places, which, True)
        return await self._run(
            batches.carry_out(self._core, order, self._core.deadline(deadline_s))
        )

    def queue(self, depth: int = DEFAULT_DEPTH) -> AsyncQueue:
        """Return a queue to submit batches to and to wait for some of them.

        ``async with fs.queue() as queue:`` waits for all at the end. ``depth`` is how many I/Os
        may be on their way at once; what is submitted beyond it waits for its turn.
        """
        return AsyncQueue(self._client, depth)

    # --- the name space

    async def stat(self, path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return a path's attributes."""
        return await self._run(namespace.stat(self._core, path, follow_symlinks))

    async def lstat(self, path: Path) -> os.stat_result:
        """Return a path's attributes; a symbolic link's are its own."""
        return await self._run(namespace.stat(self._core, path, False))

    async def exists(self, path: Path) -> bool:
        """Tell whether a path leads anywhere."""
        return await self._run(namespace.exists(self._core, path))

    async def listdir(self, path: Path = "/") -> list[str]:
        """Return the names in a directory."""
        return await self._run(namespace.listdir(self._core, path))

    async def scandir(self, path: Path = "/") -> list[Entry]:
        """Return the entries of a directory, attributes included."""
        return await self._run(namespace.scandir(self._core, path))

    async def walk(self, top: Path = "/") -> AsyncIterator[tuple[str, list[str], list[str]]]:
        """Yield (directory, its directories, its files) from the top down; prune in place."""
        entries = await self.scandir(top)
        base = os.fsdecode(top)
        directories = [entry.name for entry in entries if entry.is_dir()]
        files = [entry.name for entry in entries if not entry.is_dir()]
        yield base, directories, files
        for name in directories:
            async for found in self.walk(posixpath.join(base, name)):
                yield found

    async def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """Make a directory."""
        await self._run(namespace.mkdir(self._core, path, mode))

    async def makedirs(self, path: Path, mode: int = 0o777, exist_ok: bool = False) -> None:
        """Make a directory and those above it that are missing."""
        await self._run(namespace.makedirs(self._core, path, mode, exist_ok))

    async def unlink(self, path: Path) -> None:
        """Take a file's name away."""
        await self._run(namespace.remove(self._core, path))

    remove = unlink

    async def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        await self._run(namespace.remove(self._core, path, directory=True))

    async def rename(self, source: Path, target: Path, *, no_replace: bool = False) -> None:
        """Rename; an existing target is replaced in one step unless ``no_replace``."""
        await self._run(namespace.rename(self._core, source, target, no_replace))

    async def replace(self, source: Path, target: Path) -> None:
        """Rename over what is there."""
        await self._run(namespace.rename(self._core, source, target))

    async def link(self, source: Path, target: Path) -> None:
        """Give a file another name."""
        await self._run(namespace.link(self._core, source, target))

    async def symlink(self, target: Path, path: Path) -> None:
        """Make a symbolic link at ``path`` that points to ``target``."""
        goal = os.fsencode(target)
        await self._run(namespace.make(self._core, path, meta_pb2.SYMLINK, 0o777, goal))

    async def readlink(self, path: Path) -> str:
        """Return where a symbolic link points."""
        return await self._run(namespace.readlink(self._core, path))

    async def chmod(self, path: Path, mode: int) -> None:
        """Change permission bits."""
        await self._run(namespace.set_attributes(self._core, path, mode=mode))

    async def chown(self, path: Path, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """Change the owner; -1 leaves one as it is."""
        fields = {name: value for name, value in (("uid", uid), ("gid", gid)) if value >= 0}
        await self._run(namespace.set_attributes(self._core, path, follow_symlinks, **fields))

    async def utime(
        self,
        path: Path,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
    ) -> None:
        """Set the times of access and modification, to now by default."""
        await self._run(namespace.set_times(self._core, path, times, ns))

    async def getxattr(self, path: Path, attribute: str | bytes) -> bytes:
        """Return an extended attribute."""
        reply = await self._run(namespace.attribute(self._core, "GetAttribute", path, attribute))
        value: bytes = reply.value
        return value

    async def setxattr(
        self, path: Path, attribute: str | bytes, value: bytes, flags: int = 0
    ) -> None:
        """Set an extended attribute; ``flags`` as ``os.setxattr`` has them."""
        operation = namespace.attribute(self._core, "SetAttribute", path, attribute, value, flags)
        await self._run(operation)

    async def listxattr(self, path: Path) -> list[str]:
        """Return the names of the extended attributes."""
        reply = await self._run(namespace.attribute(self._core, "ListAttributes", path))
        return [os.fsdecode(name) for name in reply.names]

    async def removexattr(self, path: Path, attribute: str | bytes) -> None:
        """Remove an extended attribute."""
        await self._run(namespace.attribute(self._core, "RemoveAttribute", path, attribute))

    async def statvfs(self, path: Path = "/") -> os.statvfs_result:
        """Return the file system's space, in user bytes."""
        return await self._run(namespace.statvfs(self._core))


async def connect(address: str | None = None, **options: Any) -> AsyncFileSystem:
    """Connect to a cluster; see ``hillfire.connect_async``."""
    client = await Client.connect(address or default_address(), session=False, **options)
    return AsyncFileSystem(client)
