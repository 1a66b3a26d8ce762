"""The records of chunk reads as NumPy sees them, for batches that are packed and read in one go.

The same bytes as ``chunks.READ_ITEMS`` and ``chunks.READ_RESULTS`` make of tuples, which do for a
few items: an array costs some microseconds to set up, and next to nothing for each item.
"""

import numpy as np
from numpy.typing import NDArray

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import (
    NO_CHUNK,
    READ_ITEMS,
    READ_RESULTS,
    ReadItem,
    ReadResult,
)

READ_ITEM = np.dtype(
    [
        ("space", ">u2"),
        ("inode", ">u8"),
        ("reserved", ">u2"),
        ("index", ">u4"),  # so far the chunk id
        ("chain", "<u4"),
        ("version", "<u4"),
        ("offset", "<u4"),
        ("flags", "<u4"),
    ]
)
READ_RESULT = np.dtype(
    {
        "names": ["code", "filled", "checksum", "version"],
        "formats": ["<u2", "<u4", "<u4", "<u8"],
        "offsets": [0, 4, 8, 12],
        "itemsize": len(READ_RESULTS.pack([ReadResult(0, 0, 0, 0)])),
    }
)
assert READ_ITEM.itemsize == len(READ_ITEMS.pack([ReadItem(NO_CHUNK, 0, 0, 0)]))


def read_results(body: bytes, count: int) -> NDArray[np.void]:
    """Return the results of ``count`` reads as an array over ``body``.

    Raises:
        Error: PROTOCOL if they are not as many.
    """
    if len(body) != count * READ_RESULT.itemsize:
        text = f"a body of {len(body)} bytes does not hold the results of {count} reads"
        raise Error(Code.PROTOCOL, text)
    return np.frombuffer(body, READ_RESULT)
