"""A copy of the metadata log as files: which of them make a state, and how far it goes.

Storage nodes keep such a directory (``storage/metalog.py``), a restore reads it
(``meta/restore.py``). A copy is a snapshot and every record since. Files that belong to no such
run are kept until one that is newer is whole: a snapshot under way never costs the last good copy.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.proto import metalog_format as form
from hillfire.proto.metalog_format import Pair, Position, Record, Segment, SnapshotHead

SEGMENT_PREFIX = "log-"
SNAPSHOT_PREFIX = "snapshot-"
PARTIAL = ".partial"


class Span(NamedTuple):
    """Whole records of one file that continue a run."""

    path: Path
    start: int
    end: int


class Run(NamedTuple):
    """A state that can be rebuilt: a snapshot and the records behind it."""

    history: int
    position: Position
    time_ns: int
    """when the last transaction in it was committed"""
    snapshot: Path
    spans: tuple[Span, ...]
    problems: tuple[str, ...]
    """damage that cut it short, in words"""


def segment_name(epoch: int, first: int) -> str:
    """Return a log file's name."""
    return f"{SEGMENT_PREFIX}{epoch:016x}-{first:016x}"


def snapshot_name(epoch: int, sequence: int) -> str:
    """Return a snapshot's name."""
    return f"{SNAPSHOT_PREFIX}{epoch:016x}-{sequence:016x}"


def segments(directory: Path) -> list[tuple[Segment, Path]]:
    """Return the log files with a readable head, oldest first.

    Raises:
        Error: WRONG_PEER_VERSION.
    """
    found = []
    for path in directory.glob(f"{SEGMENT_PREFIX}*"):
        with path.open("rb") as file:
            head = form.read_segment_head(file.read(form.SEGMENT_BYTES))
        if head is not None:
            found.append((head, path))
    return sorted(found, key=lambda each: (each[0].epoch, each[0].first))


def snapshots(directory: Path) -> list[tuple[SnapshotHead, Path]]:
    """Return the finished snapshots, newest first.

    Raises:
        Error: WRONG_PEER_VERSION.
    """
    found = []
    for path in directory.glob(f"{SNAPSHOT_PREFIX}*"):
        if path.name.endswith(PARTIAL):
            continue
        with path.open("rb") as file:
            head = form.read_snapshot_head(file.read(form.SNAPSHOT_HEAD_BYTES))
        if head is not None:
            found.append((head, path))
    return sorted(found, key=lambda each: (each[0].epoch, each[0].sequence), reverse=True)


def runs(directory: Path) -> list[Run]:
    """Return what can be rebuilt from a copy, newest first; snapshots are not read through here.

    Raises:
        Error: WRONG_PEER_VERSION.
    """
    logs = segments(directory)
    found = [_follow(head, path, logs) for head, path in snapshots(directory)]
    return sorted(found, key=lambda run: run.position, reverse=True)


def _follow(head: SnapshotHead, snapshot: Path, logs: list[tuple[Segment, Path]]) -> Run:
    position, time_ns = (head.epoch, head.sequence), head.time_ns
    spans, problems = list[Span](), list[str]()
    for segment, path in logs:
        follows = (segment.follows_epoch or segment.epoch, segment.first - 1)
        same = segment.epoch == position[0] and segment.first <= position[1] + 1
        if segment.history != head.history or not (same or follows == position):
            continue
        data = path.read_bytes()
        start = end = form.SEGMENT_BYTES
        for epoch, sequence, written_ns, behind in form.split_records(memoryview(data)[start:]):
            if epoch != segment.epoch or (epoch == position[0] and sequence > position[1] + 1):
                break
            if epoch == position[0] and sequence <= position[1]:
                start = end = form.SEGMENT_BYTES + behind
                continue
            position, time_ns, end = (epoch, sequence), written_ns, form.SEGMENT_BYTES + behind
        if end > start:
            spans.append(Span(path, start, end))
        if end < len(data):
            problems.append(f"{path}: damaged or torn at byte {end}")
    return Run(head.history, position, time_ns, snapshot, tuple(spans), tuple(problems))


def tail(directory: Path) -> tuple[Segment, Path, Position, int, int] | None:
    """Return the newest log file: head, path, last position, its time and where records end."""
    logs = segments(directory)
    if not logs:
        return None
    segment, path = logs[-1]
    position, time_ns, end = (segment.epoch, segment.first - 1), 0, form.SEGMENT_BYTES
    data = memoryview(path.read_bytes())[form.SEGMENT_BYTES :]
    for epoch, sequence, written_ns, behind in form.split_records(data):
        if (epoch, sequence) != (position[0], position[1] + 1):
            break
        position, time_ns, end = (epoch, sequence), written_ns, form.SEGMENT_BYTES + behind
    return segment, path, position, time_ns, end


def read_snapshot(path: Path) -> Iterator[list[Pair]]:
    """Yield a snapshot's pairs in blocks, in the order of their keys.

    Raises:
        Error: CORRUPT when a block is damaged or the end is missing.
    """
    count = 0
    with path.open("rb") as file:
        file.seek(form.SNAPSHOT_HEAD_BYTES)
        while frame := file.read(form.FRAME_BYTES):
            if len(frame) < form.FRAME_BYTES:
                break
            length, crc = form.block_length(frame)
            if length == 0:
                if form.read_end(file.read(form.END_BYTES)) == count and not file.read(1):
                    return
                break
            body = file.read(length)
            pairs = form.read_block(body, crc)
            count += len(pairs)
            yield pairs
    raise Error(Code.CORRUPT, f"{path} is damaged or not whole")


def check_snapshot(path: Path) -> None:
    """Read a snapshot through.

    Raises:
        Error: CORRUPT.
    """
    for _ in read_snapshot(path):
        pass


def read_records(run: Run) -> Iterator[Record]:
    """Yield the transactions behind a run's snapshot, in their order."""
    for span in run.spans:
        data = memoryview(span.path.read_bytes())[span.start : span.end]
        start = 0
        for _, _, _, end in form.split_records(data):
            yield form.decode_record(data, start)
            start = end
