"""What a replica wants done. Effects of one event are carried out in their order.

Carrying ``Prepare``, ``Forward``, ``Transfer``, ``Fetch``, ``Commit`` and ``RetryLater`` out yields
an event each; the others yield none.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hillfire.storage.craq.operation import Operation
from hillfire.types import ChunkId, TargetId


class Prepare(NamedTuple):
    """Make updates pending in the store, in one call; then ``Prepared``."""

    operations: Sequence[Operation]
    chain_version: int


class Forward(NamedTuple):
    """Send updates to the successor in one request; then ``Forwarded`` with the attempts."""

    target: TargetId
    chain_version: int
    operations: Sequence[tuple[Operation, int]]


class Transfer(NamedTuple):
    """Send whole chunks as they are committed here (REPLACE, or REMOVE); then ``Forwarded``.

    An operation that is ``lost`` is sent as LOST, without bytes. Chunks that turn out to be
    damaged are not sent but handed in as ``Unreadable``.
    """

    target: TargetId
    chain_version: int
    operations: Sequence[tuple[Operation, int]]


class Fetch(NamedTuple):
    """Ask a target for its committed copies of these operations' chunks; then ``Fetched``."""

    target: TargetId
    chain_version: int
    operations: Sequence[tuple[Operation, int]]


class Lost(NamedTuple):
    """No good copy of these chunks is left in the chain: say so loudly."""

    chunks: Sequence[ChunkId]


class Commit(NamedTuple):
    """Commit pending updates in the store, in one call; then ``Committed``."""

    operations: Sequence[Operation]
    chain_version: int


class Discard(NamedTuple):
    """Forget the pending updates of these chunks in the store, before anything that follows."""

    chunks: Sequence[ChunkId]


class Reply(NamedTuple):
    """One answer: request, position of its item, outcome."""

    request: int
    item: int
    code: int
    version: int
    length: int
    checksum: int


class Replies(NamedTuple):
    """Answer items of requests."""

    answers: Sequence[Reply]


class Finish(NamedTuple):
    """These operations left the core: their payloads' memory may be used again."""

    operations: Sequence[Operation]


class RetryLater(NamedTuple):
    """Say ``RetryDue`` after the shell's back-off; the routing may be worth a look meanwhile."""


class Stop(NamedTuple):
    """The target stopped: it must go offline and come back through a resync. Log it loudly."""

    code: int
    reason: str
    story: str


Effect = (
    Prepare
    | Forward
    | Transfer
    | Fetch
    | Commit
    | Discard
    | Lost
    | Replies
    | Finish
    | RetryLater
    | Stop
)
