"""What an operation asks of its shell: the whole vocabulary between the core and the world.

Every client operation is a generator that yields these and is sent their results. ``sync.py``
carries them out on the caller's thread, ``aio.py`` on an event loop; tests answer from a script.
``Exchange`` is the cheapest and does for most. ``Start``, ``Await`` and ``Abandon`` are for
operations that act on some answers before they have all: hedged reads ask a second replica when
the first is late, and forget the one that loses.
"""

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from hillfire.cluster import Endpoint
from hillfire.errors import Error
from hillfire.proto.wire.base import Request

T = TypeVar("T")


class Call(NamedTuple):
    """One request to one process."""

    endpoint: Endpoint
    request: Request
    timeout_s: float


class Outcome(NamedTuple):
    """What came of a call: a body, or the error."""

    body: bytes
    error: Error | None
    verified: bool
    """the bytes in memory were checked by the server in place (shm); otherwise check them"""


class Flying:
    """A call that was started. ``outcome`` is None until its answer, or its error, is there."""

    __slots__ = ("call", "handle", "outcome")

    def __init__(self, call: Call) -> None:
        """Nothing has come of it yet; ``handle`` is the shell's."""
        self.call = call
        self.outcome: Outcome | None = None
        self.handle: Any = None


class Exchange(NamedTuple):
    """Do all calls at once. Sent back: ``list[Outcome]``, in their order."""

    calls: list[Call]


class Start(NamedTuple):
    """Send requests and go on. Sent back: ``list[Flying]``, in their order.

    Each has its outcome after its ``timeout_s`` at the latest, once somebody awaits it. What an
    operation leaves without an outcome when it ends is abandoned by its shell.
    """

    calls: Sequence[Call]


class Await(NamedTuple):
    """Wait until any of ``flying`` that had no outcome has one, at most ``timeout_s``.

    Sent back: None. It returns at once if all have theirs.
    """

    flying: Sequence[Flying]
    timeout_s: float


class Abandon(NamedTuple):
    """Nobody wants these answers any more. Sent back: None.

    A call without an outcome becomes CANCELLED, and its server may still be at work: its parts
    stay in quarantine until the answer arrives after all, or the server's end.
    """

    flying: Sequence[Flying]


class Pause(NamedTuple):
    """Wait. Sent back: None."""

    seconds: float


class Spawn(NamedTuple):
    """Begin another operation beside this one. Sent back: a handle for ``Join``."""

    operation: "Operation[Any]"


class Join(NamedTuple):
    """Wait for a spawned operation's end. Sent back: its result; its ``Error`` is thrown."""

    handle: Any


Action: TypeAlias = Exchange | Start | Await | Abandon | Pause | Spawn | Join
Operation: TypeAlias = Generator[Action, Any, T]
