"""A copy of the metadata's log under a recorder: what was acknowledged must be rebuildable."""

import random
from pathlib import Path

import pytest

from hillfire.proto import metalog_files as files
from hillfire.proto import metalog_format as form
from hillfire.proto.metalog_format import Position, SnapshotHead
from hillfire.storage import metalog
from hillfire.storage.metalog import LogCopy
from tests.crash.replay import Call, Recording, crashes, image, recording

State = dict[bytes, bytes]
HISTORY = 77
KEYS = 40


class Sender:
    """A database that ships itself: new epochs now and then, with a snapshot or without."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.epoch, self.sequence, self.follows = 1, 0, 0
        self.states: dict[Position, State] = {(1, 0): {}}

    def records(self, count: int) -> bytes:
        """Commit, and return the records."""
        parts = []
        for _ in range(count):
            state = dict(self.states[self.position])
            writes: dict[bytes, bytes | None] = {}
            for _ in range(self.rng.randrange(1, 5)):
                key = b"key-%d" % self.rng.randrange(KEYS)
                value = None if self.rng.random() < 0.2 else self.rng.randbytes(300)
                writes[key] = value
                if value is None:
                    state.pop(key, None)
                else:
                    state[key] = value
            self.sequence += 1
            self.states[self.position] = state
            parts.append(form.encode_record(self.epoch, self.sequence, 5, writes))
        return b"".join(parts)

    @property
    def position(self) -> Position:
        return self.epoch, self.sequence

    def restart(self) -> None:
        """Begin a new epoch at the same state."""
        state = self.states[self.position]
        self.follows, self.epoch = self.epoch, self.epoch + 1
        self.states[self.position] = state

    def snapshot(self) -> tuple[SnapshotHead, bytes]:
        pairs = sorted(self.states[self.position].items())
        head = SnapshotHead(HISTORY, self.epoch, self.sequence, 5)
        blocks = [form.snapshot_block(pairs[i : i + 7]) for i in range(0, len(pairs), 7)]
        return head, form.snapshot_head(head) + b"".join(blocks) + form.snapshot_end(len(pairs))


def work(made: Recording, seed: int, turns: int) -> dict[Position, State]:
    """Ship; every acknowledged position is marked once the copy is complete up to there."""
    rng = random.Random(seed)
    copy, sender = LogCopy(made.directory / "meta-log" / "c"), Sender(rng)

    def acknowledged(state: metalog.State) -> None:
        if state.complete:
            made.mark(f"acknowledged {state.epoch} {state.sequence}")

    def ship(fresh: bool = False) -> None:
        first = sender.sequence + 1
        records = sender.records(rng.randrange(1, 6))
        made.mark(f"sent {sender.epoch} {sender.sequence}")
        follows = 0 if fresh else sender.follows
        acknowledged(copy.append(HISTORY, sender.epoch, first, follows, records))
        sender.follows = sender.epoch

    def snapshot() -> None:
        head, data = sender.snapshot()
        made.mark(f"sent {sender.epoch} {sender.sequence}")
        for at in range(0, len(data), 2000):
            if rng.random() < 0.3:
                ship()
            last = at + 2000 >= len(data)
            acknowledged(copy.snapshot(head, at, data[at : at + 2000], last))

    ship(fresh=True)
    snapshot()
    for _ in range(turns):
        event = rng.random()
        if event < 0.1:
            sender.restart()
            if event < 0.05:
                sender.records(3)  # these are lost with the process
                ship(fresh=True)
                snapshot()
            else:
                ship()
        elif event < 0.2:
            snapshot()
        else:
            ship()
        if rng.random() < 0.1:
            copy.close()
    copy.close()
    return sender.states


def record(scratch: Path, seed: int, turns: int) -> tuple[list[Call], dict[Position, State]]:
    """Let a copy be kept on a recorder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metalog, "SEGMENT_LIMIT_BYTES", 4000)
        with recording(scratch) as made:
            states = work(made, seed, turns)
    return made.calls, states


def check(calls: list[Call], states: dict[Position, State], seed: int, sample: int | None) -> int:
    """Rebuild from what each crash leaves, and go on shipping to it; return how many crashes."""
    count = 0
    for cut, left, marks in crashes(calls, random.Random(seed), sample):
        last: dict[str, Position] = {"acknowledged": (0, 0), "sent": (0, 0)}
        for mark in marks:
            word, epoch, sequence = mark.split()
            last[word] = max(last[word], (int(epoch), int(sequence)))
        with image(left) as directory:
            copy = directory / "meta-log" / "c"
            copy.mkdir(parents=True, exist_ok=True)
            before = _opened(copy)
            position, state = _rebuilt(copy)
            _go_on(copy, before)
        assert last["acknowledged"] <= position <= last["sent"], (cut, position, last)
        if position != (0, 0):
            assert state == states[position], (cut, position)
        count += 1
    return count


def _opened(directory: Path) -> metalog.State:
    """Open it as a node does, which cuts a torn end off."""
    copy = LogCopy(directory)
    before = copy.position()
    copy.close()
    assert copy.position() == before
    copy.close()
    return before


def _go_on(directory: Path, before: metalog.State) -> None:
    """Append what follows; it can be rebuilt if what was before it could."""
    if not before.history:
        return
    copy = LogCopy(directory)
    sequence = before.sequence + 1
    more = form.encode_record(before.epoch, sequence, 9, {b"more": b"x"})
    after = copy.append(HISTORY, before.epoch, sequence, before.epoch, more)
    copy.close()
    assert (after.epoch, after.sequence) == (before.epoch, sequence)
    if before.complete:
        position, state = _rebuilt(directory)
        assert position == (before.epoch, sequence) and state[b"more"] == b"x"


def _rebuilt(directory: Path) -> tuple[Position, State]:
    for run in files.runs(directory):
        state: State = {}
        for pairs in files.read_snapshot(run.snapshot):
            state.update(pairs)
        position = run.position
        for entry in files.read_records(run):
            for key, value in entry.writes:
                if value is None:
                    state.pop(key, None)
                else:
                    state[key] = value
        return position, state
    return (0, 0), {}
