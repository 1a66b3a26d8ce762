"""What a file has in write-behind: which bytes are dirty, what may be sent, what a read must see.

Pure bookkeeping, apart from the shell that moves bytes (``fuse/writeback.py``), so that it can be
tested against a plain ``bytes`` model. A file is cut into *pieces* of ``piece_bytes``; a dirty
piece has a slot of memory of its own (what a slot is, only the shell knows) and a list of dirty
spans within it.

A piece is open (takes writes), then sending (its memory is in flight: frozen), then done. While
piece ``i`` is sending, a write to its range opens a second piece ``i``; that one may be sent only
when the first is done, so that updates of one chunk keep their order. Hence a read sees storage,
then the sending piece over it, then the open one over both.
"""

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

Slot = TypeVar("Slot")


class Cut(NamedTuple):
    """The part of a file range that falls into one piece."""

    number: int
    """of the piece"""
    start: int
    """within the piece"""
    length: int
    range_offset: int


class Piece(Generic[Slot]):
    """Dirty bytes of one piece of the file; ``spans`` are sorted, disjoint and not adjacent."""

    __slots__ = ("done", "index", "pins", "slot", "spans")

    def __init__(self, index: int, slot: Slot) -> None:
        """Begin without a dirty byte."""
        self.index = index
        self.slot = slot
        self.spans: list[tuple[int, int]] = []
        self.done = False
        self.pins = 0
        """readers that still copy from the slot"""

    def add(self, start: int, end: int) -> None:
        """Make bytes [start, end) of the piece dirty."""
        spans = self.spans
        if not spans or start > spans[-1][1]:
            spans.append((start, end))
            return
        if start == spans[-1][1]:
            spans[-1] = (spans[-1][0], end)
            return
        kept = [span for span in spans if span[1] < start or span[0] > end]
        touched = [span for span in spans if span[1] >= start and span[0] <= end]
        for low, high in touched:
            start, end = min(start, low), max(end, high)
        kept.append((start, end))
        kept.sort()
        self.spans = kept

    def cut(self, end: int) -> None:
        """Forget dirty bytes from ``end`` on."""
        self.spans = [(low, min(high, end)) for low, high in self.spans if low < end]


class Overlay(NamedTuple, Generic[Slot]):
    """Dirty bytes that a read must put over what storage returned, in the order of the list."""

    piece: Piece[Slot]
    start: int
    """within the piece"""
    length: int
    range_offset: int


class Dirty(Generic[Slot]):
    """The dirty pieces of one file."""

    __slots__ = ("open", "piece_bytes", "sending")

    def __init__(self, piece_bytes: int) -> None:
        """Begin clean."""
        self.piece_bytes = piece_bytes
        self.open: dict[int, Piece[Slot]] = {}
        """by index, in the order in which they were opened"""
        self.sending: dict[int, Piece[Slot]] = {}

    def __bool__(self) -> bool:
        """Tell whether a byte is not yet stored."""
        return bool(self.open or self.sending)

    def cuts(self, offset: int, length: int) -> Iterator[Cut]:
        """Cut a file range into pieces, in order."""
        size, done = self.piece_bytes, 0
        while done < length:
            index, start = divmod(offset + done, size)
            count = min(size - start, length - done)
            yield Cut(index, start, count, done)
            done += count

    def start(self, index: int, slot: Slot) -> Piece[Slot]:
        """Open a piece in a slot of memory."""
        assert index not in self.open
        piece = self.open[index] = Piece(index, slot)
        return piece

    def is_full(self, piece: Piece[Slot]) -> bool:
        """Tell whether every byte of the piece is dirty, so that waiting would gain nothing."""
        return piece.spans == [(0, self.piece_bytes)]

    def may_send(self, index: int) -> bool:
        """Tell whether the open piece may be sent: none of its range is in flight."""
        return index in self.open and index not in self.sending

    def send(self, index: int) -> Piece[Slot]:
        """Freeze an open piece; from now on its memory belongs to the wire."""
        assert self.may_send(index)
        piece = self.sending[index] = self.open.pop(index)
        return piece

    def finish(self, piece: Piece[Slot]) -> None:
        """Forget a piece that is stored, or that failed for good."""
        assert self.sending.get(piece.index) is piece
        del self.sending[piece.index]
        piece.done = True

    def truncate(self, length: int) -> list[Piece[Slot]]:
        """Forget dirty bytes from ``length`` on; return the pieces of which nothing is left.

        Nothing may be in flight: what is, must be stored before the file is cut.
        """
        assert not self.sending
        gone = []
        for index, piece in list(self.open.items()):
            piece.cut(max(0, length - index * self.piece_bytes))
            if not piece.spans:
                piece.done = True
                gone.append(self.open.pop(index))
        return gone

    def overlays(self, offset: int, length: int) -> list[Overlay[Slot]]:
        """List what a read of a range must lay over the stored bytes, later over earlier."""
        found: list[Overlay[Slot]] = []
        if not self:
            return found
        for index, start, count, at in self.cuts(offset, length):
            for piece in (self.sending.get(index), self.open.get(index)):
                if piece is None:
                    continue
                for low, high in piece.spans:
                    first, last = max(low, start), min(high, start + count)
                    if first < last:
                        found.append(Overlay(piece, first, last - first, at + first - start))
        return found

    def covers(self, offset: int, length: int) -> bool:
        """Tell whether a single span of one piece holds a whole range: storage is not needed."""
        index, start = divmod(offset, self.piece_bytes)
        end = start + length
        for piece in (self.open.get(index), self.sending.get(index)):
            if piece is not None and any(low <= start and end <= high for low, high in piece.spans):
                return True
        return False
