"""The chunk store on a disk: block files for bytes, a log for what happens, a database for records.

The life of an update, and what may be seen when:

1. ``prepare`` places it (choose.py, place.py). Copies and appends are written to blocks, where no
   record names them yet; a patch becomes the pages that it touches. Then one frame makes the whole
   batch *pending*: its entries, and the pages, are the pending updates. There is no other copy.
2. ``commit`` appends a frame that names the updates. From then on they are *committed*: memory
   shows the new records. A patch's pages lie over the block as its chunk's *overlay*; readers
   verify the block's bytes with the overlay laid over them, so it is all one to them whether a page
   was written to its place already.
3. When a segment of the log is full, it is *sealed* and the next one begins. A *checkpoint* brings
   what the sealed one says to the block files and the database (checkpoint.py), beside everything
   else, and drops it. Only then are blocks used again that its commits left.

After a crash the log is replayed (replay.py): what a frame says happened whole or not at all, and
doing it again changes nothing. Bytes are synced before the records that name them only by ``sync``,
by a checkpoint, or always if the store is *durable*; bytes lost otherwise fail their checksum.

Nothing here needs a thread, a clock or the operating system: all of it runs over parts.py. Work is
put off until it is due and then done by whoever comes, or by a keeper (upkeep.py, keeper.py).

This module opens stores; their requests are in enginestore.py.
"""

from pathlib import Path
from typing import Any

from hillfire.errors import Code, Error
from hillfire.storage.store.allocator import Limits
from hillfire.storage.store.enginestore import EngineStore
from hillfire.storage.store.files import DiskBlocks
from hillfire.storage.store.keeper import Keeper
from hillfire.storage.store.logfiles import DiskLog
from hillfire.storage.store.metadata import Metadata
from hillfire.storage.store.opening import read_parts
from hillfire.storage.store.options import Options
from hillfire.storage.store.parts import Parts
from hillfire.storage.store.system import System

__all__ = ["EngineStore", "Options", "open_engine", "open_store"]


def open_store(
    directory: Path,
    *,
    direct: bool = True,
    direct_reads: bool = False,
    durable: bool = False,
    no_new_chunks_part: float | None = None,
    no_writes_part: float | None = None,
    options: Options | None = None,
    reserve_bytes: int | None = None,
    record_limit: int | None = None,
    system: System | None = None,
) -> EngineStore:
    """Open the store in ``directory``, or create one there.

    ``direct`` writes large payloads past the page cache: with three stores on one disk that is 1.8
    to 2.3 GiB/s of new chunks for as long as it lasts, against 0.5 to 1.1 through the cache; but
    what was just written is then read from the disk the first time. ``direct_reads`` reads large
    pieces past it, too: at a third of the processor time where they come from the disk anyway, but
    never from memory. ``durable``: ``prepare`` and
    ``commit`` return when the disk has everything. With ``no_new_chunks_part`` of the disk in use
    nothing is written that takes more of it, with ``no_writes_part`` nothing at all; to cut and to
    remove always works.

    Raises:
        Error: BUSY if another process has it open, CORRUPT if something is missing or damaged,
            WRONG_PEER_VERSION if it has another format, NO_SPACE, IO.
    """
    given: dict[str, Any] = {
        "durable": durable or None,
        "no_new_chunks_part": no_new_chunks_part,
        "no_writes_part": no_writes_part,
        "reserve_bytes": reserve_bytes,
        "record_limit": record_limit,
    }
    options = options or Options()
    options = options._replace(**{name: each for name, each in given.items() if each is not None})
    parts = _open_parts(directory, direct, direct_reads, system or System())
    try:
        store = open_engine(parts, options, later=True)
    except Error as exc:
        raise Error(exc.code, f"{directory}: {exc.strerror}") from exc
    store.keeper = Keeper(store.upkeep, store.progress)
    store.keeper.wake()
    return store


def _open_parts(directory: Path, direct: bool, direct_reads: bool, system: System) -> Parts:
    try:
        system.make_directory(directory)
    except OSError as exc:
        raise Error(Code.IO, f"cannot create {directory}: {exc.strerror}") from exc
    metadata = Metadata(directory / "records")
    try:
        blocks = DiskBlocks(
            directory / "blocks", direct=direct, direct_reads=direct_reads, system=system
        )
    except BaseException:
        metadata.close()
        raise
    try:
        return Parts(metadata, blocks, DiskLog(directory / "log", system))
    except BaseException:
        metadata.close()
        blocks.close()
        raise


def open_engine(
    parts: Parts, options: Options | None = None, *, later: bool = False
) -> EngineStore:
    """Open or create a store over ``parts``, which are closed if that fails.

    ``later``: the checkpoint of what the log held is left to ``maintain``.

    Raises:
        Error: CORRUPT, WRONG_PEER_VERSION, NO_SPACE, IO.
    """
    options = options or Options()
    try:
        limits = Limits(options.reserve_bytes, options.no_new_chunks_part, options.no_writes_part)
        opened = read_parts(parts, limits)
        store = EngineStore(parts, options, opened)
        store.settle(opened, later)
        return store
    except BaseException:
        parts.records.close()
        parts.blocks.close()
        parts.log.close()
        raise
