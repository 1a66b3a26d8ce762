"""Client: a program that uses files: the production client core over simulated exchanges.

Every operation is the generator that users' shells drive too. Each of a client's workers does one
operation after another, and records what it asked and what came of it.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from crc32c import crc32c

from hillfire.client import reading, writing
from hillfire.client.core import Core
from hillfire.client.plan import Extent
from hillfire.errors import Error
from hillfire.proto import meta_pb2
from hillfire.proto.wire.base import Part
from hillfire.region import Region
from hillfire.types import ChunkId, InodeId, chunk_id
from tests.history import Kind
from tests.history import Operation as Recorded
from tests.simulation import extras, stamps
from tests.simulation.client_shell import ClientShell
from tests.simulation.scheduler import NS_PER_S
from tests.simulation.stamps import BOUNDS, CELLS, CHUNK_BYTES

if TYPE_CHECKING:
    from tests.simulation.world import World


class Client(ClientShell):
    """One client process with some workers."""

    def __init__(self, world: "World", number: int, workers: int) -> None:
        super().__init__(world, f"c{number}")
        self.workers = workers
        self.core: Core
        self.busy = 0
        """operations under way"""
        self._random: Random = world.scheduler.stream(self.name)
        self._epochs: dict[int, int] = {}

    def boot(self) -> None:
        """Begin as a client that nobody knew before."""
        self.world.clients_made += 1
        self.core = Core(
            self.world.manager_endpoint,
            self.world.clients_made,
            clock=lambda: self.boot_ns() / NS_PER_S,
            wall_ns=self.clock.wall_ns,
            io_timeout_s=self.world.plan.io_timeout_s,
        )
        self.busy = 0
        self._epochs = {}
        self.versions = {}
        self.run_operation(self.core.first_routing(), self._ready)

    def dead(self) -> None:
        self.busy = 0

    def _ready(self, result: Any) -> None:
        if isinstance(result, Error):
            self.after(0.5, self.boot)
            return
        for _ in range(self.workers):
            self._think()

    # ------------------------------------------------------------------ workers

    def _think(self) -> None:
        pause_s = self._random.expovariate(1 / self.world.plan.think_s)
        self.after(pause_s, self._work)

    def _work(self) -> None:
        if not self.world.more():
            return
        self.world.begin()
        self.busy += 1
        kind = self.world.plan.draw(self._random)
        _WORK[kind](self)

    def finished(self) -> None:
        """End an operation; the worker goes on after a while."""
        self.busy -= 1
        self._think()

    def _extent(self, inode: int) -> Extent:
        """Return a file as this client knows it: maybe with an epoch of the past."""
        published = self.world.meta.published(inode)
        if inode not in self._epochs or self._random.random() < self.world.plan.fresh:
            self._epochs[inode] = published
        layout = self.world.layout
        length = self.world.plan.chunks * CHUNK_BYTES
        return Extent(inode, length, self._epochs[inode], layout)

    def _cells(self) -> tuple[int, int]:
        rng = self._random
        if rng.random() < self.world.plan.whole:
            return 0, CELLS
        first = rng.randrange(CELLS)
        limit = CELLS if rng.random() < self.world.plan.whole else 6
        return first, rng.randint(first + 1, max(first + 1, min(CELLS, limit)))

    def _place(self) -> tuple[int, int, int, int]:
        """Choose an inode, a chunk of it and cells in it."""
        rng, plan = self._random, self.world.plan
        inode = rng.choice(plan.inodes)
        return (inode, rng.randrange(plan.chunks), *self._cells())

    # ------------------------------------------------------------------ operations

    def write(self) -> None:
        self._write([self._place()])

    def write_batch(self) -> None:
        self._write([self._place() for _ in range(self._random.randint(2, 6))])

    def append(self) -> None:
        inode = self._random.choice(self.world.plan.inodes)
        self._write([(inode, *self.world.meta.reserve(inode))])

    def _write(self, places: Sequence[tuple[int, int, int, int]]) -> None:
        world, entries, recorded = self.world, [], []
        for inode, index, first, last in places:
            stamp = world.stamp()
            data = bytearray(stamps.image(stamp, first, last))
            part = Part(Region.wrap(data), 0, len(data))
            entries.append((self._extent(inode), index * CHUNK_BYTES + BOUNDS[first], part))
            operation = world.recorder.invoke(
                self.name, world.key(inode, index), Kind.WRITE,
                offset=first * stamps.STAMP_BYTES, content=stamps.written(stamp, first, last),
            )  # fmt: skip
            recorded.append(operation)
            if world.story.on:
                cells = f"cells {first}..{last} of {world.key(inode, index)}"
                world.story.tell(self.name, f"writes stamp {stamp} to {cells}")

        def done(results: Any) -> None:
            for place, entry, operation, result in zip(
                places, entries, recorded, results, strict=True
            ):
                if isinstance(result, Error):
                    world.checks.failed(self, operation, result)
                else:
                    key = _chunk(place[0], place[1]), crc32c(entry[2].region.view)
                    world.recorder.returned(operation, version=self.versions.pop(key, None))
                self._told(operation, result)
            self.finished()

        self.run_operation(writing.write_batch(self.core, entries), done)

    def read(self) -> None:
        self._read([self._place()])

    def read_batch(self) -> None:
        self._read([self._place() for _ in range(self._random.randint(2, 6))])

    def _read(
        self, places: Sequence[tuple[int, int, int, int]], then: Callable[[], None] | None = None
    ) -> None:
        world, entries, recorded = self.world, [], []
        for inode, index, first, last in places:
            part = Part(Region.wrap(bytearray(BOUNDS[last] - BOUNDS[first])), 0,
                        BOUNDS[last] - BOUNDS[first])  # fmt: skip
            entries.append((self._extent(inode), index * CHUNK_BYTES + BOUNDS[first], part))
            size = stamps.STAMP_BYTES
            operation = world.recorder.invoke(
                self.name, world.key(inode, index), Kind.READ,
                offset=first * size, length=(last - first) * size,
            )  # fmt: skip
            recorded.append(operation)

        def done(results: Any) -> None:
            for place, entry, operation, result in zip(
                places, entries, recorded, results, strict=True
            ):
                if isinstance(result, Error):
                    world.checks.failed(self, operation, result)
                else:
                    content = stamps.seen(entry[2].region.view, place[2], place[3])
                    key = _chunk(place[0], place[1]), BOUNDS[place[2]]
                    version = self.versions.pop(key, None)
                    world.recorder.returned(operation, content=content, version=version)
                self._told(operation, result)
            if then is not None:
                then()
            else:
                self.finished()

        self.run_operation(reading.read_batch(self.core, entries), done)

    def read_all(self, then: Callable[[], None]) -> None:
        """Read every chunk whole."""
        plan = self.world.plan
        places = [(i, index, 0, CELLS) for i in plan.inodes for index in range(plan.chunks)]
        self._read(places, then)

    def truncate(self) -> None:
        """Cut a file somewhere; often to nothing, which removes every chunk."""
        world, rng = self.world, self._random
        inode = rng.choice(world.plan.inodes)
        left = rng.random() < 0.6
        length = 0 if left else rng.randrange(world.plan.chunks) * CHUNK_BYTES + rng.choice(BOUNDS)
        recorded = []
        for index in range(world.plan.chunks):
            cells = _cells_below(length - index * CHUNK_BYTES)
            if cells < CELLS:
                kind = Kind.TRUNCATE if cells else Kind.REMOVE
                recorded.append(
                    world.recorder.invoke(
                        self.name, world.key(inode, index), kind, length=cells * stamps.STAMP_BYTES
                    )
                )
        world.story.tell(self.name, f"cuts inode {inode} to {length} bytes")

        def done(result: Any) -> None:
            if isinstance(result, Error):
                for operation in recorded:
                    world.checks.failed(self, operation, result)
            else:
                self._epochs[inode] = result.epoch
                for operation in recorded:
                    world.recorder.returned(operation)
            world.story.tell(self.name, f"cut of inode {inode}: {_shown(result)}")
            self.finished()

        request = meta_pb2.TruncateRequest(inode=inode, length=length)
        self.run_operation(self.core.meta("Truncate", request), done)

    def sync(self) -> None:
        """Make a file durable, as fsync does."""
        inode = self._random.choice(self.world.plan.inodes)
        extent = self._extent(inode)

        def done(result: Any) -> None:
            self.world.checks.synced(self, result)
            self.finished()

        self.run_operation(writing.sync(self.core, extent, 0, extent.length), done)

    def clone(self) -> None:
        """Make a chunk what another of its chain is, by one update."""
        world, rng, plan = self.world, self._random, self.world.plan
        inode, index = rng.choice(plan.inodes), rng.randrange(plan.chunks)
        chain = world.layout.chain_of(index)
        # Chunks go in pairs: the checker judges together what clones connect.
        other = index + plan.chains * (1 if index // plan.chains % 2 == 0 else -1)
        source = (inode, other) if other < plan.chunks else (plan.inodes[-1], index)
        if source == (inode, index) or (other >= plan.chunks and inode != plan.inodes[0]):
            self.read()
            return
        recorded = world.recorder.invoke(
            self.name, world.key(inode, index), Kind.CLONE, source=world.key(*source)
        )
        world.story.tell(self.name, recorded.describe() + f" to {recorded.key}")

        def done(result: Any) -> None:
            if isinstance(result, Error):
                world.checks.failed(self, recorded, result)
            else:
                world.recorder.returned(recorded)
            self._told(recorded, result)
            self.finished()

        name, origin = _chunk(inode, index), _chunk(*source)
        epoch = self._extent(inode).epoch
        operation = extras.clone(self.core, chain, origin, name, epoch, CHUNK_BYTES)
        self.run_operation(operation, done)

    def read_relaxed(self) -> None:
        """Read what some replica has committed; exempt from all but this: somebody wrote it."""
        world, rng, plan = self.world, self._random, self.world.plan
        inode, index = rng.choice(plan.inodes), rng.randrange(plan.chunks)

        def done(result: Any) -> None:
            if result is not None and not isinstance(result, Error):
                stamps.seen(result, 0, CELLS)
                world.coverage.count("relaxed reads")
            self.finished()

        operation = extras.read_relaxed(
            self.core, world.layout.chain_of(index), _chunk(inode, index), CHUNK_BYTES,
            rng.randrange(8),
        )  # fmt: skip
        self.run_operation(operation, done)

    def sync_now(self, inode: int, then: Callable[[], None]) -> None:
        """Make a whole file durable, whatever it takes."""
        extent = self._extent(inode)

        def done(result: Any) -> None:
            if isinstance(result, Error):
                self.sync_now(inode, then)
            else:
                then()

        self.run_operation(writing.sync(self.core, extent, 0, extent.length), done)

    def _told(self, operation: Recorded, result: Any) -> None:
        if self.world.story.on:
            self.world.story.tell(self.name, f"{operation.describe()}: {_shown(result)}")


def _chunk(inode: int, index: int) -> ChunkId:
    return chunk_id(InodeId(inode), index)


def _cells_below(length: int) -> int:
    return sum(length >= bound for bound in BOUNDS[1:])


def _shown(result: Any) -> str:
    return f"{result.code.name}: {result.strerror}" if isinstance(result, Error) else "done"


_WORK: dict[str, Callable[[Client], None]] = {
    "write": Client.write,
    "batch": Client.write_batch,
    "append": Client.append,
    "read": Client.read,
    "reads": Client.read_batch,
    "truncate": Client.truncate,
    "sync": Client.sync,
    "clone": Client.clone,
    "relaxed": Client.read_relaxed,
}
