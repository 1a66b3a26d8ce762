"""What a truncate asks of a chain. Budget: 1 s."""

from typing import NamedTuple

from hillfire.proto.wire.chunks import Kind
from hillfire.storage.cuts import cuts, under_way
from hillfire.storage.store.base import ChunkMeta, Tag
from hillfire.types import ChunkId, InodeId, Version, chunk_id

SIZE = 65536


class Cut(NamedTuple):
    length: int
    remove: bool = False
    chain: int = 3
    chain_version: int = 9
    epoch: int = 5
    chunk_bytes: int = SIZE
    sequence: int = 1


def name(index: int, inode: int = 7) -> ChunkId:
    return chunk_id(InodeId(inode), index)


def meta(length: int) -> ChunkMeta:
    return ChunkMeta(Version(1), length, 0, Tag(1, 1, 1), 9, 1, False)


def kinds(found: list[tuple[ChunkId, ChunkMeta]], pending: list[ChunkId], cut: Cut) -> object:
    return [(item.chunk, item.kind, item.length) for item in cuts(found, pending, cut)]


def test_what_lies_behind_the_cut_goes_and_what_it_crosses_is_cut() -> None:
    found = [(name(index), meta(SIZE)) for index in range(3)]
    assert kinds(found, [], Cut(SIZE + 10)) == [
        (name(1), Kind.TRUNCATE, 10),
        (name(2), Kind.REMOVE, 0),
    ]
    assert kinds(found, [], Cut(0, remove=True)) == [
        (name(index), Kind.REMOVE, 0) for index in range(3)
    ]
    assert kinds([(name(1), meta(10))], [], Cut(SIZE + 10)) == []


def test_a_first_write_under_way_is_cut_too() -> None:
    """It may be committed at the tail, and read there, before the head has a record of it."""
    held = [name(4), name(2), name(0), name(0, inode=8)]
    assert under_way(held, InodeId(7)) == [name(0), name(2), name(4)]
    found = [(name(0), meta(SIZE))]
    pending = under_way(held, InodeId(7))
    assert kinds(found, pending, Cut(2 * SIZE + 10)) == [
        (name(2), Kind.TRUNCATE, 10),
        (name(4), Kind.REMOVE, 0),
    ]


def test_a_write_that_may_lengthen_a_short_chunk_is_cut_too() -> None:
    assert kinds([(name(0), meta(5))], [name(0)], Cut(10)) == [(name(0), Kind.TRUNCATE, 10)]
