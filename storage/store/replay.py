"""Replaying the log: what happened since the last checkpoint, done once more in memory.

Frames are numbered without gaps. The log ends at the first one that is missing or damaged: the
process died in the middle of writing it, or the host's power went and with it bytes that nobody
had synced. If a later frame says that the missing one was on the disk, the disk has lost it: such
a store does not open, as it would answer with what it was before.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.storage.store.becoming import committed
from hillfire.storage.store.frames import (
    Commit,
    Discard,
    Entry,
    Forget,
    Learn,
    Prepare,
    parse,
    scan,
)
from hillfire.storage.store.parts import Parts, RecordsDatabase
from hillfire.storage.store.records import (
    Channel,
    LatestTag,
    PendingRecord,
    Record,
    chunk_key,
    unpack_record,
)
from hillfire.types import ChunkId


class Replayed(NamedTuple):
    """What the log says beyond the database."""

    frame: int
    """the last one"""
    records: dict[ChunkId, Record]
    pending: dict[ChunkId, PendingRecord]
    """all there are, the database's too"""
    tags: dict[Channel, LatestTag | None]
    """those that changed; None: the client's session ended"""
    torn: bool
    """whether there are frames behind the last one, which must never count"""


class _Replay:
    def __init__(
        self,
        database: RecordsDatabase,
        segment: int,
        pending: dict[ChunkId, PendingRecord],
        tags: dict[Channel, LatestTag],
    ) -> None:
        self._database = database
        self._segment = segment
        self._known: dict[ChunkId, Record | None] = {}
        self._passed: set[ChunkId] = set()
        self.records: dict[ChunkId, Record] = {}
        self.pending = pending
        self.tags = tags
        self.changed: dict[Channel, LatestTag | None] = {}

    def _stored(self, chunk: ChunkId) -> Record | None:
        """Return a chunk's record in the database."""
        if chunk not in self._known:
            value = self._database.get(chunk_key(chunk))
            self._known[chunk] = None if value is None else unpack_record(value)
        return self._known[chunk]

    def _is_past(self, chunk: ChunkId, number: int) -> bool:
        """Tell whether a checkpoint that did not end has stored what came of a frame already."""
        stored = self._stored(chunk)
        return stored is not None and stored.frame >= number

    def apply(self, entry: Entry, number: int) -> None:
        """Do what an entry of a frame says."""
        if isinstance(entry, Prepare):
            chunk = entry.chunk
            if self._is_past(chunk, number):
                self._passed.add(chunk)
                self.pending[chunk] = entry._replace(block=None).record(None)
            else:
                self._passed.discard(chunk)
                self.pending[chunk] = entry.record(self.records.get(chunk) or self._stored(chunk))
        elif isinstance(entry, Commit):
            self._commit(entry, number)
        elif isinstance(entry, Discard):
            self.pending.pop(entry.chunk, None)
        elif isinstance(entry, Learn):
            self._tag(entry.tag)
        else:
            assert isinstance(entry, Forget), "there are five kinds of entry"
            for channel in [each for each in self.tags if each[0] == entry.client]:
                del self.tags[channel]
                self.changed[channel] = None

    def _commit(self, entry: Commit, number: int) -> None:
        chunk = entry.chunk
        waiting = self.pending.pop(chunk, None)
        if waiting is None or waiting.pending.version != entry.version:
            raise Error(Code.CORRUPT, f"the log commits {chunk.hex()}, which was not pending")
        self._tag((waiting.pending.tag, chunk, entry.version))
        if not self._is_past(chunk, number):
            old = self.records.get(chunk) or self._stored(chunk)
            self.records[chunk] = committed(
                waiting, old, entry.chain_version, number, self._segment
            )

    def _tag(self, latest: LatestTag) -> None:
        tag = latest[0]
        channel = tag.client, tag.channel
        before = self.tags.get(channel)
        if before is None or before[0].sequence <= tag.sequence:
            self.tags[channel] = self.changed[channel] = latest

    def end(self, frame: int, torn: bool) -> Replayed:
        """Return what came of it."""
        for chunk in self._passed & set(self.pending):
            del self.pending[chunk]
        return Replayed(frame, self.records, self.pending, self.changed, torn)


def replay(
    parts: Parts,
    segments: Sequence[int],
    frame: int,
    pending: dict[ChunkId, PendingRecord],
    tags: dict[Channel, LatestTag],
) -> Replayed:
    """Replay segments behind ``frame``, over what the database says is pending and latest.

    ``pending`` and ``tags`` are brought up to date.

    Raises:
        Error: CORRUPT if a frame that was on the disk is damaged, IO.
    """
    state = _Replay(parts.records, segments[-1] if segments else 0, pending, tags)
    missing = False
    for segment in segments:
        for found in scan(parts.log.read(segment), segment):
            if found.number == frame + 1 and not missing:
                frame += 1
                for entry in parse(found.entries, found.images):
                    state.apply(entry, frame)
            elif found.durable > frame:
                text = f"log frame {frame + 1} is damaged, and it was on the disk"
                raise Error(Code.CORRUPT, text)
            elif found.number > frame:
                missing = True
    return state.end(frame, missing)
