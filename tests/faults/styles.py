"""The ways in which clients use the file system: batches, single calls, cuts, and the mount."""

import mmap
import os
import time
from abc import ABC, abstractmethod

import hillfire
from hillfire.client.file import File
from tests.faults.recording import Client
from tests.history import Kind

PAGE = 4096


class Style(ABC):
    """A way to use the file system."""

    def __init__(self, client: Client) -> None:
        """Work for a client."""
        self.client = client
        self.operations = 1
        """of the last turn"""

    @abstractmethod
    def turn(self, path: str) -> None:
        """Do something."""

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Let go of everything."""


class Library(Style):
    """By the client library, which keeps files open and one region."""

    BATCH = 6

    def __init__(self, client: Client) -> None:
        """Connect."""
        super().__init__(client)
        job = client.job
        self.fs = hillfire.connect(job.address, transport="tcp", io_timeout_s=job.io_timeout_s)
        self.region = self.fs.register(self.BATCH * job.chunk_bytes)
        self._files: dict[str, File] = {}

    def open(self, path: str) -> File:
        """Return a file, opened once."""
        if path not in self._files:
            self._files[path] = self.fs.open(path, "r+b")
        return self._files[path]

    def close(self) -> None:
        """Close files and connections."""
        for file in self._files.values():
            file.close()
        self.fs.close()


class Batches(Library):
    """Several chunks at once, each piece an operation of its own."""

    KINDS: tuple[Kind, ...] = (Kind.READ, Kind.WRITE)

    def turn(self, path: str) -> None:
        """Write or read pieces of distinct chunks."""
        client, job = self.client, self.client.job
        chunks = client.random.sample(range(job.chunks), min(self.BATCH, job.chunks))
        kind = client.random.choice(self.KINDS)
        file = self.open(path)
        pieces = [(chunk, *client.span()) for chunk in chunks]
        operations = [client.begin(path, chunk, kind, at, length) for chunk, at, length in pieces]
        entries = [
            (file, chunk * job.chunk_bytes + at, i * job.chunk_bytes, length)
            for i, (chunk, at, length) in enumerate(pieces)
        ]
        view = self.region.view
        if kind is Kind.WRITE:
            for operation, (_, _, place, length) in zip(operations, entries, strict=True):
                view[place : place + length] = client.data(operation)
        for i, operation in enumerate(operations):  # the data was made before, the call begins now
            operation.invoked = time.monotonic_ns() if i == 0 else operations[0].invoked
        if kind is Kind.WRITE:
            results = self.fs.write_batch(entries, self.region)
            for operation, result in zip(operations, results, strict=True):
                client.wrote(operation, result)
        else:
            results = self.fs.read_batch(entries, self.region)
            for operation, result, entry in zip(operations, results, entries, strict=True):
                client.saw(operation, result, view[entry[2] : entry[2] + entry[3]])
        self.operations = len(entries)


class Readers(Batches):
    """Nothing but reads: what it knows of the chains no failed write brings up to date."""

    KINDS = (Kind.READ,)


class Singles(Library):
    """One call at a time: write and flush, or read."""

    def turn(self, path: str) -> None:
        """Write or read a piece of a chunk."""
        client, job = self.client, self.client.job
        chunk, (at, length) = client.random.randrange(job.chunks), client.span()
        file = self.open(path)
        if client.random.random() < 0.5:
            operation = client.begin(path, chunk, Kind.WRITE, at, length)
            try:
                file.seek(chunk * job.chunk_bytes + at)
                file.write(client.data(operation))
                file.flush()
                client.wrote(operation, length)
            except OSError as error:
                client.wrote(operation, error)
                self._files.pop(path).close()
        else:
            operation = client.begin(path, chunk, Kind.READ, at, length)
            try:
                found = memoryview(file.read_at(chunk * job.chunk_bytes + at, length))
                client.saw(operation, len(found), found)
            except OSError as error:
                client.failed(operation, error)


class Cuts(Library):
    """A file of its own that is cut, written and read; its length plays a part, so it is reopened.

    A cut concerns every chunk of the file: one operation each.
    """

    def turn(self, path: str) -> None:
        """Cut, write or read the file beside ``path``."""
        client, job = self.client, self.client.job
        path = f"{path}-cut"
        if not self.fs.exists(path):
            self.fs.open(path, "ab").close()
        chunk, (at, length) = client.random.randrange(job.chunks), client.span()
        what = client.random.choice(("cut", "write", "write", "read", "read"))
        self.operations = 1
        if what == "cut":
            self.cut(path, client.random.randrange(job.chunks * job.chunk_bytes))
            return
        kind = Kind.WRITE if what == "write" else Kind.READ
        operation = client.begin(path, chunk, kind, at, length)
        try:
            with self.fs.open(path, "r+b") as file:
                if kind is Kind.WRITE:
                    file.seek(chunk * job.chunk_bytes + at)
                    file.write(client.data(operation))
                else:
                    found = memoryview(file.read_at(chunk * job.chunk_bytes + at, length))
            if kind is Kind.WRITE:
                client.wrote(operation, length)
                return
            # What lies beyond the file's end was not seen: the length is not the chunk's affair,
            # a write that lengthens the file may be seen up to the length that there was.
            operation.length = len(found)
            client.saw(operation, len(found), found)
        except OSError as error:
            client.wrote(operation, error)

    def cut(self, path: str, length: int) -> None:
        """Cut the file."""
        client, job = self.client, self.client.job
        operations = []
        for chunk in range(job.chunks):
            rest = length - chunk * job.chunk_bytes
            if rest < job.chunk_bytes:
                operations.append(client.begin(path, chunk, Kind.TRUNCATE, 0, max(0, rest)))
        try:
            self.fs.truncate(path, length)
        except OSError as error:
            # On a full disk too: a cut needs no room.
            client.failed(operations[0] if operations else client.recorder.operations[-1], error)
            return
        for operation in operations:
            client.recorder.returned(operation)


class Mounted(Style):
    """Through the mount: writes that are synced, reads past the page cache."""

    def __init__(self, client: Client) -> None:
        """Make a buffer that O_DIRECT takes."""
        super().__init__(client)
        self._buffer = mmap.mmap(-1, client.job.chunk_bytes + 2 * PAGE)
        self._fds: dict[str, int] = {}

    def turn(self, path: str) -> None:
        """Write and sync, or read, a piece of a chunk."""
        client, job = self.client, self.client.job
        chunk, (at, length) = client.random.randrange(job.chunks), client.span()
        where = chunk * job.chunk_bytes + at
        if client.random.random() < 0.5:
            fd = self._open(path, os.O_WRONLY)
            operation = client.begin(path, chunk, Kind.WRITE, at, length)
            try:
                done = os.pwrite(fd, client.data(operation), where)
                os.fsync(fd)
                client.wrote(operation, done)
            except OSError as error:
                client.wrote(operation, error)
        else:
            fd = self._open(path, os.O_RDONLY | os.O_DIRECT)
            start = where // PAGE * PAGE
            until = -(-(where + length) // PAGE) * PAGE
            operation = client.begin(path, chunk, Kind.READ, at, length)
            view = memoryview(self._buffer)
            try:
                done = os.preadv(fd, [view[: until - start]], start)
                data = view[where - start : max(where - start, min(done, where - start + length))]
                client.saw(operation, len(data), data)
            except OSError as error:
                client.failed(operation, error)

    def _open(self, path: str, flags: int) -> int:
        name = f"{path} {flags}"
        if name not in self._fds:
            self._fds[name] = os.open(self.client.job.mount + path, flags)
        return self._fds[name]

    def close(self) -> None:
        """Close the files."""
        for fd in self._fds.values():
            os.close(fd)


STYLES: dict[str, type[Style]] = {
    "batch": Batches,
    "reader": Readers,
    "single": Singles,
    "mount": Mounted,
    "cut": Cuts,
}
