"""Operations on open directories: reading them with attributes, and making them durable.

A directory's offset is the number of names that were listed before it in this handle, so that it
stays right while entries come and go; the metadata service continues after a name.
"""

from collections.abc import Callable

from hillfire.fuse.attributes import Attributes
from hillfire.fuse.data import Data
from hillfire.fuse.handles import DirectoryHandle
from hillfire.proto import meta_pb2 as pb

PAGE_ENTRIES = 1024
"""Asked of the metadata service at a time."""

Emit = Callable[[bytes, Attributes, int], bool]
"""Takes a name, its attributes and the offset after it; False when the reply is full."""


class Directories(Data):
    """Open directories."""

    async def opendir(self, inode: int) -> int:
        """Open a directory."""
        return self.handles.add_directory(DirectoryHandle(inode))

    async def readdir(self, number: int, offset: int, emit: Emit) -> None:
        """List entries from an offset on until the reply is full or there are no more."""
        handle = self.handles.directory(number)
        if offset == 0 and handle.names:
            handle.names, handle.page, handle.end, handle.after = [], {}, False, b""
        elif offset < len(handle.names):  # seekdir: what comes after is fetched again
            del handle.names[offset:]
            handle.page, handle.end, handle.after = {}, False, handle.names[-1]
        while True:
            if not handle.page:
                if handle.end:
                    return
                await self._fetch_page(handle)
                continue
            for name, inode in list(handle.page.items()):
                node = self.nodes.find(inode.id)
                if node is None or node.mutated <= handle.asked:
                    node = self.nodes.learn(inode, handle.asked)
                if not emit(name, node.attributes(), len(handle.names) + 1):
                    self.nodes.drop_if_unused(node)
                    return
                self.nodes.named(node, handle.inode, name)
                handle.names.append(name)
                del handle.page[name]

    async def _fetch_page(self, handle: DirectoryHandle) -> None:
        handle.asked = self.nodes.tick()
        request = pb.ReadDirectoryRequest(
            caller=pb.Caller(checked=True), inode=handle.inode, after=handle.after,
            limit=PAGE_ENTRIES, attributes=True,
        )  # fmt: skip
        reply = await self.client.meta("ReadDirectory", request)
        names = [entry.name for entry in reply.entries]
        handle.page = dict(zip(names, reply.inodes, strict=True))
        handle.end = reply.end or not names
        if names:
            handle.after = names[-1]

    async def releasedir(self, number: int) -> None:
        """Forget an open directory."""
        self.handles.directories.pop(number, None)

    async def fsyncdir(self, number: int) -> None:
        """Make a directory's entries durable; they are if nothing changed since the last sync."""
        if self.durable:
            return
        inode = self.handles.directory(number).inode
        node = self.nodes.find(inode) or await self.fetch(inode)
        await self.settle(node, sync=True)
