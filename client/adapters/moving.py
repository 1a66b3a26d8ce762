"""Files written, copied and removed as operations, for both faces: many side by side, few trips.

What goes from one file to another passes through staging memory that servers fill and read, and
is not copied in this process at all. Reads are in ``fetching.py``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from hillfire.client import namespace, reading, writing
from hillfire.client.actions import Join, Operation, Spawn
from hillfire.client.adapters.results import good
from hillfire.client.core import Core
from hillfire.client.opening import open_stream
from hillfire.client.stream import Stream
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2
from hillfire.proto.wire.base import Part

T = TypeVar("T")

WINDOW_BYTES = 8 << 20
"""Moved at once."""
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


def write_file(core: Core, path: str, value: Any, exclusive: bool) -> Operation[None]:
    """Write a whole file, which others see when this returns.

    Raises:
        Error: EXISTS if it must be new and is not; as a write.
    """
    data = memoryview(value).cast("B")

    def work(stream: Stream) -> Operation[int]:
        return (yield from stream.write(data))

    yield from using(core, path, "xb" if exclusive else "wb", work)


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
