"""What waits to be sent on a socket: buffers in order, descriptors among them.

Shared by the server and both clients. It never blocks: ``flush`` sends what the socket takes.
"""

import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Sequence

from hillfire.proto.wire.frame import MAX_BUFFERS
from hillfire.proto.wire.stream import Buffer, Stream

_NOW = int(socket.MSG_DONTWAIT)  # a plain number: flags cost a microsecond each


class Outgoing:
    """A queue of buffers before a socket."""

    def __init__(self, sock: Stream | socket.socket) -> None:
        """Send on ``sock``."""
        self._sock = sock
        self.bytes = 0
        """that wait"""
        self.waiting: deque[tuple[Buffer, int, Callable[[], None] | None]] = deque()

    def put(
        self, buffers: Sequence[Buffer], *, fd: int = -1, sent: Callable[[], None] | None = None
    ) -> None:
        """Queue buffers; call ``sent`` when all have left.

        ``fd`` travels with the first and is closed once it has left.
        """
        self.bytes += sum(map(len, buffers))
        last = len(buffers) - 1
        if last == 0:
            self.waiting.append((buffers[0], fd, sent))
            return
        for position, buffer in enumerate(buffers):
            self.waiting.append(
                (buffer, fd if position == 0 else -1, sent if position == last else None)
            )

    def put_one(self, buffer: Buffer) -> None:
        """Queue one buffer."""
        self.bytes += len(buffer)
        self.waiting.append((buffer, -1, None))

    def flush(self) -> bool:
        """Send as much as the socket takes and tell whether the queue is empty.

        Raises:
            OSError: the connection is gone.
        """
        queue = self.waiting
        while queue:
            first, fd, sent = queue[0]
            try:
                if fd >= 0:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
                    count = self._sock.sendmsg([first], rights, _NOW)
                    os.close(fd)
                    queue[0] = (first, -1, sent)
                elif len(queue) == 1:
                    count = self._sock.send(first, _NOW)
                    if count == len(first):
                        queue.clear()
                        self.bytes = 0
                        if sent is not None:
                            sent()
                        return True
                else:
                    count = self._sock.sendmsg(self._gather(), (), _NOW)
            except (BlockingIOError, InterruptedError):
                return False
            self._consume(count)
        return True

    def _gather(self) -> list[Buffer]:
        """Return the buffers that may leave in one call: a descriptor begins another."""
        buffers: list[Buffer] = []
        for buffer, fd, _ in self.waiting:
            if fd >= 0 or len(buffers) == MAX_BUFFERS:
                break
            buffers.append(buffer)
        return buffers

    def _consume(self, count: int) -> None:
        """Drop what was sent."""
        self.bytes -= count
        queue = self.waiting
        while queue:
            buffer, _, sent = queue[0]
            if count < len(buffer):
                if count:
                    queue[0] = (memoryview(buffer)[count:], -1, sent)
                return
            count -= len(buffer)
            queue.popleft()
            if sent is not None:
                sent()
            if count == 0:
                return

    def drop(self) -> None:
        """Forget everything, as if it had been sent."""
        self.bytes = 0
        while self.waiting:
            _, fd, sent = self.waiting.popleft()
            if fd >= 0:
                os.close(fd)
            if sent is not None:
                sent()
