"""How the data of requests travels over a connected stream, at the client's side."""

import socket

from hillfire.proto.wire.calls import Calls
from hillfire.proto.wire.calls_shm import ShmCalls
from hillfire.proto.wire.calls_tcp import TcpCalls
from hillfire.proto.wire.stream import Stream


def calls_for(stream: socket.socket | Stream) -> Calls:
    """Return the ``Calls`` of a new connection."""
    if not isinstance(stream, socket.socket):
        calls: Calls = stream.new_calls()
        return calls
    return ShmCalls() if stream.family == socket.AF_UNIX else TcpCalls()
