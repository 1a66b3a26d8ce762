"""The overwrite of a page in C against its twin in Python (budget: 3 s)."""

import random
from typing import Any

import pytest
from crc32c import crc32c

from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import Image, Tag, Update
from hillfire.storage.store.engine import open_engine
from hillfire.storage.store.enginestore import EngineStore
from hillfire.storage.store.frames import pack_prepare
from hillfire.storage.store.overwrite import TYPES, overwrite
from hillfire.storage.store.records import Record
from hillfire.types import Version, chunk_id
from tests.store_parts import SimulatedDisk

NAME = chunk_id(7, 3)  # type: ignore[arg-type]
PAGE = 4096
TAG = Tag((1 << 63) + 5, 7, 1 << 40)


def update(payload: bytes, offset: int, version: int = 2, **more: Any) -> Update:
    made = Update(
        NAME, Version(version), Kind.WRITE, offset, len(payload), memoryview(payload),
        crc32c(payload), TAG, 9, 3, 1 << 20,
    )  # fmt: skip
    return made._replace(**more)


def store_with(data: bytes) -> tuple[EngineStore, Record]:
    store = open_engine(SimulatedDisk().parts())
    assert isinstance(store.prepare([update(data, 0, 1)])[0], Image)
    store.commit([(NAME, Version(1), 3)])
    record = store._catalog.get(NAME)
    assert record is not None
    return store, record


@pytest.mark.parametrize("pages", [2, 15, 16, 17, 40, 256])
def test_a_plain_overwrite_is_what_the_twin_makes_of_it(pages: int) -> None:
    if overwrite is None:
        pytest.skip("the extension is not built, or HILLFIRE_PURE is set")
    chance = random.Random(pages)
    store, record = store_with(chance.randbytes(pages * PAGE))
    for grain in range(-(-pages // 16)):  # without the extension's sums pages are learnt first
        store.read(NAME, grain << 16, memoryview(bytearray(PAGE)))
    for page in {0, 1, pages // 2, pages - 1}:
        each = update(chance.randbytes(PAGE), page * PAGE)
        before = (record.sums.grains[:], record.sums.fine)
        made = overwrite(each, record, TYPES)
        assert made is not None
        answer, waiting, entry, image = made
        twin = store._placer.place(each, record, None)
        assert waiting == twin and type(waiting) is type(twin)
        assert waiting.pending == twin.pending and type(waiting.pending) is type(twin.pending)
        assert waiting.sums.fine == twin.sums.fine
        assert (entry, image) == pack_prepare(NAME, twin)
        assert answer == Image(twin.pending.length, twin.pending.checksum)
        assert (record.sums.grains, record.sums.fine) == before, "the old record stays"
    store.close()


def test_what_is_not_plain_is_left_to_the_twin() -> None:
    if overwrite is None:
        pytest.skip("the extension is not built, or HILLFIRE_PURE is set")
    chance = random.Random(1)
    store, record = store_with(chance.randbytes(20 * PAGE))
    page = chance.randbytes(PAGE)
    assert overwrite(update(page, PAGE), record, TYPES) is not None
    for each in [
        update(page, 100),
        update(page[:100], 0),
        update(page * 2, 0),
        update(page, 20 * PAGE),
        update(page, 19 * PAGE + 1),
        update(page, PAGE, checksum=1),
        update(page, PAGE, kind=Kind.REPLACE),
        update(page, PAGE, kind=Kind.TRUNCATE),
        update(page, PAGE, chunk_bytes=PAGE),
        update(page, PAGE)._replace(payload=memoryview(page[:-1])),
        update(page, PAGE, version=-1),
        update(page, PAGE, chunk=b"short"),
        update(page, PAGE, tag=None),
    ]:
        assert overwrite(each, record, TYPES) is None, each
    for other in [
        record._replace(block=None),
        record._replace(meta=record.meta._replace(length=20 * PAGE - 1)),
        record._replace(meta=record.meta._replace(length=40 * PAGE)),
    ]:
        assert overwrite(update(page, PAGE), other, TYPES) is None
    assert record.sums.fine is not None
    record.sums.fine[1][0] = 0
    assert overwrite(update(page, PAGE), record, TYPES) is None
    assert overwrite(update(page, 16 * PAGE), record, TYPES) is not None
    record.sums.fine = None
    assert overwrite(update(page, 16 * PAGE), record, TYPES) is None
    for bad in [(), (1,), (update(page, 0), record), (update(page, 0), record, (1, 2, 3, 4))]:
        with pytest.raises(TypeError):
            overwrite(*bad)  # type: ignore[arg-type]
    store.close()
