"""A client's outstanding requests, without the socket: what both faces of both transports share.

``Calls`` makes frames of requests and sense of answers. It holds the quarantine rules: a request
that is given up while its server may still be at work leaves its parts in quarantine until the
answer arrives or the connection has ended at the server's side.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import (
    MAX_BODY_BYTES,
    MAX_DATA_BYTES,
    MAX_PARTS,
    Part,
    Reply,
    Request,
)
from hillfire.proto.wire.frame import (
    FILLED,
    PART,
    REGISTER,
    UNREGISTER,
    Frame,
    Kind,
    encode,
    milliseconds,
)
from hillfire.proto.wire.outgoing import Buffer, Outgoing
from hillfire.proto.wire.staging import Loan, Staging
from hillfire.region import Quarantine, Region
from hillfire.types import ByteRange

Drain = Callable[[], object]
"""Looks, without waiting, for what has arrived on a connection, or whether it has ended."""

MAX_OUTSTANDING = 4096
"""Requests of one connection, those given up included."""


class Call:
    """One request that was sent. ``reply`` is what came of it, None as long as nothing did."""

    __slots__ = ("given_up", "held", "loan", "reply", "request", "waiter")

    def __init__(self, request: Request, loan: Loan | None) -> None:
        """Begin to wait."""
        self.request = request
        self.loan = loan
        self.reply: Reply | Error | None = None
        self.waiter: object = None
        self.given_up = False
        self.held: list[tuple[Region, Quarantine]] = []


class Calls:
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
        parts = [*sources, *destinations] if sources or destinations else ()
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
        head = encode(
            Kind.REQUEST,
            request.method,
            number,
            timeout_ms=milliseconds(timeout_s),
            table=table,
            body=request.body,
            sources=len(sources),
            destinations=len(destinations),
            data_bytes=sum(map(len, data)) if data else 0,
        )
        out.put([head, *data] if data else [head])
        return number

    @staticmethod
    def _check(parts: Sequence[Part], sources: int, drain: Drain) -> None:
        """Verify bounds and quarantine.

        Raises:
            Error: INVALID, BUSY, TOO_LARGE.
        """
        total = 0
        quarantined = False
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

    def pack(
        self, request: Request, parts: Sequence[Part], out: Outgoing
    ) -> tuple[bytes, Sequence[Buffer], Loan | None]:
        """Return the table and the data of a request, and staging memory that it uses."""
        raise NotImplementedError

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
        self._let_go(call)
        return call

    def _land(self, call: Call, frame: Frame) -> None:
        """Copy what was filled out of staging memory, unless the caller has gone."""
        assert call.loan is not None
        if call.given_up:
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


class TcpCalls(Calls):
    """Over tcp: sources leave behind the frame, destinations are received into directly."""

    kind = "tcp"

    def pack(
        self, request: Request, parts: Sequence[Part], out: Outgoing
    ) -> tuple[bytes, Sequence[Buffer], Loan | None]:
        """Return lengths as the table and the sources' own memory, neighbours as one."""
        pack = PART.pack
        table = b"".join([pack(0, 0, part.length) for part in parts])
        return table, _merge(request.sources), None

    def place(self, frame: Frame) -> Sequence[memoryview]:
        """Return the destinations that an answer fills."""
        call = self.pending.get(frame.request)
        if frame.kind != Kind.RESPONSE or call is None:
            raise Error(Code.PROTOCOL, "data that was not asked for")
        if call.given_up:
            return _scrap(frame.data_bytes)
        destinations = call.request.destinations
        if frame.sources or frame.destinations != len(destinations):
            raise Error(Code.PROTOCOL, "an answer with other parts than its request")
        filled = []
        total = 0
        for (region, offset, length), (count,) in zip(
            destinations, FILLED.iter_unpack(frame.table), strict=True
        ):
            if count > length:
                raise Error(Code.PROTOCOL, f"{count} bytes for a destination of {length}")
            total += count
            filled.append(Part(region, offset, count))
        if total != frame.data_bytes:
            raise Error(Code.PROTOCOL, "an answer's parts do not add up to its data")
        return _merge(filled)


_SCRAP = memoryview(bytearray(64 * 1024))


def _scrap(n_bytes: int) -> list[memoryview]:
    """Return memory that nobody reads, again and again the same."""
    whole, rest = divmod(n_bytes, len(_SCRAP))
    return [_SCRAP] * whole + [_SCRAP[:rest]]


def _merge(parts: Sequence[Part]) -> list[memoryview]:
    """Return the views of parts, neighbours in a region as one."""
    views = []
    last: Region | None = None
    start = stop = 0
    for region, offset, length in parts:
        if region is last and offset == stop:
            stop += length
            continue
        if last is not None and stop > start:
            views.append(last.view[start:stop])
        last, start, stop = region, offset, offset + length
    if last is not None and stop > start:
        views.append(last.view[start:stop])
    return views


class ShmCalls(Calls):
    """Over shm: memfd regions are registered at first use; foreign parts pass through staging."""

    kind = "shm"

    def __init__(self) -> None:
        """Begin with no region registered."""
        super().__init__()
        self._registered: set[int] = set()
        self._gone: deque[int] = deque()
        self._staging = Staging()

    def pack(
        self, request: Request, parts: Sequence[Part], out: Outgoing
    ) -> tuple[bytes, Sequence[Buffer], Loan | None]:
        """Return the addresses of the parts; register regions that the server does not know."""
        while self._gone:
            self._unregister(self._gone.popleft(), out)
        registered = self._registered
        records = []
        foreign = None
        for position, (region, offset, length) in enumerate(parts):
            if region.id not in registered:
                if region.fd < 0:
                    foreign = [] if foreign is None else foreign
                    foreign.append((position, length))
                    records.append(b"")
                    continue
                self._register(region, out)
            records.append(PART.pack(region.id, offset, length))
        if foreign is None:
            return b"".join(records), (), None
        return self._stage(request, parts, foreign, records, out)

    def _stage(
        self,
        request: Request,
        parts: Sequence[Part],
        foreign: list[tuple[int, int]],
        records: list[bytes],
        out: Outgoing,
    ) -> tuple[bytes, Sequence[Buffer], Loan]:
        """Give foreign parts a place in memory that the server can map; copy sources there."""
        loan = self._staging.lend(foreign)
        if loan.region.id not in self._registered:
            self._register(loan.region, out)
        for position, length in foreign:
            records[position] = PART.pack(loan.region.id, loan.offsets[position], length)
            if position < len(request.sources):
                region, offset, _ = parts[position]
                loan.views[position][:] = region.view[offset : offset + length]
        return b"".join(records), (), loan

    def _register(self, region: Region, out: Outgoing) -> None:
        """Send a region's descriptor ahead of the first request that uses it."""
        frame = encode(Kind.REGISTER, body=REGISTER.pack(region.id, region.size))
        out.put([frame], fd=os.dup(region.fd))
        self._registered.add(region.id)
        region.on_close(self._gone.append)

    def _unregister(self, region: int, out: Outgoing) -> None:
        """Let the server unmap a region that has ended here."""
        out.put([encode(Kind.UNREGISTER, body=UNREGISTER.pack(region))])
        self._registered.discard(region)

    def ended(self) -> list[Call]:
        """Release everything, the staging memory too."""
        calls = super().ended()
        self._staging.close()
        return calls

    def touches(self, region: Region) -> bool:
        """Tell whether the server maps the region: a foreign one it never sees."""
        return region.fd >= 0
