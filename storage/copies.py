"""Copies: whole committed chunks that one target asks of another, to repair its own (FETCH).

The asking side knows how long its own copy is and offers as much memory; if the other's is longer
it is told so, and asks again with enough.
"""

from hillfire.cluster import Node
from hillfire.errors import Code, Error
from hillfire.native import crc32c
from hillfire.proto.wire.base import Part, Request
from hillfire.proto.wire.chunks import FETCH, FETCH_ITEMS, FETCH_RESULTS, FetchItem, FetchResult
from hillfire.storage.craq.events import Copy
from hillfire.storage.peers import Peers
from hillfire.storage.pool import Pool, Pools, Span
from hillfire.storage.requests import Payload
from hillfire.storage.store.base import ChunkStore, Tag
from hillfire.types import ChunkId

TIMEOUT_S = 10.0
POOL_WAIT_S = 10.0
TRIES = 3
"""With more memory each, if the other's chunk grew meanwhile."""


async def ask_copy(
    peers: Peers, node: Node, pool: Pool, item: FetchItem, length: int
) -> tuple[Span, Copy | int]:
    """Return another target's copy of a chunk, or why there is none, and the memory it is in.

    Raises:
        Error: whatever kept the request from being answered; OVERLOADED when memory is short.
    """
    for _ in range(TRIES):
        span = await pool.take(length, POOL_WAIT_S)
        try:
            part = Part(span.region, span.offset, length)
            request = Request(FETCH, FETCH_ITEMS.pack([item]), (), [part])
            reply = await peers.request(node, Pools.TRANSFERS, request, TIMEOUT_S)
            results = FETCH_RESULTS.unpack(reply.body)
            if len(results) != 1:
                raise Error(Code.PROTOCOL, f"{len(results)} answers to one fetch")
        except BaseException:
            span.drop()
            raise
        result = results[0]
        if result.code != Code.TOO_LARGE:
            return span, _copy(span, result)
        span.drop()
        length = result.length
    raise Error(Code.NOT_COMMITTED, f"chunk {item.chunk.hex()} grows all the time")


def _copy(span: Span, result: FetchResult) -> Copy | int:
    if result.code:
        return result.code
    length = 0 if result.removed else result.length
    return Copy(
        result.version,
        result.length,
        result.checksum,
        result.payload_checksum,
        Payload(span, span.view[:length], span.offset, None),
        Tag(result.client, result.channel, result.sequence),
        result.epoch,
        bool(result.removed),
    )


def read_copy(store: ChunkStore, chunk: ChunkId, into: memoryview) -> FetchResult:
    """Fill ``into`` with a whole committed chunk and return its record; for a thread."""
    meta = store.get(chunk)
    if meta is None:
        return FetchResult(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    length = 0 if meta.removed else meta.length
    code, payload_checksum = Code.OK, crc32c(b"")
    if length > len(into):
        code = Code.TOO_LARGE
    elif length:
        try:
            count, payload_checksum, version = store.read(chunk, 0, into[:length])
            if (count, version) != (length, meta.version):
                code = Code.NOT_COMMITTED  # it was overwritten meanwhile: ask again
        except Error as exc:
            code = exc.code
    return FetchResult(
        code,
        meta.removed,
        meta.version,
        meta.length,
        meta.checksum,
        payload_checksum,
        meta.epoch,
        *meta.tag,
    )
