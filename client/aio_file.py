"""The file object of the asyncio face: ``async with await fs.open(path, "rb") as file``."""

import asyncio
import io
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar

from hillfire.client.actions import Operation
from hillfire.client.attributes import stat_result
from hillfire.client.stream import Stream
from hillfire.errors import Code, Error

if TYPE_CHECKING:
    from hillfire.client.aio import Client

T = TypeVar("T")


class AsyncFile:
    """An open file of binary mode. One task at a time uses its position; the others wait."""

    def __init__(self, client: "Client", stream: Stream, name: str, mode: str) -> None:
        """Use ``AsyncFileSystem.open``."""
        self.name = name
        self.mode = mode
        self._client = client
        self._stream = stream
        self._lock = asyncio.Lock()
        client.core.handles[id(stream)] = stream.inode.id

    def __repr__(self) -> str:
        """Tell path, mode and state."""
        state = " closed" if self.closed else ""
        return f"<hillfire async file {self.name!r} mode={self.mode!r}{state}>"

    async def __aenter__(self) -> "AsyncFile":
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the lines that are left."""
        rest = b""
        while data := await self._run(self._for_reading().peek()):
            await self.seek(len(data), io.SEEK_CUR)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line + b"\n"
        if rest:
            yield rest

    async def _run(self, operation: Operation[T]) -> T:
        async with self._lock:
            return await self._client.run(operation)

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._stream.closed

    @property
    def stream(self) -> Stream:
        """The open file itself.

        Raises:
            ValueError: if it is closed.
        """
        if self._stream.closed:
            raise ValueError("I/O operation on closed file")
        return self._stream

    def _for_reading(self) -> Stream:
        if not self.stream.readable:
            raise io.UnsupportedOperation("not open for reading")
        return self._stream

    def _for_writing(self) -> Stream:
        if not self.stream.writable:
            raise io.UnsupportedOperation("not open for writing")
        return self._stream

    async def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, all that are left by default; short only at the end."""
        stream = self._for_reading()
        if size >= 0:
            return await self._run(stream.read(size))
        return await self._run(stream.read_all())

    async def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes and return the count."""
        return await self._run(self._for_reading().read_into(memoryview(buffer).cast("B")))

    async def read_at(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset``; the position stays. For any task."""
        stream = self._for_reading()
        if stream.writable:
            return bytes(await self._run(stream.read_at(offset, size)))
        return bytes(await self._client.run(stream.read_at(offset, size)))

    async def write(self, data: Any) -> int:
        """Write all of ``data``; it may still be buffered when this returns."""
        return await self._run(self._for_writing().write(memoryview(data).cast("B")))

    async def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position and return it."""
        stream = self.stream
        if whence == io.SEEK_END:
            await self._run(stream.refresh())
            offset += stream.length
        elif whence == io.SEEK_CUR:
            offset += stream.position
        if offset < 0:
            raise Error(Code.INVALID, f"seek to {offset}")
        stream.position = offset
        return offset

    def tell(self) -> int:
        """Return the position."""
        return self.stream.position

    async def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file to ``size`` bytes, the position by default."""
        stream = self._for_writing()
        length = stream.position if size is None else size
        await self._run(stream.truncate(length))
        return length

    async def flush(self) -> None:
        """Make what was written visible to everyone; durable it is after ``fsync``."""
        if self.stream.writable:
            await self._run(self._stream.flush())

    async def fsync(self) -> None:
        """Return when what was written is on the disks of all replicas."""
        await self._run(self._for_writing().sync())

    async def stat(self) -> os.stat_result:
        """Return the file's attributes."""
        await self._run(self.stream.refresh())
        return stat_result(self._stream.inode)

    async def close(self) -> None:
        """Write what is buffered and end the file's session. A second time does nothing."""
        await self._run(self._stream.close(id(self._stream)))
