"""Which clients live, and which orphans each has been told of: in memory only.

What a client has open is in the engine; that it lives is not. After a restart everybody has one
lease of grace to say so, before anything is collected or ended.
"""

from collections.abc import Callable

from hillfire.errors import Code, Error

NEVER = 0
"""``seen`` of a client that has not called Session yet: it may have any orphan open."""
MAX_CLIENTS = 1 << 20


class _Client:
    __slots__ = ("expires_ns", "seen")

    def __init__(self, expires_ns: int) -> None:
        self.expires_ns = expires_ns
        self.seen = NEVER


class Clients:
    """The live clients by id. Time comes from ``clock_ns``, which never jumps."""

    def __init__(self, lease_ms: int, clock_ns: Callable[[], int]) -> None:
        """Begin with the grace that follows a start."""
        self.lease_ms = lease_ms
        self._lease_ns = lease_ms * 1_000_000
        self._clock_ns = clock_ns
        self._clients: dict[int, _Client] = {}
        self._gone: set[int] = set()
        self._grace_ns = clock_ns() + self._lease_ns

    def touch(self, client: int) -> None:
        """Count a client that asked for something as alive."""
        if client not in self._clients:
            self._new(client)

    def beat(self, client: int, seen: int) -> None:
        """Take a client's heartbeat: it has been told of all orphans up to ``seen``."""
        known = self._clients.get(client) or self._new(client)
        known.expires_ns = self._clock_ns() + self._lease_ns
        known.seen = max(known.seen, seen)

    def end(self, client: int) -> None:
        """Forget a client; what it has open is to be closed for it."""
        self._clients.pop(client, None)
        self._gone.add(client)

    def expire(self) -> frozenset[int]:
        """Forget the clients whose lease ran out; return all that went and are not settled."""
        now_ns = self._clock_ns()
        for key in [key for key, client in self._clients.items() if client.expires_ns < now_ns]:
            self.end(key)
        return frozenset(self._gone)

    def settled(self, client: int) -> None:
        """Note that everything a client had open is closed."""
        self._gone.discard(client)

    def forgive(self) -> None:
        """Give everybody a new lease: it was this process that slept."""
        self._grace_ns = expires_ns = self._clock_ns() + self._lease_ns
        for client in self._clients.values():
            client.expires_ns = expires_ns

    def alive(self, client: int) -> bool:
        """Tell whether a client is known to live."""
        return client in self._clients

    @property
    def in_grace(self) -> bool:
        """Whether clients that were not heard of may live all the same."""
        return self._clock_ns() < self._grace_ns

    def acknowledged(self, newest: int) -> int:
        """Return the last orphan that every live client was told of, at most ``newest``."""
        return min([newest, *(client.seen for client in self._clients.values())])

    def _new(self, client: int) -> _Client:
        if len(self._clients) >= MAX_CLIENTS:
            raise Error(Code.OVERLOADED, f"{MAX_CLIENTS} clients are known already")
        self._gone.discard(client)
        made = self._clients[client] = _Client(self._clock_ns() + self._lease_ns)
        return made
