"""Batches of reads: the extension answers what its twin does, item by item (budget: 20 s)."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from crc32c import crc32c

from hillfire import native
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Views
from hillfire.proto.wire.chunks import READ_ITEMS, READ_RESULTS, Kind, ReadItem, ReadResult
from hillfire.proto.wire.frame import PART
from hillfire.storage.store.base import Tag, Update
from hillfire.storage.store.batch import Batch, Target
from hillfire.storage.store.engine import open_store
from hillfire.storage.store.enginestore import EngineStore
from hillfire.types import ChunkId, Version, chunk_id

KIB = 1024
CHUNK = 1024 * KIB
CHAIN, CHAIN_VERSION = 3, 7
NAMES = [chunk_id(5, index) for index in range(8)]  # type: ignore[arg-type]
LENGTHS = [CHUNK, 300_001, 65_536, 65_537, 4096, 4097, 1, 0]


class World(NamedTuple):
    store: EngineStore
    content: dict[ChunkId, bytearray]


def write(world: World, chunk: ChunkId, offset: int, payload: bytes) -> None:
    meta = world.store.get(chunk)
    version = Version(1 if meta is None else meta.version + 1)
    update = Update(
        chunk, version, Kind.WRITE, offset, len(payload), memoryview(payload), crc32c(payload),
        Tag(1, 1, 1), 0, CHAIN_VERSION, CHUNK,
    )  # fmt: skip
    (image,) = world.store.prepare([update])
    assert not isinstance(image, Exception), image
    world.store.commit([(chunk, version, CHAIN_VERSION)])
    content = world.content.setdefault(chunk, bytearray())
    content.extend(bytes(max(0, offset + len(payload) - len(content))))
    content[offset : offset + len(payload)] = payload


@pytest.fixture(params=["cached", "direct"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    direct = request.param == "direct"
    world = World(open_store(tmp_path, direct=direct, direct_reads=direct), {})
    chance = random.Random(4)
    for name, length in zip(NAMES, LENGTHS, strict=True):
        if length:
            write(world, name, 0, chance.randbytes(length))
    for _ in range(12):  # pages that lie in the log, over blocks
        name = chance.choice(NAMES[:4])
        at = chance.randrange(len(world.content[name]) - 10)
        write(world, name, at, chance.randbytes(chance.choice([1, 10])))
    yield world
    world.store.close()


def target(world: World) -> Target:
    direct = world.store.direct()
    assert direct is not None
    return Target(direct.records, {}, direct.files)


class Wanted(NamedTuple):
    chunk: ChunkId
    offset: int
    length: int


def item(chunk: ChunkId, offset: int) -> ReadItem:
    return ReadItem(chunk, CHAIN, CHAIN_VERSION, offset)


def some(chance: random.Random, count: int) -> list[Wanted]:
    lengths = [1, 100, 4096, 4097, 20_000, 32 * KIB, 32 * KIB + 1, 65_536, 200_000, CHUNK]
    wanted = []
    for _ in range(count):
        length = chance.choice(lengths)
        offset = chance.choice([0, 4096, 65_536, 131_072, chance.randrange(CHUNK)])
        wanted.append(Wanted(chance.choice(NAMES), offset, min(length, CHUNK)))
    return wanted


def ask(world: World, wanted: list[Wanted], *, wait: bool, views: bool) -> tuple[Batch, set[int]]:
    """Read a batch; returns it, and the positions that it did not answer."""
    items = READ_ITEMS.pack([item(w.chunk, w.offset) for w in wanted])
    total = sum(w.length for w in wanted)
    base, table, into, at = memoryview(bytearray(total)), b"", [], 0
    for w in wanted:
        table += PART.pack(9, at, w.length)
        into.append(base[at : at + w.length])
        at += w.length
    batch = Batch(items, Views(base, memoryview(table), total) if views else into)
    assert batch.n_bytes == total
    known = target(world)
    left, cold = batch.read(lambda chain, version: known, wait=wait)
    return batch, {*left, *cold}


def answers(batch: Batch) -> list[ReadResult]:
    return READ_RESULTS.unpack(bytes(batch.results))


def check(world: World, wanted: list[Wanted], batch: Batch, without: set[int]) -> None:
    """Compare what a batch answered with the store's own answers, and with what was written."""
    for position, (w, result) in enumerate(zip(wanted, answers(batch), strict=True)):
        if position in without:
            continue
        into = memoryview(bytearray(w.length))
        filled, checksum, version = world.store.read(w.chunk, w.offset, into)
        assert result == (0, filled, checksum, version), w
        assert batch.filled[position] == filled
        expected = world.content.get(w.chunk, b"")[w.offset : w.offset + w.length]
        assert bytes(batch.into[position][:filled]) == bytes(expected) == bytes(into[:filled])


needs_extension = pytest.mark.skipif(not native.FAST, reason="the extension is not built or wanted")


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("wait", [False, True])
def test_a_batch_answers_what_the_store_does(world: World, wait: bool, views: bool) -> None:
    chance = random.Random(6)
    n_answered = 0
    for _ in range(20):
        wanted = some(chance, chance.choice([1, 3, 40]))
        batch, left = ask(world, wanted, wait=wait, views=views)
        check(world, wanted, batch, left)
        n_answered += len(wanted) - len(left)
    assert n_answered > 100 or not native.FAST


def test_pages_in_the_log_alone_are_left(world: World) -> None:
    write(world, NAMES[0], 8192, b"patch")
    wanted = [Wanted(NAMES[0], 8192, 4096), Wanted(NAMES[0], 16_384, 4096)]
    world.store.maintain()
    write(world, NAMES[0], 8192, b"again")
    world.store.read(NAMES[0], 16_384, memoryview(bytearray(4096)))
    batch, left = ask(world, wanted, wait=True, views=False)
    assert left == ({0} if native.FAST else {0, 1}), "its neighbour is no reason to leave a page"
    check(world, wanted, batch, left)


def test_flipped_bits_are_left_and_found(world: World, tmp_path: Path) -> None:
    world.store.maintain()
    fd = os.open(tmp_path / "blocks" / "1024K", os.O_RDWR)
    (byte,) = os.pread(fd, 1, 100_000)
    os.pwrite(fd, bytes([byte ^ 16]), 100_000)
    os.fsync(fd)
    os.close(fd)
    page = 100_000 // 4096 * 4096
    wanted = [
        Wanted(NAMES[0], page, 4096),
        Wanted(NAMES[0], page - 10, 30_000),
        Wanted(NAMES[0], 0, CHUNK),
        Wanted(NAMES[0], page + 4096, 4096),
    ]
    for wait in (False, True):
        batch, left = ask(world, wanted, wait=wait, views=True)
        assert left >= {0, 1, 2}
        check(world, wanted, batch, left)
        for position in left - {3}:
            w = wanted[position]
            with pytest.raises(Error) as caught:
                world.store.read(w.chunk, w.offset, memoryview(bytearray(w.length)))
            assert caught.value.code == Code.CORRUPT


@needs_extension
def test_cold_bytes_are_waited_for_only_if_asked(world: World) -> None:
    write(world, NAMES[7], 0, random.Random(9).randbytes(CHUNK))
    world.store.sync()
    direct = world.store.direct()
    assert direct is not None
    wanted = [Wanted(NAMES[7], at, 4096) for at in range(524_288, CHUNK, 4096)]
    fd = direct.files[1][20]  # of blocks of 1 MiB
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    _, cold = ask(world, wanted, wait=False, views=True)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    batch, waited = ask(world, wanted, wait=True, views=True)
    assert cold and not waited
    check(world, wanted, batch, waited)


@needs_extension
def test_who_is_refused_and_who_is_held(world: World) -> None:
    known = target(world)
    asked: list[tuple[int, int]] = []

    def look(chain: int, version: int) -> Code | Target | None:
        asked.append((chain, version))
        held = known._replace(held={NAMES[4]: 0})
        found: dict[int, Code | Target] = {1: Code.NOT_SERVING, 2: held, 66: known}
        return found.get(chain)

    items = [(NAMES[4], 1), (NAMES[4], 2), (NAMES[5], 2), (NAMES[4], 66), (NAMES[4], 8)] * 2
    body = READ_ITEMS.pack([ReadItem(name, chain, 4, 0) for name, chain in items])
    batch = Batch(body, [memoryview(bytearray(4096)) for _ in items])
    left, cold = batch.read(look, wait=True)
    assert (left, cold) == ([1, 4, 6, 9], [])
    assert [each.code for each in answers(batch)][:4] == [Code.NOT_SERVING, 0, 0, 0]
    assert list(batch.filled) == [0, 0, 4096, 4096, 0] * 2
    assert set(asked) == {(1, 4), (2, 4), (66, 4), (8, 4)} and len(asked) < len(items)


@needs_extension
@pytest.mark.parametrize(
    "record",
    [
        (),
        ((1, 5000),),
        ((1, 5000), (20, 0), None, 0, 0, None, None),
        ((1, -5), (20, 0), None, 0, 0, None, None),
        ((1, 5000), (99, 0), None, 0, 0, None, None),
        ((1, 5000), (20, 2**63), None, 0, 0, None, None),
        ((1, 5000), (25, 0), None, 0, 0, None, None),
        (("x", 5000), (20, 0), None, 0, 0, None, None),
        "no tuple",
    ],
)
def test_records_that_cannot_be_do_no_harm(world: World, record: object) -> None:
    known = target(world)._replace(records={NAMES[0]: record})
    batch = Batch(READ_ITEMS.pack([item(NAMES[0], 0)]), [memoryview(bytearray(10))])
    try:
        left, cold = batch.read(lambda chain, version: known, wait=True)
    except (TypeError, OverflowError, AttributeError):
        return
    assert (left, cold) == ([0], [])


@needs_extension
def test_parts_outside_their_region_are_refused(world: World) -> None:
    known = target(world)
    base = memoryview(bytearray(8192))
    items = READ_ITEMS.pack([item(NAMES[0], 0)])
    read = native.read
    assert read is not None
    for offset, length in [(8192, 1), (2**64 - 1, 2), (4097, 4096), (0, 2**32 - 1)]:
        with pytest.raises(ValueError, match="outside"):
            read(items, base, lambda *_: known, True, PART.pack(1, offset, length))
    for table in (b"", PART.pack(1, 0, 1) * 2, b"x" * 19):
        with pytest.raises(ValueError, match="one part"):
            read(items, base, lambda *_: known, True, table)
    with pytest.raises(ValueError, match="one destination"):
        read(items, [], lambda *_: known, True)
    with pytest.raises(ValueError, match="whole number"):
        read(items[:-1], [base], lambda *_: known, True)
    with pytest.raises((BufferError, TypeError)):
        read(items, [memoryview(b"read only")], lambda *_: known, True)
    with pytest.raises(ZeroDivisionError):
        read(items, [base], lambda *_: 1 // 0, True)


def test_as_many_items_as_destinations() -> None:
    with pytest.raises(Error) as caught:
        Batch(b"x" * READ_ITEMS.n_bytes, [])
    assert caught.value.code == Code.PROTOCOL
