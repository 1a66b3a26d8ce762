"""CRC32C arithmetic against the CRC of the bytes themselves (budget: 10 s)."""

from array import array

from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from hillfire.storage.store.base import ChunkMeta, Pending, Tag
from hillfire.storage.store.blocks import Block
from hillfire.storage.store.checksum import (
    GRAIN_BYTES,
    combine,
    combine_grains,
    digest,
    extend_grains,
    extend_grains_with_zeros,
    grains_of,
    shift,
)
from hillfire.storage.store.records import (
    PendingRecord,
    Placement,
    Record,
    channel_key,
    pack_pending,
    pack_record,
    pack_tag,
    unpack_pending,
    unpack_record,
    unpack_tag,
)
from hillfire.types import ChunkId, Version

SIZES = st.one_of(
    st.integers(0, 200),
    st.integers(0, 3 * GRAIN_BYTES),
    st.sampled_from([GRAIN_BYTES - 1, GRAIN_BYTES, GRAIN_BYTES + 1, 2 * GRAIN_BYTES]),
)


def data(n_bytes: int, seed: int) -> bytes:
    return bytes((seed * 7 + 1) % 251 for seed in range(seed, seed + 1000)) * (n_bytes // 1000 + 1)


@settings(deadline=None)
@given(SIZES, SIZES, st.integers(0, 1000))
def test_parts_make_a_whole(first: int, second: int, seed: int) -> None:
    a, b = data(first, seed)[:first], data(second, seed + 77)[:second]
    assert combine(crc32c(a), crc32c(b), second) == crc32c(a + b)
    assert shift(crc32c(a), second) ^ shift(0, second) == crc32c(bytes(second), crc32c(a)) ^ crc32c(
        bytes(second)
    )
    grains, whole = extend_grains(grains_of(a), first, memoryview(b), crc32c(a))
    assert grains == grains_of(a + b) and whole == crc32c(a + b)
    assert extend_grains_with_zeros(grains_of(a), first, second) == grains_of(a + bytes(second))


def test_known_values() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value
    block = bytes(range(256)) * 256
    assert combine_grains(grains_of(block * 3)) == crc32c(block * 3)
    assert digest(array("I")) == 0
    assert digest(array("I", [1, 2])) == crc32c(b"\1\0\0\0\2\0\0\0")


def test_records_come_back_as_they_were() -> None:
    top = 2**64 - 1
    tag = Tag(top, 2**32 - 1, top - 1)
    grains = array("I", [2**32 - 1, 0, 5])
    meta = ChunkMeta(Version(top), 2**26, 2**32 - 1, tag, 2**32 - 2, 2**32 - 3, True)
    for block in (None, Block(26, 2**32 - 1)):
        assert unpack_record(pack_record(Record(meta, block, grains))) == (meta, block, grains)
    pending = Pending(Version(top), 2**26, 1, tag, 2, 4, 2**25, 3, 2**32 - 1)
    for placement, text in ((Placement.COPY, b""), (Placement.PATCH, b"abc")):
        record = PendingRecord(pending, placement, Block(16, 0), grains, text)
        assert unpack_pending(pack_pending(record)) == record
    chunk = ChunkId(bytes(range(16)))
    packed = pack_tag(tag.sequence, chunk, Version(9))
    assert unpack_tag(channel_key(tag.client, tag.channel), packed) == (tag, chunk, 9)
