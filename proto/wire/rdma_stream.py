"""A stream of frames over an RDMA connection that behaves like a socket.

So both faces of the client and the server's connection work over it as they do over sockets. It
takes everything that is sent: a peer that does not keep up is held back by credit (``hold_back``)
and by the windows of ``rdma_side.py``. Its descriptor is readable while bytes or the end are there
to be received.
"""

import errno
import socket
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any

from hillfire.errors import Code, Error
from hillfire.proto.wire.rdma_channel import Channel
from hillfire.proto.wire.rdma_link import Link
from hillfire.proto.wire.rdma_offer import Offer
from hillfire.proto.wire.stream import Buffer

FAMILY = -1
"""What a stream over RDMA says for its address family: no socket's."""
STALL_S = 0.02
"""How long a thread that waits for one answer lets a server wait for a grant: what takes the room
may be an answer that the same thread takes afterwards."""
SEND_S = 0.02
"""How long a thread that only sends waits for slots and credit."""
_NOW = int(socket.MSG_DONTWAIT)
_TIMEVAL = struct.Struct("ll")


def _no_client() -> Any:
    raise AssertionError("the server's end makes no calls")


class RdmaStream(Channel):
    """One end of a connection."""

    family = FAMILY

    def __init__(
        self, link: Link, peer: Offer, sock: socket.socket, *, poll_us: int = 0, hold_back: bool
    ) -> None:
        """See ``Channel``."""
        super().__init__(link, peer, sock, poll_us=poll_us, hold_back=hold_back)
        self.new_calls: Callable[[], Any] = _no_client
        self._timeout_s: float | None = None
        self._blocking = True
        self._stuck = False

    def fileno(self) -> int:
        """See ``stream.Stream``."""
        return self._descriptor

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        """Take all."""
        return self.sendmsg((data,), (), flags)

    def sendmsg(self, data: Iterable[Buffer], ancillary: Any = (), flags: int = 0, /) -> int:
        """Take all."""
        self._check()
        total = 0
        for buffer in data:
            self._flow.queue(buffer if isinstance(buffer, bytes) else bytes(buffer))
            total += len(buffer)
        self._kick()
        if self._flow.waiting_bytes and self._blocking and self._loop is None:
            self._wait_to_send()
        self._check()
        return total

    def _wait_to_send(self) -> None:
        """Give what waits a chance to leave: nobody may receive, and so make progress, for long.

        A server that takes no more is not waited for twice.
        """
        deadline = time.monotonic() + SEND_S
        while self._flow.waiting_bytes and self._cause is None:
            before = self._flow.waiting_bytes
            self.progress()
            if self._flow.waiting_bytes != before:
                self._stuck = False
            elif self._stuck or time.monotonic() >= deadline:
                self._stuck = True
                return
            else:
                self._events.poll(SEND_S / 4, 1)

    def _check(self) -> None:
        """Raise as a socket does whose peer is gone."""
        if self._cause is not None:
            raise OSError(errno.ECONNRESET, self._cause.strerror or "the connection is over")

    def recv_into(self, into: memoryview, n_bytes: int = 0, flags: int = 0, /) -> int:
        """Receive, waiting up to the time-out unless told otherwise."""
        if self._loop is None or not self._arrived:
            self.progress()
        if not self._arrived and self._cause is None and self._blocking and not flags & _NOW:
            self._wait()
        if not self._arrived:
            self._tell()
            if self._cause is None:
                raise BlockingIOError(errno.EAGAIN, "nothing has arrived")
            if self._cause.code is Code.CONNECTION:
                return 0
            raise OSError(errno.ECONNRESET, self._cause.strerror or "the connection is over")
        end = 0
        arrived = self._arrived
        while arrived and end < len(into):
            slot, payload = arrived[0]
            count = min(len(payload), len(into) - end)
            into[end : end + count] = payload[:count]
            end += count
            if count < len(payload):
                arrived[0] = slot, payload[count:]
                break
            arrived.popleft()
            if self._cause is None:
                try:
                    self._consumed(slot)
                except Error as exc:
                    self._lose(exc)
        if self._cause is None:
            self._kick()
        self._tell()
        return end

    def recvmsg_into(
        self, into: Iterable[memoryview], ancillary_bytes: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        """Receive into the first of several buffers."""
        return self.recv_into(next(iter(into)), 0, flags), [], 0, None

    def _wait(self) -> None:
        """Wait until something arrived, or for the time-out."""
        now = time.monotonic()
        deadline = None if self._timeout_s is None else now + self._timeout_s
        spin = now + self._poll_s
        patience = now + STALL_S
        while not self._arrived and self._cause is None:
            if self._poll_s and now < spin:
                self._take()
            else:
                left = -1.0 if deadline is None else deadline - now
                if self.stalled is not None and self.waits_for_room:
                    if now >= patience:
                        self.stalled()
                    left = STALL_S if left < 0 else min(left, STALL_S)
                self._events.poll(left if left < 0 else max(left, 0.001), 1)
                self.progress()
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return

    def setblocking(self, flag: bool, /) -> None:
        """See ``stream.Stream``."""
        self._blocking = flag

    def settimeout(self, timeout_s: float | None, /) -> None:
        """See ``stream.Stream``."""
        self._blocking = timeout_s != 0.0
        self._timeout_s = timeout_s

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """Take SO_RCVTIMEO."""
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_RCVTIMEO)
        seconds, microseconds = _TIMEVAL.unpack(value)
        self._timeout_s = seconds + microseconds / 1e6

    def shutdown(self, how: int, /) -> None:
        """End: over RDMA no half of a connection is of use."""
        self._lose(Error(Code.CONNECTION, "the connection was closed"))

    def close(self) -> None:
        """End; nothing lands from here on. Frames that could not leave are dropped."""
        self.new_calls = _no_client
        super().close()
