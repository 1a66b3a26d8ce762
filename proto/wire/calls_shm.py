"""What a client does differently over shm: the server maps its regions."""

import os
from collections import deque
from collections.abc import Sequence

from hillfire.proto.wire import copies
from hillfire.proto.wire.base import PART, Part, Parts, Request
from hillfire.proto.wire.calls import Call, Calls
from hillfire.proto.wire.frame import REGISTER, UNREGISTER, Kind, encode
from hillfire.proto.wire.outgoing import Outgoing
from hillfire.proto.wire.staging import Loan, Staging
from hillfire.proto.wire.stream import Buffer
from hillfire.region import Region


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
        if type(parts) is Parts:
            from hillfire.proto.wire import part_arrays

            if parts.region.fd < 0:
                return self._stage_many(parts, bool(request.sources), out)
            if parts.region.id not in registered:
                self._register(parts.region, out)
            return part_arrays.pack(parts, parts.region.id, parts.offsets), (), None
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
                copies.CLIENT.value += length
        return b"".join(records), (), loan

    def _stage_many(
        self, parts: Parts, sources: bool, out: Outgoing
    ) -> tuple[bytes, Sequence[Buffer], Loan]:
        """Give a large batch of foreign parts a place, one after another; copy sources there."""
        from hillfire.proto.wire import part_arrays

        loan = self._staging.lend([(0, int(parts.lengths.sum()))])
        region, offset = loan.region, loan.offsets[0]
        if region.id not in self._registered:
            self._register(region, out)
        places = part_arrays.in_a_row(parts.lengths)
        if sources:
            whole = loan.views[0]
            for begin, start, length in part_arrays.runs(parts, parts.lengths):
                whole[begin : begin + length] = parts.region.view[start : start + length]
            copies.CLIENT.value += len(whole)
        return part_arrays.pack(parts, region.id, places + offset), (), loan

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
