"""The copied transaction log as bytes: records, and the headers of the files that hold them.

The metadata service writes records, storage nodes check and keep them, a restore reads them. All
numbers are little-endian; every record and header carries a CRC32C; the version is in the magic.

A *position* is (epoch, sequence). The sequence counts the engine's committed transactions; the
epoch grows with each start of a metadata service, and by a leap with a restore, so that a position
names one transaction for good, also when a host lost the last ones with its power.
"""

from collections.abc import Iterable, Iterator, Mapping
from struct import Struct
from typing import NamedTuple

from crc32c import crc32c

from hillfire.errors import Code, Error

SEGMENT_MAGIC = b"hfmlog01"
SNAPSHOT_MAGIC = b"hfmsnp01"
ABSENT = 0xFFFF_FFFF
"""The length of a value that was removed."""
MAX_RECORD_BYTES = 1 << 30

_FRAME = Struct("<II")
_BODY = Struct("<QQqI")
_PAIR = Struct("<HI")
_SEGMENT = Struct("<8sQQQQ")
_SNAPSHOT = Struct("<8sQQQq")
_CRC = Struct("<I")
_END = Struct("<IQ")

Pair = tuple[bytes, bytes]
Position = tuple[int, int]


class Record(NamedTuple):
    """One committed transaction; None stands for a removed key."""

    epoch: int
    sequence: int
    time_ns: int
    writes: list[tuple[bytes, bytes | None]]


class Segment(NamedTuple):
    """What the head of a log file says: what its first record follows."""

    history: int
    epoch: int
    first: int
    follows_epoch: int
    """0: it follows the snapshot (epoch, first - 1), which is sent beside it"""


class SnapshotHead(NamedTuple):
    """What a snapshot is of: everything up to a position."""

    history: int
    epoch: int
    sequence: int
    time_ns: int


SEGMENT_BYTES = _SEGMENT.size + _CRC.size
SNAPSHOT_HEAD_BYTES = _SNAPSHOT.size + _CRC.size


def encode_record(
    epoch: int, sequence: int, time_ns: int, writes: Mapping[bytes, bytes | None]
) -> bytes:
    """Return a transaction's bytes."""
    parts = [b"", _BODY.pack(epoch, sequence, time_ns, len(writes))]
    for key, value in writes.items():
        if value is None:
            parts += (_PAIR.pack(len(key), ABSENT), key)
        else:
            parts += (_PAIR.pack(len(key), len(value)), key, value)
    body = b"".join(parts)
    return _FRAME.pack(len(body), crc32c(body)) + body


def split_records(data: bytes | memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield (epoch, sequence, time_ns, end) of whole, undamaged records; stop at the first other.

    ``end`` is the offset behind the record.
    """
    at, view = 0, memoryview(data)
    while len(view) - at >= _FRAME.size + _BODY.size:
        length, crc = _FRAME.unpack_from(view, at)
        start, end = at + _FRAME.size, at + _FRAME.size + length
        if not _BODY.size <= length <= MAX_RECORD_BYTES or end > len(view):
            return
        if crc32c(view[start:end]) != crc:
            return
        epoch, sequence, time_ns, _ = _BODY.unpack_from(view, start)
        yield epoch, sequence, time_ns, end
        at = end


def decode_record(data: bytes | memoryview, start: int) -> Record:
    """Return the record that begins at ``start``, which ``split_records`` found whole."""
    at = start + _FRAME.size
    epoch, sequence, time_ns, count = _BODY.unpack_from(data, at)
    at += _BODY.size
    writes: list[tuple[bytes, bytes | None]] = []
    for _ in range(count):
        n_key, n_value = _PAIR.unpack_from(data, at)
        at += _PAIR.size
        key = bytes(data[at : at + n_key])
        at += n_key
        if n_value == ABSENT:
            writes.append((key, None))
            continue
        writes.append((key, bytes(data[at : at + n_value])))
        at += n_value
    return Record(epoch, sequence, time_ns, writes)


def segment_head(segment: Segment) -> bytes:
    """Return the head of a log file."""
    head = _SEGMENT.pack(SEGMENT_MAGIC, *segment)
    return head + _CRC.pack(crc32c(head))


def read_segment_head(data: bytes) -> Segment | None:
    """Return what the head of a log file says; None if it was torn.

    Raises:
        Error: WRONG_PEER_VERSION for another format.
    """
    found = _checked(data, _SEGMENT, SEGMENT_MAGIC)
    return None if found is None else Segment._make(found)


def snapshot_head(head: SnapshotHead) -> bytes:
    """Return the head of a snapshot."""
    packed = _SNAPSHOT.pack(SNAPSHOT_MAGIC, *head)
    return packed + _CRC.pack(crc32c(packed))


def read_snapshot_head(data: bytes) -> SnapshotHead | None:
    """Return what the head of a snapshot says; None if it was torn.

    Raises:
        Error: WRONG_PEER_VERSION for another format.
    """
    found = _checked(data, _SNAPSHOT, SNAPSHOT_MAGIC)
    return None if found is None else SnapshotHead._make(found)


def snapshot_block(pairs: Iterable[Pair]) -> bytes:
    """Return some pairs of a snapshot as a block."""
    body = b"".join(_PAIR.pack(len(key), len(value)) + key + value for key, value in pairs)
    return _FRAME.pack(len(body), crc32c(body)) + body


def snapshot_end(count: int) -> bytes:
    """Return what closes a snapshot of ``count`` pairs."""
    return _FRAME.pack(0, 0) + _END.pack(crc32c(_CRC.pack(count & 0xFFFF_FFFF)), count)


def block_length(frame: bytes) -> tuple[int, int]:
    """Return the length of a block's body and its checksum; length 0 is the end's."""
    length, crc = _FRAME.unpack(frame)
    return length, crc


def read_block(body: bytes, crc: int) -> list[Pair]:
    """Return a block's pairs.

    Raises:
        Error: CORRUPT.
    """
    if crc32c(body) != crc:
        raise Error(Code.CORRUPT, "a block of the snapshot does not match its checksum")
    pairs: list[Pair] = []
    at = 0
    while at < len(body):
        n_key, n_value = _PAIR.unpack_from(body, at)
        at += _PAIR.size
        pairs.append((body[at : at + n_key], body[at + n_key : at + n_key + n_value]))
        at += n_key + n_value
    return pairs


def read_end(data: bytes) -> int | None:
    """Return the number of pairs that a snapshot's last bytes tell; None if they are torn."""
    if len(data) != _END.size:
        return None
    crc, count = _END.unpack(data)
    return count if crc == crc32c(_CRC.pack(count & 0xFFFF_FFFF)) else None


FRAME_BYTES = _FRAME.size
END_BYTES = _END.size


def _checked(data: bytes, layout: Struct, magic: bytes) -> tuple[int, ...] | None:
    """Return the fields behind the magic."""
    if len(data) < layout.size + _CRC.size:
        return None
    if data[: len(magic) - 2] == magic[:-2] and data[: len(magic)] != magic:
        raise Error(
            Code.WRONG_PEER_VERSION,
            f"the copied log has format {data[: len(magic)]!r}, this hillfire knows {magic!r}: "
            "use the version that wrote it",
        )
    if data[: len(magic)] != magic:
        return None
    if crc32c(data[: layout.size]) != _CRC.unpack_from(data, layout.size)[0]:
        return None
    return layout.unpack_from(data)[1:]
