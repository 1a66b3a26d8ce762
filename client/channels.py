"""Update tags: (client id, channel, sequence), by which a chain recognises a retry.

A channel has one update outstanding at a time and its sequence only grows, so a target keeps one
result a channel. Channels are reused, the latest first, so that a client uses no more of them
than it ever had updates in flight. Pure, and safe for threads: each step is one atomic operation
on a list or a counter.
"""

from itertools import count


class Channels:
    """The channels of one client id."""

    def __init__(self, client: int) -> None:
        """``client`` is new for each process, also after a fork."""
        self.client = client
        self._sequence = count(1)
        self._channels = count(1)
        self._free: list[int] = []

    def acquire(self) -> tuple[int, int]:
        """Return a channel that nobody uses and its next sequence."""
        try:
            channel = self._free.pop()
        except IndexError:
            channel = next(self._channels)
        return channel, next(self._sequence)

    def release(self, channel: int) -> None:
        """Give back a channel whose update was answered for good.

        One whose outcome stayed unknown is never given back: its update may still arrive.
        """
        self._free.append(channel)
