"""Batches over open files: (file, offset, region offset, length) entries and one region."""

from collections.abc import Sequence
from typing import Protocol

from hillfire.client import reading, writing
from hillfire.client.actions import Operation
from hillfire.client.core import Core
from hillfire.client.reading import Entry, Result
from hillfire.client.stream import Stream
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Part
from hillfire.region import Region


class Open(Protocol):
    """A file object of either face."""

    @property
    def stream(self) -> Stream:
        """The open file; ValueError if it is closed."""


def read(
    core: Core, reads: Sequence[tuple[Open, int, int, int]], region: Region
) -> Operation[list[Result]]:
    """Read every entry; see ``FileSystem.read_batch``."""
    entries: list[Entry] = []
    streams: dict[Open, Stream] = {}
    bad: dict[int, Error] = {}
    append, new = entries.append, tuple.__new__
    for number, (file, offset, place, length) in enumerate(reads):
        stream = streams.get(file)
        if stream is None:
            try:
                stream = file.stream
                if not stream.readable:
                    raise Error(Code.INVALID, "not open for reading")
                if stream.busy:
                    yield from stream.prepare_write()
            except (Error, ValueError) as exc:
                bad[number] = _as_error(exc)
                continue
            streams[file] = stream
        append((stream.extent, offset, new(Part, (region, place, length))))
    results = yield from reading.read_batch(core, entries)
    return _merge(results, bad, len(reads))


def write(
    core: Core, writes: Sequence[tuple[Open, int, int, int]], region: Region
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
                stream = file.stream
                if not stream.writable:
                    raise Error(Code.INVALID, "not open for writing")
                yield from stream.prepare_write()
            except (Error, ValueError) as exc:
                bad[number] = _as_error(exc)
                continue
            streams[file] = stream
        append((stream.extent, offset, new(Part, (region, place, length))))
        owners.append(stream)
    results = yield from writing.write_batch(core, entries)
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
