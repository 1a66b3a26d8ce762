"""Region: memory registered once and addressed afterwards by (region, offset, length).

Wires fill regions and read from them; GPUs will register them. Memory that hillfire allocated is
a sealed memfd, which a storage node on the same host maps and fills itself; a foreign buffer
stays where it is and costs one memcpy over shm and tcp. To programs a region is an array:
``region.numpy(...)``, ``region.torch(...)`` and everything that takes DLPack see its memory.
"""

import contextlib
import fcntl
import itertools
import mmap
import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hillfire import arrays
from hillfire.errors import Code, Error
from hillfire.types import ByteRange

if TYPE_CHECKING:
    import torch
    from numpy.typing import DTypeLike, NDArray

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""What a server insists on: a mapping that shrinks is SIGBUS for whoever reads it."""

_ids = itertools.count(1)
_live: "weakref.WeakValueDictionary[int, Region]" = weakref.WeakValueDictionary()
"""Regions of this process by id, to be found by address: memory is the process's, whoever
registered it."""


class Quarantine:
    """A range of a region in which an operation may still be at work.

    ``landing`` says that it may still write there; otherwise it only reads, and others may read
    beside it. ``ended`` is asked before the range is refused to anyone: it looks, without
    waiting, whether the operation's server has answered or gone, and if so releases the range.
    """

    __slots__ = ("ended", "landing", "span")

    def __init__(self, span: ByteRange, landing: bool, ended: Callable[[], object]) -> None:
        """See ``Region.quarantine``."""
        self.span = span
        self.landing = landing
        self.ended = ended


def _nothing() -> None:
    """Leave a quarantine to whoever made it."""


class Region:
    """A stretch of memory with a number that is unique in its process."""

    id: int
    view: memoryview
    fd: int
    """of the memfd; -1 for a foreign buffer, which no server can map"""

    def __init__(self, view: memoryview, fd: int, known: bool) -> None:
        """Use ``allocate`` or ``wrap``."""
        self.id = next(_ids)
        self.view = view
        self.fd = fd
        self.size = len(view)
        self.quarantined: list[Quarantine] = []
        self._address = -1
        self.closed = False
        if known:
            _live[self.id] = self
        self._closing: list[Callable[[int], None]] = []

    def __repr__(self) -> str:
        """Tell size, kind and how much is in quarantine."""
        kind = "foreign" if self.fd < 0 else "memfd"
        return f"<Region {self.id} {kind} {self.size} B, {len(self.quarantined)} quarantined>"

    @classmethod
    def allocate(cls, n_bytes: int) -> "Region":
        """Return ``n_bytes`` of zeroed memory, faulted in and sealed, that a server can map.

        Raises:
            Error: INVALID if ``n_bytes`` is not positive, NO_SPACE if the memory is not there.
        """
        if n_bytes <= 0:
            raise Error(Code.INVALID, f"a region of {n_bytes} bytes")
        fd = os.memfd_create("hillfire-region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, n_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            mapping = mmap.mmap(fd, n_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError as exc:
            os.close(fd)
            raise Error(Code.NO_SPACE, f"no memory for a region of {n_bytes} bytes: {exc}") from exc
        return cls(memoryview(mapping), fd, True)

    @classmethod
    def wrap(cls, buffer: object, known: bool = False) -> "Region":
        """Return a region over a caller's own contiguous buffer, array or tensor.

        ``known``: it is to be found by its address (``holding``), which few should be.

        Raises:
            Error: INVALID if it is not in one piece, or not memory of the host.
        """
        return cls(arrays.buffer_of(buffer), -1, known)

    @classmethod
    def holding(cls, start: int, end: int) -> "Region | None":
        """Return the known region that these addresses of the process's memory lie in."""
        for reference in _live.valuerefs():
            region = reference()
            if region is None or region.closed:
                continue
            first = region.address
            if first <= start and end <= first + region.size:
                return region
        return None

    # --- as an array

    def __len__(self) -> int:
        """Return the size in bytes."""
        return self.size

    @property
    def address(self) -> int:
        """Where it begins in this process's memory."""
        if self._address < 0:
            self._address = arrays.address_of(self.view)
        return self._address

    def numpy(
        self, dtype: "DTypeLike" = "uint8", shape: arrays.Shape = None, offset: int = 0
    ) -> "NDArray[Any]":
        """Return a NumPy array over the region's memory from byte ``offset`` on.

        ``shape`` may have one -1; without it the array takes all there is. The region lives as
        long as any array over it.

        Raises:
            Error: INVALID if it does not fit.
        """
        return arrays.as_numpy(self.view, self, dtype, shape, offset)

    def torch(
        self, dtype: "torch.dtype | None" = None, shape: arrays.Shape = None, offset: int = 0
    ) -> "torch.Tensor":
        """Return a CPU tensor over the region's memory, uint8 by default; see ``numpy``.

        Raises:
            Error: INVALID if it does not fit, NOT_SUPPORTED without torch.
        """
        return arrays.as_torch(self.view, self, dtype, shape, offset)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> "NDArray[Any]":
        """Be a uint8 array to ``np.asarray``."""
        array = self.numpy()
        if copy or (dtype is not None and array.dtype != dtype):
            return array.astype(dtype or array.dtype)
        return array

    def __buffer__(self, flags: int) -> memoryview:
        """Be a buffer (Python 3.12 and newer; ``view`` is one everywhere)."""
        return memoryview(self.view)

    def __dlpack__(self, **options: Any) -> Any:
        """Hand the memory to another library: ``np.from_dlpack``, ``torch.from_dlpack``."""
        return self.numpy().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Say that it is memory of the host."""
        return (1, 0)

    # --- quarantine

    def quarantine(
        self, span: ByteRange, landing: bool = True, ended: Callable[[], object] = _nothing
    ) -> Quarantine:
        """Forbid the use of a range in which an operation may still be at work."""
        held = Quarantine(span, landing, ended)
        self.quarantined.append(held)
        return held

    def release(self, held: Quarantine) -> None:
        """End a quarantine: the server answered, or is known to have ended."""
        with contextlib.suppress(ValueError):
            self.quarantined.remove(held)

    def check(self, offset: int, length: int, landing: bool = True) -> None:
        """Verify that a range may be used, to be written into (``landing``) or only to be read.

        Raises:
            Error: INVALID out of bounds, BUSY if part of it is in quarantine.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            text = f"[{offset}, {offset + length}) is outside a region of {self.size} bytes"
            raise Error(Code.INVALID, text)
        for held in list(self.quarantined):
            span = held.span
            if not (span.offset < offset + length and offset < span.end):
                continue
            if not (landing or held.landing):
                continue
            held.ended()
            if held in self.quarantined:
                raise Error(Code.BUSY, f"an earlier operation may still land in {span}")

    def on_close(self, call: Callable[[int], None]) -> None:
        """Have ``call(id)`` called when the region ends. It may be called on any thread."""
        self._closing.append(call)

    def close(self) -> None:
        """Give the memory back once no view of it is left."""
        self.closed = True
        calls, self._closing = self._closing, []
        for call in calls:
            call(self.id)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        with contextlib.suppress(BufferError):  # an array over it lives on, and the memory with it
            self.view.release()

    def __del__(self) -> None:
        """Close the descriptor of a region that was dropped."""
        if getattr(self, "_closing", None) is not None:
            self.close()
