"""The file that ``hillfire://`` opens: hillfire's own, with what fsspec's users look for on it."""

import posixpath
import secrets
import sys
import threading
from typing import TYPE_CHECKING, Any

from hillfire.client.adapters.lending import SMALLEST, lender
from hillfire.client.file import File
from hillfire.client.reading import only, read_batch
from hillfire.client.stream import Stream

if TYPE_CHECKING:
    from hillfire.client.adapters.fsspec_base import Base
    from hillfire.client.sync import Shell


class HillfireFile(File):
    """An open file: ``io.BufferedIOBase`` and fsspec's ``AbstractBufferedFile`` in one.

    One that is read can be pickled: the copy opens the path again and is where this one was. One
    that is written within a transaction goes to a name beside its own until ``commit``.

    ``flush`` means what fsspec's does, whose callers flush after each small piece: full buffers are
    on their way at any rate, and what is not full waits for more. ``flush(force=True)``, ``fsync``
    and ``close`` make what was written visible to others.

    Native thread pools (DuckDB's) share one file and call ``seek`` and ``read`` as a pair, in the
    belief that no other thread gets between the two. So a thread that runs no Python but this seeks
    for itself alone: its next read begins there, and leaves the file's own position as it is.
    """

    def __init__(self, shell: "Shell", stream: Stream, name: str, mode: str) -> None:
        """Use ``HillfireFileSystem.open``."""
        super().__init__(shell, stream, name, mode)
        self.fs: Base | None = None
        """the file system that opened it; keeps the client alive as long as the file is"""
        self.path = name
        self.durable = False
        """whether ``close`` implies ``fsync``"""
        self._beside = ""
        self._places: dict[int, int] = {}
        """where a native thread's next read begins, by its ident"""

    @classmethod
    def opened(cls, fs: "Base", path: str, mode: str, autocommit: bool = True) -> "HillfireFile":
        """Open ``path`` of ``fs``; without ``autocommit``, a name beside it.

        Raises:
            Error: as ``FileSystem.open``.
        """
        deferred = not autocommit and mode[:1] in "wx"
        name = path
        if deferred:
            directory, base = posixpath.split(path)
            name = posixpath.join(directory, f".{base}.{secrets.token_hex(4)}.part")
        file = fs.client.open_as(cls, name, mode)
        file.fs, file.path, file.name = fs, path, path
        file.durable = fs.durable
        file._beside = name if deferred else ""
        return file

    # --- positions of native threads

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move the position and return it: the file's, or a native thread's own."""
        if whence == 0 and _has_no_caller() and not self.writable():
            self._places[threading.get_ident()] = offset
            return offset
        return super().seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        place = self._places.get(threading.get_ident()) if self._places else None
        return super().tell() if place is None else place

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` bytes, all that are left by default; short only at the end."""
        place = self._places.pop(threading.get_ident(), None) if self._places else None
        if place is None:
            return super().read(size)
        left = max(0, self.stream.length - place)
        return self.read_at(place, left if size is None or size < 0 else size)

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer as far as the file goes and return the count."""
        place = self._places.pop(threading.get_ident(), None) if self._places else None
        if place is None:
            return super().readinto(buffer)
        view = memoryview(buffer).cast("B")
        return int(self._shell.run(self.stream.read_at(place, len(view), view)))

    def read_buffer(self, size: int | None = -1, /) -> "bytes | memoryview":
        """Return what ``read`` does, as memory that storage nodes filled if it is much: for Arrow.

        It stays as it is for as long as anything refers to it.
        """
        stream = self.stream
        place = self.tell()
        left = stream.length - place
        length = left if size is None or size < 0 else min(size, left)
        own = self._places.pop(threading.get_ident(), None) is not None
        sequential = not own and stream.reads_on(place)
        lent = None if length < SMALLEST or sequential or stream.busy else lender().lend(length)
        if lent is None:
            if own:
                return self.read_at(place, max(0, length))
            return self.read(size)
        part, array = lent
        entries = [(stream.extent, place, part)]
        count = only(self._shell.run(read_batch(self._shell.core, entries)))
        if not own:
            self.seek(place + count)
        return array.data[:count]

    # --- what fsspec adds to a file

    @property
    def size(self) -> int:
        """The file's length in bytes, as far as this process knows it."""
        return self.stream.length

    @property
    def details(self) -> dict[str, Any]:
        """The info of the path."""
        assert self.fs is not None
        info: dict[str, Any] = self.fs.info(self.path)
        return info

    @property
    def blocksize(self) -> int:
        """How many bytes are well read at once."""
        assert self.fs is not None
        return int(self.fs.blocksize)

    @property
    def full_name(self) -> str:
        """The path as a URL."""
        assert self.fs is not None
        return self.fs.unstrip_protocol(self.path)

    def info(self) -> dict[str, Any]:
        """Return the info of the path."""
        return self.details

    def readuntil(self, char: bytes = b"\n", blocks: int | None = None) -> bytes:
        """Return the bytes up to the first ``char``, itself included; all that are left without."""
        found: list[bytes] = []
        tail = b""
        step = blocks or 128 * 1024
        while part := self.read(step):
            before = len(tail)
            at = (tail + part).find(char)
            if at >= 0:
                used = at + len(char) - before
                self.seek(used - len(part), 1)
                found.append(part[:used])
                break
            found.append(part)
            tail = (tail + part)[-(len(char) - 1) :] if len(char) > 1 else b""
        return b"".join(found)

    def flush(self, force: bool = False) -> None:
        """Make what was written visible to others, if ``force``."""
        if self.closed:
            raise ValueError("flush of closed file")
        if force:
            super().flush()

    def close(self) -> None:
        """Write what is buffered, to the disks of all replicas if the file is to be durable."""
        try:
            if self.durable and not self.closed and self.writable():
                self.fsync()
        finally:
            super().close()

    # --- transactions

    def commit(self) -> None:
        """Give a file that was written within a transaction its name, in one step."""
        self.close()
        if self._beside:
            assert self.fs is not None
            beside, self._beside = self._beside, ""
            try:
                self.fs.client.rename(beside, self.path, no_replace="x" in self.mode)
            except BaseException:
                self.fs.client.unlink(beside)
                raise

    def discard(self) -> None:
        """Take away a file that was written within a transaction."""
        self.close()
        if self._beside:
            assert self.fs is not None
            beside, self._beside = self._beside, ""
            self.fs.client.unlink(beside)

    # --- copies in other processes

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a file that is read: by its path and position."""
        if self.writable():
            raise TypeError("a file that is open for writing cannot be pickled")
        return _reopen, (self.fs, self.path, self.mode, self.tell())


def _has_no_caller() -> bool:
    """Tell whether native code called the method that calls this, in a thread without Python."""
    try:
        sys._getframe(2)
    except ValueError:
        return True
    return False


def _reopen(fs: "Base", path: str, mode: str, position: int) -> HillfireFile:
    file: HillfireFile = fs.open(path, mode)
    file.seek(position)
    return file
