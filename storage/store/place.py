"""Placing an update: its bytes are verified, written where choose.py says, and described.

Nothing written here is visible: it lies in a fresh block, beyond a chunk's committed length, or
in the record that is returned. Each placement yields the grain checksums of the chunk as it will
be, from those it had wherever the bytes did not change.
"""

from array import array
from collections.abc import Callable

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import Pending, Update
from hillfire.storage.store.blocks import Block
from hillfire.storage.store.checksum import (
    GRAIN_BYTES,
    GRAIN_SHIFT,
    crc32c,
    digest,
    extend_grains,
    extend_grains_with_zeros,
    grains_of,
)
from hillfire.storage.store.choose import choose
from hillfire.storage.store.files import BlockFiles
from hillfire.storage.store.reading import Mismatch, read_verified
from hillfire.storage.store.records import PendingRecord, Placement, Record

_ZEROS = memoryview(bytes(1024 * 1024))
_NOTHING = memoryview(b"")

GROWTH = 4
"""A chunk that outgrows its block by an append moves to one so many times as large."""


class Placer:
    """Carries out placements in one store's block files."""

    def __init__(self, files: BlockFiles, free_blocks: Callable[[], None]) -> None:
        """Write to ``files``; ``free_blocks`` may make room on a full disk."""
        self._files = files
        self._free_blocks = free_blocks

    def place(
        self,
        update: Update,
        record: Record | None,
        replaced: PendingRecord | None,
        shrunk: bool = False,
    ) -> PendingRecord:
        """Place an update of a chunk with this committed record and this pending one.

        ``shrunk``: the chunk was cut since the last sync, see ``choose``.

        Raises:
            Error: CHECKSUM, TOO_LARGE, CORRUPT, NO_SPACE, INVALID, IO.
        """
        length = 0 if record is None else record.meta.length
        block = None if record is None else record.block
        placement, after = choose(length, block, replaced, update, shrunk)
        has_payload = update.kind in (Kind.WRITE, Kind.REPLACE)
        payload = update.payload[: update.length] if has_payload else _NOTHING
        text = b""
        if placement == Placement.NONE:
            self._check(update, payload)
            block = block if after else None
            grains = self._cut(record, after)
        elif placement == Placement.APPEND:
            assert record is not None and block is not None, "an append needs a block"
            grains = self._append(update, record, block, payload, after)
        elif placement == Placement.PATCH:
            assert record is not None, "a patch needs bytes to change"
            self._check(update, payload)
            grains, text = self._patch(update, record, payload, after), bytes(payload)
        else:
            block, grains = self._copy(update, record, payload, after)
        offset = update.offset if update.kind == Kind.WRITE else 0
        checksum = update.checksum if has_payload else 0
        pending = Pending(
            update.version,
            after,
            digest(grains),
            update.tag,
            update.epoch,
            update.kind,
            offset,
            len(payload),
            checksum,
        )
        return PendingRecord(pending, placement, block, grains, text)

    @staticmethod
    def _check(update: Update, payload: memoryview) -> None:
        if update.kind in (Kind.WRITE, Kind.REPLACE) and crc32c(payload) != update.checksum:
            raise Error(Code.CHECKSUM, "the payload is not what its sender claims")

    def _cut(self, record: Record | None, length: int) -> "array[int]":
        """Return the grains of the first ``length`` bytes of a chunk."""
        if record is None or not length:
            return array("I")
        whole, rest = divmod(length, GRAIN_BYTES)
        grains = record.grains[: whole + bool(rest)]
        if rest and length != record.meta.length:
            start = whole << GRAIN_SHIFT
            kept = self._files.scratch(rest, "image")[:rest]
            grains[-1] = self._old(record, start, kept)
        return grains

    def _old(self, record: Record, offset: int, into: memoryview) -> int:
        """Read committed bytes that an update builds upon; returns their CRC32C."""
        try:
            return read_verified(self._files, record, offset, into)
        except Mismatch as exc:
            text = f"bytes that an update builds upon fail their checksum ({exc})"
            raise Error(Code.CORRUPT, text) from exc

    def _append(
        self, update: Update, record: Record, block: Block, payload: memoryview, after: int
    ) -> "array[int]":
        """Write beyond the committed length."""
        length = record.meta.length
        start = update.offset if payload else after
        grains = extend_grains_with_zeros(record.grains, length, start - length)
        grains, checksum = extend_grains(grains, start, payload)
        if payload and checksum != update.checksum:
            raise Error(Code.CHECKSUM, "the payload is not what its sender claims")
        self._write_zeros(block, length, start)
        if payload:
            self._files.write(block, start, payload)
        return grains

    def _patch(
        self, update: Update, record: Record, payload: memoryview, after: int
    ) -> "array[int]":
        """Return the grains of the chunk as a patch will leave it."""
        first = update.offset >> GRAIN_SHIFT
        end = update.offset + len(payload)
        last = end - 1 >> GRAIN_SHIFT
        start, stop = first << GRAIN_SHIFT, min(last + 1 << GRAIN_SHIFT, after)
        changed = self._files.scratch(stop - start, "image")[: stop - start]
        kept = min(stop, record.meta.length) - start
        self._old(record, start, changed[:kept])
        changed[update.offset - start : end - start] = payload
        grains = record.grains[:]
        grains[first : last + 1] = grains_of(changed)
        return grains

    def _copy(
        self, update: Update, record: Record | None, payload: memoryview, after: int
    ) -> tuple[Block | None, "array[int]"]:
        """Write the chunk as it will be into a block of its own."""
        start = update.offset if update.kind == Kind.WRITE else 0
        kept = 0 if record is None or update.kind == Kind.REPLACE else record.meta.length
        if payload and start == 0 and len(payload) == after:
            grains, checksum = extend_grains(array("I"), 0, payload)
            if checksum != update.checksum:
                raise Error(Code.CHECKSUM, "the payload is not what its sender claims")
            image = payload
        else:
            self._check(update, payload)
            image = self._files.scratch(after, "image")[:after]
            kept = min(kept, after)
            if kept:
                assert record is not None, "kept bytes have a record"
                self._old(record, 0, image[:kept])
            image[kept:] = bytes(after - kept)
            image[start : start + len(payload)] = payload
            grains = grains_of(image)
        room = after
        old = None if record is None else record.block
        if old is not None and after > old.n_bytes and kept and start >= kept:
            # it grows by appending: leave room, so that it does not move at every step
            room = max(after, min(old.n_bytes * GROWTH, update.chunk_bytes))
        try:
            block = self._files.allocate(room)
        except Error as exc:
            if exc.code != Code.NO_SPACE:
                raise
            self._free_blocks()
            block = self._files.allocate(room)
        try:
            self._files.write(block, 0, image)
        except BaseException:
            self._files.release([block])
            raise
        return block, grains

    def _write_zeros(self, block: Block, start: int, stop: int) -> None:
        """Fill a gap, which may hold bytes of an update that was never committed."""
        while start < stop:
            count = min(stop - start, len(_ZEROS))
            self._files.write(block, start, _ZEROS[:count])
            start += count
