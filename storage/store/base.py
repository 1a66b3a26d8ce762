"""The chunk store's interface: where a target keeps its chunks, and what it promises.

The CRAQ core decides versions; a store keeps bytes. An update becomes *pending* (``prepare``),
which changes nothing that a reader sees, and then *committed* (``commit``), which replaces the
chunk by the pending image in one step. A chunk has at most one pending update. Every
implementation passes tests/conformance/test_store.py.

Durability: what ``prepare`` and ``commit`` returned survives the death of the process (it is in
the page cache, or beyond); ``sync`` makes it survive the host's; a store that was opened as
*durable* does so in ``prepare`` and ``commit``. A crash at any system call leaves a store that
opens, with each chunk at its old or its new image and never between. Bytes that were lost with the
host's power, although the record that names them was not, fail their checksum: CORRUPT.

All calls block and may be made from several threads. Calls that change one chunk are made by one
caller at a time (the shell holds the chunk's lock); ``read`` may run beside anything and answers
from the image that was committed when it began, or a later one, never a mixture: a block that a
reader may be in is not reused, and every byte is verified against its CRC32C before it is
returned.
"""

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.storage.store.parts import Files
from hillfire.types import ChunkId, InodeId, Version

SCRUB_CHUNKS = 256
"""How many chunks one step of a scrub looks at, at most."""


class Tag(NamedTuple):
    """Who asked for an update, so that a retry is recognised."""

    client: int
    channel: int
    sequence: int


class ChunkMeta(NamedTuple):
    """A chunk's record, as far as anyone but the store needs it."""

    version: Version
    """committed; 0 if it was never written"""
    length: int
    checksum: int
    """of the committed image: CRC32C over the CRC32Cs of its 64 KiB grains, little-endian"""
    tag: Tag
    """of the update that made the committed version"""
    chain_version: int
    """under which it was committed"""
    epoch: int
    """highest inode epoch that any update carried"""
    removed: bool
    """a tombstone: no bytes, but the version lives on"""


class Pending(NamedTuple):
    """A pending update's record."""

    version: Version
    length: int
    """of the chunk afterwards"""
    checksum: int
    """of the chunk afterwards"""
    tag: Tag
    epoch: int
    kind: int
    """chunks.Kind"""
    offset: int
    payload_length: int
    payload_checksum: int
    source: ChunkId | None = None
    """CLONE: the chunk whose image it is"""
    source_version: Version = Version(0)


class Update(NamedTuple):
    """What ``prepare`` shall make pending."""

    chunk: ChunkId
    version: Version
    kind: int
    """chunks.Kind"""
    offset: int
    length: int
    """WRITE, REPLACE: of the payload; TRUNCATE: the new length of the chunk; LOST: its length"""
    payload: memoryview
    """stable memory: it does not change until ``prepare`` has returned"""
    checksum: int
    """CRC32C of the payload as its sender claims it; ``prepare`` verifies it; LOST: the image's"""
    tag: Tag
    epoch: int
    chain_version: int
    chunk_bytes: int
    source: ChunkId | None = None
    """CLONE: whose committed image the chunk shall become; its lock is held too"""
    source_version: Version = Version(0)
    """CLONE: which image of the source that must be; 0: whichever it is"""


class Image(NamedTuple):
    """What a prepared update will make of its chunk."""

    length: int
    checksum: int


class Space(NamedTuple):
    """Of the disk below the store."""

    used_bytes: int
    capacity_bytes: int
    no_new_chunks: bool = False
    """so little is left that updates which need more of the disk are refused"""
    no_writes: bool = False
    """so little is left that only what frees space is done: TRUNCATE, REMOVE"""


class Scrubbed(NamedTuple):
    """What one step of a walk over all chunks found."""

    last: ChunkId | None
    """where the next step begins; None if this one came to the end"""
    n_bytes: int
    """how many were verified"""
    damaged: list[ChunkId]


class Direct(NamedTuple):
    """What a batch needs to read of a store by itself; see batch.py."""

    records: Mapping[ChunkId, object]
    """chunks' committed records, as far as they are in memory"""
    files: Files
    """descriptors of the block files"""
    enter: Callable[[], int]
    """begins a read: what it may find is not reused until it ended"""
    leave: Callable[[int], None]
    """ends the read that ``enter`` gave this number"""


class ChunkStore(abc.ABC):
    """One target's chunks."""

    @abc.abstractmethod
    def get(self, chunk: ChunkId) -> ChunkMeta | None:
        """Return a chunk's committed record, None if it was never written. Memory speed."""

    @abc.abstractmethod
    def pending(self) -> Iterator[tuple[ChunkId, Pending]]:
        """List every pending update; asked once, when a target opens."""

    @abc.abstractmethod
    def tags(self) -> Iterator[tuple[Tag, ChunkId, Version]]:
        """List the latest committed tag of every (client, channel); asked once at opening."""

    @abc.abstractmethod
    def prepare(self, updates: Sequence[Update]) -> list[Image | Exception]:
        """Make updates pending, replacing a pending update of the same chunk if there is one.

        One entry an update: the image it will make (gaps are zeros), or the error that befell it
        alone: ``Error`` CHECKSUM (the payload is not what its sender claims), TOO_LARGE (beyond
        ``chunk_bytes``), CORRUPT (bytes it builds upon fail their checksum, or are lost), NOT_FOUND
        (there is no source to CLONE), CONFLICT (it is at another version), NO_SPACE, IO.

        LOST makes a chunk whose record is known and whose bytes nobody has any more: to read it is
        CORRUPT until it is written whole, replaced, cut to nothing or removed.
        """

    def prepare_cached(self, updates: Sequence[Update]) -> list[Image | Exception | None]:
        """``prepare`` what needs no wait for the disk, None for the rest: for an event loop.

        What it makes pending is in the log and the page cache, as ``prepare`` leaves it.
        """
        return list(self.prepare(updates))

    def waits(self) -> bool:
        """Tell whether a ``commit`` would wait for the disk now, so that it belongs in a thread."""
        return False

    @abc.abstractmethod
    def commit(self, chunks: Sequence[tuple[ChunkId, Version, int]]) -> None:
        """Commit pending updates, given as (chunk, pending version, chain version), in one step.

        Records each update's tag as its channel's latest in the same step.

        Raises:
            Error: IO; the target must then stop serving.
        """

    @abc.abstractmethod
    def discard(self, chunk: ChunkId) -> None:
        """Forget a chunk's pending update, if there is one."""

    @abc.abstractmethod
    def read(self, chunk: ChunkId, offset: int, into: memoryview) -> tuple[int, int, Version]:
        """Fill ``into`` with committed bytes from ``offset``; verify them.

        Returns how many bytes there were (0 for an absent chunk or past its end), their CRC32C,
        and the version they belong to.

        Raises:
            Error: CORRUPT when the stored bytes fail their checksum twice, IO.
        """

    @abc.abstractmethod
    def read_cached(
        self, chunk: ChunkId, offset: int, into: memoryview
    ) -> tuple[int, int, Version] | None:
        """``read`` if it needs no disk access, else None: for calls from an event loop."""

    def direct(self) -> Direct | None:
        """Return what a batch reads by itself, None if it must ask for each item."""
        return None

    @abc.abstractmethod
    def read_pending(self, chunk: ChunkId, into: memoryview) -> int:
        """Fill ``into`` with the payload of a chunk's pending update, to be forwarded again.

        Returns the payload's length.

        Raises:
            Error: CORRUPT, IO, INVALID if nothing is pending.
        """

    @abc.abstractmethod
    def scan(
        self, after: ChunkId | None = None, limit: int = 4096
    ) -> list[tuple[ChunkId, ChunkMeta]]:
        """List committed records in the order of their ids, tombstones included."""

    @abc.abstractmethod
    def scan_inode(self, inode: InodeId) -> list[tuple[ChunkId, ChunkMeta]]:
        """List one file's chunks in order, tombstones not included."""

    @abc.abstractmethod
    def remember(self, tags: Iterable[tuple[Tag, ChunkId, Version]]) -> None:
        """Record tags that a resync brought, where they are later than their channel's."""

    @abc.abstractmethod
    def forget_clients(self, clients: Iterable[int]) -> None:
        """Drop the tags of clients whose sessions ended."""

    @abc.abstractmethod
    def verify(self, chunk: ChunkId, *, cold: bool = False) -> int:
        """Check all bytes of a committed image, and its record, against all their checksums.

        ``cold``: as they lie on the disk, not as the page cache has them. Returns how many bytes
        there were.

        Raises:
            Error: CORRUPT, IO.
        """

    def scrub(self, after: ChunkId | None, limit_bytes: int) -> Scrubbed:
        """Verify chunks in the order of their ids until ``limit_bytes`` were read.

        Raises:
            Error: IO.
        """
        n_bytes, damaged = 0, list[ChunkId]()
        page = self.scan(after, SCRUB_CHUNKS)
        for chunk, _ in page:
            try:
                n_bytes += self.verify(chunk, cold=True)
            except Error as exc:
                if exc.code != Code.CORRUPT:
                    raise
                damaged.append(chunk)
            after = chunk
            if n_bytes >= limit_bytes:
                return Scrubbed(after, n_bytes, damaged)
        return Scrubbed(after if len(page) == SCRUB_CHUNKS else None, n_bytes, damaged)

    def maintain(self) -> bool:
        """Do work that was put off, if there is some; it is done in time without this call.

        Raises:
            Error: NO_SPACE, IO.
        """
        return False

    @abc.abstractmethod
    def sync(self) -> None:
        """Make everything that was committed or prepared survive the loss of the host's power."""

    @abc.abstractmethod
    def space(self) -> Space:
        """Tell how full the disk is."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close; what was acknowledged is there when it is opened again."""
