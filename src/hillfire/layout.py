"""Where a file's bytes live: file offset -> chunk -> chain.

Pure arithmetic over the inode's layout, shared by client, metadata service and storage, so that
they cannot disagree. Nothing per chunk is stored in the metadata service (3FS design notes,
"Location of file chunks").
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from hillfire.types import ChainId, ChunkId, InodeId, chunk_id

MIN_CHUNK_BYTES = 64 * 1024
MAX_CHUNK_BYTES = 64 * 1024 * 1024
DEFAULT_CHUNK_BYTES = 1024 * 1024
MAX_STRIPE = 16
MAX_CHUNKS_PER_FILE = 1 << 32


@dataclass(frozen=True, slots=True)
class Layout:
    """How one file is cut up: chunk ``i`` lives on ``chains[i % len(chains)]``."""

    chunk_bytes: int
    chains: tuple[ChainId, ...]

    def __post_init__(self) -> None:
        """Refuse a layout that no file can have."""
        size = self.chunk_bytes
        if not MIN_CHUNK_BYTES <= size <= MAX_CHUNK_BYTES or size & (size - 1):
            raise ValueError(f"chunk size {size} is not a power of two in 64 KiB..64 MiB")
        if not self.chains:
            raise ValueError("a layout needs at least one chain")

    @property
    def max_length_bytes(self) -> int:
        """The longest file that this layout can hold."""
        return self.chunk_bytes * MAX_CHUNKS_PER_FILE

    def chain_of(self, index: int) -> ChainId:
        """Return the chain that holds chunk ``index``."""
        return self.chains[index % len(self.chains)]


class Piece(NamedTuple):
    """The part of a file range that falls into one chunk."""

    chain: ChainId
    chunk: ChunkId
    chunk_offset: int
    range_offset: int
    """Where the piece begins, counted from the start of the file range."""
    length: int


def pieces(layout: Layout, inode: InodeId, offset: int, length: int) -> Iterator[Piece]:
    """Split ``length`` bytes from ``offset`` of a file into its chunks, in order."""
    size, done = layout.chunk_bytes, 0
    while done < length:
        index, start = divmod(offset + done, size)
        count = min(size - start, length - done)
        yield Piece(layout.chain_of(index), chunk_id(inode, index), start, done, count)
        done += count
