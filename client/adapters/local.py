"""Files from the local disk and to it, through staging memory: not copied in this process."""

from collections.abc import Callable
from typing import Any

from hillfire.client.adapters.moving import staged, window_of
from hillfire.client.adapters.results import good
from hillfire.client.file import File
from hillfire.client.filesystem import FileSystem

Progress = Callable[[int], object]


def read_out(client: FileSystem, file: File, write: Callable[[Any], Any], told: Progress) -> None:
    """Hand all of ``file`` to ``write``, a memoryview at a time; ``told`` is told byte counts.

    Raises:
        Error: of the first range that cannot be read.
    """
    with staged(client._core, window_of(file.stream.length)) as part:
        view, offset = part.region.view, 0
        while count := good(
            client.read_batch([(file, offset, part.offset, part.length)], part.region)[0]
        ):
            left = view[part.offset : part.offset + count]
            while left:
                taken = write(left)
                left = left[taken if isinstance(taken, int) else len(left) :]
            offset += count
            told(count)


def write_in(
    client: FileSystem,
    fill: Callable[[memoryview], int | None],
    file: File,
    size: int,
    told: Progress,
) -> None:
    """Write to ``file`` what ``fill`` puts into the memory it is given, until it puts nothing.

    ``size``: about how much that will be, in bytes.

    Raises:
        Error: of the first range that cannot be written.
    """
    with staged(client._core, window_of(size)) as part:
        view, offset = part.region.view[part.offset : part.offset + part.length], 0
        while count := fill(view):
            good(client.write_batch([(file, offset, part.offset, count)], part.region)[0])
            offset += count
            told(count)
