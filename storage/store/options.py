"""How a store behaves: what its opener may choose, and what follows from it."""

from typing import NamedTuple

MIB = 1024 * 1024


class Options(NamedTuple):
    """How a store behaves."""

    durable: bool = False
    """``prepare`` and ``commit`` return after the disk has everything"""
    reserve_bytes: int = 64 * MIB
    no_new_chunks_part: float = 0.98
    no_writes_part: float = 0.99
    """See ``allocator.Limits``."""
    spare_bytes: int = 8 * MIB
    """Of the disk: a file that is given up when the log or the database find it full."""
    record_limit: int = 65_536
    """How many decoded records are kept in memory, about 1.7 KiB each for chunks of 1 MiB."""
    segment_bytes: int = 16 * MIB
    """A segment of the log is sealed when it holds this much, or"""
    segment_records: int = 8192
    """changed so many chunks, or"""
    segment_freed_bytes: int = 256 * MIB
    """freed so many bytes of blocks."""


OVERFLOW = 4
"""A segment may hold so many times its size while the one before is being checkpointed."""
KEEP_IDLE_BYTES = 16 * MIB
"""Of free blocks that the disk has set aside, in a store with nothing to do."""
