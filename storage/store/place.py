"""Placing an update: its bytes are verified, written where choose.py says, and described.

Nothing written here is visible: it lies in a fresh block, beyond a chunk's committed length, or
in the record that is returned. Each placement yields the checksums of the chunk as it will be,
from those it had wherever the bytes did not change.
"""

from collections.abc import Callable, Container

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.allocator import Allocator
from hillfire.storage.store.base import Pending, Update
from hillfire.storage.store.blocks import Block
from hillfire.storage.store.checksum import (
    GRAIN_BYTES,
    GRAIN_SHIFT,
    PAGE_BYTES,
    PAGE_SHIFT,
    crc32c,
    digest,
)
from hillfire.storage.store.choose import choose
from hillfire.storage.store.reading import Mismatch, read_verified
from hillfire.storage.store.records import PendingRecord, Placement, Record
from hillfire.storage.store.scratch import scratch
from hillfire.storage.store.sums import Sums, n_grains, none, page_sums, whole
from hillfire.types import ChunkId, Version

_ZEROS = memoryview(bytes(1024 * 1024))
_NOTHING = memoryview(b"")
_PATCH = Placement.PATCH
_new = tuple.__new__  # half the price of calling a NamedTuple
_WRITE, _CLONE, _LOST = int(Kind.WRITE), int(Kind.CLONE), int(Kind.LOST)
_REPLACE, _TRUNCATE = int(Kind.REPLACE), int(Kind.TRUNCATE)
_WITH_PAYLOAD = (_WRITE, _REPLACE)

GROWTH = 4
"""A chunk that outgrows its block by an append moves to one so many times as large."""

Lookup = Callable[[ChunkId], Record | None]


class Placer:
    """Carries out placements in one store's blocks."""

    def __init__(
        self,
        blocks: Allocator,
        free_blocks: Callable[[], None],
        lookup: Lookup,
        pending: Container[ChunkId],
    ) -> None:
        """Write to ``blocks``; ``free_blocks`` may make room on a full disk."""
        self._pending = pending
        self._blocks = blocks
        self._free_blocks = free_blocks
        self._lookup = lookup

    def place(
        self,
        update: Update,
        record: Record | None,
        replaced: PendingRecord | None,
        fixed: bool = False,
        nowait: bool = False,
    ) -> PendingRecord:
        """Place an update of a chunk with this committed record and this pending one.

        ``fixed``: the chunk was cut lately, see ``choose``.

        Raises:
            BlockingIOError: with ``nowait``, if bytes it builds upon are not in the page cache.
            Error: CHECKSUM, TOO_LARGE, CORRUPT, NOT_FOUND, CONFLICT, NO_SPACE, INVALID, IO.
        """
        kind = update.kind
        if kind == _CLONE:
            return self._clone(update, nowait)
        length, block, old = 0, None, none()
        if record is not None:
            length, block, old = record.meta.length, record.block, record.sums
        if block is None:
            length = self._start_anew(update, length)
        shared = self._blocks.is_shared(block)
        placement, after = choose(length, block, replaced, update, fixed, shared)
        payload = update.payload if kind in _WITH_PAYLOAD else _NOTHING
        if len(payload) > update.length:
            payload = payload[: update.length]
        if placement == _PATCH:
            assert record is not None, "a patch needs bytes to change"
            return self._patch(update, record, payload, after, nowait)
        if placement == Placement.COPY and kind == _TRUNCATE and after < length:
            placement, moved = self._move(update, record, after, nowait)
        else:
            moved = None
        if moved is not None:
            block, sums = moved
            first, count = 0, len(sums.grains)
        elif placement == Placement.COPY:
            block, sums = self._copy(update, record, payload, after, nowait)
            first, count = 0, len(sums.grains)
        elif placement == Placement.APPEND:
            assert block is not None, "an append needs a block"
            sums = self._append(update, length, old, block, payload, after)
            first = length >> GRAIN_SHIFT
            count = len(sums.grains) - first
        else:
            self._check(update, payload)
            block = block if after and kind != _LOST else None
            sums = self._cut(record, after, nowait) if block is not None else none()
            first, count = 0, 0
            if block is not None and after != length:
                first = after >> GRAIN_SHIFT
                count = len(sums.grains) - first
        checksum = update.checksum if kind == _LOST else digest(sums.grains)
        pending = self._describe(update, after, checksum, len(payload))
        return PendingRecord(pending, placement, block, sums, first, count)

    @staticmethod
    def _start_anew(update: Update, length: int) -> int:
        """Return the length of a chunk without a block as an update may take it: nothing.

        A chunk that lost its bytes takes only what does not build upon them.
        """
        whole_anew = update.kind == _WRITE and not update.offset and update.length >= length
        cut = update.kind == _TRUNCATE and not update.length
        if not length or whole_anew or cut or update.kind not in (_WRITE, _TRUNCATE):
            return 0
        raise Error(Code.CORRUPT, "the chunk has lost its bytes; write it whole again")

    @staticmethod
    def _describe(update: Update, length: int, checksum: int, n_bytes: int) -> Pending:
        kind = update.kind
        offset = update.offset if kind == _WRITE else 0
        claimed = update.checksum if n_bytes or kind in _WITH_PAYLOAD else 0
        return _new(
            Pending,
            (
                update.version, length, checksum, update.tag, update.epoch, kind, offset, n_bytes,
                claimed, None, 0,
            ),
        )  # fmt: skip

    @staticmethod
    def _check(update: Update, payload: memoryview) -> None:
        if update.kind in _WITH_PAYLOAD and crc32c(payload) != update.checksum:
            raise Error(Code.CHECKSUM, "the payload is not what its sender claims")

    def _old(self, record: Record, offset: int, into: memoryview, nowait: bool) -> None:
        """Read committed bytes that an update builds upon."""
        try:
            read_verified(self._blocks, record, offset, into, nowait)
        except Mismatch as exc:
            text = f"bytes that an update builds upon fail their checksum ({exc})"
            raise Error(Code.CORRUPT, text) from exc

    def _cut(self, record: Record | None, length: int, nowait: bool) -> Sums:
        """Return the sums of the first ``length`` bytes of a chunk."""
        if record is None or not length:
            return none()
        if length == record.meta.length:
            return record.sums
        last: list[int] = []
        rest = length % GRAIN_BYTES
        if rest:
            kept = scratch(rest, "image")
            self._old(record, length - rest, kept, nowait)
            last = page_sums(kept)
        return record.sums.cut(length, last)

    def _append(
        self,
        update: Update,
        length: int,
        old: Sums,
        block: Block,
        payload: memoryview,
        after: int,
    ) -> Sums:
        """Write beyond the committed length."""
        start = update.offset if payload else after
        sums, checksum = old.extended(length, start - length, payload)
        if payload and checksum != update.checksum:
            raise Error(Code.CHECKSUM, "the payload is not what its sender claims")
        self._write_zeros(block, length, start)
        if payload:
            self._blocks.write(block, start, payload)
        return sums

    def _patch(
        self, update: Update, record: Record, payload: memoryview, after: int, nowait: bool
    ) -> PendingRecord:
        """Describe a patch: the pages that it touches, as they will be."""
        if crc32c(payload) != update.checksum:
            raise Error(Code.CHECKSUM, "the payload is not what its sender claims")
        meta, block, sums = record[:3]
        length, offset, n_bytes = meta.length, update.offset, len(payload)
        end = offset + n_bytes
        first_page, last_page = offset >> PAGE_SHIFT, end - 1 >> PAGE_SHIFT
        start, stop = first_page << PAGE_SHIFT, min(last_page + 1 << PAGE_SHIFT, after)
        first, last = offset >> GRAIN_SHIFT, end - 1 >> GRAIN_SHIFT
        last_old = min(last, len(sums.grains) - 1)
        if not sums.knows(first, last_old):
            self._learn(record, first, last_old, nowait)
        if start == offset and stop == end:
            image = bytes(payload)
            one = first_page == last_page
            pages = [update.checksum] if one else page_sums(memoryview(image))
        else:
            view = memoryview(bytearray(stop - start))
            for page in {first_page, last_page}:
                at = page << PAGE_SHIFT
                kept = min(at + PAGE_BYTES, length) - at
                if kept > 0:
                    self._old(record, at, view[at - start :][:kept], nowait)
            view[offset - start : end - start] = payload
            pages = page_sums(view)
            image = bytes(view)
        sums = sums.patched(length, after, first_page, pages)
        pending = self._describe(update, after, digest(sums.grains), n_bytes)
        return _new(
            PendingRecord, (pending, _PATCH, block, sums, first, last - first + 1, start, image)
        )

    def _learn(self, record: Record, first: int, last: int, nowait: bool) -> None:
        """Get to know the pages of grains, whose bytes are read and verified for it."""
        length = record.meta.length
        for grain in range(first, last + 1):
            if not record.sums.knows(grain, grain):
                start = grain << GRAIN_SHIFT
                page = scratch(min(PAGE_BYTES, length - start), "image")
                self._old(record, start, page, nowait)

    def _copy(
        self,
        update: Update,
        record: Record | None,
        payload: memoryview,
        after: int,
        nowait: bool,
    ) -> tuple[Block, Sums]:
        """Write the chunk as it will be into a block of its own."""
        start = update.offset if update.kind == _WRITE else 0
        kept = 0
        if record is not None and record.block is not None and update.kind != _REPLACE:
            kept = record.meta.length
        if payload and start == 0 and len(payload) == after:
            sums, checksum = whole(payload)
            if checksum != update.checksum:
                raise Error(Code.CHECKSUM, "the payload is not what its sender claims")
            image = payload
        else:
            self._check(update, payload)
            image = scratch(after, "image")
            kept = min(kept, after)
            if kept:
                assert record is not None, "kept bytes have a record"
                self._old(record, 0, image[:kept], nowait)
            image[kept:] = bytes(after - kept)
            image[start : start + len(payload)] = payload
            sums, _ = whole(image)
        room = after
        old = None if record is None else record.block
        if old is not None and after > old.n_bytes and kept and start >= kept:
            # it grows by appending: leave room, so that it does not move at every step
            room = max(after, min(old.n_bytes * GROWTH, update.chunk_bytes))
        return self._write_new(room, image, nowait), sums

    def _move(
        self, update: Update, record: Record | None, after: int, nowait: bool
    ) -> tuple[Placement, tuple[Block, Sums] | None]:
        """Move what a cut leaves to a smaller block; on a full disk it stays where it is."""
        try:
            return Placement.COPY, self._copy(update, record, _NOTHING, after, nowait)
        except Error as exc:
            if exc.code != Code.NO_SPACE:
                raise
            return Placement.NONE, None

    def _write_new(self, room: int, image: memoryview, nowait: bool) -> Block:
        """Write bytes into a fresh block that has room for ``room``."""
        try:
            block = self._blocks.allocate(room, nowait)
        except Error as exc:
            if exc.code != Code.NO_SPACE:
                raise
            self._free_blocks()
            block = self._blocks.allocate(room)
        try:
            self._blocks.write(block, 0, image)
        except BaseException:
            self._blocks.release([block])
            raise
        return block

    def _clone(self, update: Update, nowait: bool) -> PendingRecord:
        """Share the block of the source, or copy it while something is going to change it."""
        assert update.source is not None, "a clone has a source"
        source = self._lookup(update.source)
        if source is None or source.meta.removed:
            raise Error(Code.NOT_FOUND, f"there is no chunk {update.source.hex()} to clone")
        meta, block, sums = source.meta, source.block, source.sums
        if update.source_version not in (0, meta.version):
            text = f"the source is at version {meta.version}, not {update.source_version}"
            raise Error(Code.CONFLICT, text)
        if meta.length and block is None:
            raise Error(Code.CORRUPT, "the source has lost its bytes; write it whole again")
        placement = Placement.NONE
        changing = update.source in self._pending or source.overlay is not None
        if block is not None and (changing or source.under is not None):
            placement = Placement.COPY
            image = scratch(meta.length, "image")
            self._old(source, 0, image, nowait)
            sums, _ = whole(image)
            block = self._write_new(meta.length, image, nowait)
        elif block is not None:
            placement = Placement.SHARE
            self._blocks.share(block)
        pending = self._describe(update, meta.length, meta.checksum, 0)
        pending = pending._replace(source=update.source, source_version=Version(meta.version))
        return PendingRecord(pending, placement, block, sums, 0, n_grains(meta.length))

    def _write_zeros(self, block: Block, start: int, stop: int) -> None:
        """Fill a gap, which may hold bytes of an update that was never committed."""
        while start < stop:
            count = min(stop - start, len(_ZEROS))
            self._blocks.write(block, start, _ZEROS[:count])
            start += count
