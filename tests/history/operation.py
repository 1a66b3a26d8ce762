"""Operation: one thing a client asked of a chunk, when, and what came of it. And how it is kept."""

import base64
import gzip
import json
import threading
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 1
"""Of the file; another one is refused."""


class Kind(StrEnum):
    """What was asked."""

    READ = "read"
    WRITE = "write"
    TRUNCATE = "truncate"
    """Cut, or extend with zeros, to ``length`` bytes."""
    REMOVE = "remove"
    CLONE = "clone"
    """``key`` becomes what ``source`` is."""
    APPEND = "append"
    """Write at the end, wherever that is; the answer tells ``offset``."""


class Extent(NamedTuple):
    """Bytes [offset, offset + length) of a chunk and what they are."""

    offset: int
    length: int
    value: int | bytes
    """a label (see pattern.py; 0: zeros), or the bytes themselves"""


Content = tuple[Extent, ...]


class Operation:
    """One operation of one client. What is unknown is None."""

    __slots__ = (
        "client", "content", "epoch", "invoked", "key", "kind", "length", "offset", "refused",
        "returned", "size", "source", "version",
    )  # fmt: skip

    def __init__(
        self,
        client: str,
        key: str,
        kind: Kind,
        invoked: int,
        returned: int | None = None,
        *,
        offset: int = 0,
        length: int = 0,
        content: Content = (),
        version: int | None = None,
        epoch: int | None = None,
        size: int | None = None,
        source: str = "",
        refused: bool = False,
    ) -> None:
        """Take what is known."""
        self.client = client
        self.key = key
        """of the chunk"""
        self.kind = kind
        self.invoked = invoked
        """on a clock that all clients share"""
        self.returned = returned
        """None: it may have taken effect at any time since, or may yet, or never"""
        self.offset = offset
        self.length = length
        """of the range; TRUNCATE: the new length"""
        self.content = content
        """what was written, or read; what no extent covers is zeros"""
        self.version = version
        """of the chunk afterwards, as the answer told"""
        self.epoch = epoch
        """that the request carried; None: epochs play no part"""
        self.size = size
        """of the chunk, as the answer told"""
        self.source = source
        """CLONE: the key that is copied"""
        self.refused = refused
        """answered, and certainly without effect"""

    @property
    def end(self) -> int:
        """Where the range ends."""
        return self.offset + self.length

    @property
    def unknown(self) -> bool:
        """Whether nobody knows if it took effect."""
        return self.returned is None

    def but(self, **changes: Any) -> "Operation":
        """Return a copy with other values."""
        values = {name: getattr(self, name) for name in self.__slots__} | changes
        return Operation(**values)

    def __repr__(self) -> str:
        """Tell what was asked and what came."""
        return f"<{self.client} {self.describe()} {self.invoked}..{self.returned}>"

    def describe(self) -> str:
        """Say in a line what was asked and what came, without the times."""
        epoch = "" if self.epoch is None else f" epoch {self.epoch}"
        version = "" if self.version is None else f" v{self.version}"
        size = "" if self.size is None else f" of {self.size} bytes"
        match self.kind:
            case Kind.READ:
                what = f"read  [{self.offset}, {self.end}) saw {shown(self.content)}{size}"
            case Kind.WRITE:
                what = f"write [{self.offset}, {self.end}) = {shown(self.content)}"
            case Kind.APPEND:
                at = "" if self.offset < 0 else f" at {self.offset}"
                what = f"append {shown(self.content)}{at}"
            case Kind.TRUNCATE:
                what = f"truncate to {self.length}"
            case Kind.REMOVE:
                what = "remove"
            case Kind.CLONE:
                what = f"clone of {self.source}"
        ending = " refused" if self.refused else ("" if self.returned is not None else " unknown")
        return f"{what}{epoch}{version}{ending}"


def shown(content: Content) -> str:
    """Return a short text for content: labels as #17, bytes as hex, runs joined."""
    parts = []
    for extent in content[:6]:
        value = extent.value
        if isinstance(value, bytes):
            text = value.hex() if len(value) <= 8 else f"{value[:6].hex()}..({len(value)})"
        else:
            text = f"#{value}" if value else "zeros"
        parts.append(text if len(content) == 1 else f"{text}@{extent.offset}+{extent.length}")
    if len(content) > 6:
        parts.append(f"... {len(content)} extents")
    return " ".join(parts) if parts else "zeros"


def raw(offset: int, data: bytes) -> Content:
    """Return bytes as content."""
    return (Extent(offset, len(data), bytes(data)),) if data else ()


class Recorder:
    """Collects the operations of any number of clients, from any thread."""

    def __init__(self, now: Callable[[], int]) -> None:
        """``now`` is a clock that all clients share; it never goes back."""
        self._now = now
        self._lock = threading.Lock()
        self.operations: list[Operation] = []

    def invoke(
        self,
        client: str,
        key: str,
        kind: Kind,
        *,
        offset: int = 0,
        length: int = 0,
        content: Content | bytes = (),
        epoch: int | None = None,
        source: str = "",
    ) -> Operation:
        """Note that a client asks, *before* anything is sent. Retries are the same operation."""
        if isinstance(content, bytes):
            length = len(content)
            content = raw(max(offset, 0), content)
        if kind is Kind.APPEND:
            offset = -1
        with self._lock:
            operation = Operation(
                client, key, kind, self._now(), offset=offset, length=length, content=content,
                epoch=epoch, source=source,
            )  # fmt: skip
            self.operations.append(operation)
        return operation

    def returned(
        self,
        operation: Operation,
        *,
        content: Content | bytes | None = None,
        version: int | None = None,
        size: int | None = None,
        offset: int | None = None,
    ) -> None:
        """Note the answer, *after* it came. ``content``: what was read, shorter if it ended."""
        if isinstance(content, bytes):
            content = raw(operation.offset, content)
        if content is not None:
            operation.content = content
        if offset is not None:
            operation.offset = offset
        operation.version = version
        operation.size = size
        with self._lock:
            operation.returned = self._now()

    def refused(self, operation: Operation) -> None:
        """Note that the answer said: nothing was done, nor will be."""
        operation.refused = True
        with self._lock:
            operation.returned = self._now()


def dump(path: Path | str, operations: Iterable[Operation]) -> None:
    """Write a history as JSON lines, packed if the name ends in .gz."""
    path = Path(path)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write(json.dumps({"history": FORMAT}) + "\n")
        for operation in operations:
            file.write(json.dumps(_to_json(operation)) + "\n")


def load(path: Path | str) -> list[Operation]:
    """Read a history.

    Raises:
        ValueError: it is none, or of another format.
    """
    path = Path(path)
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        head = json.loads(file.readline() or "{}")
        if not isinstance(head, dict) or head.get("history") != FORMAT:
            raise ValueError(f"{path} is no history of format {FORMAT}: {str(head)[:80]}")
        return [_from_json(json.loads(line)) for line in file if line.strip()]


_DEFAULTS: dict[str, Any] = {
    "offset": 0, "length": 0, "content": (), "version": None, "epoch": None, "size": None,
    "source": "", "refused": False, "returned": None,
}  # fmt: skip


def _to_json(operation: Operation) -> dict[str, Any]:
    said: dict[str, Any] = {
        "client": operation.client, "key": operation.key, "kind": operation.kind.value,
        "invoked": operation.invoked,
    }  # fmt: skip
    for name, default in _DEFAULTS.items():
        value = getattr(operation, name)
        if value != default:
            said[name] = value
    if operation.content:
        said["content"] = [
            [
                extent.offset,
                extent.length,
                base64.b64encode(extent.value).decode()
                if isinstance(extent.value, bytes)
                else extent.value,
            ]
            for extent in operation.content
        ]
    return said


def _from_json(said: dict[str, Any]) -> Operation:
    content = tuple(
        Extent(offset, length, base64.b64decode(value) if isinstance(value, str) else value)
        for offset, length, value in said.get("content", ())
    )
    kind = Kind(said["kind"])
    return Operation(**{**said, "kind": kind, "content": content})
