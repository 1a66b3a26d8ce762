"""What a server and its connections know of each other, and of a request in flight."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from hillfire.errors import Code
from hillfire.proto.wire.base import Answer, Handler
from hillfire.proto.wire.limits import Limits

MAX_MESSAGE_BYTES = 4096
"""Of an error's text."""


def error_answer(code: Code, message: str) -> Answer:
    """Return the answer that is raised as ``Error(code, message)`` at the client."""
    return Answer(code, message.encode("utf-8", "replace")[:MAX_MESSAGE_BYTES])


class Job(NamedTuple):
    """A request in flight."""

    number: int
    method: int
    destinations: Sequence[memoryview]
    kept: Any
    """the side's, see ``stream.Opened``"""
    cost: int
    """bytes that it holds until its answer has left"""
    arrived_ns: int
    """on the monotonic clock"""


class Owner(Protocol):
    """The server, as a connection sees it."""

    handler: Handler
    limits: Limits
    loop: asyncio.AbstractEventLoop
    tasks: set[asyncio.Task[None]]
    bytes: int
    """of all requests in flight"""

    def ended(self, connection: Any, /) -> None:
        """Take note that a connection's socket is closed."""
