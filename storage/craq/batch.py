"""Batch: the effects of one event while it is handled, grouped so that each kind is one call."""

from hillfire.storage.craq.effects import (
    Commit,
    Discard,
    Effect,
    Fetch,
    Finish,
    Forward,
    Lost,
    Prepare,
    Replies,
    Reply,
    RetryLater,
    Stop,
    Transfer,
)
from hillfire.storage.craq.operation import Operation
from hillfire.types import ChunkId, TargetId


class Batch:
    """Collects operations by what shall be done with them."""

    __slots__ = (
        "answers", "commit", "discard", "fetch", "finish", "forward", "lost", "prepare", "retry",
        "stop", "transfer",
    )  # fmt: skip

    def __init__(self) -> None:
        """Start empty."""
        self.discard: list[ChunkId] = []
        self.prepare: list[Operation] = []
        self.forward: list[tuple[Operation, int]] = []
        self.transfer: list[tuple[Operation, int]] = []
        self.fetch: dict[TargetId, list[tuple[Operation, int]]] = {}
        self.commit: list[Operation] = []
        self.lost: list[ChunkId] = []
        self.answers: list[Reply] = []
        self.finish: list[Operation] = []
        self.retry = False
        self.stop: Stop | None = None

    def effects(self, successor: TargetId | None, chain_version: int) -> list[Effect]:
        """Return the effects in the order in which they must be carried out."""
        made: list[Effect] = []
        if self.discard:
            made.append(Discard(self.discard))
        if self.stop is None:
            if self.prepare:
                made.append(Prepare(self.prepare, chain_version))
            if self.forward and successor is not None:
                made.append(Forward(successor, chain_version, self.forward))
            if self.transfer and successor is not None:
                made.append(Transfer(successor, chain_version, self.transfer))
            if self.fetch:
                made += [Fetch(t, chain_version, each) for t, each in self.fetch.items()]
            if self.commit:
                made.append(Commit(self.commit, chain_version))
        if self.lost:
            made.append(Lost(self.lost))
        if self.answers:
            made.append(Replies(self.answers))
        if self.finish:
            made.append(Finish(self.finish))
        if self.retry:
            made.append(RetryLater())
        if self.stop is not None:
            made.append(self.stop)
        return made
