"""Cuts: which updates a truncate of a file asks of one chain. Pure.

It stands apart because what must be cut is more than what is committed: a first write of a chunk
that is under way at the head may be committed, and have been read, at the tail already (found by
the simulator, seed 1199).
"""

from collections.abc import Iterable
from typing import Protocol

from hillfire.proto.wire.chunks import Kind, WriteItem
from hillfire.storage.craq.channels import INTERNAL
from hillfire.storage.store.base import ChunkMeta
from hillfire.types import ChunkId, InodeId, split_chunk_id


class Cut(Protocol):
    """The fields of ``TruncateChunksRequest`` that say what is cut."""

    @property
    def chain(self) -> int: ...  # noqa: D102
    @property
    def chain_version(self) -> int: ...  # noqa: D102
    @property
    def epoch(self) -> int: ...  # noqa: D102
    @property
    def length(self) -> int:
        """Of the whole file."""

    @property
    def chunk_bytes(self) -> int: ...  # noqa: D102
    @property
    def remove(self) -> bool:
        """Tell whether the inode is gone: every chunk goes."""

    @property
    def sequence(self) -> int: ...  # noqa: D102


def under_way(held: Iterable[ChunkId], inode: InodeId) -> list[ChunkId]:
    """List an inode's chunks among those whose locks are held.

    Ask *before* the store is scanned: what was visible anywhere then is in one of the two.
    """
    return sorted(chunk for chunk in held if split_chunk_id(chunk)[0] == inode)


def cuts(
    found: Iterable[tuple[ChunkId, ChunkMeta]], pending: Iterable[ChunkId], cut: Cut
) -> list[WriteItem]:
    """Return the updates that a file's chunks need, in their order.

    ``found``: the committed records; ``pending``: chunks with an update under way, whose length
    nobody knows yet.
    """
    lengths = {chunk: meta.length for chunk, meta in found}
    for chunk in pending:
        lengths[chunk] = cut.chunk_bytes
    items = (_item(chunk, lengths[chunk], cut) for chunk in sorted(lengths))
    return [item for item in items if item is not None]


def _item(chunk: ChunkId, length: int, cut: Cut) -> WriteItem | None:
    index = split_chunk_id(chunk)[1]
    left = cut.length - index * cut.chunk_bytes
    if cut.remove or left <= 0:
        kind, left = Kind.REMOVE, 0
    elif left < length:
        kind = Kind.TRUNCATE
    else:
        return None
    return WriteItem(
        chunk, cut.chain, cut.chain_version, kind, 0, left, 0, cut.epoch,
        cut.chunk_bytes, INTERNAL, index, cut.sequence,
    )  # fmt: skip
