"""Which clients' sessions run, so that storage nodes know whose tags to keep. Pure.

A client says that it lives every third of a session's length. A storage node asks about clients of
whom it has heard nothing for that long; it drops the tags of those whose session is over. Sessions
are not stored: a new leader takes everybody for alive until a full length has passed. That is
safe in one direction only, which is the one that matters: tags are kept too long, never too short.

Source: design.md section 5, rule 5; 3FS's manager ends client sessions in the same way.
"""

from collections.abc import Iterable

from hillfire.errors import Code, Error

MAX_SESSIONS = 1 << 20


class Sessions:
    """The sessions by client."""

    def __init__(self, length_ns: int, now_ns: int) -> None:
        """Begin with everybody alive for one length."""
        self._length_ns = length_ns
        self._until: dict[int, int] = {}
        self._grace_ns = now_ns + length_ns
        self._swept_ns = now_ns

    def __len__(self) -> int:
        """Count the sessions that run."""
        return len(self._until)

    def renew(self, client: int, now_ns: int) -> None:
        """Count a full length from now.

        Raises:
            Error: OVERLOADED when there are too many.
        """
        if client not in self._until and len(self._until) >= MAX_SESSIONS:
            raise Error(Code.OVERLOADED, f"{MAX_SESSIONS} client sessions run already")
        self._until[client] = now_ns + self._length_ns

    def end(self, client: int) -> None:
        """End a session: the client has said so."""
        self._until.pop(client, None)

    def forgive(self, now_ns: int) -> None:
        """Start every session anew: it was this manager that slept, or could not answer."""
        self._grace_ns = now_ns + self._length_ns
        self._until = dict.fromkeys(self._until, self._grace_ns)

    def ended(self, clients: Iterable[int], now_ns: int) -> tuple[int, ...]:
        """Return those of ``clients`` whose sessions are over (R71); none in the time of grace."""
        if now_ns < self._grace_ns:
            return ()
        return tuple(each for each in clients if self._until.get(each, 0) <= now_ns)

    def sweep(self, now_ns: int) -> None:
        """Forget what is over, now and then."""
        if now_ns - self._swept_ns < self._length_ns:
            return
        self._swept_ns = now_ns
        self._until = {c: until for c, until in self._until.items() if until > now_ns}
