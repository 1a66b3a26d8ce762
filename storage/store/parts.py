"""What a chunk store stands on: a database of records, block files and log files.

Three small protocols, so that the decisions of the store (engine.py and what it uses) run over
the real disk (metadata.py, files.py, logfiles.py) as over a simulated one. All operations on the
store's files happen through them, and in system.py below the real ones: whoever wants to record,
tear or refuse them finds them there.

Durability, of every part alike: what a call changed survives the death of the process once the
call has returned. It survives the loss of the host's power after ``sync`` of the same part (block
files: of the same class; log: of the same segment); until then any subset of the changed bytes
may reach the disk, in any order. A change of size or of names (``grow``, ``shrink``, ``create``,
``remove``) is durable when its call returns, except that ``grow`` may be forgotten until ``sync``.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

Buffer = bytes | bytearray | memoryview


class RecordsDatabase(Protocol):
    """An ordered map of bytes. Thread-safe."""

    def get(self, key: bytes) -> bytes | None:
        """Return a value.

        Raises:
            Error: CORRUPT, IO.
        """

    def write(
        self, puts: Iterable[tuple[bytes, bytes]] = (), deletes: Iterable[bytes] = ()
    ) -> None:
        """Make changes in one step, deletes first: after a crash all are there, or none.

        Changes become durable in the order of their calls.

        Raises:
            Error: NO_SPACE, IO.
        """

    def items(self, prefix: bytes, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """List the pairs whose key begins with ``prefix``, from the key ``after`` on, in order.

        Raises:
            Error: CORRUPT, IO.
        """

    def sync(self) -> None:
        """Make all changes durable.

        Raises:
            Error: NO_SPACE, IO.
        """

    def close(self) -> None:
        """Close the database."""


Files = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Descriptors of block files by class, -1 where there is none: for small reads, for large ones,
and for large ones that shall go past the page cache."""


class Disk(NamedTuple):
    """How full the disk below a store is."""

    total_bytes: int
    available_bytes: int
    """what files may still take"""


class BlockFiles(Protocol):
    """A file for each size class of blocks, addressed by bytes. Thread-safe."""

    def sizes(self) -> dict[int, int]:
        """Return the size in bytes of each class's file that there is."""

    def grow(self, size_class: int, size: int) -> None:
        """Make the file of a class ``size`` bytes long, all of which the disk sets aside.

        Raises:
            Error: NO_SPACE (the file is as it was), IO.
        """

    def shrink(self, size_class: int, size: int) -> None:
        """Cut the file of a class to ``size`` bytes.

        Raises:
            Error: IO.
        """

    def punch(self, size_class: int, offset: int, n_bytes: int) -> bool:
        """Give a range back to the disk, which then reads as zeros; False if it cannot."""

    def fill(self, size_class: int, offset: int, n_bytes: int) -> None:
        """Have the disk set a range aside again that was punched.

        Raises:
            Error: NO_SPACE, IO.
        """

    def write(self, size_class: int, offset: int, data: memoryview) -> None:
        """Write all of ``data``.

        Raises:
            Error: NO_SPACE, IO.
        """

    def scatter(self, size_class: int, pieces: list[tuple[int, bytes]]) -> None:
        """Write all of several buffers, each at an offset of its own, in their order.

        Raises:
            Error: NO_SPACE, IO; any part of them may have been written.
        """

    def read(
        self,
        size_class: int,
        offset: int,
        into: Sequence[memoryview],
        n_bytes: int,
        *,
        nowait: bool = False,
    ) -> int:
        """Scatter ``n_bytes`` from ``offset`` on; returns how many there were.

        Raises:
            BlockingIOError: with ``nowait``, when it would have to wait for the disk.
            Error: IO.
        """

    def table(self) -> Files | None:
        """Return descriptors that others may read by; None if there are none.

        They stay open until ``close``.
        """

    def drop_cache(self, size_class: int, offset: int, n_bytes: int) -> None:
        """Have the next read of a range come from the disk itself, where that can be had."""

    def sync(self, size_class: int) -> None:
        """Make what was written to the file of a class durable.

        Raises:
            Error: NO_SPACE, IO.
        """

    def disk(self) -> Disk:
        """Tell how full the disk is."""

    def taken_bytes(self) -> int:
        """Return how much of the disk the block files of this store take."""

    def reserve(self, n_bytes: int) -> bool:
        """Keep a file of so many bytes that can be given up; True if the disk had them.

        With 0 it is given up, so that the log and the database can write on a full disk.
        """

    def close(self) -> None:
        """Close the files."""


class LogFiles(Protocol):
    """The log's segments: files with growing numbers, each written once from its beginning."""

    def segments(self) -> list[int]:
        """Return the numbers of the segments that there are, in order."""

    def create(self, number: int) -> None:
        """Make a segment. It may hold anything: bytes of a removed one, for instance.

        Raises:
            Error: NO_SPACE, IO.
        """

    def write(self, number: int, at: int, data: Sequence[Buffer]) -> None:
        """Write buffers in a row from byte ``at`` on.

        Raises:
            Error: NO_SPACE, IO; any part of it may have been written.
        """

    def read(self, number: int) -> bytes:
        """Return all that a segment holds.

        Raises:
            Error: IO.
        """

    def sync(self, number: int) -> None:
        """Make what was written to a segment durable.

        Raises:
            Error: NO_SPACE, IO.
        """

    def remove(self, number: int) -> None:
        """Remove a segment.

        Raises:
            Error: IO.
        """

    def close(self) -> None:
        """Close the files."""


class Parts(NamedTuple):
    """What an EngineStore is made of."""

    records: RecordsDatabase
    blocks: BlockFiles
    log: LogFiles
