"""What waits to be sent on a socket: buffers in order, descriptors among them.

Shared by the server and both clients. It never blocks: ``flush`` sends what the socket takes.
"""

import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Sequence

from hillfire.proto.wire.frame import MAX_BUFFERS

Buffer = bytes | memoryview


class Outgoing:
    """A queue of buffers before a socket."""

    def __init__(self, sock: socket.socket) -> None:
        """Send on ``sock``."""
        self._sock = sock
        self._queue: deque[tuple[Buffer, int, Callable[[], None] | None]] = deque()

    def __bool__(self) -> bool:
        """Tell whether anything waits."""
        return bool(self._queue)

    def put(
        self, buffers: Sequence[Buffer], *, fd: int = -1, sent: Callable[[], None] | None = None
    ) -> None:
        """Queue buffers; call ``sent`` when all have left.

        ``fd`` travels with the first and is closed once it has left.
        """
        last = len(buffers) - 1
        if last == 0:
            self._queue.append((buffers[0], fd, sent))
            return
        for position, buffer in enumerate(buffers):
            self._queue.append(
                (buffer, fd if position == 0 else -1, sent if position == last else None)
            )

    def flush(self) -> bool:
        """Send as much as the socket takes and tell whether the queue is empty.

        Raises:
            OSError: the connection is gone.
        """
        queue = self._queue
        while queue:
            first, fd, _ = queue[0]
            try:
                if fd >= 0:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
                    count = self._sock.sendmsg([first], rights, socket.MSG_DONTWAIT)
                    os.close(fd)
                    queue[0] = (first, -1, queue[0][2])
                elif len(queue) == 1:
                    count = self._sock.send(first, socket.MSG_DONTWAIT)
                else:
                    count = self._sock.sendmsg(self._gather(), (), socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return False
            self._consume(count)
        return True

    def _gather(self) -> list[Buffer]:
        """Return the buffers that may leave in one call: a descriptor begins another."""
        buffers: list[Buffer] = []
        for buffer, fd, _ in self._queue:
            if fd >= 0 or len(buffers) == MAX_BUFFERS:
                break
            buffers.append(buffer)
        return buffers

    def _consume(self, count: int) -> None:
        """Drop what was sent."""
        queue = self._queue
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
        while self._queue:
            _, fd, sent = self._queue.popleft()
            if fd >= 0:
                os.close(fd)
            if sent is not None:
                sent()
