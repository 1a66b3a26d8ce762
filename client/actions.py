"""What an operation asks of its shell: the whole vocabulary between the core and the world.

Every client operation is a generator that yields these and is sent their results. ``sync.py``
carries them out on the caller's thread, ``aio.py`` on an event loop; tests answer from a script.
What comes later (hedged reads, queue depth) adds actions here and leaves the operations alone.
"""

from collections.abc import Generator
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


class Exchange(NamedTuple):
    """Do all calls at once. Sent back: ``list[Outcome]``, in their order."""

    calls: list[Call]


class Pause(NamedTuple):
    """Wait. Sent back: None."""

    seconds: float


class Spawn(NamedTuple):
    """Begin another operation beside this one. Sent back: a handle for ``Join``."""

    operation: "Operation[Any]"


class Join(NamedTuple):
    """Wait for a spawned operation's end. Sent back: its result; its ``Error`` is thrown."""

    handle: Any


Action: TypeAlias = Exchange | Pause | Spawn | Join
Operation: TypeAlias = Generator[Action, Any, T]
