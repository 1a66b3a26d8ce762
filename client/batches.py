"""Batches over open files: from what users pass to reads and writes of many ranges at once.

Files that are not open, or not for this, fail the entries that name them and no others. What a
file object has buffered is written first, so that a batch reads it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from hillfire.client import memory, reading, writing
from hillfire.client.actions import Operation
from hillfire.client.bulk import FEWEST
from hillfire.client.core import Core
from hillfire.client.items import Items, Longs, longs
from hillfire.client.plan import Extent
from hillfire.client.reading import Entry, Result
from hillfire.client.results import Results
from hillfire.client.stream import Stream
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Part
from hillfire.region import Region


class Open(Protocol):
    """A file object of either face."""

    @property
    def stream(self) -> Stream:
        """The open file; ValueError if it is closed."""


Files: TypeAlias = Open | Sequence[Open]


class Order(NamedTuple):
    """A batch in the array form: checked and in arrays, but nothing is done yet."""

    streams: Sequence[Stream]
    which: Longs | None
    offsets: Longs
    places: Longs
    lengths: Longs
    region: Region
    writing: bool

    def items(self) -> Items:
        """Return it as planning takes it, with the files' extents as they are now."""
        extents = [stream.extent for stream in self.streams]
        return Items(extents, self.which, self.offsets, self.places, self.lengths, self.region)


def order(
    file: Files,
    offsets: Any,
    target: Any,
    lengths: Any,
    places: Any,
    which: Any,
    writing: bool,
) -> Order:
    """Make an order of what a user passed to ``read_many`` and its like.

    Raises:
        Error: INVALID for what does not fit together or is not open for this.
        ValueError: for a closed file.
    """
    count = None if np.ndim(offsets) == 0 else len(offsets)
    number = 1 if count is None else count
    region, at, long = memory.place(target, count, lengths, places)
    if isinstance(file, Sequence):
        files: Sequence[Open] = file
        if which is None and len(files) != number:
            text = f"{len(files)} files for {number} I/Os: say which is whose"
            raise Error(Code.INVALID, text)
        chosen = np.arange(number) if which is None else longs(which, number, "which")
        if number and not 0 <= chosen.min() <= chosen.max() < len(files):
            raise Error(Code.INVALID, f"which names other files than 0 to {len(files) - 1}")
    else:
        files, chosen = [file], None
    streams = [each.stream for each in files]
    for stream in streams:
        if not (stream.writable if writing else stream.readable):
            kind = "writing" if writing else "reading"
            raise Error(Code.INVALID, f"a file of the batch is not open for {kind}")
    return Order(streams, chosen, longs(offsets, number, "offsets"), at, long, region, writing)


def carry_out(core: Core, order: Order, deadline: float | None = None) -> Operation[Results]:
    """Do what an order says, after what its files have buffered."""
    if not len(order.offsets):
        return Results([])
    for stream in order.streams:
        if order.writing or stream.busy:
            yield from stream.prepare_write()
    items = order.items()
    if not order.writing:
        return Results((yield from reading.read_items(core, items, deadline)))
    results = yield from writing.write_batch(core, list(items.entries()), deadline)
    done = Results(results)
    ends = order.offsets + done.counts
    for number, stream in enumerate(order.streams):
        wrote = done.counts > 0
        if order.which is not None:
            wrote &= order.which == number
        if wrote.any():
            stream.wrote(int(order.offsets[wrote].min()), int(ends[wrote].max()))
    return done


def read(
    core: Core,
    reads: Sequence[tuple[Open, int, int, int]],
    region: Region,
    deadline: float | None = None,
) -> Operation[list[Result]]:
    """Read every entry; see ``FileSystem.read_batch``."""
    if len(reads) >= FEWEST:
        items = yield from _as_arrays(reads, region)
        if items is not None:
            return (yield from reading.read_items(core, items, deadline))
    entries: list[Entry] = []
    streams: dict[Open, Stream] = {}
    bad: dict[int, Error] = {}
    append, new = entries.append, tuple.__new__
    for number, (file, offset, place, length) in enumerate(reads):
        stream = streams.get(file)
        if stream is None:
            try:
                stream = streams[file] = yield from _readable(file)
            except (Error, ValueError) as exc:
                bad[number] = _as_error(exc)
                continue
        append((stream.extent, offset, new(Part, (region, place, length))))
    results = yield from reading.read_batch(core, entries, deadline)
    return _merge(results, bad, len(reads))


def _as_arrays(
    reads: Sequence[tuple[Open, int, int, int]], region: Region
) -> Operation[Items | None]:
    """Return a list's entries as arrays, None if some are better looked at one by one."""
    files, offsets, places, lengths = zip(*reads, strict=True)
    count, numbers, extents = len(files), dict[Open, int](), list[Extent]()
    which = None
    try:
        if files.count(files[0]) == count:
            extents.append((yield from _readable(files[0])).extent)
        else:
            for file in files:
                if file not in numbers:
                    numbers[file] = len(extents)
                    extents.append((yield from _readable(file)).extent)
            which = np.array([numbers[file] for file in files], np.int64)
        return Items(
            extents,
            which,
            longs(offsets, count, "offsets"),
            longs(places, count, "places"),
            longs(lengths, count, "lengths"),
            region,
        )
    except (Error, ValueError, OverflowError):
        return None


def _readable(file: Open) -> Operation[Stream]:
    """Return a file's stream, nothing of it buffered.

    Raises:
        Error: INVALID if it is not open for reading; of the writes that were buffered.
        ValueError: it is closed.
    """
    stream = file.stream
    if not stream.readable:
        raise Error(Code.INVALID, "not open for reading")
    if stream.busy:
        yield from stream.prepare_write()
    return stream


def _writable(file: Open) -> Operation[Stream]:
    """Return a file's stream, ready to be written past its buffer.

    Raises:
        Error: INVALID if it is not open for writing; of the writes that were buffered.
        ValueError: it is closed.
    """
    stream = file.stream
    if not stream.writable:
        raise Error(Code.INVALID, "not open for writing")
    yield from stream.prepare_write()
    return stream


def write(
    core: Core,
    writes: Sequence[tuple[Open, int, int, int]],
    region: Region,
    deadline: float | None = None,
) -> Operation[list[Result]]:
    """Write every entry; see ``FileSystem.write_batch``."""
    entries: list[Entry] = []
    owners: list[Stream] = []
    streams: dict[Open, Stream] = {}
    bad: dict[int, Error] = {}
    append, new = entries.append, tuple.__new__
    for number, (file, offset, place, length) in enumerate(writes):
        stream = streams.get(file)
        if stream is None:
            try:
                stream = streams[file] = yield from _writable(file)
            except (Error, ValueError) as exc:
                bad[number] = _as_error(exc)
                continue
        append((stream.extent, offset, new(Part, (region, place, length))))
        owners.append(stream)
    results = yield from writing.write_batch(core, entries, deadline)
    spans: dict[Stream, tuple[int, int]] = {}
    for stream, (_, offset, _), result in zip(owners, entries, results, strict=True):
        if type(result) is int and result:
            start, end = spans.get(stream, (offset, offset))
            spans[stream] = (min(start, offset), max(end, offset + result))
    for stream, (start, end) in spans.items():
        stream.wrote(start, end)
    return _merge(results, bad, len(writes))


def _as_error(exc: Exception) -> Error:
    return exc if isinstance(exc, Error) else Error(Code.INVALID, str(exc))


def _merge(results: list[Result], bad: dict[int, Error], count: int) -> list[Result]:
    if not bad:
        return results
    good = iter(results)
    return [bad[number] if number in bad else next(good) for number in range(count)]
