"""The one interface of the wire: requests with a small body and large parts of registered memory.

A request names a method, carries a body (a protobuf message or packed arrays) and *parts*:
ranges of the caller's regions. ``sources`` are read by the server (a write's payload),
``destinations`` are filled by it (a read's result). How the bytes get there is the transport's
affair: ``shm`` lets the server map the region, ``tcp`` carries them behind the frame. Nothing
above the wire knows which.

A late transfer must not land in reused memory: once a request was sent with parts and neither an
answer nor the end of the connection has arrived, its parts are *quarantined*
(:meth:`Region.quarantine`). What it may still write into is refused to everyone; what it only
reads may be read by others, so that a retry can send the same payload again. A server closes a
connection only after every operation that uses the connection's regions has ended, and a kernel
closes a dead process's sockets after its threads are gone: so an end of file releases the
quarantine, a time-out does not.
"""

import abc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import repeat
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple, overload

from hillfire.errors import Code, Error
from hillfire.region import Region

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WIRE_VERSION = 1

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_PARTS = 4096
MAX_DATA_BYTES = 64 * 1024 * 1024
"""Of all parts of one request together."""
MAX_REGION_BYTES = 4 * 1024**3
"""Of all regions that one connection may register at a server."""

# Methods below this number are the data plane's (wire/chunks.py); the dispatcher's are hashes.
FIRST_SERVICE_METHOD = 256


PART = Struct("<QQI")
"""How a part travels: region, offset, length. Over tcp only the length means anything."""


class Part(NamedTuple):
    """A range of a region of the caller's."""

    region: Region
    offset: int
    length: int


class Parts(Sequence[Part]):
    """Ranges of one region as two int64 arrays: what a large batch passes, packed in one go."""

    __slots__ = ("lengths", "offsets", "region")

    def __init__(
        self, region: Region, offsets: "NDArray[np.int64]", lengths: "NDArray[np.int64]"
    ) -> None:
        """Part ``i`` is ``lengths[i]`` bytes from ``offsets[i]`` of ``region``."""
        self.region = region
        self.offsets = offsets
        self.lengths = lengths

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.offsets)

    @overload
    def __getitem__(self, index: int) -> Part: ...

    @overload
    def __getitem__(self, index: slice) -> "Parts": ...

    def __getitem__(self, index: int | slice) -> "Part | Parts":
        """Return one, or some of them."""
        if isinstance(index, slice):
            return Parts(self.region, self.offsets[index], self.lengths[index])
        return Part(self.region, int(self.offsets[index]), int(self.lengths[index]))

    def __iter__(self) -> Iterator[Part]:
        """Yield each."""
        return map(Part, repeat(self.region), self.offsets.tolist(), self.lengths.tolist())


class Request(NamedTuple):
    """What a client sends."""

    method: int
    body: bytes
    sources: Sequence[Part] = ()
    destinations: Sequence[Part] = ()


class Reply(NamedTuple):
    """What comes back. An error from the server is raised instead, as ``hillfire.errors.Error``."""

    body: bytes


MIN_VIEWS = 16
"""Destinations from which on a server looks at them all at once."""


class Views(Sequence[memoryview]):
    """A server's view of parts that lie in one region: slices are made when somebody looks.

    ``base`` is the region's memory and ``table`` the part records of ``frame.PART``, all within it:
    who works on a batch as a whole takes these two and makes no slice at all.
    """

    __slots__ = ("_views", "base", "n_bytes", "table")

    def __init__(self, base: memoryview, table: memoryview, n_bytes: int) -> None:
        """Use records that were found to lie within ``base``, ``n_bytes`` together."""
        self.base = base
        self.table = table
        self.n_bytes = n_bytes
        self._views: list[memoryview] | None = None

    def _all(self) -> list[memoryview]:
        if self._views is None:
            base = self.base
            records = PART.iter_unpack(self.table)
            self._views = [base[offset : offset + length] for _, offset, length in records]
        return self._views

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.table) // PART.size

    @overload
    def __getitem__(self, index: int) -> memoryview: ...

    @overload
    def __getitem__(self, index: slice) -> list[memoryview]: ...

    def __getitem__(self, index: int | slice) -> memoryview | list[memoryview]:
        """Return one, or some of them."""
        return self._all()[index]

    def __iter__(self) -> Iterator[memoryview]:
        """Yield each."""
        return iter(self._all())


class Incoming(NamedTuple):
    """A request as the server's handler sees it.

    ``sources`` and ``destinations`` are views of bounds-checked memory, valid until the handler
    has answered. With ``shm`` they are the client's own memory, which the client may change at
    any time: copy before you trust.
    """

    method: int
    body: memoryview
    sources: Sequence[memoryview]
    destinations: Sequence[memoryview]
    timeout_s: float
    """how long the caller will wait, counted from arrival"""
    peer: str
    """for logs: ``shm:pid=… uid=…`` or ``tcp:host:port``"""


class Answer(NamedTuple):
    """What a handler returns: a body, and how many bytes of each destination it filled."""

    code: Code = Code.OK
    body: bytes = b""
    filled: "Sequence[int] | memoryview" = ()
    """one number a destination; a memoryview of 32-bit numbers travels as it is"""


Handler = Callable[[Incoming], "Answer | Awaitable[Answer]"]
"""Answers at once where it can, which saves the cost of a task, or returns an awaitable.

A raised ``Error`` becomes an error answer; any other exception is logged and answered INTERNAL.
"""


class BlockingConnection(abc.ABC):
    """A client's connection for one thread at a time, over a blocking socket.

    ``start`` then ``finish`` lets a caller send to several servers before it waits. Several
    requests may be outstanding; they may be finished in any order.
    """

    kind: str
    """``shm`` or ``tcp``"""

    @abc.abstractmethod
    def start(self, request: Request, timeout_s: float) -> int:
        """Send a request and return the number to finish it by.

        Raises:
            Error: CONNECTION when the peer is gone, INVALID for parts out of bounds, BUSY for
                parts in quarantine, TOO_LARGE beyond the limits of this module.
        """

    @abc.abstractmethod
    def finish(self, ticket: int, timeout_s: float) -> Reply:
        """Wait for the answer to a started request.

        Raises:
            Error: the server's; TIMED_OUT (the parts are then in quarantine) or CONNECTION.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close. Parts still outstanding stay in quarantine until the server's side has ended."""


class AsyncConnection(abc.ABC):
    """The same for an event loop: any number of tasks may have requests outstanding."""

    kind: str

    @property
    @abc.abstractmethod
    def usable(self) -> bool:
        """Whether requests can be sent on it."""

    @property
    @abc.abstractmethod
    def outstanding(self) -> int:
        """How many requests have no answer yet, those given up included."""

    @abc.abstractmethod
    def submit(
        self, request: Request, timeout_s: float, done: Callable[[Reply | Error], None]
    ) -> Callable[[], None]:
        """Send a request and have ``done`` called with what comes of it, on the loop, once.

        Returns what gives it up: ``done`` is not called then, and its parts are in quarantine.

        Raises:
            Error: what ``request`` raises before anything is sent; ``done`` is not called then.
        """

    @abc.abstractmethod
    async def request(self, request: Request, timeout_s: float) -> Reply:
        """Send a request and wait for its answer.

        Raises:
            Error: as ``BlockingConnection``. Cancellation quarantines the parts too.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close; outstanding requests fail with CONNECTION."""
