"""What became of read requests: every piece is verified, and done, to be tried again, or failed.

``Round`` is one operation's work in progress, of reads and writes alike. Holes, and bytes past a
chunk's end but before the file's, are filled with zeros here. Bytes that came over tcp are
verified here; over shm the server verified them in place.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from hillfire import metrics
from hillfire.client import plan
from hillfire.client.actions import Operation, Outcome, Pause
from hillfire.client.bulk import Bulk
from hillfire.client.core import Core
from hillfire.client.hedged import Moved
from hillfire.client.plan import Batch, Piece
from hillfire.client.retry import FIRST_DELAY_S, History, Verdict, after_read
from hillfire.errors import Code, Error
from hillfire.native import crc32c
from hillfire.proto.wire.chunk_arrays import read_results
from hillfire.proto.wire.chunks import READ_RESULTS

Result: TypeAlias = "int | Error"


class Round:
    """One operation's work in progress."""

    __slots__ = (
        "bad",
        "began",
        "core",
        "deadline",
        "delay_s",
        "histories",
        "moved",
        "patient",
        "prompt",
        "refresh",
        "results",
        "short",
        "todo",
    )

    def __init__(self, core: Core, entries: int, deadline: float) -> None:
        """Nothing to do yet."""
        self.core = core
        self.began = core.clock()
        self.bad = 0
        """entries that have failed"""
        self.deadline = deadline
        self.results: list[Result] = [0] * entries
        self.histories: dict[Piece, History] = {}
        self.todo: list[Piece] = []
        self.short: list[Piece] = []
        """pieces with bytes that are not stored, of files that may have gone"""
        self.delay_s = 0.0
        self.refresh = False
        self.patient = True
        self.prompt = False
        """something failed that is to be tried again at once"""
        self.moved: list[Moved] | None = None
        """where hedges left bytes, for who takes them from there"""

    def follow(self, piece: Piece, verdict: Verdict, error: Error) -> None:
        """Carry a verdict out: once more in the next round, or the entry has failed."""
        if verdict.again:
            self.todo.append(piece)
            self.delay_s = max(self.delay_s, verdict.delay_s)
            if not verdict.delay_s and error.code is not Code.NOT_COMMITTED:
                self.prompt = True
            self.refresh = self.refresh or verdict.refresh
        else:
            self.give_up(piece, error)

    def give_up(self, piece: Piece, error: Error) -> None:
        """Fail the entry that a piece belongs to."""
        self.fail(piece.item, error)

    def needed(self, piece: Piece) -> bool:
        """Tell whether a piece is still of use: an entry that has failed needs no others."""
        return not isinstance(self.results[piece.item], Error)

    def fail(self, item: int, error: Error) -> None:
        """Remember an entry's first error."""
        if not isinstance(self.results[item], Error):
            self.results[item] = error
            self.bad += 1

    def ended(self, operation: metrics.Operation, n_bytes: int | None = None) -> list[Result]:
        """Note how long the operation took and how much it moved; returns its results."""
        results = self.results
        operation.client.observe(int((self.core.clock() - self.began) * 1e9))
        operation.items.value += len(results)
        if n_bytes is None or self.bad:
            n_bytes = sum(each for each in results if type(each) is int)
        operation.bytes.value += n_bytes
        if self.bad:
            operation.errors.value += self.bad
        return results

    def between(self) -> Operation[None]:
        """Refresh and wait as the last round's verdicts want it.

        What may be tried again at once waits too when that has become the rule: replicas that
        refuse because there is too much to do are not helped by twice as much.
        """
        used = self.core.routes.version
        refresh, delay_s, prompt = self.refresh, self.delay_s, self.prompt
        self.refresh, self.delay_s, self.prompt = False, 0.0, False
        if prompt and not self.core.hedging.retries.spend(1.0):
            delay_s = max(delay_s, FIRST_DELAY_S)
        if refresh:
            yield from self.core.refresh(used, 0)
        if delay_s and not (refresh and self.core.routes.version > used):
            yield Pause(delay_s)
        self.todo = [piece for piece in self.todo if self.needed(piece)]


def settle(work: Round, batch: Batch, outcome: Outcome) -> None:
    """Sort the answer of one request."""
    error, pieces, node = outcome.error, batch.pieces, batch.node.node
    if error is None:
        try:
            answers = READ_RESULTS.tuples(outcome.body)
            if len(answers) != len(pieces):
                raise Error(Code.PROTOCOL, f"{len(answers)} results for {len(pieces)} reads")
        except Error as exc:
            error = exc
    if error is not None:
        _all_failed(work, node, pieces, error)
        return
    verified = outcome.verified
    for piece, (code, filled, checksum, _) in zip(pieces, answers, strict=True):
        if code or filled != piece[4][2] or not verified:
            _piece(work, piece, node, code, filled, None if verified else checksum)


def settle_bulk(work: Round, request: Bulk, outcome: Outcome) -> None:
    """Sort the answer of one request of a large batch: look closer at what is not as asked."""
    error, node, parts = outcome.error, request.node.node, request.parts
    if error is None:
        try:
            answers = read_results(outcome.body, len(parts))
        except Error as exc:
            error = exc
    if error is not None:
        _all_failed(work, node, [request.piece(at) for at in range(len(parts))], error)
        return
    checksums = answers["checksum"]
    wrong = (answers["code"] != 0) | (answers["filled"] != parts.lengths)
    if not outcome.verified:
        view = parts.region.view
        ends = (parts.offsets + parts.lengths).tolist()
        found = [
            crc32c(view[start:end]) for start, end in zip(parts.offsets.tolist(), ends, strict=True)
        ]
        wrong |= checksums != np.array(found, np.uint32)
    if not wrong.any():
        return
    for at in np.flatnonzero(wrong).tolist():
        checksum = None if outcome.verified else int(checksums[at])
        code, filled = int(answers["code"][at]), int(answers["filled"][at])
        _piece(work, request.piece(at), node, code, filled, checksum)


def _piece(
    work: Round, piece: Piece, node: int, code: int, filled: int, checksum: int | None
) -> None:
    """Sort one answer: verify what has a ``checksum``, fill up what came out short."""
    region, place, length = piece[4]
    if code or filled > length:
        error = error_of(code, piece, node, "read")
    elif checksum is not None and crc32c(region.view[place : place + filled]) != checksum:
        error = Error(Code.CHECKSUM, "bytes changed on their way from the storage node")
    else:
        if filled < length:
            region.view[place + filled : place + length] = bytes(length - filled)
            if work.core.doubts(int.from_bytes(piece.chunk[2:10], "big")):
                work.short.append(piece)
        return
    failed(work, piece, error, plan.target_on(work.core.routes.lines.get(piece.chain), node))


def _all_failed(work: Round, node: int, pieces: Sequence[Piece], error: Error) -> None:
    """Take note that a whole request failed."""
    work.core.note_failure(node, error.code)
    _retried(error.code)
    lines = work.core.routes.lines
    for piece in pieces:
        failed(work, piece, error, plan.target_on(lines.get(piece.chain), node))


def _retried(code: Code) -> None:
    metrics.counter(
        "hillfire_retries_total", "read requests that failed and went on, by why", code=code.name
    ).value += 1


def error_of(code: int, piece: Piece, node: int, what: str) -> Error:
    """Make the error of one item from the code in its result."""
    try:
        known = Code(code) if code else Code.PROTOCOL
    except ValueError:
        known = Code.PROTOCOL
    inode, index = int.from_bytes(piece.chunk[2:10]), int.from_bytes(piece.chunk[12:16])
    text = (
        f"{what} of chunk {index} of inode {inode} on chain {piece.chain} at node "
        f"{node}: {known.name}"
    )
    return Error(known, text)


def failed(work: Round, piece: Piece, error: Error, target: int) -> None:
    """Decide what to do with a piece that ``target`` answered with an error."""
    core = work.core
    history = work.histories.get(piece)
    if history is None:
        history = work.histories[piece] = History()
    line = core.routes.lines.get(piece.chain)
    serving = len(line.serving) if line is not None else 1
    now = core.clock()
    if error.code is Code.TIMED_OUT and not work.patient:
        try:
            piece.part.region.check(piece.part.offset, piece.part.length)
        except Error as busy:
            work.fail(piece.item, busy)
            return
    verdict = after_read(history, error.code, str(error), target, serving, now, work.deadline)
    work.follow(piece, verdict, error)
