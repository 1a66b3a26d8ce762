from collections.abc import Callable, Sequence

from hillfire.native.pure import Buffer

def crc32c(data: Buffer, value: int = 0, /) -> int: ...
def crc32c_in_streams(data: Buffer, value: int = 0, /) -> int: ...
def sums(data: Buffer, unit: int, /) -> bytes: ...
def read(
    items: Buffer,
    into: Sequence[memoryview],
    look: Callable[[int, int], object],
    flags: int,
    /,
) -> tuple[bytearray, bytearray, list[int]]: ...
