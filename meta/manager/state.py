"""What the manager remembers: cluster id, routing and epoch, in a directory of its own.

One record a node, target, chain and table, so that a change writes what changed. Everything is
on the disk before :meth:`Store.save` returns; nothing is published before that. The directory
belongs to one process (its lock) and to one cluster (its ``cluster`` file) for good.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from struct import Struct
from typing import Any, TypeVar

from hillfire.cluster import Decision, Routing
from hillfire.errors import Code, Error
from hillfire.meta.directory import Directory
from hillfire.meta.engine.base import Transaction
from hillfire.meta.engine.retry import transact
from hillfire.meta.engine.rocksdb import RocksEngine
from hillfire.meta.manager.core import MAX_DECISIONS
from hillfire.meta.manager.decide import first_routing
from hillfire.proto import cluster_pb2 as pb
from hillfire.proto import convert, manager_pb2

K = TypeVar("K")
V = TypeVar("V")

FORMAT = 1
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

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        """Open, or create, and raise the epoch: an older manager can change nothing any more.

        Raises:
            Error: BUSY when another manager runs here; WRONG_CLUSTER, CORRUPT, NO_SPACE, IO.
        """
        self._directory = directory
        self._durable = durable
        self._known: Routing | None = None
        self._held = Directory(directory, "manager")
        try:
            self._engine = RocksEngine(directory / "database")
            try:
                self.routing, self.decisions, self.epoch = self._open()
                self._held.join(self.routing.cluster)
            except BaseException:
                self._engine.close()
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
        before, self._known = self._known, None
        transact(
            self._engine,
            lambda transaction: self._write(transaction, before, routing, decisions),
        )
        if self._durable:
            await self._engine.sync()
        self.routing = self._known = routing
        self.decisions = (*self.decisions, *decisions)[-MAX_DECISIONS:]

    def close(self) -> None:
        """Release the database and the directory."""
        self._engine.close()
        self._held.close()

    def _open(self) -> tuple[Routing, tuple[Decision, ...], int]:
        """Read everything; a database without a cluster is given one."""

        def body(transaction: Transaction) -> tuple[Routing, tuple[Decision, ...], int]:
            written = transaction.get(_FORMAT) or _U32.pack(FORMAT)
            if written != _U32.pack(FORMAT):
                raise Error(
                    Code.CORRUPT,
                    f"{self._directory} is in format {int.from_bytes(written, 'big')}, this is a "
                    f"manager for format {FORMAT}: use the version of hillfire that wrote it",
                )
            cluster = transaction.get(_CLUSTER) or uuid.uuid4().hex.encode()
            epoch = _U64.unpack(transaction.get(_EPOCH) or bytes(8))[0] + 1
            transaction.set(_FORMAT, written)
            transaction.set(_CLUSTER, cluster)
            transaction.set(_EPOCH, _U64.pack(epoch))
            return _read(transaction, cluster.decode()), _read_decisions(transaction), epoch

        return transact(self._engine, body, sync=self._durable)

    def _write(
        self,
        transaction: Transaction,
        before: Routing | None,
        after: Routing,
        decisions: tuple[Decision, ...],
    ) -> None:
        """Put the records that changed; all of them if it is uncertain what is there."""
        if transaction.get(_EPOCH) != _U64.pack(self.epoch):
            raise Error(Code.NOT_LEADER, "a newer manager has opened this database")
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
