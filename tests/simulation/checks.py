"""Checks: what must hold in every world, at every moment and at its end.

While it runs: versions and epochs only grow; no update is committed as two versions; a process that
is new does not serve for the one before; nobody serves whom the manager has taken out (no effect
after a lease ran out); no target stops over a conflict or a defect; no error that a user was not to
see; no byte that nobody wrote. At the end: every chain serves with all of its targets; nothing is
under way; replicas are equal; and each chunk's history is linearizable, the last reads of every
replica included, so that nothing acknowledged is lost and nothing was done twice.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hillfire.cluster import PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.meta.manager import chains
from hillfire.storage.craq.channels import INTERNAL
from hillfire.storage.craq.effects import Stop
from hillfire.storage.craq.operation import Operation
from hillfire.storage.craq.repair import Repair
from hillfire.storage.store.base import Tag
from hillfire.types import ChunkId, TargetId
from tests.history import Kind, judge
from tests.history import Operation as Recorded
from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.home import Home
    from tests.simulation.member import Member
    from tests.simulation.world import World

QUIET = (Code.NOT_SERVING,)
"""Why a target may stop in any world: the chain changed."""
EXPECTED = (Code.STALE_EPOCH,)
"""What an operation may fail with although nothing is wrong, besides what may be retried."""


FORGIVEN: tuple[tuple[str, set[Code], set[Code]], ...] = (
    ("flip", {Code.CORRUPT}, {Code.CORRUPT}),
    ("power", {Code.CORRUPT}, {Code.CORRUPT}),
    ("full-disk", {Code.NO_SPACE}, {Code.NO_SPACE}),
    ("broken-disk", {Code.IO}, {Code.IO}),
    ("memory", {Code.CORRUPT}, set()),
)
"""What a kind of fault may make of targets, and of operations."""


class Failure(AssertionError):
    """Something that must hold does not."""


class Checks:
    """What one world is held to."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.allowed_stops, self.allowed_errors = set(QUIET), set(EXPECTED)
        for kind, stops, errors in FORGIVEN:
            if kind in world.plan.mix:
                self.allowed_stops |= stops
                self.allowed_errors |= errors
        self.unknown = 0
        self.syncs = 0
        self._done: dict[tuple[Tag, ChunkId], int] = {}
        """versions that updates were committed as by serving targets"""
        self._lives: dict[TargetId, int] = {}
        """incarnations in which targets have served since they were last out"""

    # ------------------------------------------------------------------ while it runs

    def serving(self, home: "Home", what: str) -> None:
        """Verify that a target which acts as a serving one is one, for the manager too."""
        chain = self.world.directory.routing.chain(home.chain_id)
        if chain.state_of(home.target) is not PublicState.SERVING:
            replica = home.replica
            at = replica.version if replica else 0
            raise Failure(
                f"{what} at {home}, which acts on chain version {at}: "
                f"by now it is {chain.state_of(home.target).name} in {chain}"
            )
        life = home.node.incarnation
        if self._lives.setdefault(home.target, life) != life:
            raise Failure(f"{what} at {home}, whose process is new and has not been out of {chain}")

    def shown(self, member: "Member") -> None:
        """Verify that bytes are shown under a lease only, however long it took to read them."""
        if not member.lease.valid():
            raise Failure(f"{member} answers a read although its lease has ended")

    def beginning(self, home: "Home", operations: Sequence[Operation], version: int) -> None:
        """Verify that nothing is begun that was asked of a chain which is past (R2)."""
        for operation in operations:
            if isinstance(operation, Repair) or operation.repair is not None:
                continue
            if operation.chain_version != version:
                raise Failure(
                    f"{home} begins {operation} of chain version "
                    f"{operation.chain_version} at {version}"
                )

    def committing(self, home: "Home", operations: Sequence[Operation]) -> None:
        """Verify that a serving target goes back in nothing, and does nothing twice."""
        replica, store = home.replica, home.store
        if replica is None or store is None or replica.state is not PublicState.SERVING:
            return
        for operation in operations:
            meta = store.get(operation.chunk)
            if meta is not None and operation.version < meta.version:
                raise Failure(f"{home} goes back from version {meta.version} with {operation}")
            if meta is not None and operation.epoch < meta.epoch:
                raise Failure(f"{home} takes {operation} after the cut of epoch {meta.epoch}")
            if operation.tag.client != INTERNAL:
                key = operation.tag, operation.chunk
                if self._done.setdefault(key, operation.version) != operation.version:
                    raise Failure(f"{operation} was done as version {self._done[key]} already")

    def stored(self, before: Routing, after: Routing) -> None:
        """Verify every routing that the manager stores."""
        if after.version <= before.version:
            raise Failure(f"routing {after.version} is stored over {before.version}")
        for chain in after.chains.values():
            chains.check(chain)
            for target, state in chain.targets:
                if state is not PublicState.SERVING:
                    self._lives.pop(target, None)
            known = before.chains.get(chain.id)
            if known is None or known == replace(chain, preferred=known.preferred):
                continue
            if chain.version <= known.version:
                raise Failure(f"{known} becomes {chain}")

    def alarm(self, home: "Home", code: Code, reason: str) -> None:
        """Judge a target that stays out until somebody does something."""
        if code not in self.allowed_stops:
            raise Failure(f"{home} stays out: {code.name} {reason}")

    def lost(self, home: "Home", chunks: Sequence[ChunkId]) -> None:
        """Judge chunks of which the chain says that no good copy is left."""
        self.world.coverage.count("lost chunks")
        if Code.CORRUPT not in self.allowed_errors:
            raise Failure(f"{home} says that {[chunk.hex() for chunk in chunks]} are lost")

    def stopped(self, home: "Home", stop: Stop) -> None:
        """Judge why a replica stopped."""
        if Code(stop.code) not in self.allowed_stops:
            raise Failure(f"{home} stops: {Code(stop.code).name} {stop.reason}\n{stop.story}")

    def expelled(self, member: "Member", error: Error) -> None:
        """Judge why a process may be a member no more."""
        if error.code is not Code.STALE:
            raise Failure(f"{member} is expelled: {error!r}")

    def failed(self, process: Process, operation: Recorded, error: Error) -> None:
        """Judge what an operation failed with; whether it was done stays unknown."""
        if operation.kind is Kind.WRITE:
            self.unknown += 1
        if operation.kind is Kind.CLONE and error.code is Code.NOT_FOUND:
            return  # its source was absent then; an earlier try may have come too late to tell
        if not error.retry and error.code not in self.allowed_errors:
            raise Failure(f"{process}: {operation.describe()} fails with {error!r}")

    def cut_failed(self, process: Process, error: Error) -> None:
        """Judge why a cut has to be asked for again, as the metadata service's collector does."""
        if not error.retry and error.code not in self.allowed_errors:
            raise Failure(f"{process}: a cut fails with {error!r}")

    def synced(self, process: Process, result: object) -> None:
        """Judge the end of a sync."""
        self.syncs += not isinstance(result, Error)
        allowed = self.allowed_errors | {Code.IO}
        if isinstance(result, Error) and not result.retry and result.code not in allowed:
            raise Failure(f"{process}: a sync fails with {result!r}")

    # ------------------------------------------------------------------ at the end

    def whole(self) -> bool:
        """Whether every chain serves with all of its targets, and every node knows."""
        routing = self.world.directory.routing
        return all(
            len(chain.serving) == len(chain.targets)
            and all(self._knows(target, chain.version) for target in chain.serving)
            for chain in routing.chains.values()
        )

    def _knows(self, target: TargetId, version: int) -> bool:
        home = self.world.home_of(target)
        return home is not None and home.serves() and home.life.version == version

    def at_rest(self) -> None:
        """Verify that nothing is under way and that replicas are equal."""
        for client in self.world.clients:
            loads = client.core.loads
            if loads.bytes or any(load.flying for load in loads.nodes.values()):
                raise Failure(f"{client} still counts reads as on their way: {loads.bytes} bytes")
        for chain in self.world.directory.routing.chains.values():
            records = []
            for target in chain.serving:
                home = self.world.home_of(target)
                assert home is not None and home.store is not None
                if not home.idle():
                    raise Failure(f"{home} is still busy: {home.busy()}")
                pending = list(home.store.pending())
                if pending:
                    raise Failure(f"{home} has updates pending at rest: {pending}")
                records.append({name: image for name, image in self._images(home)})
            for target, other in zip(chain.serving[1:], records[1:], strict=True):
                if other != records[0]:
                    differ = [
                        f"{name.hex()}: {records[0].get(name)} and {other.get(name)}"
                        for name in sorted(records[0].keys() | other.keys())
                        if records[0].get(name) != other.get(name)
                    ]
                    raise Failure(
                        f"replicas t{chain.serving[0]} and t{target} of chain {chain.id} "
                        f"differ: {'; '.join(differ)[:2000]}"
                    )

    def _images(self, home: "Home") -> list[tuple[ChunkId, object]]:
        store = home.store
        assert store is not None
        found: list[tuple[ChunkId, object]] = []
        for name, meta in store.scan(None, 1 << 20):
            if meta.version:
                into = memoryview(bytearray(meta.length))
                try:
                    count, _, _ = store.read(name, 0, into)
                except Error as error:
                    if error.code not in self.allowed_errors:
                        raise Failure(f"{home} cannot read {name.hex()}: {error!r}") from error
                    count, into = -1, into[:0]
                found.append((name, (meta._replace(chain_version=0), count, bytes(into))))
        return found

    def linearizable(self) -> None:
        """Have every chunk's history judged."""
        verdict = judge(self.world.recorder.operations)
        self.world.coverage.counts["judged steps"] += verdict.steps
        if not verdict.ok:
            raise Failure(str(verdict))
