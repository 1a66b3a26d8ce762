"""Where the bytes of a tensor lie in what ``torch.save`` wrote, from its first and last bytes.

``torch.save`` of a tensor is a ZIP archive that compresses nothing: a pickle which tells type and
shape, and a record which is the tensor's memory. Who knows where the record is reads it straight
into a tensor of one's own, or only the rows or columns that are wanted. What is not as simple as
that (other strides, byte orders, tensor classes) is left to ``torch.load``.
"""

import math
import pickle
import sys
import zipfile
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

HEAD_BYTES = 4096
"""Of an archive: the pickle and the record's header lie in them."""
TAIL_BYTES = 4096
"""Of an archive: its directory."""
SMALLEST_RUN = 1024
"""Of a box in several pieces; smaller ones cost more than the bytes between them."""
MAX_RUNS = 1 << 16
_LOCAL_HEADER = 30
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}
_ALLOWED = {("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict")}


class Saved(NamedTuple):
    """A plain tensor in an archive."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """of its first byte, from the archive's beginning"""


class _Skipped:
    """Bytes of which only the first and the last are at hand."""

    def __init__(self, head: bytes, tail: bytes, length: int) -> None:
        self._head = head
        self._tail = tail
        self._length = length
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._length)[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = self._position
        end = self._length if size < 0 else min(self._length, start + size)
        self._position = end
        if end <= len(self._head):
            return self._head[start:end]
        first = start - (self._length - len(self._tail))
        if first < 0:
            raise ValueError("these bytes are not at hand")
        return self._tail[first : first + end - start]


class _Shape(pickle.Unpickler):
    """Reads what the pickle says of a tensor, and makes nothing else of it."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return {"OrderedDict": dict}.get(name, lambda *arguments: arguments)
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not of a plain tensor")

    def persistent_load(self, identity: Any) -> Any:
        return identity


def find_tensor(head: bytes, tail: bytes, length: int) -> Saved | None:
    """Return the tensor in an archive of ``length`` bytes; None if it is not a plain one."""
    try:
        with zipfile.ZipFile(_Skipped(head, tail, length)) as archive:
            return _read(archive, head)
    except (zipfile.BadZipFile, pickle.UnpicklingError, ValueError, KeyError, EOFError):
        return None


def _read(archive: zipfile.ZipFile, head: bytes) -> Saved | None:
    entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    record = entries["data/0"]
    if record.compress_type != zipfile.ZIP_STORED or "data/1" in entries:
        return None
    if "byteorder" in entries and archive.read(entries["byteorder"]) != sys.byteorder.encode():
        return None
    with archive.open(entries["data.pkl"]) as stream:
        storage, first, shape, strides, *_ = _Shape(stream).load()
    kind, where, count = storage[1], storage[3], storage[4]
    dtype = _DTYPES[kind]
    items = math.prod(shape)
    if where != "cpu" or first or items != count or not _dense(shape, strides):
        return None
    if record.file_size != items * dtype.itemsize:
        return None
    at = record.header_offset
    name, extra = (int.from_bytes(head[at + k : at + k + 2], "little") for k in (26, 28))
    if at + _LOCAL_HEADER > len(head):
        return None
    return Saved(dtype, tuple(shape), at + _LOCAL_HEADER + name + extra)


def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Tell whether a tensor's rows follow one another in memory, its last axis the fastest."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


class Runs(NamedTuple):
    """The pieces of a box of a tensor, each ``run_bytes`` long, in the order of the box."""

    starts: NDArray[np.int64]
    """from the archive's beginning"""
    places: NDArray[np.int64]
    """from the beginning of the tensor that they are for"""
    run_bytes: int

    @property
    def n_bytes(self) -> int:
        """Of the whole box."""
        return len(self.starts) * self.run_bytes


def runs_wanted(saved: Saved, offsets: Any, lengths: Any, strides: Any = None) -> Runs | None:
    """Return where a box of the tensor lies, in pieces that lie in one in its target as well.

    ``strides``: the target's, in items; by default it is contiguous. None if the box is not within
    the tensor, or in too many or too small pieces.
    """
    shape, item = saved.shape, saved.dtype.itemsize
    if len(offsets) != len(shape) or any(
        not 0 <= offset <= offset + length <= limit
        for offset, length, limit in zip(offsets, lengths, shape, strict=True)
    ):
        return None
    theirs = _dense_strides(lengths) if strides is None else list(strides)
    ours = _dense_strides(shape)
    axis, run = len(shape), 1
    while axis and theirs[axis - 1] == run and (axis == len(shape) or ours[axis - 1] == run):
        axis -= 1
        run *= lengths[axis]
    outer = math.prod(lengths[:axis])
    if outer > MAX_RUNS or (outer > 1 and run * item < SMALLEST_RUN):
        return None
    first = sum(offset * stride for offset, stride in zip(offsets, ours, strict=True))
    starts, places = (np.array([at], np.int64) for at in (first, 0))
    for each in range(axis - 1, -1, -1):
        steps = np.arange(lengths[each], dtype=np.int64)
        starts = np.add.outer(steps * ours[each], starts).reshape(-1)
        places = np.add.outer(steps * theirs[each], places).reshape(-1)
    return Runs(saved.offset + starts * item, places * item, run * item)


def _dense_strides(shape: Any) -> list[int]:
    """Return the strides of a contiguous tensor, in items."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return strides[::-1]
