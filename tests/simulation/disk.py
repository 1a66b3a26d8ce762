"""Disk: what a node's stores are kept on, and what befalls it."""

from random import Random
from typing import TYPE_CHECKING

from hillfire.storage.store.base import ChunkStore
from hillfire.storage.store.memory import MemoryStore
from hillfire.types import TargetId

if TYPE_CHECKING:
    from tests.simulation.world import World


class Disk:
    """One node's disk; it outlives processes."""

    def __init__(self, world: "World", name: str) -> None:
        self.name = name
        self.slow = False
        self.capacity_bytes = 1 << 30
        self._random: Random = world.scheduler.random
        self._stores: dict[TargetId, MemoryStore] = {}

    def delay_s(self) -> float:
        """Return how long a thread's job takes to begin, or to end."""
        return self._random.random() * (0.5 if self.slow else 0.001)

    def exists(self, target: TargetId) -> bool:
        """Whether a target has a directory here."""
        return target in self._stores

    def open(self, target: TargetId) -> ChunkStore:
        """Open a target's store, or make it."""
        return self._stores.setdefault(target, MemoryStore())

    def closed(self) -> None:
        """The process that had the stores open has ended."""
