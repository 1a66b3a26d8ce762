"""Sending: what a target sends to others of its chain, and the copies that it asks them for.

The records that travel are made by production's own functions (``storage/shell.py``,
``transfers.py``, ``copies.py``); only the tasks, threads and sockets around them are simulated.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import ForwardItem, Kind
from hillfire.storage.copies import TIMEOUT_S
from hillfire.storage.craq import effects, events
from hillfire.storage.craq.events import Copy, Outcome
from hillfire.storage.craq.operation import Operation
from hillfire.storage.shell import FORWARD_TIMEOUT_S, forward_item
from hillfire.storage.store.base import ChunkStore, Tag
from hillfire.storage.transfers import _read, _whole_item
from hillfire.types import TargetId

if TYPE_CHECKING:
    from tests.simulation.home import Home

Pairs = Sequence[tuple[Operation, int]]


def forward(home: "Home", effect: effects.Forward) -> None:
    """Send updates on; payloads of an earlier life come from the store."""
    store = home.store
    assert store is not None

    def job() -> tuple[list[ForwardItem], list[bytes]]:
        items, payloads = [], []
        for operation, attempt in effect.operations:
            payload = operation.payload
            payloads.append(
                _pending(store, operation) if payload is None else bytes(payload)  # type: ignore[call-overload]
            )
            items.append(forward_item(operation, attempt, home.chain_id, effect.chain_version))
        return items, payloads

    def done(result: Any) -> None:
        if isinstance(result, Error):
            not_sent(home, effect.operations)
        else:
            _send(home, effect.target, effect.operations, *result)

    old = any(operation.payload is None for operation, _ in effect.operations)
    home.work(job, done, inline=not old)


def _pending(store: ChunkStore, operation: Operation) -> bytes:
    if operation.kind not in (Kind.WRITE, Kind.REPLACE):
        return b""
    into = memoryview(bytearray(operation.length))
    return bytes(into[: store.read_pending(operation.chunk, into)])


def transfer(home: "Home", effect: effects.Transfer) -> None:
    """Send whole chunks as they are committed; tell of those that are damaged here."""
    store = home.store
    assert store is not None

    def job() -> tuple[list[tuple[Operation, int]], list[ForwardItem], list[bytes], Any]:
        good, items, payloads, damaged = [], [], [], []
        for pair in effect.operations:
            operation = pair[0]
            meta = store.get(operation.chunk)
            there = meta is not None and not meta.removed and not operation.lost
            length = meta.length if meta is not None and there else 0
            into = memoryview(bytearray(length))
            checksum = _read(store, operation.chunk, meta, into)
            if checksum is None:
                damaged.append(pair)
                continue
            good.append(pair)
            items.append(
                _whole_item(operation, meta, length, checksum, home.chain_id, effect.chain_version)
            )
            payloads.append(bytes(into))
        return good, items, payloads, damaged

    def done(result: Any) -> None:
        if isinstance(result, Error):
            not_sent(home, effect.operations)
            return
        good, items, payloads, damaged = result
        if damaged:
            home.handle(events.Unreadable(damaged))
        if good:
            _send(home, effect.target, good, items, payloads)

    home.work(job, done, inline=False)


def _send(
    home: "Home",
    target: TargetId,
    operations: Pairs,
    items: Sequence[ForwardItem],
    payloads: Sequence[bytes],
) -> None:
    def answered(reply: Any) -> None:
        if isinstance(reply, Error):
            not_sent(home, operations)
            return
        home.reached()
        outcomes = [(o, n, each) for (o, n), each in zip(operations, reply, strict=True)]
        home.handle(events.Forwarded(outcomes))

    _ask(home, target, "forward", (items, payloads), FORWARD_TIMEOUT_S, answered)


def _ask(
    home: "Home",
    target: TargetId,
    method: str,
    body: Any,
    timeout_s: float,
    answered: Callable[[Any], None],
) -> None:
    """Ask another target's node, for as long as this life lasts."""
    replica, node = home.replica, home.node

    def reply(value: Any) -> None:
        if home.replica is replica:
            answered(value)

    try:
        peer = home.world.node_of(node.routing.node_of(target).id)
    except Error as error:
        node.after(0.0, partial(reply, error))
        return
    node.network.call(node, peer, method, body, timeout_s, reply)


def not_sent(home: "Home", operations: Pairs) -> None:
    """Hand in that updates did not get there, as whatever befell the request as a whole."""
    replica = home.replica
    event = events.Forwarded([(o, attempt, Outcome(Code.CONNECTION)) for o, attempt in operations])

    def hand_in() -> None:
        if home.replica is replica:
            home.handle(event)

    home.node.after(0.0, hand_in)


def fetch(home: "Home", effect: effects.Fetch) -> None:
    """Ask another target for its committed copies, one by one."""
    for operation, attempt in effect.operations:

        def answered(reply: Any, operation: Operation = operation, attempt: int = attempt) -> None:
            copy = reply.code if isinstance(reply, Error) else reply
            home.handle(events.Fetched([(operation, attempt, copy)]))

        body = operation.chunk, home.chain_id, effect.chain_version
        _ask(home, effect.target, "fetch", body, TIMEOUT_S, answered)


def copy_of(result: Any, data: memoryview) -> Copy | int:
    """Make of a FETCH's record what the core takes."""
    if result.code:
        return int(result.code)
    length = 0 if result.removed else result.length
    tag = Tag(result.client, result.channel, result.sequence)
    return Copy(
        result.version, result.length, result.checksum, result.payload_checksum,
        data[:length], tag, result.epoch, bool(result.removed),
    )  # fmt: skip
