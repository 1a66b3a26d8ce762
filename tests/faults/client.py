"""A client as a process: writes and reads colliding chunks, records what it asked and what came.

``python -m tests.faults.client``: a line of JSON on standard input says how. More lines may follow:
``{"file": PATH}`` goes on with another file, ``{"full": true}`` allows NO_SPACE from now on; the
end of the input ends it. Its history remains, and an outcome: what went wrong, and figures.
"""

import errno
import json
import mmap
import os
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hillfire
from hillfire.client.file import File
from hillfire.errors import Code, Error
from tests.history import Kind, Operation, Recorder, decode, dump, labelled, pattern

PAGE = 4096
MAX_ERRORS = 20
_FULL = (Code.NO_SPACE,)


@dataclass(frozen=True)
class Job:
    """What one client does."""

    name: str
    number: int
    """distinct: labels are made of it"""
    style: str
    """batch, single, mount, cut"""
    address: str
    seed: int
    file: str
    chunks: int
    chunk_bytes: int
    history: str
    rate: float
    """operations a second, at most"""
    io_timeout_s: float
    mount: str = ""


@dataclass
class Outcome:
    """What a client tells at its end."""

    name: str
    operations: int = 0
    errors: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    full: int = 0
    """times that it was told that there is no space"""


class Client:
    """One client; ``run`` goes on until the input ends."""

    def __init__(self, job: Job) -> None:
        """Take the job; nothing is opened yet."""
        self.job = job
        self.random = random.Random(job.seed)
        self.recorder = Recorder(time.monotonic_ns)
        self.outcome = Outcome(job.name)
        self.file = job.file
        self.full = False
        self._full_until = 0
        """what was asked until then may have been told that there is no space"""
        self.ended = threading.Event()
        self._labels = 0

    def listen(self) -> None:
        """Take orders from the input."""
        for line in sys.stdin:
            order = json.loads(line)
            self.file = order.get("file", self.file)
            if self.full:
                self._full_until = time.monotonic_ns()
            self.full = order.get("full", self.full)
        self.ended.set()

    def run(self) -> None:
        """Work until told to end; then leave the history."""
        make = {"batch": Batches, "single": Singles, "mount": Mounted, "cut": Cuts}
        style = make[self.job.style](self)
        try:
            while not self.ended.is_set() and len(self.outcome.errors) < MAX_ERRORS:
                began = time.monotonic()
                style.turn(self.file)
                took = time.monotonic() - began
                self.outcome.longest_s = max(self.outcome.longest_s, took)
                self.ended.wait(max(0.0, style.operations / self.job.rate - took))
        finally:
            self.outcome.operations = len(self.recorder.operations)
            dump(self.job.history, self.recorder.operations)
            style.close()

    # ------------------------------------------------------------------ what all styles use

    def key(self, path: str, chunk: int) -> str:
        """Return the name by which histories know a chunk."""
        return f"{path}/{chunk}"

    def label(self) -> int:
        """Return a number for one write that no other has."""
        self._labels += 1
        return (self.job.number << 22) + self._labels

    def span(self) -> tuple[int, int]:
        """Return offset and length within a chunk: small, middling, or all of it."""
        size = self.job.chunk_bytes
        most = self.random.choice((64, 5000, size // 4, size // 4, size))
        if most == size:
            return 0, size
        length = self.random.randrange(1, most + 1)
        return self.random.randrange(size - length + 1), length

    def begin(self, path: str, chunk: int, kind: Kind, offset: int, length: int) -> Operation:
        """Record that an operation begins."""
        label = self.label() if kind is Kind.WRITE else 0
        content = labelled(label, offset, length) if label else ()
        key = self.key(path, chunk)
        return self.recorder.invoke(
            self.job.name, key, kind, offset=offset, length=length, content=content
        )

    def data(self, operation: Operation) -> bytes:
        """Return the bytes that an operation writes."""
        (extent,) = operation.content
        assert isinstance(extent.value, int)
        return pattern(extent.value, extent.offset, extent.length)

    def wrote(self, operation: Operation, result: int | OSError) -> None:
        """Record what came of a write."""
        if result == operation.length:
            self.recorder.returned(operation)
        elif isinstance(result, Error) and result.code in _FULL and self.may_be_full(operation):
            self.outcome.full += 1
            self.recorder.refused(operation)
        elif (
            isinstance(result, OSError)
            and result.errno == errno.ENOSPC
            and self.may_be_full(operation)
        ):
            self.outcome.full += 1  # by way of the mount: a part may have been stored
        else:
            self.failed(operation, result)

    def may_be_full(self, operation: Operation) -> bool:
        """Tell whether a disk was full while an operation was under way."""
        return self.full or operation.invoked <= self._full_until

    def saw(self, operation: Operation, result: int | OSError, data: memoryview) -> None:
        """Record what came of a read."""
        if isinstance(result, int):
            self.recorder.returned(operation, content=decode(data[:result], operation.offset))
        else:
            self.failed(operation, result)

    def failed(self, operation: Operation, what: object) -> None:
        """Record an error: the outcome stays unknown."""
        at = (time.monotonic_ns() - operation.invoked) / 1e9
        self.outcome.errors.append(f"{self.job.name}: {operation} after {at:.1f} s: {what!r}")


class Style:
    """A way to use the file system."""

    def __init__(self, client: Client) -> None:
        """Work for a client."""
        self.client = client
        self.operations = 1
        """of the last turn"""

    def turn(self, path: str) -> None:
        """Do something."""
        raise NotImplementedError

    def close(self) -> None:
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

    def turn(self, path: str) -> None:
        """Write or read pieces of distinct chunks."""
        client, job = self.client, self.client.job
        chunks = client.random.sample(range(job.chunks), min(self.BATCH, job.chunks))
        kind = client.random.choice((Kind.READ, Kind.WRITE))
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


def main() -> None:
    """Run the job of the first line."""
    said: dict[str, Any] = json.loads(sys.stdin.readline())
    client = Client(Job(**said))
    threading.Thread(target=client.listen, daemon=True).start()
    try:
        client.run()
    except Exception as error:
        client.outcome.errors.append(f"{client.job.name}: {type(error).__name__}: {error}")
    text = json.dumps(asdict(client.outcome))
    Path(client.job.history).with_suffix(".outcome").write_text(text)


if __name__ == "__main__":
    main()
