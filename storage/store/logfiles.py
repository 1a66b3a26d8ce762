"""The log's segments on a real disk.

A removed segment becomes the next one: to overwrite bytes that the disk has set aside already
takes no journal of the file system, which makes ``fdatasync`` cheap. What it still holds of its
former life is told apart by the segment's number in every frame (frames.py).

Segments are set aside a step ahead of what is written, so that frames which record deletions fit
when somebody else has filled the disk.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from hillfire.storage.store.files import translate
from hillfire.storage.store.parts import Buffer
from hillfire.storage.store.system import System

IOV_LIMIT = 1024
"""How many buffers the system takes in one call."""
AHEAD_BYTES = 1024 * 1024
"""How much of a segment is set aside beyond its last frame."""
_SPARE = "spare"


class DiskLog:
    """The segments of one store's log. See ``parts.LogFiles``."""

    def __init__(self, directory: Path, system: System) -> None:
        """Open what is in ``directory``.

        Raises:
            Error: IO.
        """
        self._directory = directory
        self._system = system
        self._fds: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        try:
            system.make_directory(directory)
            system.sync_directory(directory.parent)
            names = system.names(directory)
            self._spare = _SPARE in names
            for name in names:
                if name.isdecimal():
                    self._fds[int(name)] = system.open(directory / name, os.O_RDWR)
        except OSError as exc:
            raise translate(exc, f"cannot open {directory}") from exc

    def _path(self, number: int) -> Path:
        return self._directory / str(number)

    def segments(self) -> list[int]:
        """See ``LogFiles.segments``."""
        return sorted(self._fds)

    def create(self, number: int) -> None:
        """See ``LogFiles.create``."""
        path, system = self._path(number), self._system
        try:
            if self._spare:
                system.rename(self._directory / _SPARE, path)
                self._spare = False
            fd = self._fds[number] = system.open(path, os.O_RDWR | os.O_CREAT)
            self._sizes[number] = system.size(fd)
            system.sync_directory(self._directory)
        except OSError as exc:
            raise translate(exc, f"cannot create {path}") from exc
        self._set_aside(number, 0)

    def _set_aside(self, number: int, at: int) -> None:
        """Have the disk keep room behind ``at``, if it has some."""
        size = self._sizes[number]
        if size - at < AHEAD_BYTES:
            try:
                self._system.fallocate(self._fds[number], size, 2 * AHEAD_BYTES)
            except OSError:  # there is some still, and deletions are small
                return
            self._sizes[number] = size + 2 * AHEAD_BYTES

    def write(self, number: int, at: int, data: Sequence[Buffer]) -> None:
        """See ``LogFiles.write``."""
        fd = self._fds[number]
        self._set_aside(number, at + sum(map(len, data)))
        try:
            for first in range(0, len(data), IOV_LIMIT):
                at += self._write(fd, data[first : first + IOV_LIMIT], at)
        except OSError as exc:
            raise translate(exc, f"cannot write {self._path(number)}") from exc

    def _write(self, fd: int, data: Sequence[Buffer], at: int) -> int:
        total = sum(map(len, data))
        done = self._system.pwritev(fd, data, at)
        if done < total:  # a signal, or a disk that is just full
            rest = memoryview(b"".join(data))
            while done < total:
                done += self._system.pwrite(fd, rest[done:], at + done)
        return total

    def read(self, number: int) -> bytes:
        """See ``LogFiles.read``."""
        fd = self._fds[number]
        try:
            content = bytearray(self._system.size(fd))
            view, done = memoryview(content), 0
            while done < len(content):
                count = self._system.preadv(fd, [view[done:]], done)
                if not count:
                    break
                done += count
        except OSError as exc:
            raise translate(exc, f"cannot read {self._path(number)}") from exc
        return bytes(content)

    def sync(self, number: int) -> None:
        """See ``LogFiles.sync``."""
        try:
            self._system.fdatasync(self._fds[number])
        except OSError as exc:
            raise translate(exc, f"cannot sync {self._path(number)}") from exc

    def remove(self, number: int) -> None:
        """See ``LogFiles.remove``."""
        path, system = self._path(number), self._system
        try:
            fd = self._fds.pop(number, None)
            if fd is not None:  # otherwise it is the second attempt
                system.close(fd)
            if self._spare:
                system.unlink(path)
            else:
                system.rename(path, self._directory / _SPARE)
                self._spare = True
            system.sync_directory(self._directory)
        except OSError as exc:
            raise translate(exc, f"cannot remove {path}") from exc

    def close(self) -> None:
        """See ``LogFiles.close``."""
        for fd in self._fds.values():
            self._system.close(fd)
        self._fds.clear()
