"""Patterns: bytes that tell which write made them, so that a history keeps extents, not megabytes.

The word at byte ``8 * w`` of a chunk under label ``L`` is a mixed number of (L, w): distinct for
distinct (L, w), and undone by ``decode``. A label is what a writer draws for one write, from 1 to
2^32 - 1; 0 stands for zeros. Words that a write covers in part are kept as the bytes they are.

Source of the mixing: Steele, Lea & Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014 (a bijection of 64-bit numbers).
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tests.history.operation import Content, Extent

WORD = 8
MAX_LABEL = (1 << 32) - 1

_Words = NDArray[np.uint64]
_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_A_BACK = np.uint64(pow(int(_A), -1, 1 << 64))
_B_BACK = np.uint64(pow(int(_B), -1, 1 << 64))
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_S27, _S30, _S31, _S32 = (np.uint64(shift) for shift in (27, 30, 31, 32))
_S54, _S60, _S62 = (np.uint64(shift) for shift in (54, 60, 62))
_LOW = np.uint64(MAX_LABEL)


def _mix(x: _Words) -> _Words:
    with np.errstate(over="ignore"):
        x = x + _GAMMA
        x = (x ^ (x >> _S30)) * _A
        x = (x ^ (x >> _S27)) * _B
        mixed: _Words = x ^ (x >> _S31)
        return mixed


def _unmix(x: _Words) -> _Words:
    with np.errstate(over="ignore"):
        x = x ^ (x >> _S31) ^ (x >> _S62)
        x = x * _B_BACK
        x = x ^ (x >> _S27) ^ (x >> _S54)
        x = x * _A_BACK
        x = x ^ (x >> _S30) ^ (x >> _S60)
        plain: _Words = x - _GAMMA
        return plain


def pattern(label: int, offset: int, length: int) -> bytes:
    """Return the bytes at [offset, offset + length) of a chunk that is all ``label``."""
    assert 0 <= label <= MAX_LABEL, label
    if label == 0 or length == 0:
        return bytes(length)
    first = offset // WORD
    count = (offset + length + WORD - 1) // WORD - first
    words = np.arange(first, first + count, dtype=np.uint64) | np.uint64(label << 32)
    return _mix(words).tobytes()[offset - first * WORD :][:length]


def labelled(label: int, offset: int, length: int) -> Content:
    """Return the content that ``pattern`` makes."""
    return (Extent(offset, length, label),) if length else ()


def decode(data: bytes | bytearray | memoryview, offset: int) -> Content:
    """Return what data that was read at ``offset`` is made of: labels, zeros, and odd bytes."""
    data = memoryview(data).cast("B")
    extents: list[Extent] = []
    start = min(-offset % WORD, len(data))
    count = (len(data) - start) // WORD
    _add_bytes(extents, offset, data[:start])
    if count:
        words = np.frombuffer(data, np.uint64, count, start)
        plain = _unmix(words)
        place = np.arange((offset + start) // WORD, (offset + start) // WORD + count)
        labels = np.where((plain & _LOW) == place, (plain >> _S32).astype(np.int64), -1)
        labels[labels == 0] = -1
        labels[words == 0] = 0
        edges = np.flatnonzero(np.diff(labels)) + 1
        bounds = [0, *edges.tolist(), count]
        for low, high in pairwise(bounds):
            label = int(labels[low])
            at, length = start + low * WORD, (high - low) * WORD
            if label < 0:
                _add_bytes(extents, offset + at, data[at : at + length])
            else:
                extents.append(Extent(offset + at, length, label))
    rest = start + count * WORD
    _add_bytes(extents, offset + rest, data[rest:])
    return tuple(extents)


def _add_bytes(extents: list[Extent], offset: int, data: memoryview) -> None:
    if len(data):
        extents.append(Extent(offset, len(data), bytes(data)))
