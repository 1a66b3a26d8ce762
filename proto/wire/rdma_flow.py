"""The order and the credit of messages over an RDMA connection: a pure state machine.

A receive must be posted before a message arrives, or the sender's queue pair stalls and fails. So
each end has a *credit* for every receive that the other has posted. A message spends one, says
how many receives its sender has posted again since the last, and carries one of

- DATA: the next bytes of the stream of frames;
- READY and GRANT: request-to-send, see ``rdma_window.py``; they overtake the stream;
- CREDIT: nothing else.

Data leaves the last credits to the others, and the very last is for CREDIT: whoever spends it
gives the peer at least half of its receives back, so both ends cannot run dry at once. *Transfers*
(RDMA WRITEs) keep their place among the bytes: an answer must not overtake what it tells of.
"""

from collections import deque
from enum import IntEnum
from struct import Struct
from typing import Generic, NamedTuple, TypeVar

from hillfire.errors import Code, Error

T = TypeVar("T")

HEADER = Struct("<BxH")
"""kind, receives posted again"""
READY = Struct("<QQ")
"""request, bytes that wait for a grant"""
GRANT = Struct("<Q")
"""request"""
MAX_CREDITS = 0xFFFF
RESERVE = 4
"""Credits that data does not spend."""


class Kind(IntEnum):
    """What a message carries."""

    DATA = 1
    CREDIT = 2
    READY = 3
    GRANT = 4


class Arrived(NamedTuple):
    """A message that came in."""

    kind: int
    payload: memoryview


class Flow(Generic[T]):
    """One end's part. ``T`` is a transfer."""

    def __init__(self, receives: int, credits: int, message_bytes: int) -> None:
        """Begin with ``receives`` posted here, ``credits`` of ``message_bytes`` at the peer."""
        self.credits = credits
        self.waiting_bytes = 0
        """of the stream, not yet in a message"""
        self._receives = receives
        self._peer_receives = credits
        self._message_bytes = message_bytes
        self._owed = 0
        self._queue: deque[memoryview | T] = deque()
        self._urgent: deque[bytes] = deque()

    def queue(self, data: bytes | memoryview) -> None:
        """Append to the stream; the memory stays as it is until it has left."""
        view = memoryview(data).cast("B")
        if len(view):
            self.waiting_bytes += len(view)
            self._queue.append(view)

    def queue_transfer(self, transfer: T) -> None:
        """Append a transfer: what is queued later arrives after it."""
        self._queue.append(transfer)

    def queue_urgent(self, kind: Kind, payload: bytes) -> None:
        """Queue a message that overtakes the stream."""
        self._urgent.append(HEADER.pack(kind, 0) + payload)

    def received_again(self) -> None:
        """Take note that a receive was posted again."""
        self._owed += 1
        assert self._owed <= self._receives, "more receives than there are"

    @property
    def transfer(self) -> T | None:
        """The transfer whose turn it is."""
        if self._queue and not isinstance(self._queue[0], memoryview):
            return self._queue[0]
        return None

    def transferred(self) -> None:
        """Take note that the first transfer was handed to the device."""
        first = self._queue.popleft()
        assert not isinstance(first, memoryview)

    def drop(self) -> list[T]:
        """Forget everything that waits and return the transfers among it."""
        transfers = [each for each in self._queue if not isinstance(each, memoryview)]
        self._queue.clear()
        self._urgent.clear()
        self.waiting_bytes = 0
        return transfers

    @property
    def sendable(self) -> bool:
        """Whether there is a message to make now."""
        if self._urgent and self.credits > 1:
            return True
        if self._queue and isinstance(self._queue[0], memoryview) and self.credits > RESERVE:
            return True
        return self.credits > 0 and self._owed >= self._receives // 2

    def fill(self, slot: memoryview) -> int:
        """Make the next message in ``slot`` and return its length.

        Call it only if ``sendable``, with a slot of at least the peer's ``message_bytes``.
        """
        assert self.credits > 0
        self.credits -= 1
        owed, self._owed = self._owed, 0
        if self._urgent and self.credits > 0:
            message = self._urgent.popleft()
            slot[: len(message)] = message
            HEADER.pack_into(slot, 0, message[0], owed)
            return len(message)
        if self.credits < RESERVE or not self._queue:
            HEADER.pack_into(slot, 0, Kind.CREDIT, owed)
            return HEADER.size
        end = HEADER.size
        queue = self._queue
        while queue and end < self._message_bytes:
            first = queue[0]
            if not isinstance(first, memoryview):
                break
            count = min(len(first), self._message_bytes - end)
            slot[end : end + count] = first[:count]
            end += count
            if count == len(first):
                queue.popleft()
            else:
                queue[0] = first[count:]
        self.waiting_bytes -= end - HEADER.size
        HEADER.pack_into(slot, 0, Kind.DATA if end > HEADER.size else Kind.CREDIT, owed)
        return end

    def arrived(self, message: memoryview) -> Arrived:
        """Take a message in.

        Raises:
            Error: PROTOCOL for what no peer of ours would send.
        """
        if len(message) < HEADER.size:
            raise Error(Code.PROTOCOL, f"a message of {len(message)} bytes")
        kind, credits = HEADER.unpack_from(message)
        self.credits += credits
        if self.credits > self._peer_receives:
            raise Error(Code.PROTOCOL, f"{self.credits} credits of {self._peer_receives}")
        size = len(message) - HEADER.size
        right = (
            (kind == Kind.DATA and size > 0)
            or (kind == Kind.CREDIT and size == 0)
            or (kind == Kind.READY and size == READY.size)
            or (kind == Kind.GRANT and size == GRANT.size)
        )
        if not right:
            raise Error(Code.PROTOCOL, f"a message of kind {kind} with {size} bytes")
        return Arrived(kind, message[HEADER.size :])
