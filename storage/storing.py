"""Storing: a target's updates go to its store, on the event loop or in a thread.

Small updates go through the log and the page cache. That takes no longer than a thread's hop there
and back, and the interpreter's lock would not let both run anyway, so they are done on the event
loop. What has to wait for the disk goes to a thread: large payloads, updates of bytes that are not
cached, everything on a node of several disks (one that hangs must not keep the others from being
served), and, for a while, everything after the loop had to wait once: the kernel makes writers
wait where too much of the page cache is dirty.
"""

import time
from collections.abc import Callable, Sequence

from hillfire import metrics
from hillfire.errors import Code, Error
from hillfire.storage.craq.operation import Operation
from hillfire.storage.pool import Holder
from hillfire.storage.requests import Payload
from hillfire.storage.store.base import ChunkStore, Image, Update
from hillfire.storage.threads import Threads

INLINE_BYTES = 512 * 1024
"""Batches with up to this much payload are prepared on the event loop,"""
INLINE_PAYLOAD = 64 * 1024
"""if no update has more than this."""
SLOW_NS = 100_000_000
"""A call that held the event loop up for so long was made to wait,"""
WARY_NS = 5_000_000_000
"""and for so long afterwards threads wait instead."""
JOB_BYTES = 4 * 1024 * 1024
"""A batch with more payload is prepared by several threads, each part forwarded when it is ready:
so the targets of the chain work on one batch at the same time."""

Prepared = list[tuple[Operation, Image | int]]
_NO_SOURCE = (None, 0)
_new = tuple.__new__  # half the price of calling a NamedTuple


class Storing:
    """One target's store, as its shell uses it."""

    def __init__(
        self,
        store: ChunkStore,
        threads: Threads,
        inline: bool,
        stages: Callable[[], metrics.Operation],
    ) -> None:
        """``inline``: whether the event loop may do it at all; ``stages`` are told how long."""
        self._store = store
        self._threads = threads
        self._inline = inline
        self._stages = stages
        self._wary_until_ns = 0

    # ------------------------------------------------------------------ prepare

    def prepare(
        self,
        operations: Sequence[Operation],
        chain_version: int,
        done: Callable[[Prepared | BaseException], None],
    ) -> None:
        """Make updates pending; ``done`` is called with each part of them, or what befell it."""
        portion: list[Operation] = []
        total = largest = 0
        for operation in operations:
            payload: Payload = operation.payload  # type: ignore[assignment]
            payload.keep()
            size = len(payload.view)
            if portion and total + size > JOB_BYTES:
                self._portion(portion, chain_version, total, largest, done)
                portion, total, largest = [], 0, 0
            portion.append(operation)
            total += size
            if size > largest:
                largest = size
        self._portion(portion, chain_version, total, largest, done)

    def _portion(
        self,
        operations: Sequence[Operation],
        chain_version: int,
        total: int,
        largest: int,
        done: Callable[[Prepared | BaseException], None],
    ) -> None:
        if total > INLINE_BYTES or largest > INLINE_PAYLOAD or not self._at_once():
            self._in_thread(operations, chain_version, done)
            return
        began_ns = time.monotonic_ns()
        try:
            images = self._store.prepare_cached(_updates(operations, chain_version))
        except Exception as exc:
            done(exc)
            return
        self._took(began_ns)
        ready: Prepared = []
        cold: list[Operation] = []
        for operation, image in zip(operations, images, strict=True):
            if image is None:
                cold.append(operation)
            else:
                ready.append((operation, _coded(image)))
        if cold:
            self._in_thread(cold, chain_version, done)
        if ready:
            done(ready)

    def _in_thread(
        self,
        operations: Sequence[Operation],
        chain_version: int,
        done: Callable[[Prepared | BaseException], None],
    ) -> None:
        memories = _memories(operations)
        for memory in memories:
            memory.hold()

        def work() -> Prepared:
            began_ns = time.monotonic_ns()
            images = self._store.prepare(_updates(operations, chain_version))
            self._stages().disk.observe(time.monotonic_ns() - began_ns)
            return [(o, _coded(image)) for o, image in zip(operations, images, strict=True)]

        def ended(result: object) -> None:
            done(result)  # type: ignore[arg-type]
            for memory in memories:
                memory.drop()

        self._threads.submit(work, ended)

    # ------------------------------------------------------------------ commit

    def commit(
        self,
        operations: Sequence[Operation],
        chain_version: int,
        done: Callable[[object], None],
    ) -> None:
        """Commit pending updates; ``done`` is called with None, or with what befell them."""

        def work() -> None:
            self._store.commit([(o.chunk, o.version, chain_version) for o in operations])  # type: ignore[misc]

        if not self._at_once() or self._store.waits():
            self._threads.submit(work, done)
            return
        began_ns = time.monotonic_ns()
        try:
            work()
        except Exception as exc:
            done(exc)
            return
        self._took(began_ns)
        done(None)

    # ------------------------------------------------------------------ the event loop's time

    def _at_once(self) -> bool:
        """Tell whether the event loop may do small things itself now."""
        return self._inline and time.monotonic_ns() >= self._wary_until_ns

    def _took(self, began_ns: int) -> None:
        """Take note of how long the event loop was at the store."""
        now_ns = time.monotonic_ns()
        self._stages().disk.observe(now_ns - began_ns)
        if now_ns - began_ns > SLOW_NS:
            self._wary_until_ns = now_ns + WARY_NS


def _updates(operations: Sequence[Operation], chain_version: int) -> list[Update]:
    """Describe operations to the store; payloads are copied into our own memory by now."""
    return [
        _new(
            Update,
            (
                o.chunk, o.version, o.kind, o.offset, o.length, o.payload.fetch(),  # type: ignore[attr-defined]
                o.checksum, o.tag, o.epoch, chain_version, o.chunk_bytes,
                *(_NO_SOURCE if o.partner is None else (o.source, o.source_version)),
            ),
        )
        for o in operations
    ]  # fmt: skip


def _memories(operations: Sequence[Operation]) -> list[Holder]:
    """List the memory that payloads are in, once where neighbours share it."""
    memories: list[Holder] = []
    last = None
    for operation in operations:
        memory = operation.payload.memory  # type: ignore[attr-defined]
        if memory is not last:
            memories.append(memory)
            last = memory
    return memories


def _coded(image: Image | Exception) -> Image | int:
    if type(image) is Image:
        return image
    return image.code if isinstance(image, Error) else Code.IO
