"""Stamps: what simulated clients write, so that a read tells which writes it saw and if any tore.

A chunk is divided into *cells* of very different sizes. A write covers whole cells and fills each
with its own four-byte stamp over and over; histories keep one stamp a cell, so that judging them
costs nothing, yet every byte that is read was compared.
"""

from functools import lru_cache
from struct import Struct

CHUNK_BYTES = 65536
BOUNDS = (0, 16, 32, 64, 4080, 4096, 8192, 61440, CHUNK_BYTES)
"""Where cells begin and end: on grains and pages, beside them, and far from them."""
CELLS = len(BOUNDS) - 1
STAMP_BYTES = 4

_STAMP = Struct("<I")


class Torn(AssertionError):
    """Bytes came back that nobody ever wrote."""


@lru_cache(maxsize=4096)
def filled(stamp: int, length: int) -> bytes:
    """Return ``length`` bytes of a stamp; 0 stands for zeros."""
    return _STAMP.pack(stamp) * (length // STAMP_BYTES)


def image(stamp: int, first: int, last: int) -> bytes:
    """Return the bytes of cells [first, last) as the write with this stamp makes them."""
    return filled(stamp, BOUNDS[last] - BOUNDS[first])


def written(stamp: int, first: int, last: int) -> bytes:
    """Return the same as a history keeps it."""
    return _STAMP.pack(stamp) * (last - first)


def seen(data: memoryview, first: int, last: int) -> bytes:
    """Return what a history keeps of bytes that were read.

    Raises:
        Torn: a cell is neither zeros nor all one stamp.
    """
    base = BOUNDS[first]
    stamps = []
    for cell in range(first, last):
        part = data[BOUNDS[cell] - base : BOUNDS[cell + 1] - base]
        (stamp,) = _STAMP.unpack_from(part)
        if part != filled(stamp, len(part)):
            raise Torn(f"cell {cell} begins with stamp {stamp} and goes on with other bytes")
        stamps.append(bytes(part[:STAMP_BYTES]))
    return b"".join(stamps)
