"""What every client does besides its calls: choose, record, and count what went wrong."""

import errno
import json
import random
import sys
import threading
import time
from dataclasses import dataclass, field

from hillfire.errors import Code, Error
from tests.history import Kind, Operation, Recorder, decode, labelled, pattern

_FULL = (Code.NO_SPACE,)


@dataclass(frozen=True)
class Job:
    """What one client does."""

    name: str
    number: int
    """distinct: labels are made of it"""
    style: str
    """one of styles.STYLES"""
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
    """One client's orders, choices and records."""

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
