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
from hillfire.storage.store.frames import pack_pending, unpack_pending
from hillfire.storage.store.records import (
    PendingRecord,
    Placement,
    Record,
    channel_key,
    pack_record,
    pack_tag,
    unpack_record,
    unpack_tag,
)
from hillfire.storage.store.sums import check, page_sums, unpack, whole
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
    sums, _ = whole(memoryview(data(200_000, 5)[:200_000]))
    sums.learn(200_000, 2, page_sums(memoryview(data(200_000, 5)[2 * GRAIN_BYTES :][:GRAIN_BYTES])))
    meta = ChunkMeta(Version(top), 200_000, 2**32 - 1, tag, 2**32 - 2, 2**32 - 3, True)
    found = unpack_record(pack_record(Record(meta, Block(26, 2**32 - 1), sums, top)))
    assert found[:2] == (meta, Block(26, 2**32 - 1)) and found.frame == top
    assert found.sums == sums and found.sums.fine == sums.fine
    gone = unpack_record(pack_record(Record(meta, None, sums)))
    assert gone.block is None and not gone.sums.grains
    chunk = ChunkId(bytes(range(16)))
    source = ChunkId(bytes(range(16, 32)))
    pending = Pending(Version(top), 200_000, 1, tag, 2, 4, 2**25, 3, 2**32 - 1, source, Version(7))
    for placement, image in ((Placement.COPY, b""), (Placement.PATCH, b"abc")):
        record = PendingRecord(pending, placement, Block(16, 0), sums, 0, 4, 8192, image)
        name, unpacked = unpack_pending(pack_pending(chunk, record))
        assert name == chunk and unpacked == record and unpacked.sums.fine == sums.fine
    packed = pack_tag(tag.sequence, chunk, Version(9))
    assert unpack_tag(channel_key(tag.client, tag.channel), packed) == (tag, chunk, 9)


EDGES = st.one_of(
    st.integers(0, 300_000),
    st.sampled_from([0, 4095, 4096, 4097, 65535, 65536, 65537, 131_072, 200_704]),
)


@settings(deadline=None, max_examples=200)
@given(EDGES, EDGES, EDGES, st.sets(st.integers(0, 5)))
def test_two_grains_follow_every_change(
    length: int, offset: int, n_bytes: int, learnt: set[int]
) -> None:
    length = max(1, length)
    offset, n_bytes = offset % length, max(1, n_bytes % 70_000)
    image = data(length, 3)[:length]
    sums, crc = whole(memoryview(image))
    assert crc == crc32c(image) and sums.grains == grains_of(image)

    def learn(grain: int) -> None:
        piece = memoryview(image)[grain * GRAIN_BYTES :][:GRAIN_BYTES]
        sums.learn(length, grain, page_sums(piece))

    for grain in learnt & set(range(len(sums.grains))):
        learn(grain)
    assert check(sums, length)
    kept = offset + 1
    tail = image[kept - kept % GRAIN_BYTES : kept]
    cut = sums.cut(kept, page_sums(memoryview(tail)))
    assert cut.grains == grains_of(image[:kept]) and check(cut, kept)
    longer, crc = cut.extended(kept, n_bytes, memoryview(image))
    after = image[:kept] + bytes(n_bytes) + image
    assert crc == crc32c(image) and longer.grains == grains_of(after) and check(longer, len(after))
    payload = data(n_bytes, 9)[:n_bytes]
    after = image[:offset] + payload + image[offset + n_bytes :]
    first, last = offset // GRAIN_BYTES, (offset + n_bytes - 1) // GRAIN_BYTES
    for grain in range(first, min(last + 1, len(sums.grains))):
        learn(grain)
    page, end = offset // 4096, (offset + n_bytes - 1) // 4096 * 4096 + 4096
    fresh = page_sums(memoryview(after)[page * 4096 : end])
    patched = sums.patched(length, len(after), page, fresh)
    assert patched.grains == grains_of(after) and check(patched, len(after))
    count = min(last + 1, len(patched.grains)) - first
    again = unpack(patched.pack(first, count), len(after), first, count, sums)
    assert again == patched and again.fine == patched.fine
    patched.grains[first] ^= 1
    assert not check(patched, len(after))
