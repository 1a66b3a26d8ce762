"""The file object of the synchronous face: what ``open`` returns.

Compatible with ``io.BufferedIOBase``, so that ``io.TextIOWrapper``, pickle, torch.save, zipfile
and the like take it. After a fork what the parent had buffered stays the parent's: the child's
copy forgets it and can read on.
"""

import io
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from hillfire.client.actions import Operation
from hillfire.client.attributes import stat_result
from hillfire.client.stream import Stream
from hillfire.errors import Code, Error

if TYPE_CHECKING:
    from hillfire.client.sync import Shell

T = TypeVar("T")

READ1_BYTES = 128 * 1024
"""What ``read1`` returns at most if not told."""


class File(io.BufferedIOBase):
    """An open file. Threads may share it; a position that is shared is theirs to agree on."""

    def __init__(self, shell: "Shell", stream: Stream, name: Any, mode: str) -> None:
        """Use ``FileSystem.open``."""
        self.name = name
        self.mode = mode
        self._shell = shell
        self._stream = stream
        self._generation = shell.generation
        self._lock = threading.RLock()
        shell.core.handles[id(stream)] = stream.inode.id

    def __repr__(self) -> str:
        """Tell path, mode and state."""
        state = " closed" if self.closed else ""
        return f"<hillfire file {self.name!r} mode={self.mode!r}{state}>"

    def _run(self, operation: Operation[T]) -> T:
        with self._lock:
            return self._shell.run(operation)

    @property
    def stream(self) -> Stream:
        """The open file itself, in this process.

        Raises:
            Error: INVALID if it is closed.
        """
        if self._generation != self._shell.generation:
            self._generation = self._shell.generation
            self._lock = threading.RLock()
            self._stream.abandon()
        if self._stream.closed:
            raise ValueError("I/O operation on closed file")
        return self._stream

    # --- io

    def readable(self) -> bool:
        """Tell whether it was opened for reading."""
        return self._stream.readable

    def writable(self) -> bool:
        """Tell whether it was opened for writing."""
        return self._stream.writable

    def seekable(self) -> bool:
        """Tell that it has a position."""
        return True

    def _for_reading(self) -> Stream:
        stream = self.stream
        if not stream.readable:
            raise io.UnsupportedOperation("not open for reading")
        return stream

    def _for_writing(self) -> Stream:
        stream = self.stream
        if not stream.writable:
            raise io.UnsupportedOperation("not open for writing")
        return stream

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` bytes, all that are left by default; short only at the end."""
        stream = self._for_reading()
        if size is not None and size >= 0:
            return self._run(stream.read(size))
        return self._run(stream.read_all())

    def read1(self, size: int = -1, /) -> bytes:
        """Return some bytes with at most one trip."""
        stream = self._for_reading()
        return self._run(stream.read_some(size if size >= 0 else READ1_BYTES))

    def peek(self, size: int = 0, /) -> bytes:
        """Return bytes that follow without moving on."""
        return self._run(self._for_reading().peek())

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as the file goes and return the count."""
        stream = self._for_reading()
        return self._run(stream.read_into(memoryview(buffer).cast("B")))

    def readinto1(self, buffer: Any, /) -> int:
        """As ``readinto``."""
        return self.readinto(buffer)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset``; the position stays. For any thread."""
        stream = self._for_reading()
        if stream.writable:
            return bytes(self._run(stream.read_at(offset, size)))
        return bytes(self._shell.run(stream.read_at(offset, size)))

    def write(self, data: Any, /) -> int:
        """Write all of ``data``; it may still be buffered when this returns."""
        stream = self._for_writing()
        return self._run(stream.write(memoryview(data).cast("B")))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move the position and return it."""
        stream = self.stream
        if whence == io.SEEK_END:
            self._run(stream.refresh())
            offset += stream.length
        elif whence == io.SEEK_CUR:
            offset += stream.position
        elif whence != io.SEEK_SET:
            raise ValueError(f"invalid whence: {whence}")
        if offset < 0:
            raise Error(Code.INVALID, f"seek to {offset}")
        stream.position = offset
        return offset

    def tell(self) -> int:
        """Return the position."""
        return self.stream.position

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend the file to ``size`` bytes, the position by default."""
        stream = self._for_writing()
        length = stream.position if size is None else size
        self._run(stream.truncate(length))
        return length

    def flush(self) -> None:
        """Make what was written visible to everyone; durable it is after ``fsync``."""
        if self.closed:
            raise ValueError("flush of closed file")
        stream = self.stream
        if stream.writable:
            self._run(stream.flush())

    def fsync(self) -> None:
        """Return when what was written is on the disks of all replicas."""
        self._run(self._for_writing().sync())

    def stat(self) -> Any:
        """Return the file's attributes."""
        stream = self.stream
        self._run(stream.refresh())
        return stat_result(stream.inode)

    def close(self) -> None:
        """Write what is buffered and end the file's session. A second time does nothing."""
        if self.closed:
            return
        try:
            stream = self._stream
            if self._generation != self._shell.generation:
                stream.abandon()
                stream.closed = True
            elif not stream.closed:
                self._run(stream.close(id(stream)))
        finally:
            self._mark_closed()

    def _mark_closed(self) -> None:
        # IOBase.close() calls flush(), which has nothing left to do.
        self.flush = lambda: None  # type: ignore[method-assign]
        super().close()

    def fileno(self) -> int:
        """Refuse: the kernel knows nothing of this file."""
        raise io.UnsupportedOperation("fileno")
