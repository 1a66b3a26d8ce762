"""The journal: what is appended to the log, in which order, and how far it is on the disk.

One frame a batch, and an empty one after a sync, which tells later what was safe. ``lock`` is held
from the append of a frame until memory shows what it says, so that a segment and the state at its
end belong together (checkpoint.py). A frame that could not be written whole is overwritten by the
next. After a failed ``sync`` nobody knows what is on the disk, so the journal refuses everything
from then on.
"""

import threading
from collections.abc import Callable, Iterable, Sequence

from hillfire.errors import Code, Error
from hillfire.storage.store.frames import seal
from hillfire.storage.store.parts import Buffer, LogFiles


class Journal:
    """The log of one store, from a fresh segment on."""

    def __init__(
        self,
        files: LogFiles,
        segment: int,
        frame: int,
        free: Callable[[], bool],
        *,
        behind: Iterable[int] = (),
        durable: int = 0,
    ) -> None:
        """Begin ``segment`` after frame number ``frame``; ``free`` may make room on a full disk.

        ``behind``: the segments of frames after ``durable``, which may not be on the disk.

        Raises:
            Error: NO_SPACE, IO.
        """
        self._files = files
        self._free = free
        self.lock = threading.Lock()
        self._syncing = threading.Lock()
        self.segment = segment
        self.frame = frame
        """the number of the last frame"""
        self.position = 0
        """how many bytes of the segment are taken"""
        self._durable = durable
        self._clean = durable
        """the last frame that needs no sync: it says only that those before had one"""
        self._behind = list(behind)
        """sealed segments that may not be on the disk yet"""
        self._failed: Error | None = None
        self._create(segment)

    def __repr__(self) -> str:
        """Tell how far it is."""
        return f"<Journal segment {self.segment} frame {self.frame} at {self.position}>"

    def _create(self, segment: int) -> None:
        try:
            self._files.create(segment)
        except Error as exc:
            if exc.code != Code.NO_SPACE or not self._free():
                raise
            self._files.create(segment)

    def append(self, entries: Sequence[bytes], images: Sequence[Buffer] = ()) -> int:
        """Write a frame, with ``lock`` held; returns its number.

        Raises:
            Error: NO_SPACE, IO; the log is then as it was.
        """
        if self._failed is not None:
            raise self._failed
        number = self.frame + 1
        data, n_bytes = seal(self.segment, number, self._durable, entries, images)
        try:
            self._files.write(self.segment, self.position, data)
        except Error as exc:
            if exc.code != Code.NO_SPACE or not self._free():
                raise
            self._files.write(self.segment, self.position, data)
        self.position += n_bytes
        self.frame = number
        return number

    def sync(self) -> None:
        """Bring all frames to the disk; callers that come meanwhile share the next turn.

        Raises:
            Error: IO.
        """
        with self.lock:
            frame = self.frame
        with self._syncing:
            if self._clean >= frame:
                return
            with self.lock:
                if self._failed is not None:
                    raise self._failed
                frame, segments = self.frame, [*self._behind, self.segment]
            for segment in segments:
                try:
                    self._files.sync(segment)
                except Error as exc:
                    self._failed = Error(Code.IO, f"the log is lost: {exc.strerror}")
                    raise self._failed from exc
            with self.lock:
                self._behind = [each for each in self._behind if each not in segments]
                self._durable = self._clean = frame
                if self.frame == frame:
                    self._mark_clean()

    def _mark_clean(self) -> None:
        """Say in the log what is on the disk; a disk that is full for that has it all the same."""
        try:
            self._clean = self.append(())
        except Error as exc:
            if exc.code != Code.NO_SPACE:
                raise

    def rotate(self) -> int:
        """Seal the segment and begin the next, with ``lock`` held; returns the sealed one.

        Raises:
            Error: NO_SPACE, IO; nothing has changed then.
        """
        sealed = self.segment
        self._create(sealed + 1)
        self._behind.append(sealed)
        self.segment = sealed + 1
        self.position = 0
        return sealed

    def remove(self, segment: int) -> None:
        """Drop a segment that was checkpointed and synced.

        Raises:
            Error: IO.
        """
        with self._syncing:  # which lists segments first, and syncs them then
            with self.lock:  # the frame that tells of the last sync may be all that is not there
                self._behind = [each for each in self._behind if each != segment]
            self._files.remove(segment)
