"""Memory as array libraries see it: views of a buffer, and where an array's rows lie.

NumPy arrays and torch tensors come and go here; everything else knows addresses and bytes only.
torch is used where the caller already has it, and never imported otherwise.
"""

import math
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from hillfire.errors import Code, Error

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import DTypeLike, NDArray

Shape = int | tuple[int, ...] | None


class Rows(NamedTuple):
    """An array as rows along its first axis: row ``i`` is at ``address + i * stride``."""

    address: int
    number: int
    stride: int
    row_bytes: int
    """of one row, which lies in one piece"""

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.address + (self.number - 1) * self.stride + self.row_bytes


class _Memory:
    """What an array over a region stands on: it keeps the memory, and the region itself."""

    def __init__(self, view: memoryview, owner: object) -> None:
        self._kept = memoryview(view), owner
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (len(view),),
            "data": (address_of(view), view.readonly),
        }


def as_numpy(
    view: memoryview, owner: object, dtype: "DTypeLike", shape: Shape, offset: int
) -> "NDArray[Any]":
    """Return an array over ``view`` from ``offset`` on; without a shape over all of it.

    ``owner`` lives as long as any array over it.

    Raises:
        Error: INVALID if it does not fit.
    """
    import numpy as np

    kind = np.dtype(dtype)
    count, dimensions = _fit(len(view), kind.itemsize, shape, offset)
    every = np.asarray(_Memory(view, owner))
    return every[offset : offset + count * kind.itemsize].view(kind).reshape(dimensions)


def as_torch(
    view: memoryview, owner: object, dtype: "torch.dtype | None", shape: Shape, offset: int
) -> "torch.Tensor":
    """Return a CPU tensor over ``view``, as ``as_numpy``. The default dtype is uint8.

    Raises:
        Error: INVALID if it does not fit or is read-only; NOT_SUPPORTED without torch.
    """
    try:
        import torch
    except ImportError as exc:
        raise Error(Code.NOT_SUPPORTED, "torch is not installed: use numpy()") from exc
    if view.readonly:
        raise Error(Code.INVALID, "torch has no read-only tensors: use numpy()")
    kind = dtype if dtype is not None else torch.uint8
    count, dimensions = _fit(len(view), kind.itemsize, shape, offset)
    plain = torch.from_numpy(as_numpy(view, owner, "u1", count * kind.itemsize, offset))
    return plain.view(kind).reshape(dimensions)


def _fit(size: int, item_bytes: int, shape: Shape, offset: int) -> tuple[int, tuple[int, ...]]:
    """Return how many items a view of a buffer has, and its dimensions."""
    room = max(0, size - offset) // item_bytes
    dimensions = (room,) if shape is None else (shape,) if isinstance(shape, int) else tuple(shape)
    if -1 in dimensions:
        known = -math.prod(dimensions)
        free = room // known if known > 0 else 0
        dimensions = tuple(free if each == -1 else each for each in dimensions)
    count = math.prod(dimensions)
    if offset < 0 or offset > size or min(dimensions, default=0) < 0 or count > room:
        text = f"shape {dimensions} of {item_bytes} B items at {offset} in a region of {size} B"
        raise Error(Code.INVALID, text)
    return count, dimensions


def address_of(view: memoryview) -> int:
    """Return where a buffer begins in this process's memory."""
    import numpy as np

    return _address(np.frombuffer(view, np.uint8))


def _address(array: "np.ndarray[Any, Any]") -> int:
    return int(array.__array_interface__["data"][0])


def rows_of(memory: Any) -> Rows:
    """Return where the rows of an array, a tensor or a buffer lie; a buffer is one row.

    Raises:
        Error: INVALID if a row is not in one piece, NOT_SUPPORTED for memory that is not the
            host's.
    """
    if _is_tensor(memory):
        if memory.device.type != "cpu":
            text = f"a tensor on {memory.device}: read into a region and copy from there"
            raise Error(Code.NOT_SUPPORTED, text)
        item = memory.element_size()
        strides = tuple(stride * item for stride in memory.stride())
        return _rows(memory.data_ptr(), tuple(memory.shape), strides, item)
    import numpy as np

    array = memory if isinstance(memory, np.ndarray) else np.frombuffer(buffer_of(memory), np.uint8)
    if not isinstance(memory, np.ndarray):
        return Rows(_address(array), 1, array.nbytes, array.nbytes)
    return _rows(_address(array), array.shape, array.strides, array.itemsize)


def _rows(address: int, shape: tuple[int, ...], strides: tuple[int, ...], item: int) -> Rows:
    row_bytes = item
    for length, stride in zip(reversed(shape[1:]), reversed(strides[1:]), strict=True):
        if length != 1 and stride != row_bytes:
            raise Error(Code.INVALID, f"rows that are not in one piece: shape {shape}")
        row_bytes *= length
    count = shape[0] if shape else 1
    stride = strides[0] if strides else row_bytes
    if stride < 0 or (count > 1 and stride < row_bytes):
        raise Error(Code.INVALID, "rows that lie over one another, or backwards")
    return Rows(address, count, stride, row_bytes)


def buffer_of(memory: Any) -> memoryview:
    """Return the bytes of a contiguous buffer, array or tensor, where they are.

    Raises:
        Error: INVALID if they are not in one piece or not memory of the host.
    """
    try:
        if _is_tensor(memory):
            import torch

            flat = memory.detach().view(-1) if memory.dim() else memory.detach().reshape(1)
            memory = flat.view(torch.uint8).numpy()
        elif hasattr(memory, "__dlpack__") and not hasattr(memory, "__array_interface__"):
            import numpy as np

            memory = np.from_dlpack(memory)
        return memoryview(memory).cast("B")
    except (TypeError, ValueError, RuntimeError, BufferError) as exc:
        raise Error(Code.INVALID, f"not a contiguous buffer of host memory: {exc}") from exc


def _is_tensor(memory: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(memory, torch.Tensor)
