"""Opening a store: its format is checked, its blocks are counted, what a crash left is finished.

Every record is read once. A store with a block file missing or cut short does not open, since its
chunks would read as absent where other replicas have them.
"""

from pathlib import Path
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.storage.store.base import Tag
from hillfire.storage.store.blocks import Block
from hillfire.storage.store.files import BlockFiles
from hillfire.storage.store.metadata import Metadata
from hillfire.storage.store.records import (
    FORMAT,
    PendingRecord,
    Placement,
    Record,
    chunk_key,
    pending_key,
    unpack_pending,
    unpack_record,
    unpack_tag,
)
from hillfire.types import ChunkId, Version

_FORMAT_KEY = b"format"
_FORMAT_VALUE = b"hillfire chunk store %d" % FORMAT

Tags = dict[tuple[int, int], tuple[Tag, ChunkId, Version]]


class Opened(NamedTuple):
    """The parts of an open store."""

    metadata: Metadata
    files: BlockFiles
    pending: dict[ChunkId, PendingRecord]
    tags: Tags


def open_parts(directory: Path, *, direct: bool, reserve_bytes: int) -> Opened:
    """Open or create the store in ``directory``; see ``open_store``."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise Error(Code.IO, f"cannot create {directory}: {exc.strerror}") from exc
    metadata = Metadata(directory / "records")
    files: BlockFiles | None = None
    try:
        _check_format(metadata, directory)
        files = BlockFiles(directory / "blocks", direct=direct, reserve_bytes=reserve_bytes)
        _mark_committed(metadata, files, directory)
        pending = _take_pending(metadata, files, directory)
        tags: Tags = {}
        for key, value in metadata.items(b"t"):
            tag, chunk, version = unpack_tag(key, value)
            tags[tag.client, tag.channel] = tag, chunk, version
        files.sync(everything=True)  # before a block is used again that a lost record named
        metadata.sync()
        return Opened(metadata, files, pending, tags)
    except BaseException:
        metadata.close()
        if files is not None:
            files.close()
        raise


def _check_format(metadata: Metadata, directory: Path) -> None:
    found = metadata.get(_FORMAT_KEY)
    if found is None:
        if next(metadata.items(b""), None) is not None:
            raise Error(Code.CORRUPT, f"{directory} holds records but does not name its format")
        metadata.write([(_FORMAT_KEY, _FORMAT_VALUE)])
    elif found != _FORMAT_VALUE:
        text = f"{directory} is a {found.decode(errors='replace')}, not format {FORMAT}"
        raise Error(Code.WRONG_PEER_VERSION, text)


def _mark(files: BlockFiles, block: Block | None, directory: Path) -> None:
    if block is not None and not files.mark(block):
        text = f"{directory}: {block} is named by a record but missing, or named twice"
        raise Error(Code.CORRUPT, text)


def _mark_committed(metadata: Metadata, files: BlockFiles, directory: Path) -> None:
    for _, value in metadata.items(b"c"):
        _mark(files, unpack_record(value).block, directory)


def _take_pending(
    metadata: Metadata, files: BlockFiles, directory: Path
) -> dict[ChunkId, PendingRecord]:
    """Return what is pending; finish the patches that were committed."""
    pending: dict[ChunkId, PendingRecord] = {}
    finished: list[bytes] = []
    for key, value in metadata.items(b"p"):
        chunk, waiting = ChunkId(key[1:]), unpack_pending(value)
        stored = metadata.get(chunk_key(chunk))
        if _is_committed(waiting, None if stored is None else unpack_record(stored)):
            assert waiting.block is not None, "a patched chunk has a block"
            files.write(waiting.block, waiting.pending.offset, memoryview(waiting.payload))
            finished.append(pending_key(chunk))
            continue
        if waiting.placement == Placement.COPY:
            _mark(files, waiting.block, directory)
        pending[chunk] = waiting
    if finished:
        metadata.write(deletes=finished)
    return pending


def _is_committed(waiting: PendingRecord, record: Record | None) -> bool:
    """Tell whether a pending record is a patch whose image is the committed one already."""
    if waiting.placement != Placement.PATCH or record is None:
        return False
    return (record.meta.version, record.block, record.grains) == (
        waiting.pending.version,
        waiting.block,
        waiting.grains,
    )
