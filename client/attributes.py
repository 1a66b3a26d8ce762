"""Inodes in the shapes that ``os`` gives them: ``stat_result`` and directory entries."""

import os
from typing import Any

from hillfire.proto import meta_pb2

FORMATS = {
    meta_pb2.REGULAR: 0o100000,
    meta_pb2.DIRECTORY: 0o040000,
    meta_pb2.SYMLINK: 0o120000,
    meta_pb2.FIFO: 0o010000,
    meta_pb2.SOCKET: 0o140000,
    meta_pb2.CHARACTER: 0o020000,
    meta_pb2.BLOCK: 0o060000,
}


class Entry:
    """A directory entry with its attributes, as ``os.DirEntry`` has them."""

    def __init__(self, name: str, path: str, inode: meta_pb2.Inode) -> None:
        """``path`` is the directory's, joined with ``name``."""
        self.name = name
        self.path = path
        self._inode = inode

    def __fspath__(self) -> str:
        """Return the path."""
        return self.path

    def __repr__(self) -> str:
        """Show the name."""
        return f"<Entry {self.name!r}>"

    def inode(self) -> int:
        """Return the inode number."""
        return self._inode.id

    def is_dir(self) -> bool:
        """Tell whether it is a directory (a link to one is not)."""
        return self._inode.type == meta_pb2.DIRECTORY

    def is_file(self) -> bool:
        """Tell whether it is a regular file."""
        return self._inode.type == meta_pb2.REGULAR

    def is_symlink(self) -> bool:
        """Tell whether it is a symbolic link."""
        return self._inode.type == meta_pb2.SYMLINK

    def stat(self) -> os.stat_result:
        """Return its attributes as they were when the directory was read."""
        return stat_result(self._inode)


def stat_result(inode: meta_pb2.Inode) -> os.stat_result:
    """Return an inode's attributes as ``os.stat`` does."""
    times = (inode.atime_ns, inode.mtime_ns, inode.ctime_ns)
    fields = (
        FORMATS.get(inode.type, 0) | inode.mode,
        inode.id,
        0,
        inode.links,
        inode.uid,
        inode.gid,
        inode.length,
        *(ns // 1_000_000_000 for ns in times),
    )
    block = inode.layout.chunk_bytes or 4096
    extra: dict[str, Any] = {"st_blksize": block, "st_blocks": -(-inode.length // 512)}
    extra["st_rdev"] = inode.device
    for name, ns in zip(("atime", "mtime", "ctime"), times, strict=True):
        extra[f"st_{name}"] = ns / 1e9
        extra[f"st_{name}_ns"] = ns
    return os.stat_result(fields, extra)
