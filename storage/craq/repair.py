"""Repair: how a chunk's bytes are made good again under its lock, from another target's copy.

An operation that finds its own chunk damaged keeps the lock and hangs a ``Repair`` on itself. The
repair asks the other targets of the chain, one after the other, for their committed copy; the one
whose version and image are those of our record is stored in place of ours under the same version
(Prepare REPLACE, Commit), and the operation goes on from where it was. A copy is compared with our
own record, so that any target may be asked, a syncing one too.

A chunk that is older here than at another serving target was committed here once, and lost: what
another has committed, this one had acknowledged, or was about to commit with its lock held. A
repair that was asked for by itself takes the newer copy over; under an update it does not, since
the update has its version already.

Source: design.md 5.3 and 6.
"""

from typing import NamedTuple

from hillfire.errors import Code
from hillfire.storage.craq.events import Copy
from hillfire.storage.craq.operation import Kind, Link, Operation, Stage
from hillfire.storage.store.base import ChunkMeta, Image, Tag
from hillfire.types import ChunkId, TargetId

MAX_ROUNDS = 64
"""How often all targets are asked before who waits is told that none can be reached."""


class Sources(NamedTuple):
    """Who may have a copy, in the order of asking."""

    others: tuple[TargetId, ...] = ()
    serving: tuple[TargetId, ...] = ()
    before: tuple[TargetId, ...] = ()
    """us in the chain: they commit after us"""


_HOPELESS = (Code.CORRUPT, Code.CONFLICT)


class Repair(Operation):
    """The REPLACE of a damaged chunk by the same version from elsewhere."""

    __slots__ = ("_adopt", "_asked", "_left", "_soft", "_sources", "nothing", "rounds")

    def __init__(
        self, chunk: ChunkId, meta: ChunkMeta | None, chain_version: int, adopt: bool
    ) -> None:
        """Aim at the image that our record names; ``adopt``: a newer one will do as well."""
        length = meta.length if meta is not None else 0
        super().__init__(
            chunk, Kind.REPLACE, 0, length, 0, meta.epoch if meta is not None else 0,
            _size_class(length), meta.tag if meta is not None else Tag(0, 0, 0), chain_version,
            None,
        )  # fmt: skip
        self.version = meta.version if meta is not None else 0
        self.expected = Image(length, meta.checksum if meta is not None else 0)
        self.nothing = meta is None or meta.removed
        """there are no bytes here that could be damaged"""
        self.rounds = 0
        self._adopt = adopt
        self._left: list[TargetId] = []
        self._sources = Sources()
        self._asked: TargetId | None = None
        self._soft = False

    def again(self, sources: Sources) -> None:
        """Begin a round: all sources may be asked (once more)."""
        self.rounds += 1
        self.stage, self.link = Stage.QUEUED, Link.NONE
        self._left = list(reversed(sources.others))
        self._sources = sources
        self._soft = False

    def following(self) -> TargetId | None:
        """Return whom to ask next, None at the end of the round."""
        self.attempt += 1
        self._asked = self._left.pop() if self._left else None
        return self._asked

    @property
    def hopeless(self) -> bool:
        """Whether every target has answered in this round, and none has a good copy."""
        return not self._soft

    def take(self, copy: Copy | int) -> bool:
        """Take a copy if it is the one that our record names; else remember why there is none."""
        if not isinstance(copy, Copy):
            self._soft = self._soft or Code(copy) not in _HOPELESS
            return False
        if copy.version > self.version and self._adopt and self._asked in self._sources.serving:
            self.version, self.length = copy.version, copy.length
            self.kind = Kind.REMOVE if copy.removed else Kind.REPLACE
            self.tag, self.epoch = copy.tag, max(self.epoch, copy.epoch)
            self.expected = Image(copy.length, copy.checksum)
            self.chunk_bytes = _size_class(copy.length)
        elif self.nothing or copy.removed or copy.version != self.version:
            # A predecessor that has not heard of the commit yet will have the version soon.
            if copy.version == self.version - 1 and self._asked in self._sources.before:
                self._soft = not self.nothing
            return False
        elif self.expected != (copy.length, copy.checksum):
            return False
        self.payload, self.checksum = copy.payload, copy.payload_checksum
        return True

    def mark_lost(self) -> None:
        """Say that no good copy is left (``Operation.lost``)."""
        self.link, self.stage = Link.WANTED, Stage.COMMITTED


def _size_class(length: int) -> int:
    return max(65536, 1 << (length - 1).bit_length()) if length else 65536
