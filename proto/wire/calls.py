"""A client's outstanding requests, without the socket: what both faces of both transports share.

``Calls`` makes frames of requests and sense of answers. It holds the quarantine rules: a request
that is given up while its server may still be at work leaves its parts in quarantine until the
answer arrives or the connection has ended at the server's side.
"""

import abc
import time
from collections.abc import Callable, Sequence

from hillfire.errors import Code, Error
from hillfire.proto.wire import copies
from hillfire.proto.wire import frame as frames
from hillfire.proto.wire.base import (
    MAX_BODY_BYTES,
    MAX_DATA_BYTES,
    MAX_PARTS,
    Part,
    Parts,
    Reply,
    Request,
)
from hillfire.proto.wire.chunks import operation_of
from hillfire.proto.wire.frame import FILLED, Frame, Kind
from hillfire.proto.wire.outgoing import Outgoing
from hillfire.proto.wire.staging import Loan
from hillfire.proto.wire.stream import Buffer
from hillfire.region import Quarantine, Region
from hillfire.types import ByteRange

Drain = Callable[[], object]
"""Looks, without waiting, for what has arrived on a connection, or whether it has ended."""

MAX_OUTSTANDING = 4096
"""Requests of one connection, those given up included."""


class Call:
    """One request that was sent. ``reply`` is what came of it, None as long as nothing did."""

    __slots__ = ("given_up", "held", "loan", "reply", "request", "sent_ns", "waiter")

    def __init__(self, request: Request, loan: Loan | None) -> None:
        """Begin to wait."""
        self.request = request
        self.sent_ns = time.monotonic_ns()
        self.loan = loan
        self.reply: Reply | Error | None = None
        self.waiter: object = None
        self.given_up = False
        self.held: list[tuple[Region, Quarantine]] = []


class Calls(abc.ABC):
    """The outstanding requests of one connection; a transport says how parts travel."""

    kind: str

    def __init__(self) -> None:
        """Begin with none."""
        self.pending: dict[int, Call] = {}
        self._last = 0

    def start(self, request: Request, timeout_s: float, out: Outgoing, drain: Drain) -> int:
        """Queue a request's frame and return its number.

        Raises:
            Error: INVALID, BUSY, TOO_LARGE as ``BlockingConnection.start``.
        """
        sources, destinations = request.sources, request.destinations
        parts: Sequence[Part] = destinations
        if sources:
            parts = [*sources, *destinations] if destinations else sources
        if len(request.body) > MAX_BODY_BYTES or len(parts) > MAX_PARTS:
            text = f"a request with a body of {len(request.body)} bytes and {len(parts)} parts"
            raise Error(Code.TOO_LARGE, text)
        if len(self.pending) >= MAX_OUTSTANDING:
            raise Error(Code.OVERLOADED, f"{MAX_OUTSTANDING} requests are outstanding")
        if parts:
            self._check(parts, len(sources), drain)
        table, data, loan = self.pack(request, parts, out) if parts else (b"", (), None)
        self._last = number = self._last + 1
        self.pending[number] = Call(request, loan)
        method, body = request.method, request.body
        if data:
            n_bytes = sum(map(len, data))
            head = frames.request(
                method, number, timeout_s, body, table, len(sources), len(destinations), n_bytes
            )
            out.put([head, *data])
        else:
            out.put_one(
                frames.request(
                    method, number, timeout_s, body, table, len(sources), len(destinations)
                )
            )
        return number

    @staticmethod
    def _check(parts: Sequence[Part], sources: int, drain: Drain) -> None:
        """Verify bounds and quarantine.

        Raises:
            Error: INVALID, BUSY, TOO_LARGE.
        """
        total = 0
        quarantined = False
        if type(parts) is Parts:
            from hillfire.proto.wire import part_arrays

            total = part_arrays.check(parts)
            quarantined = bool(parts.region.quarantined)
        else:
            for region, offset, length in parts:
                if offset < 0 or length < 0 or offset + length > region.size:
                    region.check(offset, length)
                total += length
                if region.quarantined:
                    quarantined = True
        if total > MAX_DATA_BYTES:
            raise Error(Code.TOO_LARGE, f"parts of {total} bytes, {MAX_DATA_BYTES} are allowed")
        if quarantined:
            drain()  # raises if that shows that the connection has ended
            for position, (region, offset, length) in enumerate(parts):
                region.check(offset, length, landing=position >= sources)

    @abc.abstractmethod
    def pack(
        self, request: Request, parts: Sequence[Part], out: Outgoing
    ) -> tuple[bytes, Sequence[Buffer], Loan | None]:
        """Return the table and the data of a request, and staging memory that it uses."""

    def place(self, frame: Frame) -> Sequence[memoryview]:
        """Return where an answer's data belongs.

        Raises:
            Error: PROTOCOL for data that nobody asked for.
        """
        raise Error(Code.PROTOCOL, "an answer with data over shm")

    def answered(self, frame: Frame) -> Call | None:
        """Take an answer in and return the call that it ends.

        Raises:
            Error: PROTOCOL for an answer to nothing; what the server refused the connection for.
        """
        if frame.kind != Kind.RESPONSE:
            raise Error(Code.PROTOCOL, f"the server sent a frame of kind {frame.kind}")
        if frame.request == 0:
            raise _failure(frame)
        call = self.pending.pop(frame.request, None)
        if call is None:
            raise Error(Code.PROTOCOL, f"an answer to request {frame.request}, which was not asked")
        if frame.method:
            call.reply = _failure(frame)
        else:
            if call.loan is not None:
                self._land(call, frame)
            call.reply = Reply(frame.body.tobytes())
        if call.held or call.loan is not None:
            self._let_go(call)
        on_way_ns = time.monotonic_ns() - call.sent_ns - 1000 * frame.timeout_ms
        operation_of(call.request.method).wire.observe(max(0, on_way_ns))
        return call

    def _land(self, call: Call, frame: Frame) -> None:
        """Copy what was filled out of staging memory, unless the caller has gone."""
        assert call.loan is not None
        if call.given_up:
            return
        destinations = call.request.destinations
        if type(destinations) is Parts and not call.request.sources:
            self._land_many(call.loan, destinations, frame)
            return
        for position, (filled,) in enumerate(FILLED.iter_unpack(frame.table)):
            if position >= len(call.request.destinations):
                raise Error(Code.PROTOCOL, "more destinations filled than there are")
            view = call.loan.views.get(len(call.request.sources) + position)
            if view is None:
                continue
            region, offset, length = call.request.destinations[position]
            if filled > length:
                raise Error(Code.PROTOCOL, f"{filled} bytes for a destination of {length}")
            region.view[offset : offset + filled] = view[:filled]
            copies.CLIENT.value += filled

    @staticmethod
    def _land_many(loan: Loan, destinations: Parts, frame: Frame) -> None:
        """Copy what was filled of a large batch, neighbours as one."""
        from hillfire.proto.wire import part_arrays

        filled = part_arrays.filled_of(destinations, frame.table)
        staged, view = loan.views[0], destinations.region.view
        for begin, start, length in part_arrays.runs(destinations, filled):
            view[start : start + length] = staged[begin : begin + length]
            copies.CLIENT.value += length

    @staticmethod
    def _let_go(call: Call) -> None:
        """Release what a call holds: nothing touches its memory any more."""
        for region, held in call.held:
            region.release(held)
        call.held.clear()
        if call.loan is not None:
            call.loan.give_back()
            call.loan = None

    def give_up(self, number: int, drain: Drain) -> None:
        """Wait no longer for a request: its parts go into quarantine until its answer arrives."""
        call = self.pending.get(number)
        if call is None or call.given_up:
            return
        call.given_up = True
        request = call.request
        for part in request.sources:
            self._quarantine(call, part, False, drain)
        if self.lands(number):
            for part in request.destinations:
                self._quarantine(call, part, True, drain)

    def give_up_all(self, drain: Drain) -> bool:
        """Give every request up; tell whether that put anything into quarantine."""
        for number in self.pending:
            self.give_up(number, drain)
        return any(call.held for call in self.pending.values())

    def _quarantine(self, call: Call, part: Part, landing: bool, drain: Drain) -> None:
        region, offset, length = part
        if length and self.touches(region):
            held = region.quarantine(ByteRange(offset, length), landing, drain)
            call.held.append((region, held))

    def touches(self, region: Region) -> bool:
        """Tell whether the server, or a late answer, may touch this region itself."""
        return True

    def lands(self, number: int) -> bool:
        """Tell whether anything may still arrive in the destinations of a request given up."""
        return True

    def ended(self) -> list[Call]:
        """Release everything: the connection has ended. Returns the calls it left unanswered."""
        calls = list(self.pending.values())
        self.pending.clear()
        for call in calls:
            self._let_go(call)
        return calls


def _failure(frame: Frame) -> Error:
    """Return the error that an answer carries."""
    text = frame.body.tobytes().decode("utf-8", "replace")
    try:
        return Error(Code(frame.method), text)
    except ValueError:
        return Error(Code.INTERNAL, f"error {frame.method} of a newer server: {text}")
