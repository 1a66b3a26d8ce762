"""What is read from the store in order to be sent: whole chunks, and payloads of an earlier life.

A batch takes its memory in one piece, so that two of them cannot hold half each and wait.
"""

from collections.abc import Callable, Sequence

from crc32c import crc32c

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Part
from hillfire.proto.wire.chunks import ForwardItem, Kind
from hillfire.storage.craq.operation import Operation
from hillfire.storage.pool import Pool, Span
from hillfire.storage.store.base import ChunkStore, Tag
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


async def read_whole(
    threads: Threads,
    store: ChunkStore,
    pool: Pool,
    chunks: Sequence[ChunkId],
    chain: int,
    chain_version: int,
) -> tuple[Span, list[ForwardItem], list[Part]]:
    """Read chunks as they are committed and describe them as REPLACE, or REMOVE, updates.

    The caller holds the chunks' locks, so that nothing is committed to them meanwhile. One that
    was never written here becomes a tombstone of version 0.

    Raises:
        Error: CORRUPT, IO from the store; OVERLOADED when memory is short.
    """
    metas = [store.get(chunk) for chunk in chunks]
    lengths = [0 if meta is None or meta.removed else meta.length for meta in metas]
    span = await pool.take(sum(lengths), POOL_WAIT_S)
    checksums: list[int] = []

    def work() -> None:
        at = 0
        for chunk, meta, length in zip(chunks, metas, lengths, strict=True):
            view = span.view[at : at + length]
            if meta is not None and length:
                count, checksum, version = store.read(chunk, 0, view)
                if (count, version) != (length, meta.version):
                    raise Error(Code.INTERNAL, f"chunk {chunk.hex()} changed under its lock")
                checksums.append(checksum)
            else:
                checksums.append(crc32c(b""))
            at += length

    await _fill(threads, span, work)
    items = []
    for chunk, meta, length, checksum in zip(chunks, metas, lengths, checksums, strict=True):
        there = meta is not None and not meta.removed
        items.append(
            ForwardItem(
                chunk,
                chain,
                chain_version,
                Kind.REPLACE if there else Kind.REMOVE,
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
        )
    return span, items, _parts(span, lengths)


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
