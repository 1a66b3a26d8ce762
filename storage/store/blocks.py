"""Which blocks are free: the allocator of one block file, as pure bookkeeping.

A chunk lives in one block of a power-of-two size class. Nothing of this is stored: the committed
and pending records name the blocks in use, and marking those at opening leaves the free ones. A
block that was freed last is used first, because its pages are still in the page cache.
"""

import re
from typing import NamedTuple

MIN_CLASS = 16
"""log2 of the smallest block, 64 KiB"""
MAX_CLASS = 26
"""log2 of the largest block, 64 MiB"""

RECENT_LIMIT = 65_536
"""How many free blocks are kept ready on the stack; the bitmap holds the rest."""
REFILL = 256
"""How many free blocks are taken from the bitmap at a time."""

_NOT_FULL = re.compile(rb"[^\xff]")


class Block(NamedTuple):
    """A block's place: ``number`` in the block file of class ``size_class`` (log2 of its bytes)."""

    size_class: int
    number: int

    @property
    def n_bytes(self) -> int:
        """How many bytes the block holds."""
        return 1 << self.size_class

    @property
    def offset(self) -> int:
        """Where the block begins in its file."""
        return self.number << self.size_class


def size_class(length: int) -> int:
    """Return the class of the smallest block that holds ``length`` bytes."""
    return max(MIN_CLASS, (length - 1).bit_length())


class BlockMap:
    """The blocks of one file: a bitmap (1 is used) and a stack of free ones that are ready.

    A block on the stack is marked used in the bitmap, so that the two never offer it twice.
    """

    def __init__(self) -> None:
        """Start with a file of no blocks; ``grow`` it."""
        self.capacity = 0
        self.free = 0
        self.solid = 0
        """how many of the free ones the disk has set aside"""
        self._bits = bytearray()
        self._holes = bytearray()  # 1 is a free block that may be a hole in the file
        self._hint = 0  # no byte of the bitmap before it has a free block
        self._ready: list[int] = []

    def __repr__(self) -> str:
        """Tell how full it is."""
        return f"<BlockMap {self.capacity - self.free} of {self.capacity} used>"

    def grow(self, n_blocks: int) -> None:
        """Add free blocks at the end."""
        self.capacity += n_blocks
        self.free += n_blocks
        self.solid += n_blocks
        old = len(self._bits)
        if old:
            self._bits[-1] &= (1 << ((self.capacity - n_blocks - 1) % 8 + 1)) - 1
        self._bits.extend(bytes((self.capacity + 7) // 8 - old))
        if self.capacity % 8:  # what lies beyond the end is never free
            self._bits[-1] |= 0xFF << self.capacity % 8 & 0xFF
        if old:
            self._holes[-1] &= (1 << ((self.capacity - n_blocks - 1) % 8 + 1)) - 1
        self._holes.extend(bytes(len(self._bits) - old))
        self._hint = min(self._hint, max(0, old - 1))

    def hollow_all(self) -> None:
        """Take all blocks for holes, at opening: nobody knows."""
        self._holes = bytearray(b"\xff" * len(self._bits))
        self.solid = 0

    def is_hollow(self, index: int) -> bool:
        """Tell whether a block must be set aside by the disk before it is written."""
        return bool(self._holes[index >> 3] & 1 << (index & 7))

    def set_hollow(self, index: int, hollow: bool) -> None:
        """Note that a free block became a hole, or one that was just taken is none any more."""
        if hollow:
            self._holes[index >> 3] |= 1 << (index & 7)
            self.solid -= 1
        else:
            self._holes[index >> 3] &= ~(1 << (index & 7))

    def solid_free(self) -> list[int]:
        """List free blocks that are at hand and no holes, those that would be used last first."""
        return [index for index in self._ready if not self.is_hollow(index)]

    def mark(self, index: int) -> bool:
        """Declare a block used, at opening. False if the file does not have it or it is used."""
        byte, bit = index >> 3, 1 << (index & 7)
        if index >= self.capacity or self._bits[byte] & bit:
            return False
        self._bits[byte] |= bit
        self.free -= 1
        if self.is_hollow(index):
            self._holes[byte] &= ~bit
        else:
            self.solid -= 1
        return True

    def allocate(self) -> int | None:
        """Return a free block's index, now used; None if all are."""
        if not self._ready and not self._refill():
            return None
        self.free -= 1
        index = self._ready.pop()
        if not self.is_hollow(index):
            self.solid -= 1
        return index

    def release(self, index: int) -> None:
        """Give a used block back."""
        assert self.free < self.capacity and index < self.capacity, "a block was freed twice"
        self.free += 1
        if not self.is_hollow(index):
            self.solid += 1
        if len(self._ready) < RECENT_LIMIT:
            self._ready.append(index)
            return
        self._bits[index >> 3] &= ~(1 << (index & 7))
        self._hint = min(self._hint, index >> 3)

    def _refill(self) -> bool:
        """Move free blocks from the bitmap to the stack, the lowest on top."""
        found: list[int] = []
        while len(found) < REFILL:
            match = _NOT_FULL.search(self._bits, self._hint)
            if match is None:
                self._hint = len(self._bits)
                break
            byte = self._hint = match.start()
            value = self._bits[byte]
            found += [byte * 8 + bit for bit in range(8) if not value >> bit & 1]
            self._bits[byte] = 0xFF
        self._ready += reversed(found)
        return bool(found)
