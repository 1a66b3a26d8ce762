"""The metadata engine under a recorder: what it has to do, and what must be there afterwards."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from hillfire.errors import Error
from hillfire.meta.engine import rocksdb
from hillfire.meta.engine.base import Transaction
from hillfire.meta.engine.retry import transact
from hillfire.meta.engine.rocksdb import RocksEngine
from hillfire.meta.journal import Journal, place
from hillfire.meta.keys import LOG, POSITION
from tests.crash.replay import Call, Recording, crashes, image, recording

State = dict[bytes, bytes]
KEYS = 60


def work(made: Recording, seed: int, commits: int) -> list[State]:
    """Commit, and sync now and then; return the state after each number of commits.

    Small buffers make RocksDB flush, compact and change log files meanwhile.
    """
    rng = random.Random(seed)
    states: list[State] = [{}]

    async def main() -> None:
        engine = RocksEngine(made.directory / "db")
        try:
            Journal(engine)
            made.mark("synced 0")
            for number in range(1, commits + 1):
                after = dict(states[-1])

                def body(txn: Transaction, number: int = number, after: State = after) -> None:
                    for _ in range(rng.randrange(1, 6)):
                        key = b"key-%d" % rng.randrange(KEYS)
                        value = None if rng.random() < 0.2 else rng.randbytes(rng.randrange(600))
                        if value is None:
                            txn.clear(key)
                            after.pop(key, None)
                        else:
                            txn.set(key, value)
                            after[key] = value
                    txn.set(b"number", b"%d" % number)
                    after[b"number"] = b"%d" % number

                at_once = rng.random() < 0.08
                made.mark(f"begun {number}")
                transact(engine, body, sync=at_once)
                states.append(after)
                made.mark(f"{'synced' if at_once else 'done'} {number}")
                if rng.random() < 0.08:
                    await engine.sync()
                    made.mark(f"synced {number}")
        finally:
            engine.close()

    asyncio.run(main())
    return states


def record(scratch: Path, seed: int, commits: int) -> tuple[list[Call], list[State]]:
    """Let the engine work on a recorder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rocksdb, "WRITE_BUFFER_BYTES", 64 << 10)
        with recording(scratch) as made:
            states = work(made, seed, commits)
    return made.calls, states


def check(
    calls: list[Call], states: Sequence[State], seed: int, sample: int | None
) -> tuple[int, int]:
    """Open what each crash leaves; return how many there were, and how many were refused.

    Refused is what a random loss of power may leave of RocksDB's log: a hole, with later
    transactions behind it.
    """
    count = refused = 0
    for cut, files, marks in crashes(calls, random.Random(seed), sample):
        count += 1
        last = {"begun": 0, "done": 0, "synced": 0}
        for mark in marks:
            word, at = mark.split()
            last[word] = int(at)
        done = max(last["done"], last["synced"])
        least = done if cut.power is None else last["synced"]
        with image(files) as directory:
            try:
                found = _contents(directory / "db")
            except Error as error:
                holes = cut.power is not None and (0 < cut.power.kept < 1 or cut.power.torn)
                if holes and "loss of power took" in str(error):
                    refused += 1
                    continue
                raise AssertionError(f"{cut}: does not open: {error}") from error
        number = int(found.get(b"number", b"0"))
        assert least <= number <= max(last["begun"], done), (cut, least, number, last)
        assert found == states[number], (cut, number)
    return count, refused


def _contents(directory: Path) -> State:
    """Open an engine as the service does, read it, write to it."""
    engine = RocksEngine(directory)
    try:
        stored = dict(engine.freeze())
        Journal(engine)
        transact(engine, lambda txn: txn.set(b"still", b"writable"), sync=True)
    finally:
        engine.close()
    where = place(stored.pop(POSITION, None))
    found = {key: value for key, value in stored.items() if not key.startswith(LOG[0])}
    assert (where.sequence if where else 0) == int(found.get(b"number", b"0"))
    return found
