"""What this mount knows: inodes that the kernel refers to, and files and directories it has open.

The inode table is the mount's attribute cache: replies refresh it, the mount's own mutations make
it right at once. A *tick* orders replies: an answer to a question that was asked before the last
mutation is too old to be remembered.
"""

import itertools
import time
from dataclasses import dataclass, field

from hillfire.errors import Code, Error
from hillfire.fuse.attributes import Attributes, attributes_of
from hillfire.fuse.writeback import DirtyFile
from hillfire.proto import meta_pb2 as pb
from hillfire.types import ROOT_INODE

EVERYTHING = (0, 1 << 63)
"""A range beyond any file's end."""

Name = tuple[int, bytes]
"""A directory's number and a name in it."""


class Node:
    """One inode that the kernel holds references to, or has open."""

    __slots__ = (
        "absent",
        "cached_as",
        "file",
        "fresh_until",
        "held",
        "inode",
        "lookups",
        "mutated",
        "names",
        "opens",
        "unsynced",
    )

    def __init__(self, inode: pb.Inode) -> None:
        """Begin without a reference."""
        self.inode = inode
        self.fresh_until = 0.0
        self.mutated = 0
        """the tick of the latest mutation"""
        self.lookups = 0
        self.opens = 0
        self.file: DirtyFile | None = None
        """while it is open for writing here"""
        self.held = False
        """its last name went while it was open here: the metadata service waits for the close"""
        self.names: set[Name] = set()
        self.absent: dict[bytes, float] = {}
        """extended attributes known not to exist, until when"""
        self.unsynced: tuple[int, int] | None = EVERYTHING
        """the range that an fsync must make durable; all, where it is not known"""
        self.cached_as: tuple[int, int, int] | None = None
        """the identity of the contents that the kernel's page cache may hold"""

    @property
    def length(self) -> int:
        """The length, unsettled writes of this mount included."""
        file = self.file
        return file.length if file is not None and file.unsettled else self.inode.length

    def attributes(self) -> Attributes:
        """Return the attributes, unsettled writes of this mount included."""
        file, inode = self.file, self.inode
        if file is not None and file.unsettled:
            return attributes_of(inode, file.length, file.mtime_ns)
        return attributes_of(inode, inode.length, inode.mtime_ns)

    def identity(self) -> tuple[int, int, int]:
        """Return what changes whenever the contents do."""
        inode = self.inode
        return inode.epoch, inode.length, inode.ctime_ns  # mtime may be set back by anyone


class Nodes:
    """The inode table."""

    def __init__(self, attribute_timeout_s: float) -> None:
        """Remember attributes for ``attribute_timeout_s``."""
        self._timeout_s = attribute_timeout_s
        self._nodes: dict[int, Node] = {}
        self._by_name: dict[Name, int] = {}
        self._ticks = itertools.count(1)

    def tick(self) -> int:
        """Return the next tick; taken before a question is asked."""
        return next(self._ticks)

    def find(self, inode: int) -> Node | None:
        """Return what is known of an inode."""
        return self._nodes.get(inode)

    def fresh(self, inode: int) -> Node | None:
        """Return what is known of an inode if it is recent enough to answer from."""
        node = self._nodes.get(inode)
        return node if node is not None and node.fresh_until > time.monotonic() else None

    def learn(self, inode: pb.Inode, asked: int, *, mutation: bool = False) -> Node:
        """Remember what the metadata service answered to what was asked at tick ``asked``."""
        node = self._nodes.get(inode.id)
        if node is None:
            node = self._nodes[inode.id] = Node(inode)
        elif asked < node.mutated and inode.ctime_ns <= node.inode.ctime_ns:
            return node  # asked before the latest mutation, and indeed not newer
        if mutation:
            node.mutated = self.tick()
        node.inode = inode
        file = node.file
        if file is not None:
            file.inode = inode
            if not file.unsettled:
                file.length, file.mtime_ns = inode.length, inode.mtime_ns
            elif file.length < inode.length:
                file.length = inode.length
        node.fresh_until = time.monotonic() + self._timeout_s
        return node

    def stale(self, inode: int) -> None:
        """Ask anew next time: a mutation changed it and the reply does not say how."""
        node = self._nodes.get(inode)
        if node is not None:
            node.fresh_until = 0.0
            node.mutated = self.tick()

    def touched(self, inode: int, at_ns: int, links: int = 0) -> None:
        """Bring a directory up to date in which this mount changed a name at ``at_ns``."""
        node = self._nodes.get(inode)
        if node is not None:
            known = node.inode
            known.mtime_ns = max(known.mtime_ns, at_ns)
            known.ctime_ns = max(known.ctime_ns, at_ns)
            known.links += links
            node.mutated = self.tick()

    def named(self, node: Node, parent: int, name: bytes) -> Node:
        """Count a reference that the kernel got by a name; return the node."""
        node.lookups += 1
        self.bind(node, parent, name)
        return node

    def bind(self, node: Node, parent: int, name: bytes) -> None:
        """Remember that a name leads to an inode."""
        place = (parent, name)
        before = self._by_name.get(place)
        if before == node.inode.id:
            return
        if before is not None:
            self.unbind(parent, name)
        self._by_name[place] = node.inode.id
        node.names.add(place)

    def unbind(self, parent: int, name: bytes) -> None:
        """Forget a name."""
        inode = self._by_name.pop((parent, name), None)
        node = self._nodes.get(inode) if inode is not None else None
        if node is not None:
            node.names.discard((parent, name))

    def at(self, parent: int, name: bytes) -> Node | None:
        """Return the inode that a name led to when this mount last heard of it."""
        inode = self._by_name.get((parent, name))
        return self._nodes.get(inode) if inode is not None else None

    def forget(self, inode: int, count: int) -> None:
        """Take back ``count`` of the kernel's references."""
        node = self._nodes.get(inode)
        if node is not None:
            node.lookups -= count
            self.drop_if_unused(node)

    def drop_if_unused(self, node: Node) -> None:
        """Forget an inode that neither the kernel nor an open file refers to."""
        if node.lookups <= 0 and node.opens == 0 and node.inode.id != ROOT_INODE:
            for place in node.names:
                self._by_name.pop(place, None)
            self._nodes.pop(node.inode.id, None)


@dataclass(slots=True)
class FileHandle:
    """An open file."""

    node: Node
    uid: int
    """of who opened it"""
    session: bool
    """a write session of this handle is recorded at the metadata service"""


@dataclass(slots=True)
class DirectoryHandle:
    """An open directory: the names seen so far, so that an offset is an index into them."""

    inode: int
    names: list[bytes] = field(default_factory=list)
    page: dict[bytes, pb.Inode] = field(default_factory=dict)
    """the inodes of names received and not yet listed"""
    after: bytes = b""
    """the last name received"""
    asked: int = 0
    """the tick before the page was asked for"""
    end: bool = False


class Handles:
    """Open files and directories by the numbers that the kernel was given."""

    def __init__(self) -> None:
        """Begin with none."""
        self._numbers = itertools.count(1)
        self.files: dict[int, FileHandle] = {}
        self.directories: dict[int, DirectoryHandle] = {}

    def add_file(self, handle: FileHandle) -> int:
        """Return a number for an open file."""
        number = next(self._numbers)
        self.files[number] = handle
        return number

    def add_directory(self, handle: DirectoryHandle) -> int:
        """Return a number for an open directory."""
        number = next(self._numbers)
        self.directories[number] = handle
        return number

    def file(self, number: int) -> FileHandle:
        """Return an open file.

        Raises:
            Error: STALE for a number that was never given or is closed.
        """
        try:
            return self.files[number]
        except KeyError:
            raise Error(Code.STALE, f"no open file {number}") from None

    def directory(self, number: int) -> DirectoryHandle:
        """Return an open directory.

        Raises:
            Error: STALE for a number that was never given or is closed.
        """
        try:
            return self.directories[number]
        except KeyError:
            raise Error(Code.STALE, f"no open directory {number}") from None

    def renamed(self, parent: int, name: bytes, now: pb.Inode | None) -> None:
        """Tell open directories that a name went, or leads to another inode ``now``."""
        for handle in self.directories.values():
            if handle.inode == parent and name in handle.page:
                if now is None:
                    del handle.page[name]
                else:
                    handle.page[name] = now
