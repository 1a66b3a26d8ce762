"""How many bytes may be on their way at once: the pure part of request-to-send.

When many servers answer one reader at the same time, the switch's buffers before the reader
overflow and everybody waits for retransmissions (incast). So the reader holds a *window* of bytes.
A request that finds room takes it at once and says so: its server delivers without asking. Else
the server fetches its data, says READY, and waits for the reader's GRANT. 3FS does the same
("request to send"), always with the round trip.

Servers bound what they pull from their clients (RDMA READ) and push to them by windows of the same
kind.
"""

from collections.abc import Callable

MAX_WOKEN = 8
"""Of those that wait, when there is room again: several are woken, since one may be gone."""


class Waiter:
    """Somebody who waits for room."""

    __slots__ = ("n_bytes", "wake")

    def __init__(self, n_bytes: int, wake: Callable[[], object]) -> None:
        """``wake`` is called when it is worth to try again."""
        self.n_bytes = n_bytes
        self.wake = wake


class Window:
    """Room for ``limit`` bytes; one that wants more than that gets it when it is alone."""

    def __init__(self, limit: int) -> None:
        """Begin with nothing taken."""
        self.limit = limit
        self.taken = 0
        self.waiting: dict[Waiter, None] = {}

    def take(self, n_bytes: int) -> bool:
        """Take room if nobody waits and it is there."""
        if self.waiting or not self._fits(n_bytes):
            return False
        self.taken += n_bytes
        return True

    def _fits(self, n_bytes: int) -> bool:
        return not self.taken or self.taken + n_bytes <= self.limit

    def wait(self, waiter: Waiter) -> None:
        """Stand in line."""
        self.waiting[waiter] = None

    def retry(self, waiter: Waiter) -> bool:
        """Take room for one that stands in line, if it is there."""
        if waiter not in self.waiting or not self._fits(waiter.n_bytes):
            return False
        self.force(waiter)
        return True

    def force(self, waiter: Waiter) -> None:
        """Take room whether it is there or not, for one that may wait no longer."""
        if self.waiting.pop(waiter, self) is None:
            self.taken += waiter.n_bytes

    def leave(self, waiter: Waiter) -> bool:
        """Stand in line no more; tell whether it still did."""
        return self.waiting.pop(waiter, self) is None

    def give(self, n_bytes: int) -> list[Waiter]:
        """Give room back and return whom to wake."""
        self.taken -= n_bytes
        assert self.taken >= 0, "more given than taken"
        woken: list[Waiter] = []
        room = self.limit - self.taken
        for waiter in self.waiting:
            if (waiter.n_bytes > room and (self.taken or woken)) or len(woken) == MAX_WOKEN:
                break
            room -= waiter.n_bytes
            woken.append(waiter)
        return woken
