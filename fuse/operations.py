"""Every operation of the mount, put together; knows no binding.

A binding holds one ``Operations``, turns the kernel's requests into calls of it, its results into
replies, and ``hillfire.errors.Error`` into an errno. Extended attributes and space are here, the
rest in the classes below.
"""

import time
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.fuse.attributes import Caller
from hillfire.fuse.directories import Directories
from hillfire.fuse.shared import NAME_MAX_BYTES
from hillfire.proto import meta_pb2 as pb
from hillfire.proto.cluster_pb2 import Empty
from hillfire.proto.process import snapshot
from hillfire.types import ROOT_INODE

XATTR_CREATE = 1
XATTR_REPLACE = 2
MAX_ABSENT = 16
"""Names remembered as absent, an inode."""
STATFS_S = 1.0
BLOCK_BYTES = 4096
FREE_INODES = 1 << 40
METRICS = b"user.hillfire.metrics"
"""Of the root: what this mount's process has measured, for `hillfire metrics`. Not listed."""
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")


class Space(NamedTuple):
    """What ``statvfs`` tells."""

    block_bytes: int
    blocks: int
    free: int
    files: int
    free_files: int
    name_max: int


class Operations(Directories):
    """The file system as a kernel asks for it."""

    _space: Space | None = None
    _space_until = 0.0

    async def getxattr(self, inode: int, name: bytes) -> bytes:
        """Return an extended attribute.

        The kernel asks for ``security.capability`` before each write: that it is absent is
        remembered as long as attributes are.

        Raises:
            Error: NO_ATTRIBUTE.
        """
        if name in _ACLS:
            raise Error(Code.NOT_SUPPORTED, "access control lists are not kept")
        if name == METRICS and inode == ROOT_INODE:
            return snapshot().SerializeToString()
        node, now = self.nodes.find(inode), time.monotonic()
        if node is not None and node.absent.get(name, 0.0) > now:
            raise Error(Code.NO_ATTRIBUTE, "remembered as absent")
        request = pb.AttributeRequest(caller=_KERNEL, inode=inode, name=name)
        try:
            reply = await self.client.meta("GetAttribute", request)
        except Error as exc:
            if exc.code is Code.NO_ATTRIBUTE and node is not None:
                if len(node.absent) >= MAX_ABSENT:
                    node.absent.clear()
                node.absent[name] = now + self.config.attribute_timeout_s
            raise
        return bytes(reply.value)

    async def setxattr(
        self, inode: int, name: bytes, value: bytes, flags: int, caller: Caller
    ) -> None:
        """Set an extended attribute."""
        if name in _ACLS:
            raise Error(Code.NOT_SUPPORTED, "access control lists are not kept")
        request = pb.AttributeRequest(
            caller=self.who(caller), inode=inode, name=name, value=value,
            create=bool(flags & XATTR_CREATE), replace=bool(flags & XATTR_REPLACE),
        )  # fmt: skip
        try:
            await self.mutate("SetAttribute", request)
        finally:
            self._changed(inode, name)

    async def listxattr(self, inode: int) -> list[bytes]:
        """List the names of extended attributes."""
        request = pb.AttributeRequest(caller=_KERNEL, inode=inode)
        reply = await self.client.meta("ListAttributes", request)
        return list(reply.names)

    async def removexattr(self, inode: int, name: bytes, caller: Caller) -> None:
        """Remove an extended attribute."""
        request = pb.AttributeRequest(caller=self.who(caller), inode=inode, name=name)
        try:
            await self.mutate("RemoveAttribute", request)
        finally:
            self._changed(inode, name)

    def _changed(self, inode: int, name: bytes) -> None:
        node = self.nodes.find(inode)
        if node is not None:
            node.absent.pop(name, None)
            self.nodes.stale(inode)

    async def statfs(self) -> Space:
        """Tell how full the cluster is, as of a second ago at most."""
        now = time.monotonic()
        if self._space is None or self._space_until < now:
            status = await self.client.meta("StatFileSystem", Empty())
            total = status.capacity_bytes // BLOCK_BYTES
            free = max(0, status.capacity_bytes - status.used_bytes) // BLOCK_BYTES
            files = status.inodes + FREE_INODES
            self._space = Space(BLOCK_BYTES, total, free, files, FREE_INODES, NAME_MAX_BYTES)
            self._space_until = now + STATFS_S
        return self._space


_KERNEL = pb.Caller(checked=True)
