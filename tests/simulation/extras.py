"""Extras: what chains serve beyond the client core of today: clones, and relaxed reads.

They go through the client's own vocabulary of actions, with its channels, its routing and its
retries, so that they meet the same failures.
"""

from collections.abc import Sequence
from typing import Any

from crc32c import crc32c

from hillfire.client.actions import Call, Exchange, Operation, Outcome, Pause
from hillfire.client.core import Core
from hillfire.client.hedged import ATTEMPT_S as READ_S
from hillfire.client.retry import History, after_write
from hillfire.client.writing import ATTEMPT_S as WRITE_S
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Part, Request
from hillfire.proto.wire.chunks import (
    READ,
    READ_ITEMS,
    READ_RESULTS,
    RELAXED,
    WRITE,
    WRITE_ITEMS,
    WRITE_RESULTS,
    Kind,
    ReadItem,
    WriteItem,
)
from hillfire.region import Region
from hillfire.types import ChunkId

_EMPTY = Part(Region.wrap(bytearray(1)), 0, 0)


def clone(
    core: Core, chain: int, source: ChunkId, chunk: ChunkId, epoch: int, chunk_bytes: int
) -> Operation[None]:
    """Make a chunk what another one of its chain is.

    Raises:
        Error: the last that does not pass before the deadline; STALE_EPOCH.
    """
    channel, sequence = core.channels.acquire()
    deadline, history = core.deadline(), History()
    while True:
        used, line = core.routes.version, core.routes.lines.get(chain)
        if line is None or not line.serving:
            error: Error | None = Error(Code.UNAVAILABLE, f"chain {chain} has no serving target")
        else:
            item = WriteItem(
                chunk, chain, line.version, Kind.CLONE, 0, 0, 0, epoch, chunk_bytes, core.client,
                channel, sequence, source,
            )  # fmt: skip
            request = Request(WRITE, WRITE_ITEMS.pack([item]), [_EMPTY])
            timeout_s = max(0.05, min(WRITE_S, deadline - core.clock()))
            outcomes = yield Exchange([Call(line.serving[0].endpoint, request, timeout_s)])
            error = _error(outcomes)
        if error is None:
            core.channels.release(channel)
            return
        verdict = after_write(history, error.code, str(error), core.clock(), deadline)
        if error.code is Code.STALE_EPOCH or not verdict.again:
            raise error
        yield from core.refresh(used, 0)
        yield Pause(max(verdict.delay_s, 0.001))


def _error(outcomes: Sequence[Outcome]) -> Error | None:
    error = outcomes[0].error
    if error is None:
        (code, *_), *_ = WRITE_RESULTS.tuples(outcomes[0].body)
        error = Error(Code(code)) if code else None
    return error


def read_relaxed(core: Core, chain: int, chunk: ChunkId, length: int, turn: int) -> Operation[Any]:
    """Return a chunk's first bytes as some replica has them committed, or None; one try."""
    line = core.routes.lines.get(chain)
    if line is None or not line.serving:
        return None
    replica = line.serving[turn % len(line.serving)]
    part = Part(Region.wrap(bytearray(length)), 0, length)
    item = ReadItem(chunk, chain, line.version, 0, RELAXED)
    request = Request(READ, READ_ITEMS.pack([item]), (), [part])
    (outcome,) = yield Exchange([Call(replica.endpoint, request, READ_S)])
    if outcome.error is not None:
        return None
    result = READ_RESULTS.unpack(outcome.body)[0]
    if result.code or crc32c(part.region.view[: result.filled]) != result.checksum:
        return None
    return part.region.view
