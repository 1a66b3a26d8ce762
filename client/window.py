"""How much may be on its way to this client at once: request-to-send, against incast.

Pure. If a client asks a hundred nodes at once, their answers meet at its one link: what that
cannot take piles up in switches, and what waits there keeps other clients' answers waiting. 3FS's
servers ask the reader before they send; here the reader does not ask for more than it has room
for, which needs no message: it knows what it asked for. A window must cover the round trip at the
link's rate, disk and queue included, and no more.

An operation with nothing on its way may always send one request, so that operations never wait
for each other: only for answers of their own.
"""

from hillfire.client.load import Loads

MAX_BYTES = 32 * 1024 * 1024
"""On their way to one client: 1.3 ms of a link of 200 Gb/s, 5 ms of 50 Gb/s."""
MAX_REQUESTS_A_NODE = 8
"""On their way to one node, of one client."""


class Window:
    """What one client, all its operations together, may ask for now."""

    __slots__ = ("_loads", "max_bytes", "max_requests")

    def __init__(
        self, loads: Loads, max_bytes: int = MAX_BYTES, max_requests: int = MAX_REQUESTS_A_NODE
    ) -> None:
        """``max_requests``: to one node."""
        self._loads = loads
        self.max_bytes = max_bytes
        self.max_requests = max_requests

    def admits(self, node: int, n_bytes: int, mine: int) -> bool:
        """Tell whether an operation with ``mine`` requests on their way may send one more."""
        if not mine:
            return True
        loads = self._loads
        if loads.bytes + n_bytes > self.max_bytes:
            return False
        load = loads.nodes.get(node)
        return load is None or len(load.flying) < self.max_requests
