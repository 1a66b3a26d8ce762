"""What a connection stands on: a socket or what behaves like one, and how its data moves.

The faces of the client and the server's connection know two things of a transport. A *stream*
carries frames: a socket is one, and so is what ``rdma`` makes of a pair of queues. A client's
``Calls`` and a server's *side* know how the data of a request travels: in mapped memory, behind
the frames, or by transfers of a device, which end later than they begin.
"""

from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from hillfire.proto.wire.base import Answer, Handler, Incoming
from hillfire.proto.wire.frame import Frame

Buffer = bytes | memoryview


class Stream(Protocol):
    """Bytes in order, both ways, as over a socket: the names and errors are a socket's.

    One that is no socket also knows how a client's data travels over it.
    """

    family: int

    def fileno(self) -> int:
        """Return the descriptor that is readable when something may have arrived, or the end."""

    def send(self, data: Buffer, flags: int, /) -> int:
        """Take some bytes; ``BlockingIOError`` if there is no room for any."""

    def sendmsg(self, data: Iterable[Buffer], ancillary: Any, flags: int, /) -> int:
        """Take some bytes of several buffers."""

    def recv_into(self, into: memoryview, n_bytes: int = 0, flags: int = 0, /) -> int:
        """Receive; 0 at the peer's end, ``BlockingIOError`` if nothing is there."""

    def recvmsg_into(
        self, into: Iterable[memoryview], ancillary_bytes: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        """Receive into several buffers."""

    def setblocking(self, flag: bool, /) -> None:
        """Tell whether a receive may wait."""

    def settimeout(self, timeout_s: float | None, /) -> None:
        """Tell how long a receive may wait; None for ever."""

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """Set SO_RCVTIMEO; nothing else is asked for."""

    def shutdown(self, how: int, /) -> None:
        """Send no more."""

    def new_calls(self) -> Any:
        """Return the ``Calls`` of a client's connection over it."""

    def close(self) -> None:
        """End. Afterwards nothing reads from or lands in memory of this process over it."""


class Opened(NamedTuple):
    """A request's memory at the server."""

    sources: Sequence[memoryview]
    destinations: Sequence[memoryview]
    kept: Any
    """the side's own, for ``reply`` and ``give_back``; None if there is nothing"""
    cost: int
    """bytes of the server's memory that it takes"""


class Side(Protocol):
    """What a server's connection does differently on each transport."""

    kind: str

    def receive(self, views: list[memoryview]) -> int:
        """Receive bytes as ``recv_into`` does.

        Raises:
            Error: PROTOCOL.
        """

    def place(self, frame: Frame) -> Sequence[memoryview]:
        """Return memory for the data behind a request's frame.

        Raises:
            Error: PROTOCOL.
        """

    def control(self, frame: Frame) -> None:
        """Carry out what is no request.

        Raises:
            Error: PROTOCOL.
        """

    def open(self, frame: Frame) -> Opened:
        """Return the memory of a request.

        Raises:
            Error: whatever is wrong with its parts.
        """

    def reply(
        self, kept: Any, destinations: Sequence[memoryview], answer: Answer
    ) -> tuple[bytes, Sequence[Buffer]]:
        """Return the table of a response and the data that follows its frame.

        Raises:
            ValueError: the handler filled what there is not.
        """

    def give_back(self, kept: Any) -> None:
        """Take back what ``open`` gave: the response has left, or never will."""

    def close(self) -> None:
        """Let go of everything."""


class Carrier(Side, Protocol):
    """A side that moves the data of requests itself, before and after their handler."""

    def carry(self, handler: Handler, incoming: Incoming, kept: Any) -> Coroutine[Any, Any, Answer]:
        """Fetch a request's sources, ask the handler, deliver what it filled.

        It ends in every case, with ``Error`` CONNECTION once nothing can move any more.
        """
