"""What a client does differently over RDMA: the server's device reads and writes its memory.

A part travels as key and address. Regions of hillfire's memory are registered at their first use
and stay so. A foreign buffer is registered in place if what is asked of it is large; small parts
pass through staging memory, since pinning pages costs more than copying few.

This end also holds the reader's window of request-to-send: one for the process, whichever
connections its bytes come over.
"""

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hillfire.proto.wire import copies
from hillfire.proto.wire.base import Part, Parts, Request
from hillfire.proto.wire.calls import Call, Calls
from hillfire.proto.wire.frame import PART, Frame
from hillfire.proto.wire.outgoing import Outgoing
from hillfire.proto.wire.rdma_device import Device
from hillfire.proto.wire.rdma_flow import GRANT, Kind
from hillfire.proto.wire.rdma_window import Waiter, Window
from hillfire.proto.wire.staging import Loan, Staging
from hillfire.proto.wire.stream import Buffer
from hillfire.region import Region

if TYPE_CHECKING:
    from hillfire.proto.wire.rdma_stream import RdmaStream

GRANTED = 1 << 63
"""In the key of a request's first destination: its bytes have their room at the reader."""
IN_PLACE_BYTES = 256 * 1024
"""From here on a foreign part is registered where it is."""
WINDOW_BYTES = 6 * 1024 * 1024
"""On their way to this process at once, a quarter of a millisecond of a link of 200 Gb/s, which
``tests/model`` finds best; ``HILLFIRE_RDMA_WINDOW`` (bytes) says otherwise."""

_lock = threading.Lock()
_window = Window(int(os.environ.get("HILLFIRE_RDMA_WINDOW", "0")) or WINDOW_BYTES)


def _forked() -> None:
    """Begin anew in a child: what is on its way is on its way to the parent."""
    global _lock, _window
    _lock = threading.Lock()
    _window = Window(_window.limit)


os.register_at_fork(after_in_child=_forked)


class RdmaCalls(Calls):
    """The outstanding requests of a connection over RDMA."""

    kind = "rdma"

    def __init__(self, stream: "RdmaStream", device: Device) -> None:
        """Begin with none."""
        super().__init__()
        self._stream = stream
        self._device = device
        self._staging = Staging()
        self._taken: dict[int, int] = {}  # bytes of the window, by request
        self._waiting: dict[int, Waiter] = {}
        self._over = False
        stream.on_ready = self._ready
        stream.stalled = self._stalled
        stream.progressed = self._retry
        stream.lost.append(self._lost)

    def pack(
        self, request: Request, parts: Sequence[Part], out: Outgoing
    ) -> tuple[bytes, Sequence[Buffer], Loan | None]:
        """Return keys and addresses of the parts; take room for what will arrive."""
        device = self._device
        if type(parts) is Parts:
            return self._pack_many(request, parts)
        foreign: list[tuple[int, int]] = []
        for position, (region, _, length) in enumerate(parts):
            if region.fd < 0 and length < IN_PLACE_BYTES and not device.knows(region):
                foreign.append((position, length))
        loan = self._staging.lend(foreign) if foreign else None
        records = []
        try:
            for position, (region, offset, length) in enumerate(parts):
                if loan is not None and position in loan.views:
                    if position < len(request.sources):
                        loan.views[position][:] = region.view[offset : offset + length]
                        copies.CLIENT.value += length
                    region, offset = loan.region, loan.offsets[position]
                if length:
                    keys = device.keys(region)
                    records.append([keys.remote, keys.address + offset, length])
                else:
                    records.append([0, 0, 0])
        except BaseException:
            if loan is not None:
                loan.give_back()
            raise
        if len(request.destinations):
            n_bytes = sum(part.length for part in request.destinations)
            if self._take_room(n_bytes):
                records[len(request.sources)][0] |= GRANTED
        return b"".join([PART.pack(*record) for record in records]), (), loan

    def _pack_many(
        self, request: Request, parts: Parts
    ) -> tuple[bytes, Sequence[Buffer], Loan | None]:
        """Do the same for a large batch of one region: all of it is staged, or nothing."""
        from hillfire.proto.wire import part_arrays

        region, places, loan = parts.region, parts.offsets, None
        total = int(parts.lengths.sum())
        if region.fd < 0 and total < IN_PLACE_BYTES and not self._device.knows(region):
            loan = self._staging.lend([(0, total)])
            region = loan.region
            places = part_arrays.in_a_row(parts.lengths) + loan.offsets[0]
            if request.sources:
                staged = loan.views[0]
                for begin, start, length in part_arrays.runs(parts, parts.lengths):
                    staged[begin : begin + length] = parts.region.view[start : start + length]
                copies.CLIENT.value += total
        try:
            keys = self._device.keys(region)
        except BaseException:
            if loan is not None:
                loan.give_back()
            raise
        table = part_arrays.pack(parts, keys.remote, places + keys.address)
        if request.destinations and self._take_room(total):
            first = PART.pack(keys.remote | GRANTED, *PART.unpack_from(table)[1:])
            table = first + table[PART.size :]
        return table, (), loan

    def touches(self, region: Region) -> bool:
        """Tell whether the server's device may touch a region: a staged one it never sees."""
        return region.fd >= 0 or self._device.knows(region)

    # ------------------------------------------------------------------ request-to-send

    def _take_room(self, n_bytes: int) -> bool:
        """Take room for the answer of the request that is being made, if it is there."""
        with _lock:
            granted = not self._over and _window.take(n_bytes)
        if granted:
            self._taken[self._last + 1] = n_bytes
        return granted

    def _ready(self, number: int, n_bytes: int) -> None:
        """Grant a server what it is ready to deliver, now or when there is room."""
        if number not in self.pending or number in self._taken or number in self._waiting:
            return  # answered: it went ahead meanwhile
        waiter = Waiter(n_bytes, self._stream.wake)
        with _lock:
            _window.wait(waiter)
            granted = _window.retry(waiter)  # whoever is first may be somebody who never looks
        if granted:
            self._grant(number, n_bytes)
        else:
            self._waiting[number] = waiter
            self._stream.waits_for_room = True

    def _grant(self, number: int, n_bytes: int) -> None:
        self._taken[number] = n_bytes
        self._stream.say(Kind.GRANT, GRANT.pack(number))

    def _retry(self) -> None:
        """Grant what waits, as far as there is room now."""
        for number, waiter in list(self._waiting.items()):
            with _lock:
                granted = _window.retry(waiter)
            if not granted:
                break
            self._granted_late(number, waiter)

    def _stalled(self) -> None:
        """Grant the first that waits, room or not: the thread that would make some waits for it."""
        for number, waiter in list(self._waiting.items())[:1]:
            with _lock:
                _window.force(waiter)
            self._granted_late(number, waiter)

    def _granted_late(self, number: int, waiter: Waiter) -> None:
        del self._waiting[number]
        self._stream.waits_for_room = bool(self._waiting)
        self._grant(number, waiter.n_bytes)

    def _arrived(self, number: int) -> None:
        """Give a request's room back: its bytes are here, or will never come."""
        waiter = self._waiting.pop(number, None)
        n_bytes = self._taken.pop(number, None)
        if waiter is None and n_bytes is None:
            return
        self._stream.waits_for_room = bool(self._waiting)
        with _lock:  # whoever is woken cannot close its stream meanwhile
            if waiter is not None:
                _window.leave(waiter)
            for each in _window.give(n_bytes or 0):
                each.wake()

    def answered(self, frame: Frame) -> Call | None:
        """Take an answer in; its bytes have arrived before it."""
        self._arrived(frame.request)
        return super().answered(frame)

    def _lost(self) -> None:
        """Give all room back: the queue pair is gone."""
        self._over = True
        for number in [*self._taken, *self._waiting]:
            self._arrived(number)

    def ended(self) -> list[Call]:
        """Release everything, the staging memory too."""
        calls = super().ended()
        self._staging.close()
        return calls
