"""The synchronous face: ``fs = hillfire.connect()``; files and directories by path.

Every method is one operation of the core driven on the caller's own thread; any number of threads
may use one ``FileSystem``, and a forked child goes on using it.
"""

import io
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, overload

from hillfire.client import batches, namespace
from hillfire.client.attributes import Entry
from hillfire.client.batches import Files
from hillfire.client.buffers import DEFAULT_BYTES
from hillfire.client.file import File
from hillfire.client.memory import register
from hillfire.client.namespace import Path
from hillfire.client.opening import open_stream
from hillfire.client.queue import DEFAULT_DEPTH, Queue
from hillfire.client.results import Results
from hillfire.client.stream import Stream
from hillfire.client.sync import Shell
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2
from hillfire.region import Region

F = TypeVar("F")

BinaryMode: TypeAlias = Literal[
    "rb", "wb", "ab", "xb", "r+b", "w+b", "a+b", "x+b", "rb+", "wb+", "ab+", "xb+", "br", "bw"
]
TextMode: TypeAlias = Literal["r", "w", "a", "x", "r+", "w+", "a+", "x+", "rt", "wt", "at", "xt"]
IoList: TypeAlias = Sequence[tuple[File, int, int, int]]


class FileSystem:
    """A hillfire file system. Paths begin at its root, with or without a slash."""

    def __init__(
        self,
        address: str,
        *,
        transport: str | None = None,
        io_timeout_s: float = 60.0,
        staging_bytes: int = DEFAULT_BYTES,
    ) -> None:
        """Use ``hillfire.connect``."""
        self._shell = Shell(
            address, transport=transport, io_timeout_s=io_timeout_s, staging_bytes=staging_bytes
        )
        self._core = self._shell.core
        self._run = self._shell.run

    def __repr__(self) -> str:
        """Name the cluster."""
        return f"<hillfire file system at {self._shell.address}>"

    def __enter__(self) -> "FileSystem":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """End the session and close every connection; close files before."""
        self._shell.close()

    # --- files

    @overload
    def open(self, path: Path, mode: BinaryMode) -> File: ...

    @overload
    def open(
        self,
        path: Path,
        mode: TextMode = "r",
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.TextIOWrapper: ...

    @overload
    def open(self, path: Path, mode: str) -> Any: ...

    def open(
        self,
        path: Path,
        mode: str = "r",
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Open a file as the built-in ``open`` does; "b" gives bytes, otherwise text.

        Raises:
            Error: which is a FileNotFoundError, FileExistsError, ... where there is one.
        """
        binary = "b" in mode
        if binary and (encoding or errors or newline):
            raise ValueError("binary mode takes no encoding, errors or newline")
        file = self.open_as(File, path, mode)
        if binary:
            return file
        text = io.TextIOWrapper(file, encoding or "utf-8", errors, newline)
        text.mode = mode  # type: ignore[misc]
        return text

    def open_as(self, kind: Callable[[Shell, Stream, str, str], F], path: Path, mode: str) -> F:
        """Open a file of bytes as an object of another class than ``File`` (adapters)."""
        stream = self._run(open_stream(self._core, path, mode))
        self._shell.keep_session()
        return kind(self._shell, stream, os.fsdecode(path), mode)

    def truncate(self, path: Path, length: int) -> None:
        """Cut or extend a file."""
        self._run(namespace.truncate(self._core, path, length))

    def read_bytes(self, path: Path) -> bytes:
        """Return a whole file."""
        with self.open(path, "rb") as file:
            return file.read()

    def write_bytes(self, path: Path, data: Any) -> None:
        """Write a whole file."""
        with self.open(path, "wb") as file:
            file.write(data)

    # --- batches

    def register(self, memory: object) -> Region:
        """Return a region: of so many bytes of hillfire's own memory, or over a buffer.

        Own memory is filled by storage nodes on the same host directly; a buffer costs one memcpy.
        ``region.numpy(...)`` and ``region.torch(...)`` are arrays over it.
        """
        return register(memory)

    def read_batch(
        self, reads: IoList, region: Region, *, deadline_s: float | None = None
    ) -> list[int | Error]:
        """Read many (file, offset, region offset, length) at once.

        Returns a byte count or an error for each, short at a file's end; holes are zeros.
        """
        deadline = self._core.deadline(deadline_s)
        return self._run(batches.read(self._core, reads, region, deadline))

    def write_batch(
        self, writes: IoList, region: Region, *, deadline_s: float | None = None
    ) -> list[int | Error]:
        """Write many (file, offset, region offset, length) at once.

        Returns a byte count or an error for each. Lengths are settled by flush, fsync or close.
        """
        deadline = self._core.deadline(deadline_s)
        return self._run(batches.write(self._core, writes, region, deadline))

    def read_many(
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
        return self._run(batches.carry_out(self._core, order, self._core.deadline(deadline_s)))

    def write_many(
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
        return self._run(batches.carry_out(self._core, order, self._core.deadline(deadline_s)))

    def queue(self, depth: int = DEFAULT_DEPTH) -> Queue:
        """Return a queue to submit batches to and to wait for some of them.

        ``with fs.queue() as queue:`` waits for all at the end. ``depth`` is how many I/Os may be
        on their way at once; what is submitted beyond it waits for its turn.
        """
        return Queue(self._shell, depth)

    # --- the name space

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return a path's attributes."""
        return self._run(namespace.stat(self._core, path, follow_symlinks))

    def lstat(self, path: Path) -> os.stat_result:
        """Return a path's attributes; a symbolic link's are its own."""
        return self._run(namespace.stat(self._core, path, False))

    def exists(self, path: Path) -> bool:
        """Tell whether a path leads anywhere."""
        return self._run(namespace.exists(self._core, path))

    def listdir(self, path: Path = "/") -> list[str]:
        """Return the names in a directory."""
        return self._run(namespace.listdir(self._core, path))

    def scandir(self, path: Path = "/") -> list[Entry]:
        """Return the entries of a directory, attributes included."""
        return self._run(namespace.scandir(self._core, path))

    def walk(self, top: Path = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield (directory, its directories, its files) from the top down; prune in place."""
        entries = self.scandir(top)
        base = os.fsdecode(top)
        directories = [entry.name for entry in entries if entry.is_dir()]
        files = [entry.name for entry in entries if not entry.is_dir()]
        yield base, directories, files
        for name in directories:
            yield from self.walk(posixpath.join(base, name))

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """Make a directory."""
        self._run(namespace.mkdir(self._core, path, mode))

    def makedirs(self, path: Path, mode: int = 0o777, exist_ok: bool = False) -> None:
        """Make a directory and those above it that are missing."""
        self._run(namespace.makedirs(self._core, path, mode, exist_ok))

    def unlink(self, path: Path) -> None:
        """Take a file's name away."""
        self._run(namespace.remove(self._core, path))

    remove = unlink

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        self._run(namespace.remove(self._core, path, directory=True))

    def rename(self, source: Path, target: Path, *, no_replace: bool = False) -> None:
        """Rename; an existing target is replaced in one step unless ``no_replace``."""
        self._run(namespace.rename(self._core, source, target, no_replace))

    def replace(self, source: Path, target: Path) -> None:
        """Rename over what is there."""
        self._run(namespace.rename(self._core, source, target))

    def link(self, source: Path, target: Path) -> None:
        """Give a file another name."""
        self._run(namespace.link(self._core, source, target))

    def symlink(self, target: Path, path: Path) -> None:
        """Make a symbolic link at ``path`` that points to ``target``."""
        goal = os.fsencode(target)
        self._run(namespace.make(self._core, path, meta_pb2.SYMLINK, 0o777, goal))

    def readlink(self, path: Path) -> str:
        """Return where a symbolic link points."""
        return self._run(namespace.readlink(self._core, path))

    def chmod(self, path: Path, mode: int) -> None:
        """Change permission bits."""
        self._run(namespace.set_attributes(self._core, path, mode=mode))

    def chown(self, path: Path, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """Change the owner; -1 leaves one as it is."""
        fields = {name: value for name, value in (("uid", uid), ("gid", gid)) if value >= 0}
        self._run(namespace.set_attributes(self._core, path, follow_symlinks, **fields))

    def utime(
        self,
        path: Path,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
    ) -> None:
        """Set the times of access and modification, to now by default."""
        self._run(namespace.set_times(self._core, path, times, ns))

    def getxattr(self, path: Path, attribute: str | bytes) -> bytes:
        """Return an extended attribute."""
        reply = self._run(namespace.attribute(self._core, "GetAttribute", path, attribute))
        value: bytes = reply.value
        return value

    def setxattr(self, path: Path, attribute: str | bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; ``flags`` as ``os.setxattr`` has them."""
        operation = namespace.attribute(self._core, "SetAttribute", path, attribute, value, flags)
        self._run(operation)

    def listxattr(self, path: Path) -> list[str]:
        """Return the names of the extended attributes."""
        reply = self._run(namespace.attribute(self._core, "ListAttributes", path))
        return [os.fsdecode(name) for name in reply.names]

    def removexattr(self, path: Path, attribute: str | bytes) -> None:
        """Remove an extended attribute."""
        self._run(namespace.attribute(self._core, "RemoveAttribute", path, attribute))

    def statvfs(self, path: Path = "/") -> os.statvfs_result:
        """Return the file system's space, in user bytes."""
        return self._run(namespace.statvfs(self._core))


def connect(address: str | None = None, **options: Any) -> FileSystem:
    """Connect to a cluster; see ``hillfire.connect``."""
    return FileSystem(address or default_address(), **options)


def default_address() -> str:
    """Return the address in ``HILLFIRE_ADDRESS``, or of the cluster last started by this user.

    Raises:
        Error: CONFIGURATION if there is neither.
    """
    address = os.environ.get("HILLFIRE_ADDRESS", "")
    if address:
        return address
    import platformdirs

    path = platformdirs.user_state_path("hillfire") / "last-cluster"
    try:
        address = path.read_text(encoding="utf-8").strip()
    except OSError as exc:
        text = "no address given: set HILLFIRE_ADDRESS, or start a cluster with `hillfire up`"
        raise Error(Code.CONFIGURATION, text) from exc
    return address
