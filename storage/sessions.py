"""Whose tags a node keeps: until the manager says that a client's session is over (rule 5).

Once a session's length each target notes which clients it heard nothing of in all of the last one.
Heartbeats ask the manager about those. The tags of one whose session is over are dropped, unless
something of it came in between: then it is asked about later again.
"""

import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from hillfire.errors import Error
from hillfire.storage.craq import events
from hillfire.storage.shell import TargetShell

log = logging.getLogger(__name__)

MAX_ASKED = 4096
"""Clients asked about in one heartbeat; others follow as these are answered."""


class Sessions:
    """The clients that are idle at each of a node's targets."""

    def __init__(self, shells: Callable[[], Iterable[TargetShell]]) -> None:
        """``shells``: of the targets that are up."""
        self._shells = shells
        self._idle: weakref.WeakKeyDictionary[TargetShell, set[int]] = weakref.WeakKeyDictionary()

    def turn(self) -> None:
        """Note who was idle since the last call; called once a session's length."""
        for shell in self._shells():
            self._idle[shell] = shell.replica.channels.turn()

    def idle(self) -> Sequence[int]:
        """Return whom to ask the manager about."""
        asked: set[int] = set()
        for idle in self._idle.values():
            asked |= idle
            if len(asked) > MAX_ASKED:
                break
        return sorted(asked)[:MAX_ASKED]

    async def ended(self, clients: Sequence[int]) -> None:
        """Drop the tags of clients whose sessions are over."""
        for shell in self._shells():
            gone = self._idle.get(shell, set()) & set(clients)
            if not gone or shell.replica.stopped is not None:
                continue
            self._idle[shell] -= gone
            gone = shell.replica.channels.quiet(gone)
            shell.handle(events.SessionsEnded(gone))
            try:
                await shell.threads.call(partial(shell.store.forget_clients, gone))
            except Error as exc:
                log.warning("event=tags_kept target=%d cause=%r", shell.target, exc.strerror)
