"""A copy of the metadata service's transaction log, kept beside this node's targets.

``LogCopy`` is the directory: append only what follows, a snapshot now and then, durable before it
is answered. ``MetaLogService`` answers for it on the event loop. What the files are is in
``proto/metalog_format.py``; what can be rebuilt from them in ``proto/metalog_files.py``.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from hillfire.durable import sync_directory
from hillfire.errors import Code, Error
from hillfire.proto import metalog_files as files
from hillfire.proto import metalog_format as form
from hillfire.proto import metalog_pb2 as pb
from hillfire.proto.dispatch import CallContext
from hillfire.proto.metalog_format import Segment, SnapshotHead

log = logging.getLogger(__name__)

SEGMENT_LIMIT_BYTES = 16 << 20
"""A log file that is longer is followed by another, so that old ones can go."""
MAX_READ_BYTES = 4 << 20

T = TypeVar("T")


class State(NamedTuple):
    """How far a copy goes."""

    history: int = 0
    epoch: int = 0
    sequence: int = 0
    complete: bool = False
    time_ns: int = 0
    log_bytes: int = 0


class LogCopy:
    """One copy's directory; one caller at a time."""

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which is made with the first record."""
        self._directory = directory
        self._state: State | None = None
        self._fd = -1
        self._end = 0

    def position(self) -> State:
        """Return how far this copy goes.

        Raises:
            Error: IO, WRONG_PEER_VERSION.
        """
        if self._state is None:
            self._state = self._load()
        return self._state

    def append(
        self, history: int, epoch: int, first: int, follows_epoch: int, records: bytes
    ) -> State:
        """Add records that follow; what is here already is left out.

        Raises:
            Error: STALE for another database's or an older epoch's records, MISSING_UPDATE for a
                gap, CHECKSUM for damaged records, IO, NO_SPACE.
        """
        state = self._admit(history, epoch)
        last, starts = self._check(epoch, first, records)
        known = state.epoch == epoch
        if known and last <= state.sequence:
            return state
        skip = state.sequence + 1 - first if known and first <= state.sequence else 0
        first, records = first + skip, records[starts[skip] :]
        follows = (state.epoch, state.sequence) == (follows_epoch, first - 1)
        continues = known and state.sequence == first - 1
        if not (continues or follows or not follows_epoch):
            raise Error(
                Code.MISSING_UPDATE,
                f"record {first} of epoch {epoch} does not follow {state.sequence} of "
                f"{state.epoch}, the last one here",
            )
        try:
            if not continues or self._fd < 0 or self._end > SEGMENT_LIMIT_BYTES:
                before = epoch if continues else follows_epoch if follows else 0
                self._open(Segment(history, epoch, first, before))
            _write_all(self._fd, records, self._end)
            os.fdatasync(self._fd)
        except OSError as error:
            self._forget()
            raise _translated(error, self._directory) from error
        self._end += len(records)
        time_ns = max((t for *_, t, _ in form.split_records(records)), default=0)
        self._state = State(
            history,
            epoch,
            last,
            state.complete and (continues or follows),
            time_ns,
            state.log_bytes + len(records),
        )
        return self._state

    def snapshot(self, head: SnapshotHead, offset: int, piece: bytes, last: bool) -> State:
        """Add a piece of a snapshot; the last one makes it count.

        Raises:
            Error: STALE, MISSING_UPDATE for a piece that does not follow, CORRUPT, IO, NO_SPACE.
        """
        self._admit(head.history, head.epoch)
        path = self._directory / files.snapshot_name(head.epoch, head.sequence)
        partial_path = path.with_name(path.name + files.PARTIAL)
        try:
            self._make_directory()
            if offset == 0:
                for other in self._directory.glob(f"{files.SNAPSHOT_PREFIX}*{files.PARTIAL}"):
                    other.unlink()
            fd = os.open(partial_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size != offset:
                    raise Error(Code.MISSING_UPDATE, f"a piece at {offset} does not follow")
                _write_all(fd, piece, offset)
                if last:
                    os.fsync(fd)
            finally:
                os.close(fd)
            if last:
                files.check_snapshot(partial_path)
                partial_path.rename(path)
                sync_directory(self._directory)
                self._prune(head)
        except Error:
            partial_path.unlink(missing_ok=True)
            raise
        except OSError as error:
            self._forget()
            raise _translated(error, self._directory) from error
        if last:
            self._forget()
        return self.position()

    def listing(self) -> list[tuple[str, int]]:
        """Return the finished files with their lengths."""
        if not self._directory.is_dir():
            return []
        paths = [p for p in self._directory.iterdir() if not p.name.endswith(files.PARTIAL)]
        return sorted((path.name, path.stat().st_size) for path in paths)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return a piece of a file.

        Raises:
            Error: NOT_FOUND, IO.
        """
        if "/" in name or not name.startswith((files.SEGMENT_PREFIX, files.SNAPSHOT_PREFIX)):
            raise Error(Code.NOT_FOUND, f"no file {name!r} of a copied log")
        try:
            with (self._directory / name).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except FileNotFoundError as error:
            raise Error(Code.NOT_FOUND, f"{name} has gone: a newer snapshot replaced it") from error
        except OSError as error:
            raise _translated(error, self._directory) from error

    def close(self) -> None:
        """Release the file. Idempotent."""
        self._forget()

    def _admit(self, history: int, epoch: int) -> State:
        state = self.position()
        if state.history not in (0, history):
            raise Error(
                Code.STALE,
                f"{self._directory} keeps a copy of another metadata database of this cluster: "
                "restore that with `hillfire meta restore`, or delete this directory",
            )
        if epoch < state.epoch:
            raise Error(
                Code.STALE,
                f"{self._directory} has epoch {state.epoch} of the metadata, this is {epoch}: a "
                "restored or newer service has taken over",
            )
        return state

    @staticmethod
    def _check(epoch: int, first: int, records: bytes) -> tuple[int, list[int]]:
        """Return the last sequence and where each record begins."""
        expected, starts = first, [0]
        for of_epoch, sequence, _, end in form.split_records(records):
            if (of_epoch, sequence) != (epoch, expected):
                break
            expected += 1
            starts.append(end)
        if starts[-1] != len(records) or expected == first:
            raise Error(Code.CHECKSUM, "records arrived damaged or out of order")
        return expected - 1, starts

    def _load(self) -> State:
        """Find out how far this copy goes; a torn end is cut off before anything follows it."""
        try:
            runs = files.runs(self._directory)
            tail = files.tail(self._directory)
        except Error:
            raise
        except OSError as error:
            raise _translated(error, self._directory) from error
        best = runs[0] if runs else None
        if tail is None or (best is not None and best.position > tail[2]):
            if best is None:
                return State()
            return State(best.history, *best.position, True, best.time_ns, 0)
        segment, path, position, time_ns, end = tail
        complete = best is not None and best.position == position
        log_bytes = sum(span.end - span.start for span in best.spans) if best else 0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(self._fd).st_size > end:
                log.warning("event=torn_log_cut path=%s at=%d", path, end)
                os.ftruncate(self._fd, end)
                os.fsync(self._fd)
        except OSError as error:
            self._forget()
            raise _translated(error, self._directory) from error
        self._end = end
        if complete and best is not None:
            time_ns = best.time_ns
        return State(segment.history, *position, complete, time_ns, log_bytes)

    def _open(self, segment: Segment) -> None:
        """Begin a log file."""
        self._make_directory()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        path = self._directory / files.segment_name(segment.epoch, segment.first)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        head = form.segment_head(segment)
        _write_all(self._fd, head, 0)
        os.fsync(self._fd)
        sync_directory(self._directory)
        self._end = len(head)

    def _prune(self, head: SnapshotHead) -> None:
        """Remove what a finished snapshot has made useless."""
        for other, path in files.snapshots(self._directory):
            if (other.epoch, other.sequence) < (head.epoch, head.sequence):
                path.unlink()
        logs = files.segments(self._directory)
        for number, (segment, path) in enumerate(logs):
            after = logs[number + 1][0] if number + 1 < len(logs) else segment
            over = after is not segment and after.epoch == head.epoch
            if segment.epoch < head.epoch or (over and after.first <= head.sequence + 1):
                path.unlink()

    def _make_directory(self) -> None:
        if not self._directory.is_dir():
            self._directory.mkdir(parents=True, exist_ok=True)
            sync_directory(self._directory.parent)
            sync_directory(self._directory.parent.parent)

    def _forget(self) -> None:
        """Look at the disk again before anything else is done: it decides what is there."""
        self._state = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class MetaLogService:
    """The MetaLog service of one node."""

    def __init__(self, directory: Path, cluster: Callable[[], str], executor: Executor) -> None:
        """Keep the copy under ``directory`` / "meta-log"; ``cluster`` is the node's own."""
        self._directory = directory / "meta-log"
        self._cluster = cluster
        self._executor = executor
        self._serial = threading.Lock()
        """held by the thread that works: a call whose caller gave up still ends its work"""
        self._copy: LogCopy | None = None

    async def position(self, request: pb.LogRequest, context: CallContext) -> pb.LogPosition:
        """Tell how far the copy goes."""
        copy = self._of(request.cluster)
        return _message(await self._do(copy.position))

    async def append(self, request: pb.LogAppend, context: CallContext) -> pb.LogPosition:
        """Add records."""
        copy = self._of(request.cluster)
        work = partial(
            copy.append,
            request.history,
            request.epoch,
            request.first,
            request.follows_epoch,
            request.records,
        )
        return _message(await self._do(work))

    async def snapshot(self, request: pb.LogSnapshot, context: CallContext) -> pb.LogPosition:
        """Add a piece of a snapshot."""
        copy = self._of(request.cluster)
        head = SnapshotHead(request.history, request.epoch, request.sequence, request.time_ns)
        work = partial(copy.snapshot, head, request.offset, request.piece, request.last)
        return _message(await self._do(work))

    async def files(self, request: pb.LogRequest, context: CallContext) -> pb.LogFiles:
        """List the copy's files."""
        cluster = request.cluster or self._cluster()
        found = await self._do(self._of(cluster).listing)
        listed = [pb.LogFile(name=name, length=size) for name, size in found]
        return pb.LogFiles(files=listed, cluster=cluster)

    async def read(self, request: pb.LogRead, context: CallContext) -> pb.LogPiece:
        """Return a piece of a file."""
        length = min(request.length, MAX_READ_BYTES)
        work = partial(self._of(request.cluster).read, request.name, request.offset, length)
        return pb.LogPiece(piece=await self._do(work))

    def close(self) -> None:
        """Release the files."""
        with self._serial:
            if self._copy is not None:
                self._copy.close()
                self._copy = None

    def _of(self, cluster: str) -> LogCopy:
        mine = self._cluster()
        if not mine or cluster != mine:
            raise Error(Code.WRONG_CLUSTER, f"this node belongs to cluster {mine or '(none yet)'}")
        if self._copy is None:
            self._copy = LogCopy(self._directory / mine)
        return self._copy

    async def _do(self, work: Callable[[], T]) -> T:
        def alone() -> T:
            with self._serial:
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._executor, alone)


def _message(state: State) -> pb.LogPosition:
    return pb.LogPosition(
        history=state.history,
        epoch=state.epoch,
        sequence=state.sequence,
        complete=state.complete,
        time_ns=state.time_ns,
        log_bytes=state.log_bytes,
    )


def _write_all(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count


def _translated(error: OSError, directory: Path) -> Error:
    code = Code.NO_SPACE if error.errno == 28 else Code.IO
    return Error(code, f"cannot keep the metadata's log in {directory}: {error.strerror}")
