"""The twins of the extension's checksums, over a library."""

from array import array

from crc32c import crc32c as _crc32c

Buffer = bytes | bytearray | memoryview

HOLD_BYTES = 64 * 1024
"""Up to this size the interpreter lock is kept: handing it over takes longer than the sum."""


def crc32c(data: Buffer, value: int = 0, /) -> int:
    """Return the CRC32C of what ``value`` is the CRC32C of, followed by ``data``."""
    if len(data) <= HOLD_BYTES:
        return _crc32c(data, value, gil_release_mode=0)
    return _crc32c(data, value)


def sums(data: Buffer, unit: int, /) -> bytes:
    """Return the CRC32C of each ``unit`` bytes of ``data``, packed as 32 bits each.

    The last may be of fewer bytes.

    Raises:
        ValueError: ``unit`` is not positive.
    """
    if unit <= 0:
        raise ValueError("a unit has at least one byte")
    view = memoryview(data)
    parts = [view[at : at + unit] for at in range(0, len(view), unit)]
    return array("I", [_crc32c(part, 0, gil_release_mode=0) for part in parts]).tobytes()


def chunk_sums(data: Buffer, /) -> tuple[bytes, bytes, int]:
    """Return the CRC32Cs of the grains of ``data``, of its pages, and of all of it.

    Grains of 64 KiB and pages of 4 KiB, packed as 32 bits each; the last may be short.
    """
    return sums(data, 65536), sums(data, 4096), crc32c(data)
