# mypy: ignore-errors
"""A file system in memory that writes down every system call that changes it.

``python recorder.py MOUNTPOINT JOURNAL`` serves it through FUSE in a process of its own, so that a
program under test can run anywhere, in whatever language: RocksDB's own calls are seen as well as
Python's. The journal is a stream of pickled tuples, in the order in which the calls were made; the
look-up of a name that begins with ``.mark-`` is written down as a mark. ``replay.py`` makes of it
what a disk would hold after a crash at any point.

Why FUSE: it needs nothing but what the mount itself needs, it sees O_DIRECT and O_SYNC writes,
truncates, renames and syncs from any library, and a write arrives with its data. What it does not
see: fallocate (refused, so that libraries fall back to writing) and shared memory maps (neither
RocksDB, with maps off, nor the chunk store writes through any).
"""

import errno
import os
import pickle
import stat
import sys

import pyfuse3
import trio

from hillfire.local.process import die_with_parent

MARK = b".mark-"


class Node:
    __slots__ = ("children", "data", "ino", "links", "mode", "opens", "parent")

    def __init__(self, ino, mode, parent):
        self.ino = ino
        self.mode = mode
        self.parent = parent
        self.links = 2 if stat.S_ISDIR(mode) else 1
        self.opens = 0
        self.data = bytearray()
        self.children = {} if stat.S_ISDIR(mode) else None


class Recorder(pyfuse3.Operations):
    """The file system. Inode numbers are never used twice."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, journal):
        super().__init__()
        root = Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755, pyfuse3.ROOT_INODE)
        self.nodes = {root.ino: root}
        self.next = pyfuse3.ROOT_INODE + 1
        self.journal = journal

    def note(self, *entry):
        pickle.dump(entry, self.journal, protocol=5)

    def attributes(self, node):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.ino
        entry.generation = 0
        entry.entry_timeout = 300
        entry.attr_timeout = 300
        entry.st_mode = node.mode
        entry.st_nlink = node.links
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_size = len(node.data)
        entry.st_blksize = 4096
        entry.st_blocks = (len(node.data) + 511) // 512
        return entry

    def add(self, parent, name, mode):
        if name in self.nodes[parent].children:
            raise pyfuse3.FUSEError(errno.EEXIST)
        node = self.nodes[self.next] = Node(self.next, mode, parent)
        self.next += 1
        self.nodes[parent].children[name] = node.ino
        self.note("add", parent, name, node.ino, stat.S_ISDIR(mode))
        return node

    def take(self, parent, name):
        try:
            return self.nodes[self.nodes[parent].children[name]]
        except KeyError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None

    async def lookup(self, parent, name, ctx=None):
        if name == b".":
            return self.attributes(self.nodes[parent])
        if name == b"..":
            return self.attributes(self.nodes[self.nodes[parent].parent])
        if name.startswith(MARK):
            self.note("mark", name[len(MARK) :].decode())
        return self.attributes(self.take(parent, name))

    async def getattr(self, inode, ctx=None):
        return self.attributes(self.nodes[inode])

    async def setattr(self, inode, attr, fields, handle, ctx):
        node = self.nodes[inode]
        if fields.update_size:
            size = attr.st_size
            del node.data[size:]
            node.data.extend(bytes(size - len(node.data)))
            self.note("size", inode, size)
        if fields.update_mode:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(attr.st_mode)
        return self.attributes(node)

    async def mkdir(self, parent, name, mode, ctx):
        return self.attributes(self.add(parent, name, stat.S_IFDIR | stat.S_IMODE(mode)))

    async def mknod(self, parent, name, mode, rdev, ctx):
        return self.attributes(self.add(parent, name, mode))

    async def create(self, parent, name, mode, flags, ctx):
        node = self.add(parent, name, stat.S_IFREG | stat.S_IMODE(mode))
        node.opens += 1
        return pyfuse3.FileInfo(fh=node.ino, keep_cache=True), self.attributes(node)

    async def open(self, inode, flags, ctx):
        self.nodes[inode].opens += 1
        if flags & os.O_TRUNC:
            self.nodes[inode].data.clear()
            self.note("size", inode, 0)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh, offset, size):
        return bytes(self.nodes[fh].data[offset : offset + size])

    async def write(self, fh, offset, data):
        node = self.nodes[fh]
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        self.note("write", fh, offset, bytes(data))
        return len(data)

    async def release(self, fh):
        self.nodes[fh].opens -= 1
        self.forget_gone(self.nodes[fh])

    async def fsync(self, fh, datasync):
        self.note("sync", fh)

    async def flush(self, fh):
        pass

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start, token):
        names = sorted(self.nodes[fh].children.items())
        for number, (name, ino) in enumerate(names):
            if number >= start and not pyfuse3.readdir_reply(
                token, name, self.attributes(self.nodes[ino]), number + 1
            ):
                break

    async def releasedir(self, fh):
        pass

    async def fsyncdir(self, fh, datasync):
        self.note("sync", fh)

    async def unlink(self, parent, name, ctx):
        node = self.take(parent, name)
        del self.nodes[parent].children[name]
        node.links -= 1
        self.note("remove", parent, name)
        self.forget_gone(node)

    async def rmdir(self, parent, name, ctx):
        node = self.take(parent, name)
        if node.children:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        del self.nodes[parent].children[name]
        self.note("remove", parent, name)

    async def rename(self, parent, name, new_parent, new_name, flags, ctx):
        if flags:
            raise pyfuse3.FUSEError(errno.EINVAL)
        node = self.take(parent, name)
        replaced = self.nodes[new_parent].children.get(new_name)
        del self.nodes[parent].children[name]
        self.nodes[new_parent].children[new_name] = node.ino
        node.parent = new_parent
        self.note("rename", parent, name, new_parent, new_name)
        if replaced is not None:
            self.nodes[replaced].links -= 1
            self.forget_gone(self.nodes[replaced])

    async def link(self, inode, new_parent, new_name, ctx):
        self.nodes[new_parent].children[new_name] = inode
        self.nodes[inode].links += 1
        self.note("link", new_parent, new_name, inode)
        return self.attributes(self.nodes[inode])

    async def statfs(self, ctx):
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = 4096
        found.f_blocks = found.f_bfree = found.f_bavail = 1 << 24
        found.f_files = found.f_ffree = found.f_favail = 1 << 24
        found.f_namemax = 255
        return found

    async def forget(self, inodes):
        pass

    async def access(self, inode, mode, ctx):
        return True

    def forget_gone(self, node):
        if not node.links and not node.opens and node.children is None:
            node.data = bytearray()


def main():
    mountpoint, journal = sys.argv[1:3]
    die_with_parent(os.getppid())
    with open(journal, "wb") as file:
        pyfuse3.init(Recorder(file), mountpoint, {"fsname=hillfire-recorder"})
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        try:
            trio.run(pyfuse3.main)
        finally:
            pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
