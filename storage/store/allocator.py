"""Which block is whose: allocation, shared blocks, and giving bytes back to a disk that needs them.

The files grow by steps and keep what is freed, since blocks that the disk has set aside and that
were written once are faster to write. What is kept is bounded: beyond it, and on a disk that is
nearly full, a free block becomes a *hole*, whose bytes serve other classes, other targets and
whoever else uses the disk. None of this is stored: the records name the blocks in use.
"""

import threading
from collections.abc import Iterable
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.storage.store.base import Space
from hillfire.storage.store.blocks import Block, BlockMap, size_class
from hillfire.storage.store.parts import BlockFiles

GROW_BYTES = 16 * 1024 * 1024
"""By how much a block file grows at least; a quarter of its size if that is more."""
GROW_MAX_BYTES = 1024 * 1024 * 1024
KEEP_BYTES = 512 * 1024 * 1024
KEEP_PART = 2
"""Free blocks are kept up to KEEP_BYTES, or such a part of what is used if that is more: as much as
two segments of the log free (options.py), which whoever overwrites whole chunks takes again at
once. To make holes and fill them took a fifth of such a write's time."""
CHECK_BYTES = 1024 * 1024
"""Written between two looks at how full the disk is, if that is little of what must be left."""
CHECK_PART = 64
LARGE_BYTES = 1024 * 1024
"""There is room for new chunks while there is for one of this size."""
TIGHT_PART = 16
"""Nothing is kept when less than such a part of the disk is left, beyond what must be."""


class Limits(NamedTuple):
    """How full a disk may become: the log and the database need room to record deletions.

    With less than ``reserve_bytes`` left, or more than ``no_new_part`` of it in use, no block is
    taken from the disk; with half of the reserve, or ``no_writes_part``, nothing is written.
    """

    reserve_bytes: int
    no_new_part: float
    no_writes_part: float

    def kept_bytes(self, total_bytes: int) -> int:
        """Return how much must be left for a block to be taken."""
        return max(self.reserve_bytes, int(total_bytes * (1 - self.no_new_part)))

    def last_bytes(self, total_bytes: int) -> int:
        """Return how much must be left for anything to be written."""
        return max(self.reserve_bytes // 2, int(total_bytes * (1 - self.no_writes_part)))


class Allocator:
    """The blocks of one store. Thread-safe."""

    def __init__(self, files: BlockFiles, limits: Limits) -> None:
        """Use ``files`` until the disk is as full as ``limits`` allow."""
        self.files = files
        self._limits = limits
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._dirty: set[int] = set()
        self._shared: dict[Block, int] = {}
        """how many users a block has beside the first"""
        self._maps: dict[int, BlockMap] = {}
        self._often = min(CHECK_BYTES, limits.reserve_bytes // CHECK_PART)
        self._unseen_bytes = 0
        self._check_bytes = 0
        """how many bytes may be written before the disk is asked how full it is"""
        self._full = False
        self.allocations = 0
        self.tight = False
        """whether free bytes are worth more to the disk than to this store"""
        for name, size in files.sizes().items():
            blocks = self._maps[name] = BlockMap()
            blocks.grow(size >> name)
            blocks.hollow_all()

    # ------------------------------------------------------------------ use

    def mark(self, block: Block) -> bool:
        """Declare a block used, at opening; by one more if it is. False if there is none such."""
        blocks = self._maps.get(block.size_class)
        if blocks is None or block.number >= blocks.capacity:
            return False
        if not blocks.mark(block.number):
            self._shared[block] = self._shared.get(block, 0) + 1
        return True

    def extend(self, block: Block) -> None:
        """Make a block's file long enough for it, at opening: the growth was lost with the power.

        Raises:
            Error: NO_SPACE, IO.
        """
        name = block.size_class
        blocks = self._maps.setdefault(name, BlockMap())
        if block.number >= blocks.capacity:
            self.files.grow(name, (block.number + 1) << name)
            blocks.grow(block.number + 1 - blocks.capacity)

    def allocate(self, length: int, nowait: bool = False) -> Block:
        """Take a free block that holds ``length`` bytes.

        Raises:
            BlockingIOError: with ``nowait``, if the disk would have to set bytes aside for it.
            Error: NO_SPACE, IO.
        """
        name = size_class(length)
        with self._lock:
            self.allocations += 1
            blocks = self._maps.setdefault(name, BlockMap())
            index = blocks.allocate()
            if index is None:
                if nowait:
                    raise BlockingIOError
                self._grow(name, blocks)
                index = blocks.allocate()
                assert index is not None, "a file that grew has a free block"
            block = Block(name, index)
            if blocks.is_hollow(index):
                if nowait:
                    blocks.release(index)
                    raise BlockingIOError
                self._fill(blocks, block)
            return block

    def _fill(self, blocks: BlockMap, block: Block) -> None:
        """Take a hole's bytes from the disk again."""
        try:
            if not self.has_room(block.n_bytes):
                self._punch_free(block.n_bytes)
                if not self.has_room(block.n_bytes):
                    raise Error(Code.NO_SPACE, "the disk is full; deleting makes room")
            self.files.fill(block.size_class, block.offset, block.n_bytes)
        except Error:
            blocks.release(block.number)
            raise
        blocks.set_hollow(block.number, False)

    def _grow(self, name: int, blocks: BlockMap) -> None:
        size = blocks.capacity << name
        step = min(max(GROW_BYTES, size >> 2), GROW_MAX_BYTES) >> name or 1
        while not self.has_room(step << name):
            if step == 1:
                self._punch_free(1 << name)
                if self.has_room(1 << name):
                    break
                raise Error(Code.NO_SPACE, "the disk is full; deleting makes room")
            step = max(1, step >> 2)
        self.files.grow(name, size + (step << name))
        blocks.grow(step)

    def share(self, block: Block) -> None:
        """Give a block one more user."""
        with self._lock:
            self._shared[block] = self._shared.get(block, 0) + 1

    def is_shared(self, block: Block | None) -> bool:
        """Tell whether a block has several users, so that none may change it."""
        return block in self._shared

    def release(self, blocks: Iterable[Block]) -> None:
        """Take one user away from each; who has none left is free, or becomes a hole."""
        with self._lock:
            for block in blocks:
                others = self._shared.get(block)
                if others is None:
                    self._maps[block.size_class].release(block.number)
                elif others == 1:
                    del self._shared[block]
                else:
                    self._shared[block] = others - 1
            self.tight = self._is_tight(*self.files.disk())
            excess = self._solid() - (0 if self.tight else self._worth_keeping())
            if excess > 0:
                self._punch_free(excess)

    # ------------------------------------------------------------------ giving back

    def trim(self, keep_bytes: int) -> bool:
        """Make holes of all free blocks but for ``keep_bytes``; True if there was one."""
        with self._lock:
            excess = self._solid() - keep_bytes
            return excess > 0 and self._punch_free(excess)

    def _punch_free(self, n_bytes: int) -> bool:
        """Make holes until so many bytes went back to the disk; True if some did."""
        done = 0
        for name, blocks in self._maps.items():
            for index in blocks.solid_free():
                if done >= n_bytes:
                    return True
                if self._punch(Block(name, index)):
                    done += 1 << name
        return done > 0

    def _punch(self, block: Block) -> bool:
        blocks = self._maps[block.size_class]
        if blocks.is_hollow(block.number) or not self.files.punch(
            block.size_class, block.offset, block.n_bytes
        ):
            return False
        blocks.set_hollow(block.number, True)
        return True

    def _solid(self) -> int:
        """Return how many bytes of free blocks are set aside."""
        return sum(blocks.solid << name for name, blocks in self._maps.items())

    def _worth_keeping(self) -> int:
        used = sum(blocks.capacity - blocks.free << name for name, blocks in self._maps.items())
        return max(KEEP_BYTES, used // KEEP_PART)

    # ------------------------------------------------------------------ the disk

    def _is_tight(self, total: int, available: int) -> bool:
        left = available - self._limits.kept_bytes(total)
        return left < max(GROW_BYTES, total // TIGHT_PART)

    def has_room(self, n_bytes: int) -> bool:
        """Tell whether the disk has ``n_bytes`` beyond what must be left."""
        disk = self.files.disk()
        return disk.available_bytes >= n_bytes + self._limits.kept_bytes(disk.total_bytes)

    def nearly_full(self, n_bytes: int) -> bool:
        """Tell whether so little is left that only what frees space may still be recorded.

        ``n_bytes`` are going to be. The disk is asked now and then, or each time once it is tight:
        statvfs takes 40 µs.
        """
        self._unseen_bytes += n_bytes
        if self._unseen_bytes > self._check_bytes:
            total, available = self.files.disk()
            self.tight = self._is_tight(total, available)
            self._full = available < self._limits.last_bytes(total)
            self._unseen_bytes = 0
            self._check_bytes = 0 if self.tight or self._full else self._often
        return self._full

    def space(self) -> Space:
        """Tell how full the disk is; free blocks do not count as used."""
        total, available = self.files.disk()
        taken = self.files.taken_bytes()
        with self._lock:
            used = sum(blocks.capacity - blocks.free << name for name, blocks in self._maps.items())
        kept = max(0, taken - used)
        others = max(0, total - available - kept)
        no_writes = available < self._limits.last_bytes(total)
        no_new = no_writes or available + kept < self._limits.kept_bytes(total) + LARGE_BYTES
        return Space(others, total, no_new, no_writes)

    # ------------------------------------------------------------------ bytes

    def write(self, block: Block, offset: int, data: memoryview) -> None:
        """Write bytes into a block.

        Raises:
            Error: NO_SPACE, IO.
        """
        assert offset + len(data) <= block.n_bytes, "a write beyond its block"
        self.write_at(block.size_class, block.offset + offset, data)

    def write_at(self, size_class: int, offset: int, data: memoryview) -> None:
        """Write bytes at a place in the file of a class.

        Raises:
            Error: NO_SPACE, IO.
        """
        try:
            self.files.write(size_class, offset, data)
        finally:
            with self._lock:  # after the bytes, or a sync in between would forget them
                self._dirty.add(size_class)

    def scatter(self, size_class: int, pieces: list[tuple[int, bytes]]) -> None:
        """Write buffers at their places in the file of a class.

        Raises:
            Error: NO_SPACE, IO.
        """
        try:
            self.files.scatter(size_class, pieces)
        finally:
            with self._lock:
                self._dirty.add(size_class)

    def sync(self) -> None:
        """Bring what was written to the disk.

        Raises:
            Error: IO.
        """
        with self._syncing:  # one that found nothing dirty must not overtake one that did
            with self._lock:
                dirty, self._dirty = self._dirty, set()
            for name in sorted(dirty):
                try:
                    self.files.sync(name)
                except Error:
                    with self._lock:
                        self._dirty |= dirty
                    raise

    def suspect_everything(self) -> None:
        """Have the next sync bring to the disk what an earlier process wrote, too."""
        with self._lock:
            self._dirty |= set(self._maps)
