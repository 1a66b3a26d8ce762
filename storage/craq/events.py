"""What can happen to a replica.

Each event carries a whole batch, so that the shell makes one store call and one forward a batch.
They stand apart from the wire's records, which the core never imports: an arriving item is
anything with the attributes of :class:`ClientUpdate`, so no item is copied on its way in.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from hillfire.cluster import Chain
from hillfire.storage.craq.operation import Operation
from hillfire.storage.store.base import Image, Tag
from hillfire.types import ChunkId, Version


class ClientUpdate(Protocol):
    """The fields of an update as a client sends it to the head (``chunks.WriteItem``)."""

    @property
    def chunk(self) -> ChunkId: ...  # noqa: D102
    @property
    def chain_version(self) -> int: ...  # noqa: D102
    @property
    def kind(self) -> int: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def length(self) -> int: ...  # noqa: D102
    @property
    def checksum(self) -> int: ...  # noqa: D102
    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def chunk_bytes(self) -> int: ...  # noqa: D102
    @property
    def client(self) -> int: ...  # noqa: D102
    @property
    def channel(self) -> int: ...  # noqa: D102
    @property
    def sequence(self) -> int: ...  # noqa: D102
    @property
    def source(self) -> ChunkId: ...  # noqa: D102


class ForwardedUpdate(ClientUpdate, Protocol):
    """The same from a predecessor, with the version and the post-image (``ForwardItem``)."""

    @property
    def version(self) -> int: ...  # noqa: D102
    @property
    def post_length(self) -> int: ...  # noqa: D102
    @property
    def post_checksum(self) -> int: ...  # noqa: D102
    @property
    def serial(self) -> int: ...  # noqa: D102
    @property
    def source_version(self) -> int: ...  # noqa: D102


class Outcome(NamedTuple):
    """What became of one update; ``length`` and ``checksum`` are the whole chunk's afterwards."""

    code: int
    version: int = 0
    length: int = 0
    checksum: int = 0


class WritesArrived(NamedTuple):
    """A client's updates reached this target. ``payloads`` are opaque to the core."""

    request: int
    items: Sequence[ClientUpdate]
    payloads: Sequence[object]


class ForwardsArrived(NamedTuple):
    """The predecessor's updates reached this target."""

    request: int
    items: Sequence[ForwardedUpdate]
    payloads: Sequence[object]


class Prepared(NamedTuple):
    """The store finished a ``Prepare``: an image an operation, or the code of what befell it."""

    outcomes: Sequence[tuple[Operation, Image | int]]


class Forwarded(NamedTuple):
    """The successor answered a ``Forward`` or ``Transfer``, or the connection failed.

    The number beside each operation is the attempt that the effect named.
    """

    outcomes: Sequence[tuple[Operation, int, Outcome]]


class Committed(NamedTuple):
    """The store finished a ``Commit``."""

    operations: Sequence[Operation]


class Unreadable(NamedTuple):
    """Chunks that a ``Transfer`` named fail their checksum here: it was not sent for these."""

    operations: Sequence[tuple[Operation, int]]


class Copy(NamedTuple):
    """Another target's committed copy of a chunk, verified there as it was read."""

    version: int
    length: int
    checksum: int
    """of the image, as in its record"""
    payload_checksum: int
    """CRC32C of the bytes"""
    payload: object
    tag: Tag = Tag(0, 0, 0)
    epoch: int = 0
    removed: bool = False


class Fetched(NamedTuple):
    """A target answered a ``Fetch``: a copy an operation, or the code of what befell it."""

    outcomes: Sequence[tuple[Operation, int, Copy | int]]


class RepairArrived(NamedTuple):
    """A read or the scrubber found these chunks damaged here, or older than elsewhere."""

    request: int
    chain_version: int
    chunks: Sequence[ChunkId]


class StoreFailed(NamedTuple):
    """The store can no longer be trusted or written: the target stops."""

    code: int
    reason: str


class RoutingChanged(NamedTuple):
    """A newer view of the chain that this target is a member of."""

    chain: Chain


class RetryDue(NamedTuple):
    """The time that a ``RetryLater`` asked for has passed."""


class SyncArrived(NamedTuple):
    """Recovery wants the syncing successor's copy of these chunks made equal to this one's."""

    request: int
    chain_version: int
    chunks: Sequence[ChunkId]


class SyncCompleting(NamedTuple):
    """Recovery has made all chunks equal and is about to say so to the successor."""

    request: int
    chain_version: int


class TagsArrived(NamedTuple):
    """The predecessor's table of channels, at the end of a sync; the store has it already."""

    tags: Sequence[tuple[Tag, ChunkId, Version]]


class SessionsEnded(NamedTuple):
    """Clients whose tags need no longer be kept."""

    clients: Iterable[int]


Event = (
    WritesArrived
    | ForwardsArrived
    | Prepared
    | Forwarded
    | Committed
    | Unreadable
    | Fetched
    | RepairArrived
    | StoreFailed
    | RoutingChanged
    | RetryDue
    | SyncArrived
    | SyncCompleting
    | TagsArrived
    | SessionsEnded
)
