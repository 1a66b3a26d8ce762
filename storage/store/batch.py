"""A batch of reads of one node's stores: packed items in, packed results out.

The native extension (reads.c) answers what is simple: the chunk's record is in memory, nothing of
it lies in the log alone, the checksums that cover the request are known, and its bytes are in the
page cache (or, from a thread, on the disk). It reads and verifies them without the interpreter's
lock, at some 0.2 µs an item beside the system call and the sum. Whatever else there is, failed
checksums first of all, is *left* to ``ChunkStore.read_cached`` and ``read``, item by item. Where
there is no extension all is left, so that way is its twin: the tests compare the two.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from hillfire import native
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Views
from hillfire.proto.wire.chunks import READ_ITEMS, READ_RESULTS, ReadItem
from hillfire.storage.store.parts import Files
from hillfire.types import ChunkId


class Target(NamedTuple):
    """Where the items of a chain are read; the extension knows the order of the fields."""

    records: Mapping[ChunkId, object]
    """what is known of chunks, as ``Record``"""
    held: Mapping[ChunkId, object]
    """chunks with something under way: those are left"""
    files: Files
    """see ``BlockFiles.table``"""


Look = Callable[[int, int], "Code | Target | None"]
"""Asked for (chain, chain version): the target, why the items are refused, or None: left."""


class Batch:
    """One request's reads, and what became of them so far."""

    __slots__ = ("_items", "checksum_ns", "disk_ns", "filled", "into", "n_bytes", "results")

    def __init__(self, items: memoryview | bytes, into: Sequence[memoryview]) -> None:
        """``items`` are READ_ITEMS, each to be read ``into`` the memory at its position.

        Raises:
            Error: PROTOCOL if they are not as many.
        """
        if len(items) != READ_ITEMS.n_bytes * len(into):
            text = f"{len(items)} bytes of reads for {len(into)} destinations"
            raise Error(Code.PROTOCOL, text)
        self._items = items
        self.into = into
        self.n_bytes = into.n_bytes if type(into) is Views else sum(map(len, into))
        """how many are asked for"""
        self.results = bytearray()
        """READ_RESULTS"""
        self.filled: Sequence[int] = ()
        """bytes of each destination"""
        self.disk_ns = 0
        """how long reading took, as far as the extension did it; of small reads from samples"""
        self.checksum_ns = 0
        """how long verifying took, likewise"""

    def read(self, look: Look, *, wait: bool) -> tuple[Sequence[int], Sequence[int]]:
        """Answer what is simple; returns the positions of what is left, and of what is cold.

        What is cold has to be waited for, and the disk is at it already. With ``wait`` it is
        waited for, and what is cold then is damaged, or was changed meanwhile.
        """
        if native.read is None:
            return self.leave_all(), ()
        into = self.into
        if type(into) is Views:
            answer = native.read(self._items, into.base, look, wait, into.table)
        else:
            answer = native.read(self._items, into, look, wait)
        self.results, filled, left, cold, self.disk_ns, self.checksum_ns = answer
        self.filled = memoryview(filled).cast("I")
        return left, cold

    def leave_all(self) -> Sequence[int]:
        """Answer nothing yet; returns all positions."""
        count = len(self.into)
        self.results = bytearray(READ_RESULTS.n_bytes * count)
        self.filled = array("I", bytes(4 * count))
        return range(count)

    def item(self, position: int) -> ReadItem:
        """Return what is asked for at a position."""
        return READ_ITEMS.unpack_one(self._items, position)

    def put(self, position: int, code: int, filled: int, checksum: int, version: int) -> None:
        """Take an item's result in."""
        READ_RESULTS.pack_one(self.results, position, (code, filled, checksum, version))
        self.filled[position] = filled  # type: ignore[index]

    def part(self, positions: Sequence[int]) -> "Batch":
        """Return a batch of some of the items."""
        size = READ_ITEMS.n_bytes
        items = memoryview(self._items)
        chosen = b"".join([items[p * size : p * size + size] for p in positions])
        return Batch(chosen, [self.into[p] for p in positions])

    def take(self, positions: Sequence[int], part: "Batch") -> None:
        """Take in the results of what ``part(positions)`` returned."""
        size = READ_RESULTS.n_bytes
        for index, position in enumerate(positions):
            result = part.results[index * size : index * size + size]
            self.results[position * size : position * size + size] = result
            self.filled[position] = part.filled[index]  # type: ignore[index]
        self.disk_ns += part.disk_ns
        self.checksum_ns += part.checksum_ns
