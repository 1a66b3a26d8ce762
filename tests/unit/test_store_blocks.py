"""The allocator against a set, and where updates are placed (budget: 5 s)."""

import random

import pytest

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store import blocks as blocks_module
from hillfire.storage.store.base import Tag, Update
from hillfire.storage.store.blocks import Block, BlockMap, size_class
from hillfire.storage.store.choose import Choice, choose
from hillfire.storage.store.records import Placement
from hillfire.types import InodeId, Version, chunk_id

KIB = 1024


@pytest.mark.parametrize("recent", [0, 5, 100_000])
def test_allocator_against_a_set(monkeypatch: pytest.MonkeyPatch, recent: int) -> None:
    monkeypatch.setattr(blocks_module, "RECENT_LIMIT", recent)
    monkeypatch.setattr(blocks_module, "REFILL", 3)
    rng, one = random.Random(recent), BlockMap()
    used: set[int] = set()
    capacity = 0
    for _ in range(20_000):
        choice = rng.random()
        if choice < 0.01:
            count = rng.randrange(1, 30)
            one.grow(count)
            capacity += count
        elif choice < 0.5:
            number = one.allocate()
            if number is None:
                assert len(used) == capacity
            else:
                assert number not in used and number < capacity
                used.add(number)
        elif used:
            number = rng.choice(sorted(used))
            used.remove(number)
            one.release(number)
        assert (one.free, one.capacity) == (capacity - len(used), capacity)
    again = BlockMap()
    again.grow(capacity)
    assert all(again.mark(number) for number in used)
    assert not any(again.mark(number) for number in used) and not again.mark(capacity)
    rest = [again.allocate() for _ in range(capacity - len(used))]
    assert set(rest) | used == set(range(capacity)) and again.allocate() is None


def test_a_block_freed_last_is_used_first() -> None:
    one = BlockMap()
    one.grow(1000)
    taken = [one.allocate() for _ in range(10)]
    assert taken == list(range(10))
    one.release(4)
    assert one.allocate() == 4


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, 16), (65536, 16), (65537, 17), (1 << 20, 20), ((1 << 20) + 1, 21), (1 << 26, 26)],
)
def test_size_classes(length: int, expected: int) -> None:
    assert size_class(length) == expected


def one_update(kind: Kind, offset: int, length: int) -> Update:
    name, tag = chunk_id(InodeId(1), 0), Tag(1, 1, 1)
    return Update(name, Version(1), kind, offset, length, memoryview(b""), 0, tag, 0, 1, 1 << 20)


BLOCK = Block(18, 0)  # 256 KiB


@pytest.mark.parametrize(
    ("kind", "offset", "length", "expected"),
    [
        (Kind.WRITE, 0, 200 * KIB, Choice(Placement.COPY, 200 * KIB)),
        (Kind.WRITE, 0, 100 * KIB, Choice(Placement.COPY, 100 * KIB)),
        (Kind.WRITE, 0, 4 * KIB, Choice(Placement.PATCH, 100 * KIB)),
        (Kind.WRITE, 99 * KIB, 4 * KIB, Choice(Placement.PATCH, 103 * KIB)),
        (Kind.WRITE, 10, 64 * KIB, Choice(Placement.COPY, 100 * KIB)),
        (Kind.WRITE, 100 * KIB, 156 * KIB, Choice(Placement.APPEND, 256 * KIB)),
        (Kind.WRITE, 110 * KIB, 1, Choice(Placement.APPEND, 110 * KIB + 1)),
        (Kind.WRITE, 100 * KIB, 157 * KIB, Choice(Placement.COPY, 257 * KIB)),
        (Kind.WRITE, 500, 0, Choice(Placement.NONE, 100 * KIB)),
        (Kind.TRUNCATE, 0, 80 * KIB, Choice(Placement.NONE, 80 * KIB)),
        (Kind.TRUNCATE, 0, 50 * KIB, Choice(Placement.COPY, 50 * KIB)),
        (Kind.TRUNCATE, 0, 0, Choice(Placement.NONE, 0)),
        (Kind.TRUNCATE, 0, 100 * KIB, Choice(Placement.NONE, 100 * KIB)),
        (Kind.TRUNCATE, 0, 200 * KIB, Choice(Placement.APPEND, 200 * KIB)),
        (Kind.TRUNCATE, 0, 300 * KIB, Choice(Placement.COPY, 300 * KIB)),
        (Kind.REMOVE, 0, 0, Choice(Placement.NONE, 0)),
        (Kind.REPLACE, 5, 10, Choice(Placement.COPY, 10)),
        (Kind.REPLACE, 0, 0, Choice(Placement.NONE, 0)),
    ],
)
def test_placement_in_a_chunk_of_100_kib(
    kind: Kind, offset: int, length: int, expected: Choice
) -> None:
    assert choose(100 * KIB, BLOCK, None, one_update(kind, offset, length)) == expected


def test_what_no_chunk_can_hold_is_refused() -> None:
    for each in (
        one_update(Kind.WRITE, 1 << 20, 1),
        one_update(Kind.TRUNCATE, 0, (1 << 20) + 1),
        one_update(Kind.WRITE, 1 << 26, 1)._replace(chunk_bytes=1 << 31),
    ):
        with pytest.raises(Error) as caught:
            choose(0, None, None, each)
        assert caught.value.code == Code.TOO_LARGE
    with pytest.raises(Error) as caught:
        choose(0, None, None, one_update(Kind.WRITE, 0, 1)._replace(kind=9))
    assert caught.value.code == Code.INVALID
