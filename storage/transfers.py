"""What is read from the store in order to be sent: whole chunks, and payloads of an earlier life.

A batch takes its memory in one piece, so that two of them cannot hold half each and wait.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.native import crc32c
from hillfire.proto.wire.base import Part
from hillfire.proto.wire.chunks import ForwardItem, Kind
from hillfire.storage.craq.operation import Operation
from hillfire.storage.pool import Pool, Span
from hillfire.storage.store.base import ChunkMeta, ChunkStore, Tag
from hillfire.storage.threads import Threads
from hillfire.types import ChunkId

POOL_WAIT_S = 10.0
MIN_CLASS = 65536


async def read_pending(
    threads: Threads, store: ChunkStore, pool: Pool, operations: Sequence[Operation]
) -> tuple[Span, list[Part]]:
    """Read the payloads of pending updates that an earlier life of this target prepared.

    Raises:
        Error: CORRUPT, IO from the store; OVERLOADED when memory is short.
    """
    lengths = [o.length if o.kind in (Kind.WRITE, Kind.REPLACE) else 0 for o in operations]
    span = await pool.take(sum(lengths), POOL_WAIT_S)

    def work() -> None:
        at = 0
        for operation, length in zip(operations, lengths, strict=True):
            if length:
                store.read_pending(operation.chunk, span.view[at : at + length])
            at += length

    await _fill(threads, span, work)
    return span, _parts(span, lengths)


class Whole(NamedTuple):
    """Chunks as they are committed here, ready to be sent; in ``span``, which the caller drops."""

    span: Span
    operations: list[tuple[Operation, int]]
    items: list[ForwardItem]
    parts: list[Part]
    damaged: list[tuple[Operation, int]]
    """those whose bytes fail their checksum: not to be sent"""


async def read_whole(
    threads: Threads,
    store: ChunkStore,
    pool: Pool,
    operations: Sequence[tuple[Operation, int]],
    chain: int,
    chain_version: int,
) -> Whole:
    """Read chunks as they are committed and describe them as REPLACE, REMOVE or LOST updates.

    The caller holds the chunks' locks, so that nothing is committed to them meanwhile. One that
    was never written here becomes a tombstone of version 0.

    Raises:
        Error: IO from the store; OVERLOADED when memory is short.
    """
    metas = [store.get(operation.chunk) for operation, _ in operations]
    lengths = [
        0 if meta is None or meta.removed or operation.lost else meta.length
        for (operation, _), meta in zip(operations, metas, strict=True)
    ]
    span = await pool.take(sum(lengths), POOL_WAIT_S)
    checksums: list[int | None] = []

    def work() -> None:
        at = 0
        for (operation, _), meta, length in zip(operations, metas, lengths, strict=True):
            view = span.view[at : at + length]
            at += length
            checksums.append(_read(store, operation.chunk, meta, view))

    await _fill(threads, span, work)
    whole = Whole(span, [], [], [], [])
    at = span.offset
    for pair, meta, length, checksum in zip(operations, metas, lengths, checksums, strict=True):
        if checksum is None:
            whole.damaged.append(pair)
        else:
            whole.operations.append(pair)
            whole.items.append(_whole_item(pair[0], meta, length, checksum, chain, chain_version))
            whole.parts.append(Part(span.region, at, length))
        at += length
    return whole


def _read(
    store: ChunkStore, chunk: ChunkId, meta: ChunkMeta | None, into: memoryview
) -> int | None:
    """Fill ``into`` with a whole chunk and return its CRC32C, None if it is damaged."""
    if meta is None or not into:
        return crc32c(b"")
    try:
        count, checksum, version = store.read(chunk, 0, into)
    except Error as exc:
        if exc.code is Code.CORRUPT:
            return None
        raise
    if (count, version) != (len(into), meta.version):
        raise Error(Code.INTERNAL, f"chunk {chunk.hex()} changed under its lock")
    return checksum


def _whole_item(
    operation: Operation,
    meta: ChunkMeta | None,
    length: int,
    checksum: int,
    chain: int,
    chain_version: int,
) -> ForwardItem:
    there = meta is not None and not meta.removed
    if meta is not None and there and operation.lost:
        kind, length, checksum = Kind.LOST, meta.length, meta.checksum
    else:
        kind = Kind.REPLACE if there else Kind.REMOVE
    return ForwardItem(
        operation.chunk,
        chain,
        chain_version,
        kind,
        0,
        length,
        checksum,
        meta.epoch if meta is not None else 0,
        max(MIN_CLASS, 1 << (length - 1).bit_length()) if length else MIN_CLASS,
        *(meta.tag if meta is not None else Tag(0, 0, 0)),
        meta.version if meta is not None else 0,
        meta.length if meta is not None else 0,
        meta.checksum if meta is not None else 0,
    )


async def _fill(threads: Threads, span: Span, work: Callable[[], None]) -> None:
    """Run ``work`` in a thread; the span is used until the thread has ended."""
    span.hold()

    def guarded() -> BaseException | None:
        try:
            work()
        except Exception as exc:
            return exc
        return None

    future = threads.loop.create_future()

    def done(result: object) -> None:
        span.drop()
        if not future.done():
            future.set_result(result)

    threads.submit(guarded, done)
    try:
        failure = await future
        if failure is not None:
            raise failure
    except BaseException:
        span.drop()
        raise


def _parts(span: Span, lengths: Sequence[int]) -> list[Part]:
    parts, at = [], span.offset
    for length in lengths:
        parts.append(Part(span.region, at, length))
        at += length
    return parts
