"""What ``hillfire bench io`` is asked to do: ``read-4kx256`` and its like, taken apart."""

import re
from typing import NamedTuple

from hillfire.config import MIB
from hillfire.errors import Code, Error

_WORD = re.compile(r"(read|write)-(\d+)([kmg]?)(?:x(\d+))?(?:-q(\d+))?((?:-[a-z]+)*)")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

DEFAULT = (
    "read-1mx32",
    "read-1mx32-foreign",
    "read-4kx256",
    "read-4k",
    "write-1mx32",
    "write-4kx256",
)
"""The rows that are taken if none are named: those of issue 4's table."""

MAX_BATCH = 4096
MAX_QUEUE = 1024
MAX_BATCH_BYTES = 1 << 30


class Workload(NamedTuple):
    """One row: what is done again and again."""

    name: str
    write: bool
    block: int
    """bytes"""
    batch: int
    """blocks a call"""
    sequential: bool
    """one block after another, from the file's beginning; else anywhere"""
    foreign: bool
    """from or to memory that is not registered"""
    fsync: bool
    """after each call"""
    queue: int
    """calls on their way at once, through a queue; 0: one after another, without"""

    @property
    def call_bytes(self) -> int:
        """What one call moves."""
        return self.block * self.batch


def parse(word: str) -> Workload:
    """Return what ``(read|write)-BLOCK[k|m][xBATCH][-qDEPTH][-seq][-foreign][-fsync]`` means.

    Raises:
        Error: INVALID with what is possible.
    """
    found = _WORD.fullmatch(word.lower())
    options = set(found[6].split("-")[1:]) if found else set()
    if found is None or options - {"seq", "foreign", "fsync"}:
        raise Error(
            Code.INVALID,
            f"{word!r} is no workload: they are read-BLOCK or write-BLOCK, with xBATCH, -qDEPTH, "
            "-seq, -foreign and -fsync in this order, such as read-4kx256-q4 or write-1mx8-fsync",
        )
    block, batch = int(found[2]) * _UNITS[found[3]], int(found[4] or 1)
    if not 0 < block <= 64 * MIB or not 0 < batch <= MAX_BATCH or block * batch > MAX_BATCH_BYTES:
        raise Error(
            Code.INVALID,
            f"{word!r} is too large: blocks have 1 byte to 64 MiB, batches 1 to {MAX_BATCH} "
            "blocks and 1 GiB",
        )
    queue = int(found[5] or 0)
    if queue > MAX_QUEUE or queue * block * batch > MAX_BATCH_BYTES:
        raise Error(Code.INVALID, f"{word!r}: at most {MAX_QUEUE} calls at once, and 1 GiB of them")
    write = found[1] == "write"
    if "fsync" in options and not write:
        raise Error(Code.INVALID, f"{word!r}: reads have nothing to fsync")
    return Workload(
        word.lower(), write, block, batch, "seq" in options, "foreign" in options,
        "fsync" in options, queue,
    )  # fmt: skip
