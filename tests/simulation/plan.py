"""Plan: what a seed draws for its world: sizes, clients, operations, and its own mix of faults.

Swarm testing: a world in which everything may happen seldom shows what happens when one thing
happens often, so each seed leaves most kinds of faults out and has plenty of the others.

Source: Groce et al., "Swarm Testing", ISSTA 2012.
"""

from random import Random

FAULTS = (
    "crash", "instant", "step", "together", "pause", "isolate", "partition", "one-way", "reset",
    "storm", "manager-crash", "manager-pause", "manager-disk", "client-crash", "client-cut",
    "slow-disk", "order", "quorum",
)  # fmt: skip
"""Kinds, in faults.py; a seed takes some of them."""

DISK_FAULTS = ("power", "flip", "full-disk", "broken-disk")
"""Of worlds whose stores lie on disks."""

OPERATIONS = {
    "write": 8, "batch": 3, "append": 2, "read": 8, "reads": 3, "relaxed": 1, "truncate": 1,
    "clone": 1, "sync": 1,
}  # fmt: skip
"""Kinds of client operations and their usual weights."""


class Plan:
    """One seed's draw."""

    def __init__(self, seed: int) -> None:
        rng = Random(f"{seed}/plan")
        self.seed = seed
        self.nodes = rng.choice((4, 5, 5, 6))
        self.managers = rng.choice((1, 1, 2))
        self.chains = rng.choice((3, 3, 4))
        self.replicas = rng.choice((2, 3, 3, 3, 4))
        self.chunks = self.chains * rng.choice((1, 1, 2))
        """of each file"""
        self.inodes = tuple(range(2, 2 + rng.choice((1, 1, 2))))
        self.clients = rng.randint(2, 4)
        self.workers = rng.randint(1, 3)
        self.operations = rng.randint(200, 240)
        self.faults = 5
        """at least so many"""
        duration_s = rng.choice((8.0, 14.0, 20.0))
        self.think_s = duration_s * self.clients * self.workers / self.operations
        self.lease_ms = rng.choice((500, 1000, 2000))
        self.heartbeat_ms = self.lease_ms // 8
        self.io_timeout_s = rng.choice((6.0, 12.0, 30.0))
        self.drift = rng.choice((0.0, 0.1, 0.1))
        self.fresh = rng.choice((0.2, 0.8, 1.0))
        """how often a client knows the newest epoch as it begins"""
        self.whole = rng.choice((0.05, 0.2))
        self.slow_reads = rng.choice((0.0, 0.3))
        self.delay_s = rng.choice((0.0002, 0.0005, 0.005))
        self.attested = rng.choice((0.0, 0.5, 1.0))
        """how often a supervisor sees a process end"""
        self.engine = rng.random() < 0.6
        """production's chunk store, and not the memory store"""
        self.durable = self.engine and rng.random() < 0.2
        self.blackout = self.engine and rng.random() < 0.3
        """whether all hosts lose their power at the end, once all was synced"""
        self.segment_bytes = rng.choice((16, 64, 512)) * 1024
        known = FAULTS + (DISK_FAULTS if self.engine else ()) + DISK_FAULTS * self.durable
        kinds = rng.sample(sorted(set(known)), rng.randint(2, 6))
        if self.engine and rng.random() < 0.3:
            kinds.append("flip")
        self.mix = {kind: rng.choice((1, 1, 3)) for kind in kinds}
        if Random(f"{seed}/memory").random() < 0.04:
            self.mix["memory"] = 1
        self.fault_every_s = duration_s / rng.choice((8, 15, 30))
        self.loss = rng.choice((0.0, 0.0, 0.0, 0.005, 0.02))
        self.twice = rng.choice((0.0, 0.0, 0.01, 0.05))
        self.damage = rng.choice((0.0, 0.0, 0.0, 0.01))
        self.late = rng.choice((0.0, 0.0, 0.01))
        weights = {kind: weight * rng.choice((0, 1, 1, 3)) for kind, weight in OPERATIONS.items()}
        weights["write"], weights["read"] = max(4, weights["write"]), max(4, weights["read"])
        self._kinds = list(weights)
        self._weights = list(weights.values())

    def draw(self, rng: Random) -> str:
        """Choose what a worker does next."""
        return rng.choices(self._kinds, self._weights)[0]

    def _store(self) -> str:
        if not self.engine:
            return "stores in memory"
        return f"{'durable ' if self.durable else ''}stores on disks"

    def __str__(self) -> str:
        """Say what matters."""
        mix = " ".join(f"{kind}:{weight}" for kind, weight in self.mix.items())
        return (
            f"{self.managers} managers, {self.nodes} nodes, {self.chains} chains of "
            f"{self.replicas}, {len(self.inodes)} files of {self.chunks} chunks, "
            f"{self.clients} clients with {self.workers} workers, "
            f"{self.operations} operations; lease {self.lease_ms} ms, drift {self.drift:.0%}, "
            f"loss {self.loss:.1%}, twice {self.twice:.0%}, damaged {self.damage:.0%}, late "
            f"{self.late:.0%}, {self._store()}; a fault each {self.fault_every_s:.1f} s of {mix}"
        )
