"""The server's side of ``rdma``: its device moves the data of requests, in both directions.

Sources are pulled by RDMA READ into memory of the server before the handler is asked; what the
handler filled is pushed by RDMA WRITE before the answer, which need not wait for it: a reliable
connection keeps the order. The server's own memory is open to nobody.
"""

import asyncio
import socket
from collections.abc import Sequence

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import MAX_DATA_BYTES, Answer, Handler, Incoming
from hillfire.proto.wire.calls_rdma import GRANTED
from hillfire.proto.wire.frame import PART, Frame, pack_filled
from hillfire.proto.wire.rdma_device import Buffer as Memory
from hillfire.proto.wire.rdma_device import Device
from hillfire.proto.wire.rdma_flow import READY, Kind
from hillfire.proto.wire.rdma_runs import Remote, Run, runs
from hillfire.proto.wire.rdma_stream import RdmaStream
from hillfire.proto.wire.rdma_window import Waiter, Window
from hillfire.proto.wire.stream import Buffer, Opened

GRANT_S = 2.0
"""How long a server waits for a reader's grant; then it delivers: the reader may have lost it."""


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class Kept:
    """A request's memory at the server, and where its parts are at the client."""

    __slots__ = ("destinations", "granted", "memory", "moving", "number", "returned", "sources")

    def __init__(
        self, number: int, memory: Memory, sources: list[Remote], destinations: list[Remote]
    ) -> None:
        """``memory`` has room for all parts, one after another."""
        self.number = number
        self.memory = memory
        self.sources = sources
        self.destinations = destinations
        self.granted = False
        self.moving = False
        """whether a WRITE still reads the memory"""
        self.returned = False


class Room:
    """A window in which coroutines of one loop wait."""

    def __init__(self, limit: int) -> None:
        """Begin with nothing taken."""
        self._window = Window(limit)

    async def take(self, n_bytes: int) -> None:
        """Wait for room."""
        if self._window.take(n_bytes):
            return
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        waiter = Waiter(n_bytes, lambda: _settle(future))
        self._window.wait(waiter)
        try:
            while not self._window.retry(waiter):
                await future
                future = loop.create_future()
        finally:
            if self._window.leave(waiter):
                self.give(0)  # whoever woke us meant somebody

    def give(self, n_bytes: int) -> None:
        """Give room back."""
        for waiter in self._window.give(n_bytes):
            waiter.wake()


class RdmaSide:
    """What a server's connection does differently over RDMA."""

    kind = "rdma"

    def __init__(self, stream: RdmaStream, device: Device, pulled: Room, pushed: Room) -> None:
        """Serve the client at the other end of ``stream``."""
        self._stream = stream
        self._device = device
        self._pulled = pulled
        self._pushed = pushed
        self._grants: dict[int, asyncio.Future[None]] = {}
        stream.on_grant = self._granted
        stream.lost.append(self._lost)

    def receive(self, views: list[memoryview]) -> int:
        """Receive bytes.

        Raises:
            OSError: as ``recv``.
        """
        return self._stream.recv_into(views[0])

    def place(self, frame: Frame) -> Sequence[memoryview]:
        """Refuse data behind a frame: over RDMA the device moves it."""
        raise Error(Code.PROTOCOL, "data in a frame over rdma")

    def control(self, frame: Frame) -> None:
        """Refuse regions: parts say where they are."""
        raise Error(Code.PROTOCOL, f"a frame of kind {frame.kind} over rdma")

    def open(self, frame: Frame) -> Opened:
        """Return memory for a request's parts.

        Raises:
            Error: TOO_LARGE, NO_SPACE.
        """
        if not frame.table:
            return Opened((), (), None, 0)
        parts = [Remote(*part) for part in PART.iter_unpack(frame.table)]
        total = sum(part.length for part in parts)
        if total > MAX_DATA_BYTES:
            raise Error(Code.TOO_LARGE, f"parts of {total} bytes, {MAX_DATA_BYTES} are allowed")
        if not total:
            nothing = [memoryview(bytearray()) for _ in parts]
            return Opened(nothing[: frame.sources], nothing[frame.sources :], None, 0)
        try:
            memory = self._device.buffer(total)
        except Error as exc:
            raise Error(Code.OVERLOADED, exc.strerror or "") from exc  # no full disk
        kept = Kept(frame.request, memory, parts[: frame.sources], parts[frame.sources :])
        if kept.destinations and kept.destinations[0].key & GRANTED:
            first = kept.destinations[0]
            kept.destinations[0] = first._replace(key=first.key & ~GRANTED)
            kept.granted = True
        views, start = [], 0
        for part in parts:
            views.append(memory.view[start : start + part.length])
            start += part.length
        return Opened(views[: frame.sources], views[frame.sources :], kept, total)

    async def carry(self, handler: Handler, incoming: Incoming, kept: Kept) -> Answer:
        """See ``stream.Carrier``."""
        at = kept.memory.keys.address
        pulled = sum(part.length for part in kept.sources)
        if pulled:
            await self._pull(runs(at, kept.sources, [p.length for p in kept.sources]), pulled, kept)
        answer = handler(incoming)
        if not isinstance(answer, Answer):
            answer = await answer
        if answer.filled and not answer.code:
            _check(kept.destinations, answer.filled)
            pushed = sum(answer.filled)
            if pushed:
                found = runs(at + pulled, kept.destinations, answer.filled)
                await self._push(found, pushed, kept)
        return answer

    async def _pull(self, found: list[Run], n_bytes: int, kept: Kept) -> None:
        """Fetch a request's sources.

        Raises:
            Error: CONNECTION.
        """
        await self._pulled.take(n_bytes)
        try:
            future = asyncio.get_running_loop().create_future()
            self._stream.read(found, kept.memory.keys.local, lambda: _settle(future))
            try:
                await future
            except asyncio.CancelledError:
                self._stream.shutdown(socket.SHUT_RDWR)  # the memory is about to be used again
                raise
        finally:
            self._pulled.give(n_bytes)
        self._check_alive()

    async def _push(self, found: list[Run], n_bytes: int, kept: Kept) -> None:
        """Begin to deliver what was filled, once the reader has room for it.

        Raises:
            Error: CONNECTION.
        """
        if not kept.granted:
            await self._ask(kept.number, n_bytes)
        await self._pushed.take(n_bytes)
        kept.moving = True

        def done() -> None:
            self._pushed.give(n_bytes)
            kept.moving = False
            if kept.returned:
                self._device.give(kept.memory)

        self._stream.write(found, kept.memory.keys.local, done)
        self._check_alive()

    async def _ask(self, number: int, n_bytes: int) -> None:
        """Say READY and wait for the GRANT."""
        self._check_alive()
        granted = asyncio.get_running_loop().create_future()
        self._grants[number] = granted
        try:
            self._stream.say(Kind.READY, READY.pack(number, n_bytes))
            async with asyncio.timeout(GRANT_S):
                await granted
        except TimeoutError:
            pass
        finally:
            self._grants.pop(number, None)
        self._check_alive()

    def _granted(self, number: int) -> None:
        future = self._grants.get(number)
        if future is not None:
            _settle(future)

    def _lost(self) -> None:
        for future in self._grants.values():
            _settle(future)

    def _check_alive(self) -> None:
        if not self._stream.alive:
            raise Error(Code.CONNECTION, "the client is gone")

    def reply(
        self, kept: Kept | None, destinations: Sequence[memoryview], answer: Answer
    ) -> tuple[bytes, list[Buffer]]:
        """Return the table of a response; its data is on its way ahead of it.

        Raises:
            ValueError: the handler filled what there is not.
        """
        if len(answer.filled) != len(destinations):
            raise ValueError(f"{len(answer.filled)} of {len(destinations)} destinations filled")
        return pack_filled(answer.filled), []

    def give_back(self, kept: Kept | None) -> None:
        """Take back what ``open`` gave; a WRITE that still reads it returns it at its end."""
        if kept is None or kept.returned:
            return
        kept.returned = True
        if not kept.moving:
            self._device.give(kept.memory)

    def close(self) -> None:
        """Nothing is left: the stream ended everything."""


def _check(destinations: Sequence[Remote], filled: Sequence[int]) -> None:
    if len(filled) != len(destinations):
        raise ValueError(f"{len(filled)} of {len(destinations)} destinations filled")
    for part, count in zip(destinations, filled, strict=True):
        if not 0 <= count <= part.length:
            raise ValueError(f"{count} bytes filled in a destination of {part.length}")
