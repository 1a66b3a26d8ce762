"""A sync on a full disk keeps what it promises, and the store goes on once there is room."""

from crc32c import crc32c

from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import Image, Tag, Update
from hillfire.storage.store.engine import Options, open_engine
from hillfire.types import ChunkId, InodeId, Version, chunk_id
from tests.store_parts import SimulatedDisk

CAPACITY = 1 << 30
NAME: ChunkId = chunk_id(InodeId(7), 0)


def update(version: int, data: bytes) -> Update:
    view = memoryview(data)
    return Update(
        NAME, Version(version), Kind.WRITE, 0, len(data), view, crc32c(data), Tag(1, 1, version),
        1, 5, 65536,
    )  # fmt: skip


def test_a_full_disk_fails_no_sync_for_good() -> None:
    """It stayed unwritable until the process was started again (simulator, seed 30043)."""
    disk = SimulatedDisk(CAPACITY)
    store = open_engine(disk.parts(), Options(reserve_bytes=1 << 18, spare_bytes=0))
    assert isinstance(store.prepare([update(1, b"one")])[0], Image)
    store.commit([(NAME, Version(1), 5)])
    disk.others_bytes = CAPACITY
    store.sync()
    assert not isinstance(store.prepare([update(2, b"two")])[0], Image)
    disk.others_bytes = 0
    assert isinstance(store.prepare([update(2, b"two")])[0], Image)
    store.commit([(NAME, Version(2), 5)])
    store.sync()
    store.close()
