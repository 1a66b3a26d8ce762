"""Attributes and callers as the operations speak of them, whichever binding carries them.

A binding turns ``Attributes`` into its own reply and its own request context into a ``Caller``;
the operations turn the metadata service's ``Inode`` into ``Attributes``. Both stand apart so that
neither side knows the other's types.
"""

import stat
from typing import NamedTuple

from hillfire.proto import meta_pb2 as pb

BLOCK_BYTES = 512
"""The unit of ``st_blocks``."""

PREFERRED_IO_BYTES = 1024 * 1024

FORMATS: dict[pb.FileType.ValueType, int] = {
    pb.REGULAR: stat.S_IFREG,
    pb.DIRECTORY: stat.S_IFDIR,
    pb.SYMLINK: stat.S_IFLNK,
    pb.FIFO: stat.S_IFIFO,
    pb.SOCKET: stat.S_IFSOCK,
    pb.CHARACTER: stat.S_IFCHR,
    pb.BLOCK: stat.S_IFBLK,
}
"""File type -> the format bits of ``st_mode``."""

TYPES = {bits: kind for kind, bits in FORMATS.items()}


class Caller(NamedTuple):
    """The process that asks."""

    uid: int
    gid: int
    pid: int = 0


class Attributes(NamedTuple):
    """What ``stat`` tells of an inode."""

    inode: int
    mode: int
    links: int
    uid: int
    gid: int
    device: int
    length: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @property
    def blocks(self) -> int:
        """The file's size in units of 512 bytes, holes included."""
        return -(-self.length // BLOCK_BYTES)


class Changes(NamedTuple):
    """What a ``setattr`` changes; None stays as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    length: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


def attributes_of(inode: pb.Inode, length: int, mtime_ns: int) -> Attributes:
    """Return an inode's attributes with the length and time of change that this mount knows."""
    return Attributes(
        inode.id,
        FORMATS[inode.type] | inode.mode,
        inode.links,
        inode.uid,
        inode.gid,
        inode.device,
        length,
        inode.atime_ns,
        mtime_ns,
        max(inode.ctime_ns, mtime_ns) if mtime_ns != inode.mtime_ns else inode.ctime_ns,
    )
