"""Reads of whole files, of ranges of many files and of strided pieces, as operations.

Short ranges land one behind the other in staging memory and leave it as ``bytes``, copied once;
long ones and tensors land where they stay.
"""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hillfire.client import reading
from hillfire.client.actions import Operation
from hillfire.client.adapters.moving import WINDOW_BYTES, gather, staged
from hillfire.client.core import Core
from hillfire.client.items import Items
from hillfire.client.opening import readable
from hillfire.client.plan import Extent
from hillfire.errors import Error
from hillfire.proto.wire.base import Part
from hillfire.region import Region

MAX_ITEMS = 4096
"""Ranges read at once."""
PIECE_BYTES = 8 << 20
"""What is longer is read in such pieces."""
FLIGHT_BYTES = 64 << 20
"""Of pieces read at once."""


def bounds(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    """Return a range as (offset, length) within ``size`` bytes; negative: from the end."""
    first, last, _ = slice(start, end).indices(size)
    return first, max(0, last - first)


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
