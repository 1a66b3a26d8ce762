"""The bookkeeping of write-behind against a plain bytes model. Budget: 5 s."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hillfire.fuse.extents import Dirty, Piece

PIECE = 16
FILE = 5 * PIECE


class WriteBehind(RuleBasedStateMachine):
    """Writes, sends in any order, truncates; a read always sees what a local file would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.dirty: Dirty[bytearray] = Dirty(PIECE)
        self.stored = bytearray(FILE)
        self.model = bytearray(FILE)
        self.frozen: dict[int, bytes] = {}
        self.counter = 0

    @rule(offset=st.integers(0, FILE - 1), length=st.integers(1, 3 * PIECE))
    def write(self, offset: int, length: int) -> None:
        length = min(length, FILE - offset)
        self.counter += 1
        data = bytes((self.counter + i) % 251 + 1 for i in range(length))
        for index, start, count, at in self.dirty.cuts(offset, length):
            piece = self.dirty.open.get(index)
            if piece is None:
                piece = self.dirty.start(index, bytearray(PIECE))
            piece.slot[start : start + count] = data[at : at + count]
            piece.add(start, start + count)
        self.model[offset : offset + length] = data

    @precondition(lambda self: any(self.dirty.may_send(i) for i in self.dirty.open))
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        ready = [i for i in self.dirty.open if self.dirty.may_send(i)]
        piece = self.dirty.send(data.draw(st.sampled_from(ready)))
        self.frozen[piece.index] = bytes(piece.slot)

    @precondition(lambda self: self.dirty.sending)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self._store(self.dirty.sending[data.draw(st.sampled_from(sorted(self.dirty.sending)))])

    def _store(self, piece: Piece[bytearray]) -> None:
        base = piece.index * PIECE
        for low, high in piece.spans:
            self.stored[base + low : base + high] = piece.slot[low:high]
        self.dirty.finish(piece)
        del self.frozen[piece.index]

    @rule(length=st.integers(0, FILE))
    def truncate(self, length: int) -> None:
        for piece in list(self.dirty.sending.values()):
            self._store(piece)
        gone = self.dirty.truncate(length)
        assert all(piece.done and piece.index not in self.dirty.open for piece in gone)
        self.stored[length:] = bytes(FILE - length)
        self.model[length:] = bytes(FILE - length)

    @rule(offset=st.integers(0, FILE - 1), length=st.integers(1, FILE))
    def read(self, offset: int, length: int) -> None:
        length = min(length, FILE - offset)
        seen = bytearray(self.stored[offset : offset + length])
        if self.dirty.covers(offset, length):
            seen = bytearray(length)
        for piece, start, count, at in self.dirty.overlays(offset, length):
            seen[at : at + count] = piece.slot[start : start + count]
        assert seen == self.model[offset : offset + length]

    @invariant()
    def frozen_memory_is_not_touched(self) -> None:
        for index, before in self.frozen.items():
            assert self.dirty.sending[index].slot == before

    @invariant()
    def spans_are_sorted_and_apart(self) -> None:
        for piece in (*self.dirty.open.values(), *self.dirty.sending.values()):
            assert piece.spans
            ends = [end for span in piece.spans for end in span]
            assert ends == sorted(set(ends)) and ends[0] >= 0 and ends[-1] <= PIECE


TestWriteBehind = WriteBehind.TestCase
TestWriteBehind.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


def test_a_sequential_stream_fills_pieces() -> None:
    dirty: Dirty[int] = Dirty(1 << 20)
    piece = dirty.start(0, 7)
    for offset in range(0, 1 << 20, 4096):
        assert not dirty.is_full(piece)
        piece.add(offset, offset + 4096)
    assert dirty.is_full(piece) and len(piece.spans) == 1
