"""The exactly-once table: of each client's channel the last update and what came of it (rule 5).

A table of its own because it is restored from the store's tags and outlives every operation.
"""

from collections.abc import Callable, Iterable

from hillfire.storage.craq.events import Outcome
from hillfire.storage.craq.operation import Operation
from hillfire.storage.store.base import ChunkMeta, Tag
from hillfire.types import ChunkId, Version

_new = tuple.__new__  # half the price of calling a NamedTuple
INTERNAL = 0
"""Client number of updates that a storage node makes itself; they are idempotent by epoch."""


class Channels:
    """Committed results by (client, channel), and operations in flight by tag."""

    def __init__(
        self,
        tags: Iterable[tuple[Tag, ChunkId, Version]],
        lookup: Callable[[ChunkId], ChunkMeta | None],
    ) -> None:
        """Restore the table from the store."""
        self._done: dict[tuple[int, int], tuple[int, Outcome]] = {}
        self.flying: dict[Tag, Operation] = {}
        self._busy: set[int] = set()
        """clients of whom something was done since the last turn"""
        self._lookup = lookup
        self.adopt(tags)

    def adopt(self, tags: Iterable[tuple[Tag, ChunkId, Version]]) -> None:
        """Take records of committed updates in, where they are later than what is known."""
        for tag, chunk, version in tags:
            known = self._done.get((tag.client, tag.channel))
            if known is not None and known[0] >= tag.sequence:
                continue
            meta = self._lookup(chunk)
            self._busy.add(tag.client)
            same = meta is not None and meta.version == version
            outcome = Outcome(0, version, meta.length, meta.checksum) if same and meta else None
            self._done[tag.client, tag.channel] = tag.sequence, outcome or Outcome(0, version)

    def last(self, tag: Tag) -> tuple[int, Outcome] | None:
        """Return the sequence and the result of the channel's last committed update."""
        return self._done.get((tag.client, tag.channel))

    def committed(self, operation: Operation) -> None:
        """Remember an operation's result."""
        tag, image = operation.tag, operation.image
        if tag.client == INTERNAL or image is None:
            return
        self._busy.add(tag.client)
        result = _new(Outcome, (0, operation.version, image[0], image[1]))
        self._done[tag.client, tag.channel] = tag.sequence, result

    def join(self, tag: Tag, waiter: tuple[int, int]) -> bool:
        """Let a retry wait for the same update if it is in flight."""
        operation = self.flying.get(tag)
        if operation is None or tag.client == INTERNAL:
            return False
        operation.waiters.append(waiter)
        return True

    def turn(self) -> set[int]:
        """Begin a new turn; return the clients of whom nothing was done in all of the last one.

        A retry comes within its operation's time-out, which is at most half of a session's length:
        with turns of a session's length these retry nothing of what is known here any more.
        """
        under_way = {tag.client for tag in self.flying}
        idle = {client for client, _ in self._done} - self._busy - under_way
        self._busy = set()
        return idle

    def quiet(self, clients: set[int]) -> set[int]:
        """Return those of whom nothing was done since this turn began, nor is under way."""
        return clients - self._busy - {tag.client for tag in self.flying}

    def forget(self, clients: Iterable[int]) -> None:
        """Drop what belongs to clients whose sessions ended."""
        gone = set(clients)
        self._done = {key: value for key, value in self._done.items() if key[0] not in gone}
