"""Plans: file ranges -> pieces (one chunk each) -> one batch of pieces a request, and who gets it.

Pure: no clock, no I/O, no messages. Both shells and every kind of chunk I/O plan here, so that
the limits of a request and the choice of a replica exist once. This is the per-I/O path: one
tuple a piece, plain loops.
"""

from collections.abc import Iterable, Mapping, Sequence
from struct import Struct
from typing import Any, NamedTuple, Protocol

from hillfire.cluster import Endpoint, Routing
from hillfire.errors import Code, Error
from hillfire.layout import Layout, pieces
from hillfire.types import FILES, InodeId

MAX_ITEMS = 256
"""Of one request."""
MAX_BYTES = 4 * 1024 * 1024
"""Of one request, unless a single piece is larger (chunks go up to 64 MiB)."""
MAX_REQUESTS = 48
"""Outstanding at once for one operation: what is on its way to one reader is bounded."""
LARGE = 64 * 1024
"""A read from here on chooses its replica by what is on its way to each; smaller ones take turns,
for which it would cost more than it brings."""
SAME_HOST_WEIGHT = 4
"""A replica on the reader's own host takes this many turns for each of another's."""

_CHUNK_ID = Struct(">HQHI").pack
_new = tuple.__new__  # half the price of calling a NamedTuple


class Extent(NamedTuple):
    """What chunk I/O must know of a file."""

    inode: int
    length: int
    epoch: int
    layout: Layout
    cutting: bool = False
    """a truncate is under way, whose length may have been seen: writes wait for its epoch"""


class Piece(NamedTuple):
    """The part of one batch entry that falls into one chunk."""

    item: int
    """position of the entry in its batch"""
    chunk: bytes
    chain: int
    start: int
    """offset in the chunk"""
    part: Any
    """the memory it fills or is taken from: (region, offset, length)"""


class Replica(NamedTuple):
    """Where a target is reached."""

    target: int
    node: int
    endpoint: Endpoint


class Line(NamedTuple):
    """A chain as a client uses it."""

    version: int
    serving: tuple[Replica, ...]
    """head first; the tail answers what others have not committed yet"""
    turns: tuple[Replica, ...]
    """who is asked for reads, in turn"""


class Chooser(Protocol):
    """Who knows how busy the nodes are (``load.Loads``)."""

    slow: frozenset[int]

    def choose(
        self,
        turns: Sequence[Replica],
        n_bytes: int,
        turn: int,
        now: float,
        planned: Mapping[int, int] | None = None,
    ) -> Replica:
        """Return the replica that should answer a read of ``n_bytes`` first."""

    def turns(self, turns: Sequence[Replica], now: float) -> Sequence[Replica]:
        """Return who is asked for small reads."""


class Batch:
    """The pieces of one request to one node."""

    __slots__ = ("bytes", "node", "pieces", "records")

    def __init__(self, node: Replica) -> None:
        """Begin an empty one."""
        self.node = node
        self.pieces: list[Piece] = []
        self.records: list[tuple[Any, ...]] = []
        self.bytes = 0

    def tell(self) -> Sequence[Piece]:
        """Return what it asks for."""
        return self.pieces


def make_lines(routing: Routing, host: str, suspects: Iterable[int] = ()) -> dict[int, Line]:
    """Prepare every chain of a routing for use by a client on ``host``.

    ``suspects`` are nodes that just failed: they are asked only if nobody else serves.
    """
    avoid, lines = frozenset(suspects), {}
    for chain in routing.chains.values():
        serving = []
        for target in chain.serving:
            try:
                node = routing.node_of(target)
            except Error:
                continue
            serving.append(Replica(target, node.id, node.endpoint))
        good = [replica for replica in serving if replica.node not in avoid] or serving
        near = [replica for replica in good if host and replica.endpoint.host == host]
        far = [replica for replica in good if replica not in near]
        turns = (near * SAME_HOST_WEIGHT + far) if far else near
        lines[int(chain.id)] = Line(chain.version, tuple(serving), tuple(turns))
    return lines


def split(
    entries: Iterable[tuple[Extent, int, Any]],
    results: list[Any],
    make_part: Any,
    reading: bool,
) -> list[Piece]:
    """Cut entries (extent, offset, part) into pieces; most fall into one chunk, keep their part.

    Fills in ``results``: each entry's byte count, clipped at the file's length when ``reading``,
    or the error of one that cannot be done. The loop is spelled out because it is the I/O path.
    """
    out: list[Piece] = []
    append = out.append
    for item, (extent, offset, part) in enumerate(entries):
        region, place, length = part
        inode, end, _, layout, _ = extent
        if (
            offset < 0
            or place < 0
            or length <= 0
            or place + length > region.size
            or region.quarantined
            or not reading
        ):
            try:
                check_range(extent, offset, length)
                region.check(place, length, reading)
            except Error as exc:
                results[item] = exc
                continue
        if reading and offset + length > end:
            length = end - offset if end > offset else 0
            part = make_part(region, place, length)
        results[item] = length
        if not length:
            continue
        size, chains = layout.chunk_bytes, layout.chains
        index, start = divmod(offset, size)
        if start + length <= size:
            name = _CHUNK_ID(FILES, inode, 0, index)
            append(_new(Piece, (item, name, chains[index % len(chains)], start, part)))
            continue
        for chain, name, start, done, count in pieces(layout, InodeId(inode), offset, length):
            append(Piece(item, name, chain, start, make_part(region, place + done, count)))
    return out


def check_range(extent: Extent, offset: int, length: int) -> None:
    """Refuse a range that no file of this layout can have.

    Raises:
        Error: INVALID or TOO_LARGE.
    """
    if offset < 0 or length < 0:
        raise Error(Code.INVALID, f"a range of {length} bytes from {offset}")
    if offset + length > extent.layout.max_length_bytes:
        text = f"a file of this layout ends at {extent.layout.max_length_bytes} bytes"
        raise Error(Code.TOO_LARGE, text)


class Batcher:
    """Collects pieces by node into requests within the limits."""

    def __init__(self, max_items: int = MAX_ITEMS, max_bytes: int = MAX_BYTES) -> None:
        """Start with nothing."""
        self.batches: list[Batch] = []
        self._open: dict[int, Batch] = {}
        self._max_items = max_items
        self._max_bytes = max_bytes

    def add(self, replica: Replica, piece: Piece, record: tuple[Any, ...]) -> Batch:
        """Put a piece and its record's fields into a request to the replica's node: this one."""
        length = piece[4][2]
        batch = self._open.get(replica.node)
        if batch is None or (
            len(batch.pieces) >= self._max_items or batch.bytes + length > self._max_bytes
        ):
            batch = self._open[replica.node] = Batch(replica)
            self.batches.append(batch)
        batch.pieces.append(piece)
        batch.records.append(record)
        batch.bytes += length
        return batch


def plan_reads(
    todo: Sequence[Piece],
    lines: Mapping[int, Line],
    turn: int,
    loads: Chooser | None = None,
    now: float = 0.0,
) -> tuple[list[Batch], list[Piece]]:
    """Spread pieces over the serving replicas: large ones by load, others in turn from ``turn`` on.

    Returns the requests and the pieces whose chain has nobody that serves.
    """
    batches: list[Batch] = []
    stranded: list[Piece] = []
    filling: dict[int, Batch] = {}
    planned: dict[int, int] = {}
    slow = loads is not None and bool(loads.slow)
    for piece in todo:
        _, chunk, chain, start, part = piece
        line = lines.get(chain)
        if line is None or not line.turns:
            stranded.append(piece)
            continue
        version, _, turns = line
        turn += 1
        length = part[2]
        if loads is not None and length >= LARGE:
            replica = loads.choose(turns, length, turn, now, planned)
            planned[replica[1]] = planned.get(replica[1], 0) + length
        elif slow and loads is not None:
            good = loads.turns(turns, now)
            replica = good[turn % len(good)]
        else:
            replica = turns[turn % len(turns)]
        batch = filling.get(replica[1])
        if (
            batch is None
            or len(batch.pieces) >= MAX_ITEMS
            or (batch.bytes + length > MAX_BYTES and batch.bytes)
        ):
            batch = filling[replica[1]] = Batch(replica)
            batches.append(batch)
        batch.pieces.append(piece)
        batch.records.append((chunk, chain, version, start, 0))
        batch.bytes += length
    return batches, stranded


def choose_again(line: Line, avoid: Iterable[int], tail: bool, turn: int) -> Replica | None:
    """Choose a replica for a read that failed before, None if nobody serves.

    The tail if it was *not committed* elsewhere; else one that has not failed it yet; when all
    have, any.
    """
    if not line.serving:
        return None
    if tail:
        return line.serving[-1]
    failed = frozenset(avoid)
    good = [replica for replica in line.serving if replica.target not in failed] or line.serving
    return good[turn % len(good)]


def merge(
    todo: Sequence[Piece], extents: Sequence[Extent], make_part: Any
) -> tuple[list[Piece], dict[tuple[int, bytes], list[int]]]:
    """Join pieces that follow one another in their batch, their chunk and their memory.

    Returns the pieces, and for each joined one, by (item, chunk), the other entries it stands for.
    """
    out: list[Piece] = []
    others: dict[tuple[int, bytes], list[int]] = {}
    chunk, end, region, place = b"", -1, None, -1
    for piece in todo:
        part = piece[4]
        if (
            piece[3] == end
            and part[1] == place
            and piece[1] == chunk
            and part[0] is region
            and extents[piece[0]].epoch == extents[out[-1].item].epoch
        ):
            last = out[-1]
            whole = make_part(region, last.part[1], last.part[2] + part[2])
            out[-1] = last._replace(part=whole)
            others.setdefault((last.item, last.chunk), []).append(piece.item)
        else:
            out.append(piece)
        chunk, region = piece[1], part[0]
        end, place = piece[3] + part[2], part[1] + part[2]
    return out, others


def without_overlap(todo: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Part writes into those that may go now and those that wait for an earlier one's answer.

    Updates that touch a byte in common must not be on their way together: one that is sent again
    would undo a later one. Others of a chunk may: its head takes them in line.
    """
    ends: dict[bytes, int] = {}
    seen: dict[bytes, list[tuple[int, int]]] = {}
    now: list[Piece] = []
    later: list[Piece] = []
    for piece in todo:
        _, chunk, _, start, part = piece
        end = start + part[2]
        last = ends.get(chunk)
        if last is None:
            ends[chunk] = end
            seen[chunk] = [(start, end)]
            now.append(piece)
            continue
        spans = seen[chunk]
        clash = start < last and any(s < end and start < e for s, e in spans)
        (later if clash else now).append(piece)
        spans.append((start, end))
        ends[chunk] = max(last, end)
    return now, later


def target_on(line: Line | None, node: int) -> int:
    """Return a chain's target on a node, -1 if it has none there any more."""
    for replica in line.serving if line is not None else ():
        if replica.node == node:
            return replica.target
    return -1


def chains_of(extent: Extent, start: int, end: int) -> list[int]:
    """List the chains that hold any byte of [start, end) of a file."""
    layout = extent.layout
    if end <= start:
        return []
    first, last = start // layout.chunk_bytes, (end - 1) // layout.chunk_bytes
    count = min(last - first + 1, len(layout.chains))
    return sorted({int(layout.chain_of(first + i)) for i in range(count)})
