"""Operations on names and attributes: lookup, stat, links, renames, changes of mode and owner."""

from hillfire.errors import Code, Error
from hillfire.fuse.attributes import TYPES, Attributes, Caller, Changes
from hillfire.fuse.handles import EVERYTHING, Node
from hillfire.fuse.shared import Shared
from hillfire.proto import meta_pb2 as pb

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_FORMAT = 0o170000
_PERMISSIONS = 0o7777
_SET_ID = 0o6000


class Names(Shared):
    """The name space as the kernel asks for it."""

    async def lookup(self, parent: int, name: bytes) -> Attributes:
        """Return what a name leads to and count the kernel's reference.

        Raises:
            Error: NOT_FOUND.
        """
        asked = self.nodes.tick()
        request = pb.LookupRequest(place=self.place(parent, name), caller=_KERNEL)
        inode = await self.client.meta("Lookup", request)
        return self.nodes.named(self.nodes.learn(inode, asked), parent, name).attributes()

    def forget(self, counts: list[tuple[int, int]]) -> None:
        """Take back the kernel's references, given as (inode, how many)."""
        for inode, count in counts:
            self.nodes.forget(inode, count)

    async def getattr(self, inode: int) -> Attributes:
        """Return attributes, not older than the attribute timeout."""
        node = self.nodes.fresh(inode) or await self.fetch(inode)
        return node.attributes()

    async def setattr(self, inode: int, changes: Changes, caller: Caller) -> Attributes:
        """Change attributes; a change of length comes first."""
        node = self.nodes.find(inode) or await self.fetch(inode)
        if changes.length is not None:
            await self._truncate(node, changes.length, caller)
        if changes._replace(length=None) != Changes():
            if node.file is not None and node.file.unsettled:
                # Else a later settle would overwrite the times that are set now.
                await self.settle(node)
            request = pb.SetAttributesRequest(caller=self.who(caller), inode=inode)
            if changes.mode is not None:
                request.mode = changes.mode & _PERMISSIONS
            if changes.uid is not None:
                request.uid = changes.uid
            if changes.gid is not None:
                request.gid = changes.gid
            if changes.atime_ns is not None:
                request.atime_ns = changes.atime_ns
            if changes.mtime_ns is not None:
                request.mtime_ns = changes.mtime_ns
            asked = self.nodes.tick()
            inode_now = await self.mutate("SetAttributes", request)
            node = self.nodes.learn(inode_now, asked, mutation=True)
        return node.attributes()

    async def _truncate(self, node: Node, length: int, caller: Caller) -> None:
        """Cut or extend a file; what was written before is stored or dropped first."""
        file = node.file
        if file is not None:
            await self.behind.truncate(file, length)
            await self.settle(node)
        asked = self.nodes.tick()
        request = pb.TruncateRequest(caller=self.who(caller), inode=node.inode.id, length=length)
        self.nodes.learn(await self.mutate("Truncate", request), asked, mutation=True)
        node.unsynced = EVERYTHING

    async def drop_set_id(self, node: Node, uid: int) -> None:
        """Take the set-uid and set-gid bits from a file that a user has changed."""
        mode = node.inode.mode
        if uid == 0 or not mode & _SET_ID:
            return
        keep = mode & ~0o4000
        if mode & 0o010:
            keep &= ~0o2000
        if keep != mode:
            request = pb.SetAttributesRequest(caller=_KERNEL, inode=node.inode.id, mode=keep)
            asked = self.nodes.tick()
            inode = await self.mutate("SetAttributes", request)
            self.nodes.learn(inode, asked, mutation=True)

    async def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        """Make a directory."""
        return await self._make(parent, name, pb.DIRECTORY, caller, mode=mode)

    async def mknod(
        self, parent: int, name: bytes, mode: int, device: int, caller: Caller
    ) -> Attributes:
        """Make a regular or special file, without opening it."""
        kind = TYPES.get(mode & _FORMAT, pb.REGULAR)
        return await self._make(parent, name, kind, caller, mode=mode, device=device)

    async def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        """Make a symbolic link."""
        return await self._make(parent, name, pb.SYMLINK, caller, mode=0o777, symlink=target)

    async def _make(
        self, parent: int, name: bytes, kind: pb.FileType.ValueType, caller: Caller, *,
        mode: int, device: int = 0, symlink: bytes = b"",
    ) -> Attributes:  # fmt: skip
        asked = self.nodes.tick()
        request = pb.MakeNodeRequest(
            caller=self.who(caller), place=self.place(parent, name), type=kind,
            mode=mode & _PERMISSIONS, symlink=symlink, device=device,
        )  # fmt: skip
        inode = await self.change(parent, "MakeNode", request)
        self.nodes.touched(parent, inode.ctime_ns, links=int(kind == pb.DIRECTORY))
        node = self.nodes.learn(inode, asked, mutation=True)
        return self.nodes.named(node, parent, name).attributes()

    async def readlink(self, inode: int) -> bytes:
        """Return where a symbolic link points; it never changes."""
        node = self.nodes.find(inode) or await self.fetch(inode)
        if node.inode.type != pb.SYMLINK:
            raise Error(Code.INVALID, "not a symbolic link")
        return node.inode.symlink

    async def link(self, inode: int, parent: int, name: bytes, caller: Caller) -> Attributes:
        """Give an inode another name."""
        asked = self.nodes.tick()
        request = pb.LinkRequest(
            caller=self.who(caller), inode=inode, place=self.place(parent, name)
        )
        found = await self.change(parent, "Link", request)
        self.nodes.touched(parent, found.ctime_ns)
        node = self.nodes.learn(found, asked, mutation=True)
        return self.nodes.named(node, parent, name).attributes()

    async def unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        """Remove a file's name."""
        await self._remove(parent, name, caller, directory=False)

    async def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        """Remove an empty directory."""
        await self._remove(parent, name, caller, directory=True)

    async def _remove(self, parent: int, name: bytes, caller: Caller, *, directory: bool) -> None:
        asked = self.nodes.tick()
        request = pb.UnlinkRequest(
            caller=self.who(caller), place=self.place(parent, name), directory=directory,
            hold=self._is_open(parent, name),
        )  # fmt: skip
        reply = await self.change(parent, "Unlink", request)
        self.nodes.touched(parent, reply.inode.ctime_ns, links=-int(directory))
        self.nodes.unbind(parent, name)
        self.handles.renamed(parent, name, None)
        self._gone(reply.inode, asked, request.hold)

    def _is_open(self, parent: int, name: bytes) -> bool:
        node = self.nodes.at(parent, name)
        return node is not None and node.opens > 0

    def _gone(self, inode: pb.Inode, asked: int, hold: bool) -> None:
        """Remember an inode that has lost a name; with ``hold`` its last close is awaited."""
        node = self.nodes.find(inode.id)
        if node is not None:
            self.nodes.learn(inode, asked, mutation=True)
            if hold and inode.links == 0:
                node.held = True
        if inode.links == 0:
            self.close_now(inode.id)

    async def rename(
        self, parent: int, name: bytes, to_parent: int, to_name: bytes, flags: int, caller: Caller
    ) -> None:
        """Move a name, atomically; ``flags`` are those of ``renameat2``."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise Error(Code.INVALID, f"unknown rename flags {flags:#x}")
        exchange = bool(flags & RENAME_EXCHANGE)
        asked, moved = self.nodes.tick(), self.nodes.at(parent, name)
        request = pb.RenameRequest(
            caller=self.who(caller), to=self.place(to_parent, to_name),
            no_replace=bool(flags & RENAME_NOREPLACE), exchange=exchange,
            hold=not exchange and self._is_open(to_parent, to_name),
        )  # fmt: skip
        getattr(request, "from").CopyFrom(self.place(parent, name))
        reply = await self.change(parent, "Rename", request, to_parent)
        replaced = reply.replaced if reply.HasField("replaced") else None
        same = replaced is not None and replaced.id == reply.inode.id
        if same or (moved is not None and moved is self.nodes.at(to_parent, to_name)):
            return  # two names of one inode: POSIX has rename do nothing
        if any(i is not None and i.type == pb.DIRECTORY for i in (reply.inode, replaced)):
            self.nodes.stale(parent)  # link counts changed
            self.nodes.stale(to_parent)
        self.nodes.touched(parent, reply.inode.ctime_ns)
        self.nodes.touched(to_parent, reply.inode.ctime_ns)
        self.nodes.unbind(parent, name)
        node = self.nodes.learn(reply.inode, asked, mutation=True)
        self.nodes.bind(node, to_parent, to_name)
        self.handles.renamed(to_parent, to_name, reply.inode)
        self.handles.renamed(parent, name, replaced if exchange else None)
        if replaced is not None and exchange:
            other = self.nodes.learn(replaced, asked, mutation=True)
            self.nodes.bind(other, parent, name)
        elif replaced is not None:
            self._gone(replaced, asked, request.hold)


_KERNEL = pb.Caller(checked=True)
