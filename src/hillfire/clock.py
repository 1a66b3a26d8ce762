"""The clocks, so that shells take time from one place and tests can put another in its stead.

Leases count on CLOCK_BOOTTIME: it goes on while a host sleeps and never jumps, so that a process
that was stopped for a while finds its lease over when it wakes. The wall clock is for users' time
stamps only; nothing is decided by it.
"""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


def boot_ns() -> int:
    """Return nanoseconds since this host was started, sleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_ns() -> int:
    """Return nanoseconds since 1970 by a clock that may jump."""
    return time.time_ns()


class Clock(NamedTuple):
    """What a shell asks for the time; a test passes functions of its own."""

    boot_ns: Callable[[], int] = boot_ns
    wall_ns: Callable[[], int] = wall_ns


SYSTEM = Clock()


async def happens(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait until an event is set, at most ``timeout_s``; tell whether it is.

    Unlike ``asyncio.wait_for`` before Python 3.12 it never swallows a cancellation that comes
    together with the event.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()
