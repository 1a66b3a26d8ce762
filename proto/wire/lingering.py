"""A socket that is kept only to see the server's end, by whoever still asks for it.

A connection that closes with requests given up waits for its server to let go of the memory they
name: their quarantine holds the connection and is held by the memory, in a circle. When all of it
is dropped together, the collector may end the socket first, which is no leak worth a warning.
"""

import socket
from typing import Any


class Lingering(socket.socket):
    """Closes itself in silence when it is dropped."""

    def __del__(self) -> None:
        """Close."""
        self.close()


def linger(stream: Any) -> Any:
    """Return the same socket as one that may be dropped; any other stream as it is."""
    return Lingering(fileno=stream.detach()) if isinstance(stream, socket.socket) else stream
