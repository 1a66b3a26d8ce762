"""What a client does differently over tcp: data travels behind the frames."""

from collections.abc import Sequence

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import PART, Part, Parts, Request
from hillfire.proto.wire.calls import Calls
from hillfire.proto.wire.frame import FILLED, Frame, Kind
from hillfire.proto.wire.outgoing import Outgoing
from hillfire.proto.wire.staging import Loan
from hillfire.proto.wire.stream import Buffer
from hillfire.region import Region


class TcpCalls(Calls):
    """Over tcp: sources leave behind the frame, destinations are received into directly."""

    kind = "tcp"

    def __init__(self) -> None:
        """Begin with nothing arriving."""
        super().__init__()
        self._arriving = 0

    def pack(
        self, request: Request, parts: Sequence[Part], out: Outgoing
    ) -> tuple[bytes, Sequence[Buffer], Loan | None]:
        """Return lengths as the table and the sources' own memory, neighbours as one."""
        if type(parts) is Parts:
            from hillfire.proto.wire import part_arrays

            table = part_arrays.lengths_only(parts)
        else:
            pack = PART.pack
            table = b"".join([pack(0, 0, part[2]) for part in parts])
        return table, _merge(request.sources), None

    def place(self, frame: Frame) -> Sequence[memoryview]:
        """Return the destinations that an answer fills."""
        call = self.pending.get(frame.request)
        if frame.kind != Kind.RESPONSE or call is None:
            raise Error(Code.PROTOCOL, "data that was not asked for")
        if call.given_up:
            return _scrap(frame.data_bytes)
        self._arriving = frame.request
        destinations = call.request.destinations
        if frame.sources or frame.destinations != len(destinations):
            raise Error(Code.PROTOCOL, "an answer with other parts than its request")
        if len(destinations) == 1:
            region, offset, length = destinations[0]
            if FILLED.unpack(frame.table)[0] != frame.data_bytes or frame.data_bytes > length:
                text = f"{frame.data_bytes} bytes for a destination of {length}"
                raise Error(Code.PROTOCOL, text)
            return [region.view[offset : offset + frame.data_bytes]]
        if type(destinations) is Parts:
            return _arrive(destinations, frame)
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

    def lands(self, number: int) -> bool:
        """Tell whether its answer is just arriving: one that begins later goes to scrap memory."""
        return number == self._arriving


def _arrive(destinations: Parts, frame: Frame) -> Sequence[memoryview]:
    """Return the destinations of a large batch that an answer fills.

    Raises:
        Error: PROTOCOL.
    """
    from hillfire.proto.wire import part_arrays

    filled = part_arrays.filled_of(destinations, frame.table)
    if int(filled.sum()) != frame.data_bytes:
        raise Error(Code.PROTOCOL, "an answer's parts do not add up to its data")
    view = destinations.region.view
    return [view[begin:end] for begin, end in part_arrays.spans(destinations.offsets, filled)]


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
