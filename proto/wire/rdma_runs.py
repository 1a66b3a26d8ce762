"""Which one-sided operations move a request's parts: pure arithmetic on addresses.

Parts that are neighbours in both memories become one operation: a batch of 256 blocks into one
array is a handful of WRITEs.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

MAX_RUN_BYTES = 16 * 1024 * 1024
"""Of one operation: what a device must take in one piece differs, 2 GiB at most."""


class Remote(NamedTuple):
    """A part in the client's memory."""

    key: int
    address: int
    length: int


class Run(NamedTuple):
    """One operation: ``length`` bytes at ``local`` here and at ``remote`` under ``key`` there."""

    local: int
    remote: int
    key: int
    length: int


def runs(local: int, parts: Sequence[Remote], filled: Iterable[int]) -> list[Run]:
    """Return the operations for parts that lie one after another from ``local``.

    Of each part the first ``filled`` bytes are moved; in local memory it takes its whole length.
    """
    found: list[Run] = []
    start = remote = key = length = 0
    for part, count in zip(parts, filled, strict=True):
        if count:
            joins = (
                length
                and key == part.key
                and remote + length == part.address
                and start + length == local
            )
            if joins:
                length += count
            else:
                _add(found, start, remote, key, length)
                start, remote, key, length = local, part.address, part.key, count
        local += part.length
    _add(found, start, remote, key, length)
    return found


def _add(found: list[Run], start: int, remote: int, key: int, length: int) -> None:
    """Append a run, in pieces that a device takes."""
    for at in range(0, length, MAX_RUN_BYTES):
        found.append(Run(start + at, remote + at, key, min(MAX_RUN_BYTES, length - at)))
