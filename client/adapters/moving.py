"""Whole files and ranges of many files as operations, for both faces: by batches, in few trips.

Bytes pass through staging memory that servers fill: what is handed out as ``bytes`` is copied
once, out of it; what goes from one file to another is not copied in this process at all.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hillfire.client import namespace, reading, writing
from hillfire.client.actions import Join, Operation, Spawn
from hillfire.client.adapters.results import good
from hillfire.client.core import Core
from hillfire.client.items import Items
from hillfire.client.opening import open_stream, readable
from hillfire.client.plan import Extent
from hillfire.client.stream import Stream
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2
from hillfire.proto.wire.base import Part
from hillfire.region import Region

T = TypeVar("T")

WINDOW_BYTES = 8 << 20
"""Moved at once."""
MAX_ITEMS = 4096
"""Ranges read at once."""
PIECE_BYTES = 8 << 20
"""What is longer is read in such pieces."""
FLIGHT_BYTES = 64 << 20
"""Of pieces read at once."""
WIDTH = 16
"""Metadata calls under way at once."""


def gather(operations: Sequence[Operation[T]]) -> Operation[list[T | Error]]:
    """Run operations side by side, ``WIDTH`` of them at a time; an error is its result."""
    results: list[T | Error] = []
    handles: list[Any] = []
    for operation in operations:
        if len(handles) - len(results) >= WIDTH:
            results.append((yield from _joined(handles[len(results)])))
        handles.append((yield Spawn(operation)))
    while len(results) < len(handles):
        results.append((yield from _joined(handles[len(results)])))
    return results


def _joined(handle: Any) -> Operation[Any]:
    try:
        return (yield Join(handle))
    except Error as error:
        return error


@contextmanager
def staged(core: Core, length: int) -> Iterator[Part]:
    """Hold so much staging memory."""
    part = core.stage(length)
    try:
        yield part
    finally:
        core.unstage(part)


def window_of(size: int) -> int:
    """Return how much memory to move ``size`` bytes through."""
    return min(max(size, 4096), WINDOW_BYTES)


def bounds(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    """Return a range as (offset, length) within ``size`` bytes; negative: from the end."""
    first, last, _ = slice(start, end).indices(size)
    return first, max(0, last - first)


def using(core: Core, path: str, mode: str, work: Callable[[Stream], Operation[T]]) -> Operation[T]:
    """Open a file, do something with it, close it."""
    return (yield from using_many(core, [path], mode, lambda found: work(good(found[0]))))


def using_many(
    core: Core,
    paths: Sequence[str],
    mode: str,
    work: Callable[[list["Stream | Error"]], Operation[T]],
) -> Operation[T]:
    """Open files side by side, do something with them, close them all."""
    found = yield from gather([open_stream(core, path, mode) for path in paths])
    streams = [each for each in found if isinstance(each, Stream)]
    for stream in streams:
        core.handles[id(stream)] = stream.inode.id
    try:
        result = yield from work(found)
    except GeneratorExit:  # given up: there is nobody left to say anything to
        for stream in streams:
            core.handles.pop(id(stream), None)
        raise
    except BaseException:
        yield from _close_all(streams)
        raise
    yield from _close_all(streams)
    return result


def _close_all(streams: Sequence[Stream]) -> Operation[None]:
    failure: Error | None = None
    for stream in streams:
        try:
            yield from stream.close(id(stream))
        except Error as error:
            failure = failure or error
    if failure is not None:
        raise failure


def read_file(core: Core, path: str, start: int | None, end: int | None) -> Operation[bytes]:
    """Return a slice of a file's bytes.

    Raises:
        Error: of the path or of the bytes.
    """
    extent = core.extent((yield from readable(core, path)))
    return (yield from read_bytes(core, extent, *bounds(start, end, extent.length)))


def read_bytes(core: Core, extent: Extent, offset: int, length: int) -> Operation[bytes]:
    """Return bytes that lie within a file, copied once.

    Raises:
        Error: of the first piece that cannot be read.
    """
    if not length:
        return b""
    if length <= WINDOW_BYTES:
        return bytes((yield from reading.fetch(core, extent, offset, length)))
    whole = io.BytesIO(bytes(length))  # filled in place, and handed out without a copy
    region = Region.wrap(whole.getbuffer())
    try:
        yield from read_into(core, extent, [(offset, Part(region, 0, length))])
    finally:
        region.close()
    return whole.getvalue()


def read_into(core: Core, extent: Extent, reads: Iterable[tuple[int, Part]]) -> Operation[None]:
    """Fill parts with a file's bytes from their offsets on, so many at once as do some good.

    Raises:
        Error: of the first that cannot be read.
        EOFError: if the file ends before a part is full.
    """
    window: list[tuple[Extent, int, Part]] = []
    filled = 0
    for offset, (region, place, length) in reads:
        for done in range(0, length, PIECE_BYTES):
            piece = Part(region, place + done, min(PIECE_BYTES, length - done))
            window.append((extent, offset + done, piece))
            filled += piece.length
            if filled >= FLIGHT_BYTES:
                yield from _fill(core, window)
                window, filled = [], 0
    yield from _fill(core, window)


def read_runs(
    core: Core,
    extent: Extent,
    starts: NDArray[np.int64],
    places: NDArray[np.int64],
    run_bytes: int,
    into: Part,
) -> Operation[None]:
    """Read pieces of a file of equal length to places of a region, that of ``into``.

    Raises:
        Error, EOFError: as ``read_into``.
    """
    step = max(1, min(MAX_ITEMS, FLIGHT_BYTES // run_bytes))
    for first in range(0, len(starts), step):
        some = slice(first, first + step)
        lengths = np.full(len(starts[some]), run_bytes, np.int64)
        items = Items([extent], None, starts[some], places[some], lengths, into.region)
        for result in (yield from reading.read_items(core, items)):
            if reading.only([result]) != run_bytes:
                raise EOFError("the file is shorter than it was")


def _fill(core: Core, window: list[tuple[Extent, int, Part]]) -> Operation[None]:
    results = (yield from reading.read_batch(core, window)) if window else []
    for (_, _, part), result in zip(window, results, strict=True):
        if reading.only([result]) != part.length:
            raise EOFError("the file is shorter than it was")


def write_file(core: Core, path: str, value: Any, exclusive: bool) -> Operation[None]:
    """Write a whole file, which others see when this returns.

    Raises:
        Error: EXISTS if it must be new and is not; as a write.
    """
    data = memoryview(value).cast("B")

    def work(stream: Stream) -> Operation[int]:
        return (yield from stream.write(data))

    yield from using(core, path, "xb" if exclusive else "wb", work)


def read_ranges(
    core: Core, paths: Sequence[str], starts: Sequence[Any], ends: Sequence[Any]
) -> Operation[list["bytes | Error"]]:
    """Read one range of each path (paths may repeat): its bytes, or why they cannot be read."""
    names = list(dict.fromkeys(paths))
    inodes = yield from gather([readable(core, name) for name in names])
    files = dict(zip(names, inodes, strict=True))
    extents = {
        name: core.extent(each) for name, each in files.items() if not isinstance(each, Error)
    }
    numbers = {name: number for number, name in enumerate(extents)}
    window = _Window(core, list(extents.values()), len(paths))
    for number, (path, start, end) in enumerate(zip(paths, starts, ends, strict=True)):
        extent = extents.get(path)
        if extent is None:
            window.found[number] = files[path]
            continue
        offset, length = bounds(start, end, extent.length)
        if length > WINDOW_BYTES:
            try:
                window.found[number] = yield from read_bytes(core, extent, offset, length)
            except Error as error:
                window.found[number] = error
        elif length:
            if not window.has_room(length):
                yield from window.read()
            window.add(number, numbers[path], offset, length)
    yield from window.read()
    return window.found


class _Window:
    """Ranges that are read at once into staging memory, one behind the other."""

    def __init__(self, core: Core, extents: list[Extent], count: int) -> None:
        self.found: list[Any] = [b""] * count
        self._core = core
        self._extents = extents
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._filled = 0

    def has_room(self, length: int) -> bool:
        return self._filled + length <= WINDOW_BYTES and len(self._rows) < MAX_ITEMS

    def add(self, number: int, which: int, offset: int, length: int) -> None:
        self._rows.append((number, which, offset, self._filled, length))
        self._filled += length

    def read(self) -> Operation[None]:
        rows, filled, self._rows, self._filled = self._rows, self._filled, [], 0
        if not rows:
            return
        _, which, offsets, places, lengths = np.array(rows, np.int64).T.copy()
        with staged(self._core, filled) as part:
            places += part.offset
            items = Items(self._extents, which, offsets, places, lengths, part.region)
            results = yield from reading.read_items(self._core, items)
            view, found = part.region.view, self.found
            for (number, *_), place, result in zip(rows, places.tolist(), results, strict=True):
                failed = isinstance(result, Error)
                found[number] = result if failed else bytes(view[place : place + result])


def copy_file(core: Core, source: str, target: str) -> Operation[None]:
    """Copy a file's bytes within the file system.

    Raises:
        Error: INVALID if both are the same file; as a read or a write.
    """

    def work(old: Stream) -> Operation[None]:
        try:
            there = yield from namespace.lookup(core, target)
            if there.id == old.inode.id:
                raise Error(Code.INVALID, f"{source} and {target} are the same file")
        except Error as error:
            if error.code is not Code.NOT_FOUND:
                raise
        yield from using(core, target, "wb", lambda new: _copy(core, old, new))

    yield from using(core, source, "rb", work)


def _copy(core: Core, old: Stream, new: Stream) -> Operation[None]:
    length, offset = old.length, 0
    with staged(core, window_of(length)) as part:
        while offset < length:
            piece = Part(part.region, part.offset, min(part.length, length - offset))
            count = reading.only(
                (yield from reading.read_batch(core, [(old.extent, offset, piece)]))
            )
            source = Part(part.region, part.offset, count)
            reading.only((yield from writing.write_batch(core, [(new.extent, offset, source)])))
            new.wrote(offset, offset + count)
            offset += count


def remove_tree(core: Core, path: str) -> Operation[None]:
    """Remove a file, or a directory with all that is in it; links are removed, never followed.

    Raises:
        Error: of the first name that cannot be removed.
    """
    inode = yield from namespace.lookup(core, path, False)
    if inode.type != meta_pb2.DIRECTORY:
        yield from namespace.remove(core, path)
        return
    entries = yield from namespace.scandir(core, path)
    for entry in entries:
        if entry.is_dir():
            yield from remove_tree(core, entry.path)
    yield from unlink_all(core, [entry.path for entry in entries if not entry.is_dir()])
    yield from namespace.remove(core, path, directory=True)


def unlink_all(core: Core, paths: Sequence[str]) -> Operation[None]:
    """Remove many files.

    Raises:
        Error: of the first that cannot be removed; the others are all the same.
    """
    for result in (yield from gather([namespace.remove(core, path) for path in paths])):
        if isinstance(result, Error):
            raise result
