"""The client's session: heartbeats to the metadata service, and which orphans it still has open.

A second one, much longer, is with the manager: while it runs, storage nodes keep what they know of
this client's updates, so that each is done once however often it was sent.

An inode whose last name went comes back as an orphan; the next call says which of them this
client holds, and they stay until it closes them. The shells decide where the heartbeats run.
"""

import contextlib

from hillfire.client.actions import Call, Exchange, Operation
from hillfire.client.core import Core
from hillfire.cluster import Endpoint
from hillfire.errors import Error
from hillfire.proto import manager_pb2, meta_pb2, service
from hillfire.proto.wire.base import Reply

FIRST_LEASE_S = 10.0
"""Until the service has named its own."""
BEATS_A_LEASE = 3
MANAGER_TIMEOUT_S = 1.0

_MANAGER_SESSION = service.method("Manager", "Session")


class Session:
    """One client's session."""

    def __init__(self, core: Core) -> None:
        """Nothing was said yet."""
        self._core = core
        self._seen = 0
        self._report: list[int] = []
        self.lease_s = FIRST_LEASE_S
        self._known = 0
        """the client number that the manager knows; another one after a fork"""
        self._manager: Endpoint | None = None
        """where it was told so last"""
        self._known_until = 0.0
        """when it has to be told again that this client lives"""

    def beat(self) -> Operation[tuple[float, list[int]]]:
        """Send one heartbeat; return when the next is due, in seconds, and new orphans held.

        An unreachable service is no error: the next beat tries again.
        """
        core, report = self._core, self._report
        if self._known != core.client or core.clock() >= self._known_until:
            yield from self._tell_manager(end=False)
        request = meta_pb2.SessionRequest(client=core.client, seen=self._seen, held=report)
        sent = core.clock()
        try:
            deadline = core.clock() + self.lease_s / BEATS_A_LEASE
            reply = yield from core.meta("Session", request, deadline)
        except Error:
            return min(1.0, self.lease_s / BEATS_A_LEASE), []
        self._seen = max(self._seen, reply.seen)
        if reply.lease_ms:
            self.lease_s = reply.lease_ms / 1000
        core.renewed(sent, self.lease_s)
        held = sorted(set(reply.orphans) & core.held())
        self._report = held
        core.nameless.update(held)
        return (0.0 if held else self.lease_s / BEATS_A_LEASE), held

    def end(self) -> Operation[None]:
        """Say goodbye; if that fails the lease runs out by itself."""
        core = self._core
        request = meta_pb2.SessionRequest(client=core.client, seen=self._seen, end=True)
        with contextlib.suppress(Error):  # else its lease runs out by itself
            yield from core.meta("Session", request, core.clock() + 1.0)
        if self._known == core.client:
            yield from self._tell_manager(end=True)

    def _tell_manager(self, *, end: bool) -> Operation[None]:
        """Renew or end the session with the manager; one that does not answer is asked later."""
        core = self._core
        message = manager_pb2.ClientSessionRequest(client=core.client, end=end)
        request = service.encode(_MANAGER_SESSION, message)
        where = self._manager if end and self._manager else core.routes.manager()
        (outcome,) = yield Exchange([Call(where, request, MANAGER_TIMEOUT_S)])
        if outcome.error is None:
            self._manager = where
            reply = service.decode(_MANAGER_SESSION, Reply(outcome.body))
            self._known = core.client
            # Who retries for longer might find its update forgotten, and do it twice.
            core.io_timeout_s = min(core.io_timeout_s, reply.session_ms / 2000)
            self._known_until = core.clock() + reply.session_ms / 1000 / BEATS_A_LEASE
