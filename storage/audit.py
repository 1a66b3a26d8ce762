"""Audit: do the replicas of a chain hold the same chunks? The scrubber's decisions. Pure.

Every byte that is there may be right and a replica still be wrong: it lacks a chunk, or has an old
one. *Absent* means zeros only where the replicas agree, so each serving target compares its list
of chunks with those of the others, page by page, and asks here what that means.

Lists are read at different moments, and writes go on. So a difference counts only if it is seen
twice, with the same records both times and nothing pending: an update that is merely on its way
moves on or shows as pending.

Source: design.md 5.8 ("scrubbing compares chunk lists") and 5.3 ("if both sides verify yet differ,
the successor goes offline for a resync, loudly").
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from hillfire.storage.comparison import Remote
from hillfire.types import ChunkId, TargetId

Records = Mapping[ChunkId, Remote]
"""One target's records of a range of ids."""


class Finding(Enum):
    """What is to be thought of a chunk of ours."""

    SOUND = "sound"
    """the others have the same, or lack what we have: they will find out themselves"""
    BUSY = "busy"
    """an update is on its way: nothing can be said now"""
    BEHIND = "behind"
    """others have it in a later version: ours must be repaired from them"""
    ODD = "odd"
    """same version, other content, and more of the others agree on theirs: repair ours"""


class Judgement(NamedTuple):
    """A finding, and the targets that have what ours should be, those to be asked first first."""

    finding: Finding
    sources: tuple[TargetId, ...] = ()
    reason: str = ""


def judge(
    mine: Remote | None, others: Sequence[tuple[TargetId, Remote | None]], first: bool
) -> Judgement:
    """Compare one chunk's record with those of the other serving targets, in the chain's order.

    ``first``: we stand before all of them in the chain. Between two equally large parties the one
    that has the earlier target is right: that is where writes come from.
    """
    if any(each is not None and each.pending for each in (mine, *(r for _, r in others))):
        return Judgement(Finding.BUSY)
    if not others or all(_image(record) == _image(mine) for _, record in others):
        return Judgement(Finding.SOUND)
    latest = max(_version(mine), *(_version(record) for _, record in others))
    sources = tuple(target for target, record in others if _version(record) == latest)
    if _version(mine) < latest:
        text = f"version {_version(mine)} here, {latest} at targets {_names(sources)}"
        return Judgement(Finding.BEHIND, sources, text)
    parties: dict[object, list[TargetId]] = {}
    for target, record in others:
        if _version(record) == latest and record is not None:
            parties.setdefault(_image(record), []).append(target)
    with_us = len(parties.pop(_image(mine), ())) + 1
    if not parties:
        return Judgement(Finding.SOUND)
    largest = max(parties.values(), key=len)
    if len(largest) > with_us or (len(largest) == with_us and not first):
        text = f"version {latest} differs from that of targets {_names(largest)}"
        return Judgement(Finding.ODD, tuple(largest), text)
    return Judgement(Finding.SOUND)


def differences(mine: Records, others: Iterable[Records]) -> set[ChunkId]:
    """Return the chunks of which not all listings of one range of ids say the same."""
    found: set[ChunkId] = set()
    for records in others:
        for chunk in mine.keys() | records.keys():
            if _image(mine.get(chunk)) != _image(records.get(chunk)):
                found.add(chunk)
    return found


def still(before: Judgement, now: Judgement) -> bool:
    """Tell whether a difference was seen twice, and so is none that a write makes."""
    return before.finding is now.finding and before.reason == now.reason


def _version(record: Remote | None) -> int:
    return 0 if record is None else record.version


def _image(record: Remote | None) -> tuple[int, int, int, int, bool] | None:
    """Return what has to be equal; a tombstone of a chunk that never was is like no record."""
    if record is None or (record.removed and not record.version):
        return None
    return record.version, record.length, record.checksum, record.epoch, record.removed


def _names(targets: Sequence[TargetId]) -> str:
    return ", ".join(map(str, targets))


class Pace:
    """How fast a scrubber must read so that a whole store is walked once a period."""

    __slots__ = ("least_bytes_per_s", "most_bytes_per_s")

    def __init__(self, least_bytes_per_s: int, most_bytes_per_s: int) -> None:
        """Keep the rate between the two, whatever the period asks for."""
        self.least_bytes_per_s = least_bytes_per_s
        self.most_bytes_per_s = most_bytes_per_s

    def bytes_per_s(self, left_bytes: int, left_s: float) -> float:
        """Return the rate at which what is left is read in the time that is left."""
        wanted = left_bytes / max(1.0, left_s)
        return min(float(self.most_bytes_per_s), max(float(self.least_bytes_per_s), wanted))

    def rest_s(self, n_bytes: int, took_s: float, left_bytes: int, left_s: float) -> float:
        """Return how long to rest after reading ``n_bytes`` in ``took_s``."""
        return max(0.0, n_bytes / self.bytes_per_s(left_bytes, left_s) - took_s)
