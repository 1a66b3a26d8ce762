"""The client's session: heartbeats to the metadata service, and which orphans it still has open.

An inode whose last name went comes back as an orphan; the next call says which of them this
client holds, and they stay until it closes them. The shells decide where the heartbeats run.
"""

from hillfire.client.actions import Operation
from hillfire.client.core import Core
from hillfire.errors import Error
from hillfire.proto import meta_pb2

FIRST_LEASE_S = 10.0
"""Until the service has named its own."""
BEATS_A_LEASE = 3


class Session:
    """One client's session."""

    def __init__(self, core: Core) -> None:
        """Nothing was said yet."""
        self._core = core
        self._seen = 0
        self._report: list[int] = []
        self.lease_s = FIRST_LEASE_S

    def beat(self) -> Operation[tuple[float, list[int]]]:
        """Send one heartbeat; return when the next is due, in seconds, and new orphans held.

        An unreachable service is no error: the next beat tries again.
        """
        core, report = self._core, self._report
        request = meta_pb2.SessionRequest(client=core.client, seen=self._seen, held=report)
        try:
            deadline = core.clock() + self.lease_s / BEATS_A_LEASE
            reply = yield from core.meta("Session", request, deadline)
        except Error:
            return min(1.0, self.lease_s / BEATS_A_LEASE), []
        self._seen = max(self._seen, reply.seen)
        if reply.lease_ms:
            self.lease_s = reply.lease_ms / 1000
        held = sorted(set(reply.orphans) & core.held())
        self._report = held
        core.nameless.update(held)
        return (0.0 if held else self.lease_s / BEATS_A_LEASE), held

    def end(self) -> Operation[None]:
        """Say goodbye; if that fails the lease runs out by itself."""
        core = self._core
        request = meta_pb2.SessionRequest(client=core.client, seen=self._seen, end=True)
        try:
            yield from core.meta("Session", request, core.clock() + 1.0)
        except Error:
            return
