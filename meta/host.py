"""What an operation needs beside its transaction: the time, new inode numbers, layouts.

The one place where operations meet the world, so that they are decided by their arguments.
"""

from collections.abc import Callable, Sequence
from time import time_ns

from hillfire.errors import Code, Error
from hillfire.layout import MAX_STRIPE
from hillfire.meta.engine.base import Engine
from hillfire.meta.engine.retry import transact
from hillfire.meta.keys import NEXT_INODE, take_number
from hillfire.proto.meta_pb2 import FileLayout
from hillfire.types import ROOT_INODE

INODE_BLOCK = 1 << 16
"""Numbers leased at a time; what is left of a block at the end of the process is never used."""


class Host:
    """The world of the operations."""

    def __init__(
        self,
        engine: Engine,
        *,
        chunk_bytes: int,
        stripe: int,
        clock_ns: Callable[[], int] = time_ns,
    ) -> None:
        """``clock_ns`` counts nanoseconds since 1970."""
        self.now_ns = clock_ns
        self.inodes = 0
        """how many there are, about: what statfs tells"""
        self._engine = engine
        self._chunk_bytes = chunk_bytes
        self._stripe = min(stripe, MAX_STRIPE)
        self._next = self._end = 0
        self._layouts: list[FileLayout] = []

    def set_chains(self, chains: Sequence[int]) -> None:
        """Take the chains that new files choose from, in the order of chain table 1."""
        count, width = len(chains), min(self._stripe, len(chains))
        self._layouts = [
            FileLayout(
                chunk_bytes=self._chunk_bytes,
                chains=[chains[(start + step) % count] for step in range(width)],
            )
            for start in range(count)
        ]

    def layout(self, inode: int) -> FileLayout:
        """Return the layout of a new file: neighbours begin on neighbouring chains.

        Raises:
            Error: UNAVAILABLE while there are no chains.
        """
        if not self._layouts:
            raise Error(Code.UNAVAILABLE, "there are no chains yet; see `hillfire status`")
        return self._layouts[inode % len(self._layouts)]

    def new_inode(self) -> int:
        """Return a number that no inode ever had.

        Blocks are synced before use: after a power loss no chunk of a lost inode can come to
        belong to a new one.
        """
        if self._next == self._end:
            self._next = transact(
                self._engine,
                lambda txn: take_number(txn, NEXT_INODE, INODE_BLOCK, ROOT_INODE + 1),
                sync=True,
            )
            self._end = self._next + INODE_BLOCK
        self._next += 1
        self.inodes += 1
        return self._next - 1
