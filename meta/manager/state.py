"""What the manager remembers: cluster id, routing and decisions, in a database of its epoch.

One record a node, target, chain and table, so that a change writes what changed. Everything is
on the disk before :meth:`Store.save` returns, and was there before any newer leader claimed the
directory; nothing is published before that. The directory belongs to one cluster (its ``cluster``
file) for good; which of several managers writes is ``leadership.py``'s affair.
"""

import shutil
import uuid
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from struct import Struct
from typing import Any, TypeVar

from hillfire.cluster import Decision, Routing
from hillfire.errors import Code, Error
from hillfire.meta.directory import Directory
from hillfire.meta.engine.base import Transaction
from hillfire.meta.engine.retry import transact
from hillfire.meta.engine.rocksdb import RocksEngine, read_pairs
from hillfire.meta.manager.core import MAX_DECISIONS
from hillfire.meta.manager.decide import first_routing
from hillfire.meta.manager.leadership import Candidate, Epoch
from hillfire.proto import cluster_pb2 as pb
from hillfire.proto import convert, manager_pb2

K = TypeVar("K")
V = TypeVar("V")

FORMAT = 2
MAX_COPIES = 3
"""Attempts to copy the last leader's database: it may be writing yet, in vain."""
COPY_PAIRS = 10_000
_U64 = Struct(">Q")
_U32 = Struct(">I")

_FORMAT = b"format"
_CLUSTER = b"cluster"
_EPOCH = b"epoch"
_VERSION = b"version"
_MANAGER = b"manager"
_NODES = b"node/"
_TARGETS = b"target/"
_CHAINS = b"chain/"
_TABLES = b"table/"
_DECISIONS = b"decision/"
_END = b"\xff" * 9
"""After every id."""


class Store:
    """The manager's database, opened by one manager at a time."""

    routing: Routing
    """as it was saved last"""
    decisions: tuple[Decision, ...]
    """the latest of the operators', oldest first"""
    epoch: int
    """of the manager that opened it: it grows with each"""

    def __init__(
        self, directory: Path, *, durable: bool = True, epoch: Epoch | None = None
    ) -> None:
        """Open a database of its own with what the last leader stored.

        ``epoch``: by which this process leads; None: claim one if nobody else leads.

        Raises:
            Error: BUSY when another manager runs here, NOT_LEADER when one began meanwhile;
                WRONG_CLUSTER, CORRUPT, NO_SPACE, IO.
        """
        self._directory = directory
        self._durable = durable
        self._known: Routing | None = None
        self._engine: RocksEngine | None = None
        self._held = Directory(directory, "manager", shared=True)
        try:
            self._fence = epoch or _only(directory)
            self.epoch = self._fence.number
            try:
                self._engine = self._copy()
                self.routing, self.decisions = self._open(self._engine)
                # In this order: whoever claims after the check copies what was made here, the
                # cluster's name above all.
                self._fence.ready()
                self._fence.check()
                self._held.join(self.routing.cluster)
                self._fence.clean()
            except BaseException:
                if self._engine is not None:
                    self._engine.close()
                self._fence.close()
                raise
        except BaseException:
            self._held.close()
            raise
        self._known = self.routing

    async def save(self, routing: Routing, decisions: tuple[Decision, ...] = ()) -> None:
        """Write what differs from the routing saved last, and wait until the disk has it.

        Raises:
            Error: NOT_LEADER when a newer manager has opened this database; NO_SPACE, IO.
        """
        assert self._engine is not None
        before, self._known = self._known, None
        self._fence.check()
        transact(
            self._engine,
            lambda transaction: self._write(transaction, before, routing, decisions),
        )
        if self._durable:
            await self._engine.sync()
        self._fence.check()
        self.routing = self._known = routing
        self.decisions = (*self.decisions, *decisions)[-MAX_DECISIONS:]

    def close(self) -> None:
        """Release the database and the directory."""
        if self._engine is not None:
            self._engine.close()
        self._fence.close()
        self._held.close()

    def _copy(self) -> RocksEngine:
        """Make this epoch's database, with everything that the last leader's holds."""
        if (self._directory / "database").exists():
            raise Error(
                Code.CORRUPT,
                f"{self._directory} is in format 1, this is a manager for format {FORMAT}: use "
                "the version of hillfire that wrote it, or a new directory",
            )
        path = self._fence.path / "database"
        for left in reversed(range(MAX_COPIES)):
            shutil.rmtree(path, ignore_errors=True)
            engine = RocksEngine(path)
            try:
                if (source := self._fence.source()) is not None:
                    pairs = read_pairs(source)
                    while batch := list(islice(pairs, COPY_PAIRS)):
                        engine.load(dict(batch))
                return engine
            except Error:
                engine.close()
                if not left:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _open(self, engine: RocksEngine) -> tuple[Routing, tuple[Decision, ...]]:
        """Read everything; a database without a cluster is given one."""

        def body(transaction: Transaction) -> tuple[Routing, tuple[Decision, ...]]:
            written = transaction.get(_FORMAT) or _U32.pack(FORMAT)
            if written != _U32.pack(FORMAT):
                raise Error(
                    Code.CORRUPT,
                    f"{self._directory} is in format {int.from_bytes(written, 'big')}, this is a "
                    f"manager for format {FORMAT}: use the version of hillfire that wrote it",
                )
            cluster = transaction.get(_CLUSTER) or uuid.uuid4().hex.encode()
            transaction.set(_FORMAT, written)
            transaction.set(_CLUSTER, cluster)
            transaction.set(_EPOCH, _U64.pack(self.epoch))
            return _read(transaction, cluster.decode()), _read_decisions(transaction)

        return transact(engine, body, sync=self._durable)

    def _write(
        self,
        transaction: Transaction,
        before: Routing | None,
        after: Routing,
        decisions: tuple[Decision, ...],
    ) -> None:
        """Put the records that changed; all of them if it is uncertain what is there."""
        if before is None:
            for prefix, _ in _repeated(pb.Routing()):
                transaction.clear_range(prefix, prefix + _END)
        old = before or Routing(after.cluster, 0)
        message = convert.routing_to_message(
            Routing(
                after.cluster,
                after.version,
                after.manager,
                _differing(old.nodes, after.nodes),
                _differing(old.targets, after.targets),
                _differing(old.chains, after.chains),
                _differing(old.tables, after.tables),
            )
        )
        transaction.set(_VERSION, _U64.pack(after.version))
        transaction.set(_MANAGER, message.manager.SerializeToString())
        for prefix, records in _repeated(message):
            for record in records:
                transaction.set(prefix + _U32.pack(record.id), record.SerializeToString())
        for decision in decisions:
            message_bytes = convert.decision_to_message(decision).SerializeToString()
            transaction.set(_DECISIONS + _U64.pack(decision.number), message_bytes)


def _only(directory: Path) -> Epoch:
    """Claim the directory if nobody else leads.

    Raises:
        Error: BUSY.
    """
    epoch = Candidate(directory, 1 << 62).try_claim()
    if epoch is None:
        text = f"another manager runs in {directory}: stop it first, or use another directory"
        raise Error(Code.BUSY, text)
    return epoch


def _read_decisions(transaction: Transaction) -> tuple[Decision, ...]:
    """Return the latest decisions, oldest first."""
    latest = transaction.range(_DECISIONS, _DECISIONS + _END, limit=MAX_DECISIONS, reverse=True)
    messages = (manager_pb2.Decision.FromString(value) for _, value in reversed(latest))
    return tuple(convert.decision_from_message(message) for message in messages)


def _read(transaction: Transaction, cluster: str) -> Routing:
    """Put the routing together again."""
    version = transaction.get(_VERSION)
    if version is None:
        return first_routing(cluster)
    message = pb.Routing(cluster=cluster, version=_U64.unpack(version)[0])
    if manager := transaction.get(_MANAGER):
        message.manager.ParseFromString(manager)
    for prefix, records in _repeated(message):
        for _, value in transaction.range(prefix, prefix + _END):
            records.add().ParseFromString(value)
    return convert.routing_from_message(message)


def _repeated(message: pb.Routing) -> tuple[tuple[bytes, Any], ...]:
    """Pair each kind of record with its keys' prefix."""
    return (
        (_NODES, message.nodes),
        (_TARGETS, message.targets),
        (_CHAINS, message.chains),
        (_TABLES, message.tables),
    )


def _differing(before: Mapping[K, V], after: Mapping[K, V]) -> dict[K, V]:
    """Return the entries that are new or other than they were; none is ever removed."""
    return {key: value for key, value in after.items() if before.get(key) != value}
