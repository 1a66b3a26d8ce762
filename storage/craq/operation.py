"""Operation: one update on its way through a replica, from arrival to the release of its lock.

The core creates and changes operations; shells read their fields and hand them back in events.
It is mutable and slotted because every write makes one (style: 0.2 µs, a frozen one 0.56).
"""

from enum import IntEnum

from hillfire.storage.store.base import Image, Tag
from hillfire.types import ChunkId


class Kind(IntEnum):
    """What an update does; numbers of ``chunks.Kind``, which the core may not import."""

    SYNC = 0
    """Internal: make the syncing successor's copy equal, nothing changes here."""
    WRITE = 1
    TRUNCATE = 2
    REMOVE = 3
    REPLACE = 4
    CLONE = 5
    LOST = 6
    REPAIR = 100
    """Internal: make our own copy good again, nothing changes elsewhere."""
    HOLD = 101
    """Internal: keeps a clone's source as it is."""


class Stage(IntEnum):
    """How far an operation is on this target."""

    QUEUED = 0
    LOCKED = 1
    """holds the lock and waits for what it needs besides: a second lock, or a repair"""
    PREPARING = 2
    PENDING = 3
    COMMITTING = 4
    COMMITTED = 5


class Link(IntEnum):
    """How far an operation is with the successor."""

    NONE = 0
    """nothing to send, or the successor has it"""
    SENT = 1
    STALLED = 2
    """to be sent again when the retry is due or the chain changes"""
    WANTED = 3
    """the whole chunk must be sent, once it is committed here"""
    TRANSFER = 4
    """the whole chunk was sent"""


# Their names for the per-I/O path, looked up once.
SYNC, CLONE, REPAIR, HOLD = Kind.SYNC, Kind.CLONE, Kind.REPAIR, Kind.HOLD
QUEUED, LOCKED, PREPARING = Stage.QUEUED, Stage.LOCKED, Stage.PREPARING
PENDING = Stage.PENDING
COMMITTING, COMMITTED = Stage.COMMITTING, Stage.COMMITTED
SENT, STALLED, WANTED, TRANSFER = Link.SENT, Link.STALLED, Link.WANTED, Link.TRANSFER
FREE = Link.NONE

WHOLE = (Kind.REPLACE, Kind.LOST)
"""Whole images from the predecessor, which are nobody else's affair."""


class Operation:
    """One update of one chunk."""

    __slots__ = (
        "attempt",
        "chain_version",
        "checksum",
        "chunk",
        "chunk_bytes",
        "epoch",
        "expected",
        "exposed",
        "forwarded",
        "image",
        "kind",
        "length",
        "link",
        "offset",
        "partner",
        "payload",
        "repair",
        "serial",
        "stage",
        "tag",
        "version",
        "waiters",
    )  # fmt: skip

    def __init__(
        self,
        chunk: ChunkId,
        kind: int,
        offset: int,
        length: int,
        checksum: int,
        epoch: int,
        chunk_bytes: int,
        tag: Tag,
        chain_version: int,
        payload: object,
    ) -> None:
        """Take the fields of the request; the core fills in the rest."""
        self.chunk = chunk
        self.kind = kind
        self.offset = offset
        self.length = length
        self.checksum = checksum
        self.epoch = epoch
        self.chunk_bytes = chunk_bytes
        self.tag = tag
        self.chain_version = chain_version
        """as the request named it"""
        self.payload = payload
        """the shell's; None when it must be read from the store's pending update"""
        self.forwarded = False
        """came from the predecessor, which chose ``version``"""
        self.version = 0
        self.expected: Image | None = None
        """what the predecessor says the chunk will be"""
        self.image: Image | None = None
        """what the store says the chunk will be"""
        self.stage = QUEUED
        self.link = FREE
        self.attempt = 0
        """the last one to send it, of all that this target made"""
        self.serial = 0
        """of the forward that brought it, among all of its sender's"""
        self.exposed = False
        """a serving successor may have committed it: no reader may be shown what was before"""
        self.waiters: list[tuple[int, int]] = []
        """(request, index of the item) of all who wait for the outcome"""
        self.partner: Operation | None = None
        """CLONE: what holds its source, as ``version`` of it; HOLD: the clone"""
        self.repair: Operation | None = None
        """what makes the bytes good that this operation found damaged (``repair.Repair``)"""

    @property
    def source(self) -> ChunkId | None:
        """The chunk that a CLONE copies."""
        return self.partner.chunk if self.partner is not None else None

    @property
    def source_version(self) -> int:
        """The version of its source that a CLONE copies."""
        return self.partner.version if self.partner is not None else 0

    @property
    def lost(self) -> bool:
        """Whether no good copy of the chunk's bytes was found: a Transfer says so (LOST)."""
        return self.repair is not None and self.repair.link == Link.WANTED

    def __repr__(self) -> str:
        """Tell which update it is and where it stands."""
        return (
            f"<{Kind(self.kind).name} {self.chunk.hex()} u={self.version} {tuple(self.tag)} "
            f"{self.stage.name}/{self.link.name} attempt={self.attempt}>"
        )
