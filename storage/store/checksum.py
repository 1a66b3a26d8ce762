"""CRC32C of chunks: how the checksums of parts (grains of 64 KiB, pages of 4) make a whole's.

CRC32C is linear: the CRC of ``a + b`` is that of ``a``, shifted over the length of ``b``, xor that
of ``b``. So an append extends a grain's checksum without reading it, and the checksum of a payload
follows from those of its grains with no second pass over the bytes. A chunk's own checksum is a
digest of its grains' (CRC32C over them, packed little-endian), which costs next to nothing to
bring up to date. Pure; stands apart because wire, store and checks use the same arithmetic.
"""

import sys
from array import array
from collections.abc import Iterable, Sequence
from functools import cache

from hillfire import native

GRAIN_BYTES = 64 * 1024
GRAIN_SHIFT = 16
PAGE_BYTES = 4096
PAGE_SHIFT = 12

assert sys.byteorder == "little" and array("I").itemsize == 4, "grains are packed as they lie"

Buffer = bytes | bytearray | memoryview
Tables = tuple[tuple[int, ...], ...]

_ZEROS = bytes(GRAIN_BYTES)


crc32c = _crc32c = native.crc32c
"""The CRC32C of what ``value`` is the CRC32C of, followed by ``data``."""


def packed_sums(data: Buffer, unit: int) -> "array[int]":
    """Return the CRC32C of each ``unit`` bytes, the last of which may be fewer."""
    return array("I", native.sums(data, unit))


def _tables(columns: list[int]) -> Tables:
    """Turn a 32 by 32 bit matrix, given by its columns, into four tables of 256."""
    tables = []
    for byte in range(4):
        table = [0]
        for bit in range(8):
            column = columns[8 * byte + bit]
            table += [entry ^ column for entry in table]
        tables.append(tuple(table))
    return tuple(tables)


def _apply(tables: Tables, crc: int) -> int:
    t0, t1, t2, t3 = tables
    return t0[crc & 255] ^ t1[crc >> 8 & 255] ^ t2[crc >> 16 & 255] ^ t3[crc >> 24]


@cache
def _shift_tables(log2_bytes: int) -> Tables:
    """Return the tables that shift a CRC over 2**log2_bytes bytes."""
    if log2_bytes == 0:
        zero = _crc32c(b"\0", 0)
        return _tables([_crc32c(b"\0", 1 << bit) ^ zero for bit in range(32)])
    half = _shift_tables(log2_bytes - 1)
    return _tables([_apply(half, _apply(half, 1 << bit)) for bit in range(32)])


def shift(crc: int, n_bytes: int) -> int:
    """Return what ``crc`` contributes to a CRC32C once ``n_bytes`` more bytes have followed."""
    log2 = 0
    while n_bytes:
        if n_bytes & 1:
            crc = _apply(_shift_tables(log2), crc)
        n_bytes >>= 1
        log2 += 1
    return crc


def combine(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC32C of two byte strings in a row, given theirs and the second's length."""
    return shift(first, second_bytes) ^ second


_T0, _T1, _T2, _T3 = _shift_tables(GRAIN_SHIFT)


def combine_grains(crcs: Iterable[int], value: int = 0) -> int:
    """Return the CRC32C of whole grains in a row, after what ``value`` is the CRC32C of."""
    t0, t1, t2, t3 = _T0, _T1, _T2, _T3
    for crc in crcs:
        value = (
            t0[value & 255] ^ t1[value >> 8 & 255] ^ t2[value >> 16 & 255] ^ t3[value >> 24] ^ crc
        )
    return value


_P0, _P1, _P2, _P3 = _shift_tables(PAGE_SHIFT)


def combine_pages(crcs: Sequence[int], n_bytes: int) -> int:
    """Return the CRC32C of pages in a row that are ``n_bytes`` long; only the last may be short."""
    short = n_bytes % PAGE_BYTES
    p0, p1, p2, p3, value = _P0, _P1, _P2, _P3, 0
    for crc in crcs[:-1] if short else crcs:
        value = (
            p0[value & 255] ^ p1[value >> 8 & 255] ^ p2[value >> 16 & 255] ^ p3[value >> 24] ^ crc
        )
    return combine(value, crcs[-1], short) if short else value


_PAGES_TABLES = [
    _tables([shift(1 << bit, count << PAGE_SHIFT) for bit in range(32)])
    for count in range(GRAIN_BYTES // PAGE_BYTES)
]


def shift_pages(crc: int, count: int) -> int:
    """Return what ``crc`` contributes once ``count`` pages have followed, fewer than a grain's."""
    t0, t1, t2, t3 = _PAGES_TABLES[count]
    return t0[crc & 255] ^ t1[crc >> 8 & 255] ^ t2[crc >> 16 & 255] ^ t3[crc >> 24]


def extend_with_zeros(crc: int, n_bytes: int) -> int:
    """Return the CRC32C after ``n_bytes`` zeros more; at most a grain of them."""
    return _crc32c(memoryview(_ZEROS)[:n_bytes], crc)


ZERO_GRAIN = _crc32c(_ZEROS)
ZERO_PAGE = _crc32c(_ZEROS[:PAGE_BYTES])


def grains_of(data: Buffer) -> "array[int]":
    """Return the checksums of a chunk's grains; the last may be short."""
    return packed_sums(data, GRAIN_BYTES)


def extend_grains(
    grains: "array[int]", length: int, data: memoryview, value: int = 0
) -> tuple["array[int]", int]:
    """Append ``data`` to a chunk of ``length`` bytes with these grains.

    Returns the grains afterwards, and the CRC32C of what ``value`` is the CRC32C of followed by
    ``data``; full grains are passed over once.
    """
    after = grains[:]
    head = min(-length % GRAIN_BYTES, len(data))
    if head:
        piece = data[:head]
        after[-1] = _crc32c(piece, after[-1])
        value = _crc32c(piece, value)
    whole_end = len(data) - (len(data) - head) % GRAIN_BYTES
    whole = packed_sums(data[head:whole_end], GRAIN_BYTES)
    after.extend(whole)
    value = combine_grains(whole, value)
    if whole_end < len(data):
        piece = data[whole_end:]
        after.append(_crc32c(piece))
        value = _crc32c(piece, value)
    return after, value


def extend_grains_with_zeros(grains: "array[int]", length: int, n_bytes: int) -> "array[int]":
    """Append zeros to a chunk of ``length`` bytes with these grains."""
    after = grains[:]
    head = min(-length % GRAIN_BYTES, n_bytes)
    if head:
        after[-1] = extend_with_zeros(after[-1], head)
    whole, tail = divmod(n_bytes - head, GRAIN_BYTES)
    after.extend([ZERO_GRAIN] * whole)
    if tail:
        after.append(extend_with_zeros(0, tail))
    return after


def extend_pages(pages: "array[int]", length: int, data: memoryview) -> "array[int]":
    """Append ``data`` to a chunk of ``length`` bytes with these pages, which are changed."""
    head = min(-length % PAGE_BYTES, len(data))
    if head:
        pages[-1] = _crc32c(data[:head], pages[-1])
    pages.extend(packed_sums(data[head:], PAGE_BYTES))
    return pages


def extend_pages_with_zeros(pages: "array[int]", length: int, n_bytes: int) -> "array[int]":
    """Append zeros to a chunk of ``length`` bytes with these pages, which are changed."""
    head = min(-length % PAGE_BYTES, n_bytes)
    if head:
        pages[-1] = extend_with_zeros(pages[-1], head)
    full, tail = divmod(n_bytes - head, PAGE_BYTES)
    pages.extend([ZERO_PAGE] * full)
    if tail:
        pages.append(extend_with_zeros(0, tail))
    return pages


def digest(grains: "array[int]") -> int:
    """Return a chunk's checksum: CRC32C over its grains' CRC32Cs, packed little-endian."""
    return _crc32c(grains.tobytes())
