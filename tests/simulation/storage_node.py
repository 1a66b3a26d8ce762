"""StorageNode: one storage process with its targets: what it answers, as the services do.

The lease is checked as a request is dequeued, which ``Process`` does on waking too, and again
after what a thread has read.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hillfire.cluster import NodeKind, PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.meta.manager.chains import Report
from hillfire.meta.manager.decide import Status
from hillfire.proto.wire.chunks import RELAXED, ForwardItem, ReadItem, ReadResult, WriteItem
from hillfire.storage import cuts, lifecycle
from hillfire.storage.comparison import Remote
from hillfire.storage.copies import read_copy
from hillfire.storage.craq import events
from hillfire.storage.craq.events import Outcome
from hillfire.types import ChainId, ChunkId, InodeId, NodeId, TargetId
from tests.simulation.disk import Disk
from tests.simulation.home import Home
from tests.simulation.member import Member
from tests.simulation.process import Reply
from tests.simulation.sending import copy_of

if TYPE_CHECKING:
    from tests.simulation.world import World

EMPTY = memoryview(b"")
INLINE_READ_BYTES = 1024 * 1024
PROBE_S = 0.5


class StorageNode(Member):
    """A node; its disk outlives its process."""

    def __init__(self, world: "World", node: NodeId, rack: str = "") -> None:
        super().__init__(world, node, NodeKind.STORAGE, rack)
        self.disk = Disk(world, self.name)
        self.homes: dict[ChainId, Home] = {}
        self.dark = False
        """whether its host has no power"""

    def boot(self) -> None:
        self.homes = {}
        super().boot()
        self._probe()

    def _probe(self) -> None:
        """Look whether the disk works, as ``storage/probe.py`` does."""
        if self.disk.good:
            for home in list(self.homes.values()):
                if home.life.code in (Code.IO, Code.NO_SPACE):
                    home.advance(lifecycle.Healed())
        self.after(PROBE_S, self._probe)

    def scrub(self) -> None:
        """Verify every chunk as it lies on the disk, and have the damaged ones repaired."""
        for home in self.homes.values():
            home.scrub()

    def dead(self) -> None:
        self.homes = {}

    def take(self, routing: Routing) -> None:
        for node in routing.nodes.values():
            if not node.alive and node.id in self.world.nodes:
                self.network.drop(self, self.world.node_of(node.id))
        for target in routing.targets.values():
            if target.node == self.node and target.chain not in self.homes:
                self.homes[target.chain] = Home(self, target.id, target.chain)
        for home in self.homes.values():
            home.routed()

    def report(self) -> Mapping[TargetId, Status]:
        said = {}
        for home in self.homes.values():
            if home.life.settled:
                report = Report(home.life.local, home.life.said_at)
                said[home.target] = Status(report, home.used_bytes, self.disk.capacity_bytes)
        return said

    # ------------------------------------------------------------------ requests

    def serve(self, method: str, body: Any, reply: Reply) -> None:
        if not self.lease.valid():
            reply(Error(Code.LEASE_EXPIRED, "this node has lost touch with the manager"))
            return

        def checked(value: Any) -> None:
            if method in ("read", "fetch") and not isinstance(value, Error):
                self.world.checks.shown(self)
            reply(value)

        try:
            _METHODS[method](self, body, checked)
        except Error as error:
            reply(error)

    def _home(self, chain: int) -> Home:
        home = self.homes.get(ChainId(chain))
        if home is None or home.replica is None or home.replica.stopped is not None:
            raise Error(Code.NOT_SERVING, f"no target of chain {chain} is up here")
        return home

    def _active(self, chain: int, chain_version: int) -> Home:
        home = self._home(chain)
        assert home.replica is not None
        if home.replica.version != chain_version:
            raise Error(Code.WRONG_CHAIN_VERSION, f"{home} is at {home.replica.version}")
        return home

    # ------------------------------------------------------------------ reads

    def _read(self, body: Any, reply: Reply) -> None:
        items, lengths = body
        if sum(lengths) > INLINE_READ_BYTES or self.disk.slow or self.world.slow_read():
            self._read_slowly(items, lengths, reply)
            return
        found = [self._read_one(*pair) for pair in zip(items, lengths, strict=True)]
        reply([each if isinstance(each, tuple) else each() for each in found])

    def _read_slowly(self, items: Sequence[ReadItem], lengths: Sequence[int], reply: Reply) -> None:
        """Check now, read in a thread, check the lease again, answer."""
        found = [self._read_one(*pair) for pair in zip(items, lengths, strict=True)]

        def work() -> None:
            results = [each if isinstance(each, tuple) else each() for each in found]
            self.after(self.disk.delay_s(), lambda: answer(results))

        def answer(results: Any) -> None:
            if self.lease.valid():
                reply(results)
            else:
                reply(Error(Code.LEASE_EXPIRED, "the lease ended during the read"))

        self.after(self.disk.delay_s(), work)

    def _read_one(self, item: ReadItem, length: int) -> Any:
        """Return the refusal of a read, or the job that reads."""
        home = self.homes.get(ChainId(item.chain))
        if home is None or home.replica is None:
            return ReadResult(Code.NOT_SERVING, 0, 0, 0), b""
        relaxed = bool(item.flags & RELAXED)
        code = home.replica.refuse_read(item.chunk, item.chain_version, relaxed)
        if code:
            return ReadResult(code, 0, 0, 0), b""
        self.world.checks.serving(home, "a read")
        store = home.store
        assert store is not None

        def job() -> tuple[ReadResult, bytes]:
            if home.store is not store:  # opened anew since
                return ReadResult(Code.NOT_SERVING, 0, 0, 0), b""
            into = memoryview(bytearray(length))
            try:
                found = store.read(item.chunk, item.offset, into)
            except Error as error:
                home.read_failed(item.chunk, error)
                return ReadResult(error.code, 0, 0, 0), b""
            return ReadResult(0, *found), bytes(into[: found[0]])

        return job

    # ------------------------------------------------------------------ updates

    def _write(self, body: Any, reply: Reply) -> None:
        self._update(body, reply, events.WritesArrived)

    def _forward(self, body: Any, reply: Reply) -> None:
        self._update(body, reply, events.ForwardsArrived)

    def _update(
        self,
        body: tuple[Sequence[WriteItem | ForwardItem], Sequence[bytes]],
        reply: Reply,
        event: type[events.WritesArrived] | type[events.ForwardsArrived],
    ) -> None:
        """Bring updates before their chains' replicas; answer when all have their outcomes."""
        items, payloads = body
        groups: dict[int, list[int]] = {}
        for position, item in enumerate(items):
            groups.setdefault(item.chain, []).append(position)
        merged: dict[int, Outcome] = {}

        def done(positions: Sequence[int], outcomes: Sequence[Outcome]) -> None:
            merged.update(zip(positions, outcomes, strict=True))
            if len(merged) == len(items):
                reply([merged[p] for p in range(len(items))])

        for chain, positions in groups.items():
            home = self.homes.get(ChainId(chain))
            if home is None or home.replica is None:
                done(positions, [Outcome(Code.NOT_SERVING)] * len(positions))
                continue
            number = home.request(len(positions), partial(done, positions))
            some = [items[p] for p in positions]
            parts = [self._received(payloads[p]) for p in positions]
            home.handle(event(number, some, parts))  # type: ignore[arg-type]

    def _received(self, payload: bytes) -> memoryview:
        """Return a payload as it comes out of the network."""
        if self.network.damaged(payload):
            self.world.coverage.count("damage")
            return memoryview(bytes((payload[0] ^ 1,)) + payload[1:])
        return memoryview(payload)

    def _truncate(self, body: Any, reply: Reply) -> None:
        """Cut a file's chunks of one chain, as the metadata service asks the head."""
        home = self._active(body.chain, body.chain_version)
        if not home.serves():
            raise Error(Code.NOT_SERVING, f"{home} does not serve")
        assert home.store is not None and home.replica is not None
        inode = InodeId(body.inode)
        pending = cuts.under_way(home.replica.holders, inode)
        items = cuts.cuts(home.store.scan_inode(inode), pending, body)
        if not items:
            reply(0)
            return

        def done(outcomes: Sequence[Outcome]) -> None:
            for outcome in outcomes:
                if outcome.code not in (Code.OK, Code.STALE_EPOCH):
                    reply(Error(Code(outcome.code), "a chunk was not cut"))
                    return
            reply(len(items))

        number = home.request(len(items), done)
        home.handle(events.WritesArrived(number, items, [EMPTY] * len(items)))

    # ------------------------------------------------------------------ durability, recovery

    def _fetch(self, body: Any, reply: Reply) -> None:
        chunk, chain, chain_version = body
        home = self._active(chain, chain_version)
        store = home.store
        assert store is not None

        def job() -> Any:
            meta = store.get(chunk)
            data = memoryview(bytearray(meta.length if meta is not None else 0))
            return read_copy(store, chunk, data), data

        def done(result: Any) -> None:
            if isinstance(result, Error):
                reply(result)
                return
            record, data = result
            if record.code in (Code.CORRUPT, Code.IO):
                home.read_failed(chunk, Error(Code(record.code)))
            if self.lease.valid():
                reply(copy_of(record, data))
            else:
                reply(Error(Code.LEASE_EXPIRED, "the lease ended during the read"))

        home.work(job, done, inline=False)

    def _sync(self, body: Any, reply: Reply) -> None:
        home = self._active(*body)
        if not home.serves():
            raise Error(Code.NOT_SERVING, f"{home} does not serve")
        store = home.store
        assert store is not None

        def done(result: Any) -> None:
            if isinstance(result, Error):
                if result.code is Code.IO:
                    home.handle(events.StoreFailed(result.code, "sync"))
                reply(result)
            else:
                reply(None)

        home.work(store.sync, done, inline=False)

    def _list(self, body: Any, reply: Reply) -> None:
        chain, chain_version, after, limit = body
        home = self._active(chain, chain_version)
        store = home.store
        assert store is not None

        def page() -> None:
            if home.store is not store:
                return
            pending = {chunk: int(each.version) for chunk, each in store.pending()}
            found = store.scan(ChunkId(after) if after else None, limit)
            records = {
                chunk: Remote(
                    m.version, pending.get(chunk, 0), m.length, m.checksum, m.chain_version,
                    m.epoch, m.removed,
                )
                for chunk, m in found
            }  # fmt: skip
            reply((records, None if len(found) < limit else found[-1][0]))

        self.after(self.disk.delay_s(), page)

    def _sync_done(self, body: Any, reply: Reply) -> None:
        chain, chain_version, tags, more = body
        home = self._active(chain, chain_version)
        assert home.replica is not None and home.store is not None
        if tags:
            if home.replica.state is not PublicState.SYNCING:
                raise Error(Code.INVALID, f"{home} is not being brought up to date")
            home.store.remember(tags)
            home.handle(events.TagsArrived(tags))
        if not more:
            home.advance(lifecycle.Synced(chain_version))
        reply(None)

    def _refuse(self, body: Any, reply: Reply) -> None:
        chain, chain_version, reason = body
        self._active(chain, chain_version).advance(lifecycle.Refused(chain_version, reason))
        reply(None)


_METHODS: dict[str, Callable[[StorageNode, Any, Reply], None]] = {
    "read": StorageNode._read,
    "write": StorageNode._write,
    "forward": StorageNode._forward,
    "truncate": StorageNode._truncate,
    "fetch": StorageNode._fetch,
    "sync": StorageNode._sync,
    "list": StorageNode._list,
    "sync_done": StorageNode._sync_done,
    "refuse": StorageNode._refuse,
}
