"""Disk: what a node's stores are kept on, and what befalls it.

Stores are production's engine over simulated parts (``tests/store_parts.py``), with small segments
so that checkpoints happen within a seed; in some worlds the memory store, which is faster, so that
the protocol is searched further.
"""

from random import Random
from typing import TYPE_CHECKING

from hillfire.errors import Code, Error
from hillfire.storage.store.base import ChunkStore
from hillfire.storage.store.engine import Options, open_engine
from hillfire.storage.store.memory import MemoryStore
from hillfire.types import TargetId
from tests.store_parts import SimulatedDisk

if TYPE_CHECKING:
    from tests.simulation.world import World

KIB = 1024
CAPACITY_BYTES = 1 << 30
_WRITES = ("records.write", "blocks.write", "log.write", "blocks.grow", "log.create")


class Disk:
    """One node's disk; it outlives processes."""

    def __init__(self, world: "World", name: str) -> None:
        self.name = name
        self.slow = False
        self.broken = False
        """whether writes fail"""
        self.away = False
        """whether it is not mounted"""
        self.capacity_bytes = CAPACITY_BYTES
        self._plan = world.plan
        self._random: Random = world.scheduler.random
        self._memory: dict[TargetId, MemoryStore] = {}
        self._disks: dict[TargetId, SimulatedDisk] = {}

    def delay_s(self) -> float:
        """Return how long a thread's job takes to begin, or to end."""
        return self._random.random() * (0.5 if self.slow else 0.001)

    def exists(self, target: TargetId) -> bool:
        """Whether a target has a directory here."""
        return not self.away and (target in self._memory or target in self._disks)

    def open(self, target: TargetId) -> ChunkStore:
        """Open a target's store, or make it.

        Raises:
            Error: CORRUPT, NO_SPACE, IO.
        """
        if self.away:
            raise Error(Code.IO, "the simulated disk is not mounted")
        if not self._plan.engine:
            return self._memory.setdefault(target, MemoryStore())
        disk = self._disks.get(target)
        if disk is None:
            disk = self._disks[target] = SimulatedDisk(CAPACITY_BYTES)
            disk.hook = self._step
        plan = self._plan
        return open_engine(
            disk.parts(),
            Options(
                durable=plan.durable, reserve_bytes=256 * KIB, spare_bytes=64 * KIB,
                segment_bytes=plan.segment_bytes, segment_records=32,
                segment_freed_bytes=256 * KIB,
            ),
        )  # fmt: skip

    def _step(self, what: str) -> None:
        if self.broken and what in _WRITES:
            raise Error(Code.IO, "the simulated disk fails")

    # ------------------------------------------------------------------ what befalls it

    @property
    def good(self) -> bool:
        """Whether a probe finds it working and with room."""
        return not self.broken and not self.full and not self.away

    @property
    def full(self) -> bool:
        """Whether others have filled it up."""
        return any(disk.others_bytes for disk in self._disks.values())

    def fill(self, part: float) -> None:
        """Have others use so much of it."""
        for disk in self._disks.values():
            disk.others_bytes = int(part * CAPACITY_BYTES)

    def flip(self) -> bool:
        """Flip a bit somewhere in the block files; False if there are none."""
        disks = [disk for _, disk in sorted(self._disks.items())]
        return bool(disks) and self._random.choice(disks).flip(self._random)

    def lose_power(self) -> None:
        """Lose a random part of what was not synced."""
        survives = self._random.choice((0.0, 0.5, 0.9))
        for _, disk in sorted(self._disks.items()):
            disk.crash(self._random, survives)
