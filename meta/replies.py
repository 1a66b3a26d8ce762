"""The answers that mutations got, kept so that a retry gets the same and changes nothing.

An answer lies beside what it changed, in the same transaction, under (client, request), until no
client can be trying any more.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from itertools import takewhile
from struct import Struct
from typing import TypeVar

from google.protobuf.message import Message

from hillfire.clock import NS_PER_S
from hillfire.meta import keys
from hillfire.meta.engine.base import Engine, Transaction
from hillfire.meta.engine.retry import transact
from hillfire.meta.keys import reply_key
from hillfire.proto.meta_pb2 import Caller

PRUNE_EVERY_NS = 5 * NS_PER_S
RETENTION_NS = 180 * NS_PER_S
"""Three times the 60 s after which clients stop trying again."""
SCAN = 2000
"""Answers removed before others get their turn."""
LAST_CLIENT = LAST_REQUEST = (1 << 64) - 1
_STAMP = Struct("<Q")

A = TypeVar("A", bound=Message)


def kept(txn: Transaction, caller: Caller, kind: type[A]) -> A | None:
    """Return the answer that this request got already."""
    if not caller.request:
        return None
    raw = txn.get(reply_key(caller.client, caller.request))
    return None if raw is None else kind.FromString(raw[_STAMP.size :])


def keep(txn: Transaction, caller: Caller, reply: Message, now_ns: int) -> None:
    """Keep the answer with what it changed; one without a number is not asked for again."""
    if caller.request:
        value = _STAMP.pack(now_ns) + reply.SerializeToString()
        txn.set(reply_key(caller.client, caller.request), value)


class Pruner:
    """Forgets the answers whose time is over."""

    def __init__(
        self, engine: Engine, now_ns: Callable[[], int], alive: Callable[[int], bool]
    ) -> None:
        """``alive`` tells whether a client is known to live."""
        self._engine = engine
        self._now_ns = now_ns
        self._alive = alive
        self._due_ns = 0
        self._pruned: dict[int, int] = {}
        """by client, the first request whose answer may still be there"""

    async def step(self) -> None:
        """Forget answers whose time is over. A client's requests grow, so its old ones lead.

        Each known client is looked at from where the last pass stopped, and the gaps between them
        for new ones: what was removed is not walked over again.
        """
        now_ns = self._now_ns()
        if now_ns < self._due_ns:
            return
        self._due_ns = now_ns + PRUNE_EVERY_NS
        before_ns = now_ns - RETENTION_NS
        begin = 0
        for client in [*sorted(self._pruned), LAST_CLIENT + 1]:
            while begin < client:
                end = keys.reply_key(client - 1, LAST_REQUEST) + b"\0"
                found = self._page(keys.reply_key(begin, 0), end, 1)
                if not found:
                    break
                new = keys.split_reply_key(found[0][0])[0]
                await self._client(new, before_ns)
                begin = new + 1
            if client <= LAST_CLIENT:
                await self._client(client, before_ns)
            begin = client + 1

    async def _client(self, client: int, before_ns: int) -> None:
        end = keys.reply_key(client, LAST_REQUEST) + b"\0"
        limit = 1
        while True:
            first = keys.reply_key(client, self._pruned.setdefault(client, 0))
            page = self._page(first, end, limit)
            old = [key for key, _ in takewhile(lambda pair: _at_ns(pair[1]) < before_ns, page)]
            if not old:
                break
            transact(self._engine, partial(_clear, doomed=old))
            last = keys.split_reply_key(old[-1])[1]
            self._pruned[client] = min(last + 1, LAST_REQUEST)
            limit = SCAN
            await asyncio.sleep(0)
        if not page and not self._alive(client):
            del self._pruned[client]

    def _page(self, begin: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return transact(self._engine, lambda txn: txn.snapshot_range(begin, end, limit=limit))


def _at_ns(value: bytes) -> int:
    return int(_STAMP.unpack_from(value)[0])


def _clear(txn: Transaction, doomed: Iterable[bytes]) -> None:
    for key in doomed:
        txn.clear(key)
