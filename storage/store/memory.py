"""MemoryStore: the chunk store in dictionaries, simple enough to be seen to be right.

The twin that tests hold the engine against, and what the simulator runs on. Not durable: what
survives its ``close`` is what its user keeps of it.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import (
    ChunkMeta,
    ChunkStore,
    Image,
    Pending,
    Space,
    Tag,
    Update,
)
from hillfire.storage.store.checksum import crc32c, digest, grains_of
from hillfire.types import ChunkId, InodeId, Version, chunk_id


class _Waiting(NamedTuple):
    """A pending update: its record, its payload and the chunk as it will be."""

    pending: Pending
    payload: bytes
    image: bytes | None
    lost: bool


def outcome(old: bytes, update: Update, payload: bytes) -> bytes | None:
    """Return the chunk's bytes after an update; None where it leaves a tombstone."""
    match update.kind:
        case Kind.REMOVE:
            return None
        case Kind.REPLACE:
            return payload
        case Kind.TRUNCATE:
            return old[: update.length].ljust(update.length, b"\0")
        case _:
            if not payload:
                return old
            before = old[: update.offset].ljust(update.offset, b"\0")
            return before + payload + old[update.offset + len(payload) :]


class MemoryStore(ChunkStore):
    """One target's chunks, in memory."""

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        """Start empty; more than ``capacity_bytes`` of chunks are refused with NO_SPACE."""
        self._capacity = capacity_bytes
        self._chunks: dict[ChunkId, tuple[ChunkMeta, bytes]] = {}
        self._waiting: dict[ChunkId, _Waiting] = {}
        self._lost: set[ChunkId] = set()
        self._tags: dict[tuple[int, int], tuple[Tag, ChunkId, Version]] = {}

    def get(self, chunk: ChunkId) -> ChunkMeta | None:
        """See ``ChunkStore.get``."""
        found = self._chunks.get(chunk)
        return None if found is None else found[0]

    def pending(self) -> Iterator[tuple[ChunkId, Pending]]:
        """See ``ChunkStore.pending``."""
        return iter([(chunk, each.pending) for chunk, each in self._waiting.items()])

    def tags(self) -> Iterator[tuple[Tag, ChunkId, Version]]:
        """See ``ChunkStore.tags``."""
        return iter(list(self._tags.values()))

    def prepare(self, updates: Sequence[Update]) -> list[Image | Exception]:
        """See ``ChunkStore.prepare``."""
        answers: list[Image | Exception] = []
        for update in updates:
            try:
                answers.append(self._prepare(update))
            except Error as exc:
                answers.append(exc)
        return answers

    def _prepare(self, update: Update) -> Image:
        has_payload = update.kind in (Kind.WRITE, Kind.REPLACE)
        payload = bytes(update.payload[: update.length]) if has_payload else b""
        end = update.length + (update.offset if update.kind == Kind.WRITE else 0)
        if update.kind not in (Kind.REMOVE, Kind.CLONE) and end > update.chunk_bytes:
            text = f"byte {end} is beyond the chunk size of {update.chunk_bytes}"
            raise Error(Code.TOO_LARGE, text)
        checksum = crc32c(payload)
        if has_payload and checksum != update.checksum:
            raise Error(Code.CHECKSUM, "the payload is not what its sender claims")
        old = self._chunks.get(update.chunk)
        lost = update.kind == Kind.LOST
        if update.kind == Kind.CLONE:
            image: bytes | None = self._source(update)
        elif lost:
            image = b""
        else:
            self._refuse_lost(update)
            image = outcome(b"" if old is None else old[1], update, payload)
        if self.space().used_bytes + len(image or b"") > self._capacity:
            raise Error(Code.NO_SPACE, f"more than {self._capacity} bytes of chunks")
        result = Image(len(image or b""), digest(grains_of(image or b"")))
        if lost:
            result = Image(update.length, update.checksum)
        record = Pending(
            update.version,
            result.length,
            result.checksum,
            update.tag,
            update.epoch,
            update.kind,
            update.offset,
            len(payload),
            checksum,
            update.source,
            Version(0) if update.source is None else self._chunks[update.source][0].version,
        )
        self._waiting[update.chunk] = _Waiting(record, payload, image, lost)
        return result

    def _refuse_lost(self, update: Update) -> None:
        """Refuse what would build upon bytes that are lost."""
        if update.chunk not in self._lost:
            return
        length = self._chunks[update.chunk][0].length
        whole = update.kind == Kind.WRITE and not update.offset and update.length >= length
        cut = update.kind == Kind.TRUNCATE and not update.length
        if not (whole or cut) and update.kind in (Kind.WRITE, Kind.TRUNCATE):
            raise Error(Code.CORRUPT, "the chunk has lost its bytes; write it whole again")

    def _source(self, update: Update) -> bytes:
        """Return the image that a CLONE takes over."""
        assert update.source is not None, "a clone has a source"
        found = self._chunks.get(update.source)
        if found is None or found[0].removed:
            raise Error(Code.NOT_FOUND, f"there is no chunk {update.source.hex()} to clone")
        if update.source_version not in (0, found[0].version):
            text = f"the source is at version {found[0].version}, not {update.source_version}"
            raise Error(Code.CONFLICT, text)
        if update.source in self._lost:
            raise Error(Code.CORRUPT, "the source has lost its bytes; write it whole again")
        return found[1]

    def commit(self, chunks: Sequence[tuple[ChunkId, Version, int]]) -> None:
        """See ``ChunkStore.commit``."""
        for chunk, version, chain_version in chunks:
            each = self._waiting.pop(chunk)
            pending = each.pending
            assert pending.version == version, f"pending is {pending.version}, not {version}"
            old = self._chunks.get(chunk)
            meta = ChunkMeta(
                version,
                pending.length,
                pending.checksum,
                pending.tag,
                chain_version,
                max(pending.epoch, 0 if old is None else old[0].epoch),
                each.image is None,
            )
            self._chunks[chunk] = meta, each.image or b""
            self._lost.discard(chunk)
            if each.lost:
                self._lost.add(chunk)
            channel = pending.tag[:2]
            latest = self._tags.get(channel)
            if latest is None or latest[0].sequence <= pending.tag.sequence:
                self._tags[channel] = pending.tag, chunk, version

    def discard(self, chunk: ChunkId) -> None:
        """See ``ChunkStore.discard``."""
        self._waiting.pop(chunk, None)

    def read(self, chunk: ChunkId, offset: int, into: memoryview) -> tuple[int, int, Version]:
        """See ``ChunkStore.read``."""
        found = self._chunks.get(chunk)
        if found is None:
            return 0, 0, Version(0)
        meta, image = found
        if chunk in self._lost and offset < meta.length:
            raise Error(Code.CORRUPT, f"chunk {chunk.hex()} has lost its bytes")
        data = image[offset : offset + len(into)]
        into[: len(data)] = data
        return len(data), crc32c(data), meta.version

    def read_cached(
        self, chunk: ChunkId, offset: int, into: memoryview
    ) -> tuple[int, int, Version] | None:
        """See ``ChunkStore.read_cached``."""
        return self.read(chunk, offset, into)

    def read_pending(self, chunk: ChunkId, into: memoryview) -> int:
        """See ``ChunkStore.read_pending``."""
        each = self._waiting.get(chunk)
        if each is None:
            raise Error(Code.INVALID, f"nothing is pending for chunk {chunk.hex()}")
        into[: len(each.payload)] = each.payload
        return len(each.payload)

    def scan(
        self, after: ChunkId | None = None, limit: int = 4096
    ) -> list[tuple[ChunkId, ChunkMeta]]:
        """See ``ChunkStore.scan``."""
        names = sorted(name for name in self._chunks if after is None or name > after)
        return [(name, self._chunks[name][0]) for name in names[:limit]]

    def scan_inode(self, inode: InodeId) -> list[tuple[ChunkId, ChunkMeta]]:
        """See ``ChunkStore.scan_inode``."""
        first, last = chunk_id(inode, 0), chunk_id(inode, 2**32 - 1)
        names = sorted(name for name in self._chunks if first <= name <= last)
        found = [(name, self._chunks[name][0]) for name in names]
        return [(name, meta) for name, meta in found if not meta.removed]

    def remember(self, tags: Iterable[tuple[Tag, ChunkId, Version]]) -> None:
        """See ``ChunkStore.remember``."""
        for tag, chunk, version in tags:
            latest = self._tags.get((tag.client, tag.channel))
            if latest is None or latest[0].sequence < tag.sequence:
                self._tags[tag.client, tag.channel] = tag, chunk, version

    def forget_clients(self, clients: Iterable[int]) -> None:
        """See ``ChunkStore.forget_clients``."""
        gone = set(clients)
        self._tags = {key: tag for key, tag in self._tags.items() if key[0] not in gone}

    def verify(self, chunk: ChunkId, *, cold: bool = False) -> int:
        """See ``ChunkStore.verify``."""
        found = self._chunks.get(chunk)
        if found is None:
            return 0
        meta, image = found
        if (len(image), digest(grains_of(image))) != (meta.length, meta.checksum):
            raise Error(Code.CORRUPT, f"chunk {chunk.hex()}: bytes fail their checksum")
        return len(image)

    def sync(self) -> None:
        """See ``ChunkStore.sync``: memory has no durability to add."""

    def space(self) -> Space:
        """See ``ChunkStore.space``."""
        return Space(sum(len(image) for _, image in self._chunks.values()), self._capacity)

    def close(self) -> None:
        """See ``ChunkStore.close``: what was stored stays readable in this object."""
