"""The comparison of two replicas' records: what a returning target must be sent. Pure.

The predecessor lists both sides' chunk records of one range of ids, its own after the other's,
and compares them here. Nothing is decided about a chunk's final content: what is named here
is looked at again under the chunk's lock, and sent as it is then (``SyncArrived``).

Source: design.md 5, Recovery; 3FS, the order of comparison of its sync worker. Unlike 3FS, records
that are equal are skipped first, whichever chain version they were committed under: two replicas
may commit one update under different chain versions when a death lies between, and a cluster that
was stopped and started must not copy what is equal.
"""

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import NamedTuple

from hillfire.storage.store.base import ChunkMeta
from hillfire.types import ChunkId


class Remote(NamedTuple):
    """A record of the syncing successor, as ``ListChunks`` tells it."""

    version: int
    pending: int
    """version of its pending update, 0 if there is none"""
    length: int
    checksum: int
    chain_version: int
    epoch: int
    removed: bool


class Verdict(Enum):
    """What must happen to a chunk of the successor."""

    EQUAL = "equal"
    SEND = "send"
    DROP = "drop"
    """it exists there only"""
    CONFLICT = "conflict"
    """it is newer there than here: no resync may decide this"""


class Decision(NamedTuple):
    """A chunk that is not equal, what to do and why."""

    chunk: ChunkId
    verdict: Verdict
    reason: str


def judge(local: ChunkMeta | None, remote: Remote | None) -> tuple[Verdict, str]:
    """Compare one chunk's two records, in the order that the rules are stated in."""
    if local is None:
        if remote is None or (remote.removed and not remote.version and not remote.pending):
            return Verdict.EQUAL, "on neither side"
        return Verdict.DROP, "only remote"
    if remote is None:
        return Verdict.SEND, "only local"
    if remote.pending:
        return Verdict.SEND, "remote uncommitted"
    if _image(local) == _image(remote):
        return Verdict.EQUAL, "same"
    if local.chain_version > remote.chain_version:
        return Verdict.SEND, "local chain version newer"
    if remote.version > local.version:
        return Verdict.CONFLICT, (
            f"version {remote.version} of chain version {remote.chain_version} there, "
            f"{local.version} of {local.chain_version} here"
        )
    if local.version > remote.version:
        return Verdict.SEND, "versions differ"
    return Verdict.SEND, "checksums differ"


def compare(
    local: Mapping[ChunkId, ChunkMeta], remote: Mapping[ChunkId, Remote]
) -> Iterator[Decision]:
    """Yield what differs between two listings of the same range of ids, in the ids' order."""
    for chunk in sorted(local.keys() | remote.keys()):
        verdict, reason = judge(local.get(chunk), remote.get(chunk))
        if verdict is not Verdict.EQUAL:
            yield Decision(chunk, verdict, reason)


def _image(record: ChunkMeta | Remote) -> tuple[int, int, int, int, bool]:
    return record.version, record.length, record.checksum, record.epoch, record.removed
