"""What every metadata engine must do. Budget: 25 s."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hillfire.errors import Code, Error
from hillfire.meta.engine import base
from hillfire.meta.engine.base import Engine, Transaction
from hillfire.meta.engine.memory import MemoryEngine
from hillfire.meta.engine.retry import transact, transact_async
from hillfire.meta.engine.rocksdb import RocksEngine


@contextmanager
def opened(kind: str) -> Iterator[Engine]:
    if kind == "memory":
        yield MemoryEngine()
        return
    with TemporaryDirectory() as directory:
        engine = RocksEngine(Path(directory))
        try:
            yield engine
        finally:
            engine.close()


@pytest.fixture(params=["memory", "rocksdb"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(kind: str) -> Iterator[Engine]:
    with opened(kind) as engine:
        yield engine


def put(engine: Engine, **pairs: bytes | None) -> None:
    with engine.transaction() as txn:
        for name, value in pairs.items():
            if value is None:
                txn.clear(name.encode())
            else:
                txn.set(name.encode(), value)
        txn.commit()


def contents(engine: Engine) -> dict[bytes, bytes]:
    with engine.transaction() as txn:
        return dict(txn.snapshot_range(b"", b"\xff"))


def test_reads_what_was_committed_and_its_own_writes(engine: Engine) -> None:
    put(engine, a=b"1", b=b"2", c=b"3")
    with engine.transaction() as txn:
        assert txn.get(b"a") == b"1"
        assert txn.get(b"none") is None
        txn.set(b"a", b"new")
        txn.clear(b"b")
        txn.set(b"bb", b"")
        assert txn.get(b"a") == b"new"
        assert txn.get(b"b") is None
        assert txn.range(b"a", b"d") == [(b"a", b"new"), (b"bb", b""), (b"c", b"3")]
        assert txn.range(b"a", b"c", reverse=True) == [(b"bb", b""), (b"a", b"new")]
        assert txn.range(b"a", b"d", limit=2) == [(b"a", b"new"), (b"bb", b"")]
        assert txn.range(b"a", b"d", limit=1, reverse=True) == [(b"c", b"3")]
        assert txn.range(b"a", b"d", limit=0) == []
    assert contents(engine) == {b"a": b"1", b"b": b"2", b"c": b"3"}, "nothing without a commit"


def test_a_range_ends_before_its_end_and_counts_bytes(engine: Engine) -> None:
    with engine.transaction() as txn:
        for key in (b"\0", b"a", b"a\0", b"a\xff", b"b", b"\xff\xff"):
            txn.set(key, key)
        txn.commit()
    with engine.transaction() as txn:
        assert [k for k, _ in txn.range(b"a", b"b")] == [b"a", b"a\0", b"a\xff"]
        assert [k for k, _ in txn.range(b"a\0", b"b", reverse=True)] == [b"a\xff", b"a\0"]
        assert [k for k, _ in txn.range(b"", b"\xff\xff", limit=1, reverse=True)] == [b"b"]
        txn.clear_range(b"a", b"b")
        txn.commit()
    assert sorted(contents(engine)) == [b"\0", b"b"]


def test_a_snapshot_does_not_move(engine: Engine) -> None:
    put(engine, a=b"1", c=b"3")
    with engine.transaction() as old:
        put(engine, a=b"2", b=b"2", c=None)
        put(engine, a=None, d=b"4")
        assert old.get(b"a") == b"1"
        assert old.snapshot_get(b"b") is None
        assert old.range(b"", b"z") == [(b"a", b"1"), (b"c", b"3")]
        assert old.snapshot_range(b"", b"z", reverse=True, limit=1) == [(b"c", b"3")]
        old.commit()  # it wrote nothing: no conflict
    assert contents(engine) == {b"b": b"2", b"d": b"4"}


Step = Callable[[Transaction], object]

CONFLICTS: dict[str, tuple[Step, bool]] = {
    "key read": (lambda txn: txn.get(b"b"), True),
    "absent key read": (lambda txn: txn.get(b"new"), True),
    "other key read": (lambda txn: txn.get(b"a"), False),
    "snapshot read": (lambda txn: txn.snapshot_get(b"b"), False),
    "blind write": (lambda txn: txn.set(b"b", b"mine"), False),
    "conflict key": (lambda txn: txn.conflict_key(b"b"), True),
    "range over it": (lambda txn: txn.range(b"a", b"c"), True),
    "range where it appears": (lambda txn: txn.range(b"mm", b"nf"), True),
    "range before it": (lambda txn: txn.range(b"a", b"b"), False),
    "range after it": (lambda txn: txn.range(b"b\0", b"bz"), False),
    "limited range short of it": (lambda txn: txn.range(b"a", b"z", limit=1), False),
    "limited range up to it": (lambda txn: txn.range(b"a", b"z", limit=2), True),
    "limited reverse short of it": (
        lambda txn: txn.range(b"a", b"n", limit=1, reverse=True),
        False,
    ),
    "limit not reached": (lambda txn: txn.range(b"c", b"z", limit=5), True),
    "snapshot range": (lambda txn: txn.snapshot_range(b"a", b"z"), False),
    "conflict range": (lambda txn: txn.conflict_range(b"a", b"bb"), True),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_conflicts(engine: Engine, name: str) -> None:
    step, conflicts = CONFLICTS[name]
    put(engine, a=b"1", b=b"2", c=b"3")
    with engine.transaction() as txn:
        step(txn)
        put(engine, b=b"other", new=b"other")
        txn.set(b"mark", b"")
        if conflicts:
            with pytest.raises(Error) as caught:
                txn.commit()
            assert caught.value.code is Code.CONFLICT
        else:
            txn.commit()
    assert (b"mark" in contents(engine)) is not conflicts


def test_a_touched_key_conflicts_but_keeps_its_value(engine: Engine) -> None:
    put(engine, a=b"1")
    with engine.transaction() as reader, engine.transaction() as writer:
        assert reader.get(b"a") == b"1"
        writer.touch(b"a")
        writer.commit()
        reader.set(b"b", b"")
        with pytest.raises(Error, match="another transaction"):
            reader.commit()
    assert contents(engine) == {b"a": b"1"}


def test_one_older_than_the_window_fails(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "WINDOW_COMMITS", 3)
    put(engine, a=b"1")
    with engine.transaction() as old, engine.transaction() as old_too:
        for number in range(4):
            put(engine, other=b"%d" % number)
        with pytest.raises(Error) as caught:
            old.get(b"a")
        assert caught.value.code is Code.CONFLICT
        old_too.set(b"x", b"")
        with pytest.raises(Error) as caught:
            old_too.commit()
        assert caught.value.code is Code.CONFLICT
    assert len(engine._log) == 3


KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
ACTIONS = st.one_of(
    st.tuples(st.just("get"), KEYS, KEYS),
    st.tuples(st.just("range"), KEYS, KEYS),
    st.tuples(st.just("first"), KEYS, KEYS),
    st.tuples(st.just("last"), KEYS, KEYS),
    st.tuples(st.just("set"), KEYS, KEYS),
    st.tuples(st.just("clear"), KEYS, KEYS),
    st.tuples(st.just("commit"), KEYS, KEYS),
)
SCHEDULES = st.lists(st.tuples(st.integers(0, 3), ACTIONS), max_size=40)


def act(txn: Transaction, action: tuple[str, bytes, bytes], serial: int) -> object:
    """One step; what is written depends on what was read, so that a wrong order shows."""
    what, key, other = action
    if what == "get":
        return txn.get(key)
    if what in ("range", "first", "last"):
        limit = None if what == "range" else 1
        return txn.range(min(key, other), max(key, other), limit=limit, reverse=what == "last")
    if what == "set":
        txn.set(key, b"%d" % serial)
    if what == "clear":
        txn.clear(key)
    return None


@pytest.mark.parametrize("kind", ["memory", "rocksdb"])
def test_concurrent_transactions_are_serialisable(kind: str) -> None:
    """Those that committed, run one after another in the order of commit, read the same."""

    @settings(max_examples=300 if kind == "memory" else 25, deadline=None)
    @given(SCHEDULES)
    def check(schedule: list[tuple[int, tuple[str, bytes, bytes]]]) -> None:
        with opened(kind) as engine:
            put(engine, a=b"0", c=b"0")
            slots: dict[int, tuple[Transaction, list[tuple[int, tuple[str, bytes, bytes], object]]]]
            slots, committed = {}, []
            for serial, (slot, action) in enumerate(schedule):
                if slot not in slots:
                    slots[slot] = engine.transaction(), []
                txn, story = slots[slot]
                if action[0] != "commit":
                    story.append((serial, action, act(txn, action, serial)))
                    continue
                del slots[slot]
                writes = any(step[1][0] in ("set", "clear") for step in story)
                try:
                    txn.commit()
                except Error as error:
                    assert error.code is Code.CONFLICT
                else:
                    if writes:  # a reader may be serialised earlier than it commits
                        committed.append(story)
            model = MemoryEngine()
            put(model, a=b"0", c=b"0")
            for story in committed:
                with model.transaction() as txn:
                    for serial, action, answer in story:
                        assert act(txn, action, serial) == answer
                    txn.commit()
            assert contents(engine) == contents(model)

    check()


def test_the_retry_loop_runs_until_it_commits(engine: Engine) -> None:
    async def add(txn: Transaction) -> int:
        value = int(txn.get(b"n") or b"0") + 1
        await asyncio.sleep(0)
        txn.set(b"n", b"%d" % value)
        return value

    async def main() -> None:
        answers = await asyncio.gather(*(transact_async(engine, add) for _ in range(8)))
        assert sorted(answers) == list(range(1, 9))

    asyncio.run(main())
    assert contents(engine) == {b"n": b"8"}
    assert not engine._live


def test_the_retry_loop_gives_up(engine: Engine) -> None:
    runs = 0

    async def hopeless(txn: Transaction) -> None:
        nonlocal runs
        runs += 1
        txn.get(b"n")
        put(engine, n=b"%d" % runs)
        txn.set(b"m", b"")

    with pytest.raises(Error) as caught:
        asyncio.run(transact_async(engine, hopeless, attempts=3))
    assert caught.value.code is Code.CONFLICT
    assert runs == 3


def test_a_failed_body_writes_nothing(engine: Engine) -> None:
    def body(txn: Transaction) -> None:
        txn.set(b"a", b"")
        raise Error(Code.EXISTS)

    with pytest.raises(FileExistsError):
        transact(engine, body)
    assert contents(engine) == {}
    assert not engine._live


def test_sync_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty callers at once wait for one flush that began after they asked, or for two."""
    flushes = []
    flush_once = RocksEngine._flush_once

    async def counted(engine: RocksEngine) -> None:
        flushes.append(True)
        await flush_once(engine)

    monkeypatch.setattr(RocksEngine, "_flush_once", counted)
    engine = RocksEngine(tmp_path)

    async def main() -> None:
        put(engine, a=b"1")
        await asyncio.gather(*(engine.sync() for _ in range(20)))
        assert 1 <= len(flushes) <= 2
        before = len(flushes)
        await engine.sync()
        assert len(flushes) == before + 1, "a later caller needs a flush of its own"

    asyncio.run(main())
    engine.close()


def test_rocksdb_reopens_what_was_closed(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path)
    transact(engine, lambda txn: txn.set(b"a", b"1"), sync=True)
    with pytest.raises(Error) as caught:
        RocksEngine(tmp_path)
    assert caught.value.code is Code.BUSY
    engine.close()
    engine.close()
    again = RocksEngine(tmp_path)
    assert contents(again) == {b"a": b"1"}
    again.close()


CHILD = """
import sys
from pathlib import Path
from hillfire.meta.engine.rocksdb import RocksEngine
from hillfire.meta.engine.retry import transact
engine = RocksEngine(Path(sys.argv[1]))
for number in range(1 << 30):
    def body(txn):
        txn.set(b"low", b"%d" % number)
        txn.set(b"high", b"%d" % number)
        txn.set(b"%09d" % number, b"x" * 100)
    transact(engine, body)
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""


def test_rocksdb_keeps_what_it_committed_through_kill_9(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 500:
            break
    os.kill(child.pid, signal.SIGKILL)
    rest = child.stdout.read().split("\n")
    child.wait()
    child.stdout.close()
    acknowledged = max([500, *(int(text) for text in rest[:-1] if text)])
    engine = RocksEngine(tmp_path)
    found = contents(engine)
    engine.close()
    last = int(found[b"low"])
    assert last >= acknowledged
    assert found[b"low"] == found[b"high"]
    assert all(b"%09d" % number in found for number in range(last + 1))
