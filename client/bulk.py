"""Plans of large batches: from arrays of I/Os to packed requests without a loop over the items.

Pure. It plans what is regular, which nearly everything is; ``plan_reads`` returns None for the
rest (a bad range, a quarantine, a chain that nobody serves), which ``plan.py`` then takes one
piece at a time. Below ``FEWEST`` items that is faster in any case.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hillfire.client.items import Items, Longs
from hillfire.client.plan import MAX_BYTES, MAX_ITEMS, Extent, Line, Piece, Replica
from hillfire.proto.wire.base import Parts
from hillfire.proto.wire.chunk_arrays import READ_ITEM
from hillfire.proto.wire.chunks import READ_ITEMS
from hillfire.types import FILES

FEWEST = 16
"""Items for which arrays are worth their setting up."""


FULL = 32
"""Pieces of a request, on average, below which fewer and fuller requests are better."""
MIX = 0x9E3779B1
"""Has chains begin their turns at different replicas (Knuth's multiplicative hash)."""


class Table:
    """A routing as arrays: by row, a chain's version and the nodes that are asked, in turn."""

    __slots__ = ("_without", "counts", "lines", "replicas", "rows", "turns", "versions")

    def __init__(self, lines: Mapping[int, Line]) -> None:
        """Prepare ``lines``, which is replaced and never edited."""
        self.lines = lines
        self.replicas: list[Replica] = []
        """one a node, whichever of its targets: what a slot in ``turns`` means"""
        slots: dict[int, int] = {}
        width = max([len(line.turns) for line in lines.values()], default=0)
        self.rows = np.full(max(lines, default=0) + 1, -1, np.int32)
        """of a chain, by its id"""
        self.counts = np.zeros(len(lines), np.int64)
        self.versions = np.zeros(len(lines), np.uint32)
        self.turns = np.zeros((len(lines), max(1, width)), np.int32)
        self._without: tuple[frozenset[int], Table] | None = None
        for row, (chain, line) in enumerate(lines.items()):
            self.rows[chain] = row
            self.versions[row] = line.version
            self.counts[row] = len(line.turns)
            for turn, replica in enumerate(line.turns):
                slot = slots.get(replica.node)
                if slot is None:
                    slot = slots[replica.node] = len(self.replicas)
                    self.replicas.append(replica)
                self.turns[row, turn] = slot

    def without(self, nodes: frozenset[int]) -> "Table":
        """Return the table in which these nodes are asked only where there is nobody else."""
        known = self._without
        if known is not None and known[0] == nodes:
            return known[1]
        left_out = np.array([replica.node in nodes for replica in self.replicas], bool)
        there = np.arange(self.turns.shape[1]) < self.counts[:, None]
        good = there & ~left_out[self.turns]
        good[~good.any(1)] = there[~good.any(1)]
        table = copy(self)
        table.turns = np.take_along_axis(self.turns, np.argsort(~good, 1, kind="stable"), 1)
        table.counts = good.sum(1)
        self._without = nodes, table
        return table


class Bulk(NamedTuple):
    """One request: its items as arrays, its body and its parts as they leave."""

    node: Replica
    items: Longs
    """positions in the batch"""
    body: bytes
    parts: Parts

    @property
    def bytes(self) -> int:
        """How many it asks for."""
        return int(self.parts.lengths.sum())

    @property
    def chain(self) -> int:
        """Of its first item."""
        return int.from_bytes(self.body[16:20], "little")

    def pieces(self) -> list[Piece]:
        """Return all of its items as they are asked of another replica."""
        return [self.piece(at) for at in range(len(self.items))]

    def piece(self, at: int) -> Piece:
        """Return one of its items as it is retried by itself."""
        record = self.body[at * READ_ITEM.itemsize : (at + 1) * READ_ITEM.itemsize]
        ((chunk, chain, _, start, _),) = READ_ITEMS.tuples(record)
        return Piece(int(self.items[at]), chunk, chain, start, self.parts[at])


class Cut(NamedTuple):
    """Pieces of a batch, one chunk each, as arrays."""

    items: Longs
    extents: Longs | None
    chunks: Longs
    start: Longs
    places: Longs
    lengths: Longs


def plan_reads(items: Items, table: Table, turn: int) -> tuple[list[Bulk], Longs] | None:
    """Return the requests of a batch and each item's byte count; None if it is not regular."""
    known = _ends_of(items)
    if known is None:
        return None
    ends, size = known
    counts = items.lengths
    if (items.offsets + counts > ends).any():
        counts = np.clip(ends - items.offsets, 0, counts)
    cut = _cut(items, counts, size)
    chains = _chains_of(items.extents, cut)
    if not len(chains):
        return [], counts
    if chains.max() >= len(table.rows):
        return None
    rows = table.rows[chains]
    if rows.min() < 0 or not table.counts[rows].all():
        return None
    slots = choose(table, rows, turn)
    return _pack(items, cut, chains, table, rows, slots), counts


def choose(table: Table, rows: NDArray[np.int32], turn: int) -> NDArray[np.int32]:
    """Return the slot of the node that is asked for each piece: in turn, from ``turn`` on.

    Each piece takes its own turn where that still makes requests worth sending. Otherwise a
    chain's pieces go to one replica, another one the next time: of many nodes few are asked.
    """
    if len(rows) >= FULL * len(table.replicas):
        turns = np.arange(turn + 1, turn + 1 + len(rows), dtype=np.int64)
    else:
        turns = turn + (rows.astype(np.int64) * MIX >> 16)
    chosen: NDArray[np.int32] = table.turns[rows, turns % table.counts[rows]]
    return chosen


def _ends_of(items: Items) -> tuple["Longs | int", int] | None:
    """Return where each item's file ends, and the chunk size; None for a batch not regular."""
    region, extents = items.region, items.extents
    size = extents[0].layout.chunk_bytes
    if region.quarantined or any(each.layout.chunk_bytes != size for each in extents):
        return None
    offsets, places, lengths = items.offsets, items.places, items.lengths
    farthest = extents[0].layout.max_length_bytes - region.size
    if (
        offsets.min() < 0
        or places.min() < 0
        or lengths.min() <= 0
        or lengths.max() > region.size
        or places.max() > region.size
        or (places + lengths).max() > region.size
        or offsets.max() > farthest
    ):
        return None
    if items.which is None:
        return extents[0].length, size
    return np.array([each.length for each in extents], np.int64)[items.which], size


def _cut(items: Items, counts: Longs, size: int) -> Cut:
    """Cut items into pieces of one chunk each."""
    shift = size.bit_length() - 1
    index, start = items.offsets >> shift, items.offsets & (size - 1)
    numbers = np.arange(len(counts), dtype=np.int64)
    if counts is items.lengths and (start + counts).max() <= size:
        return Cut(numbers, items.which, index, start, items.places, counts)
    pieces = (start + counts + (size - 1)) >> shift
    pieces[counts == 0] = 0
    numbers = np.repeat(numbers, pieces)
    step = np.arange(len(numbers), dtype=np.int64) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = start[numbers]
    done = np.where(step == 0, 0, step * size - start)
    start = np.where(step == 0, start, 0)
    return Cut(
        numbers,
        None if items.which is None else items.which[numbers],
        index[numbers] + step,
        start,
        items.places[numbers] + done,
        np.minimum(size - start, counts[numbers] - done),
    )


def _chains_of(extents: Sequence[Extent], cut: Cut) -> Longs:
    """Return each piece's chain."""
    if cut.extents is None:
        chains = extents[0].layout.chains
        found: Longs = np.array(chains, np.int64)[cut.chunks % len(chains)]
        return found
    stripes = [len(each.layout.chains) for each in extents]
    first = np.cumsum(stripes) - stripes
    every = np.array([chain for each in extents for chain in each.layout.chains], np.int64)
    found = every[first[cut.extents] + cut.chunks % np.array(stripes)[cut.extents]]
    return found


def _pack(
    items: Items,
    cut: Cut,
    chains: Longs,
    table: Table,
    rows: NDArray[np.int32],
    slots: NDArray[np.int32],
) -> list[Bulk]:
    """Make requests of pieces, by the slots of the nodes that get them."""
    order = np.argsort(slots, kind="stable")
    records = np.zeros(len(order), READ_ITEM)
    records["space"] = FILES
    inodes = [each.inode for each in items.extents]
    if cut.extents is None:
        records["inode"] = inodes[0]
    else:
        records["inode"] = np.array(inodes, np.uint64)[cut.extents[order]]
    records["index"] = cut.chunks[order]
    records["chain"] = chains[order]
    records["version"] = table.versions[rows[order]]
    records["offset"] = cut.start[order]
    numbers, places, lengths = cut.items[order], cut.places[order], cut.lengths[order]
    body, total = records.tobytes(), np.cumsum(lengths)
    found = []
    ends = np.cumsum(np.bincount(slots, minlength=len(table.replicas))).tolist()
    first = 0
    for slot, end in enumerate(ends):
        while first < end:
            last = min(end, first + MAX_ITEMS)
            before = int(total[first - 1]) if first else 0
            if total[last - 1] - before > MAX_BYTES:
                last = int(np.searchsorted(total[:last], before + MAX_BYTES, "right"))
                last = max(first + 1, last)
            part = slice(first, last)
            found.append(
                Bulk(
                    table.replicas[slot],
                    numbers[part],
                    body[first * READ_ITEM.itemsize : last * READ_ITEM.itemsize],
                    Parts(items.region, places[part], lengths[part]),
                )
            )
            first = last
    return found
