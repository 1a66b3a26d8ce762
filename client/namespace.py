"""The name space as generators: what both faces' path operations are made of.

One or two metadata trips each: a path travels whole (``Place(parent=ROOT, path=...)``) and is
walked by the service.
"""

import errno
import os
import posixpath
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from hillfire.client.actions import Operation
from hillfire.client.attributes import Entry, stat_result
from hillfire.client.core import Core
from hillfire.errors import Code, Error
from hillfire.proto import cluster_pb2, meta_pb2
from hillfire.types import ROOT_INODE

T = TypeVar("T")

Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

PAGE = 1024
"""Directory entries asked for at once."""
PAGE_WITH_INODES = 512


def place_of(path: Path) -> meta_pb2.Place:
    """Return where a path points: "/" and the empty path are the root."""
    return meta_pb2.Place(parent=ROOT_INODE, path=os.fsencode(path).lstrip(b"/"))


def with_path(operation: Operation[T], path: Path) -> Operation[T]:
    """Add the path to the error that an operation may raise, as ``os`` does."""
    try:
        return (yield from operation)
    except Error as exc:
        if exc.filename is None:
            raise Error(exc.code, exc.strerror or "", path=os.fsdecode(path)) from exc
        raise


def lookup(core: Core, path: Path, follow: bool = True) -> Operation[meta_pb2.Inode]:
    """Return the inode that a path names."""
    request = meta_pb2.LookupRequest(caller=core.caller(), place=place_of(path), follow=follow)
    inode: meta_pb2.Inode = yield from with_path(core.meta("Lookup", request), path)
    return inode


def stat(core: Core, path: Path, follow: bool = True) -> Operation[os.stat_result]:
    """Return a path's attributes."""
    return stat_result((yield from lookup(core, path, follow)))


def exists(core: Core, path: Path) -> Operation[bool]:
    """Tell whether a path leads anywhere."""
    try:
        yield from lookup(core, path)
    except Error as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    return True


class Page(NamedTuple):
    """Some entries of a directory."""

    entries: Sequence[meta_pb2.Dentry]
    inodes: Sequence[meta_pb2.Inode]


def read_directory(core: Core, path: Path, attributes: bool) -> Operation[Page]:
    """Return all entries of a directory, with their inodes if asked for."""
    inode = yield from lookup(core, path)
    if inode.type != meta_pb2.DIRECTORY:
        raise Error(Code.NOT_DIRECTORY, "not a directory", path=os.fsdecode(path))
    page, after = Page([], []), b""
    while True:
        request = meta_pb2.ReadDirectoryRequest(
            caller=core.caller(),
            inode=inode.id,
            after=after,
            limit=PAGE_WITH_INODES if attributes else PAGE,
            attributes=attributes,
        )
        reply = yield from with_path(core.meta("ReadDirectory", request), path)
        page = Page([*page.entries, *reply.entries], [*page.inodes, *reply.inodes])
        if reply.end or not reply.entries:
            return page
        after = reply.entries[-1].name


def listdir(core: Core, path: Path) -> Operation[list[str]]:
    """Return the names in a directory."""
    page = yield from read_directory(core, path, False)
    return [os.fsdecode(entry.name) for entry in page.entries]


def scandir(core: Core, path: Path) -> Operation[list[Entry]]:
    """Return the entries of a directory with their attributes, in one trip a page."""
    page = yield from read_directory(core, path, True)
    base = os.fsdecode(path)
    return [
        Entry(name := os.fsdecode(entry.name), posixpath.join(base, name), inode)
        for entry, inode in zip(page.entries, page.inodes, strict=True)
    ]


def make(
    core: Core,
    path: Path,
    kind: "meta_pb2.FileType.ValueType",
    mode: int = 0o777,
    target: bytes = b"",
) -> Operation[meta_pb2.Inode]:
    """Make a directory, a symbolic link or a special file."""
    request = meta_pb2.MakeNodeRequest(
        caller=core.caller(),
        place=place_of(path),
        type=kind,
        mode=mode & ~core.identity.umask if kind != meta_pb2.SYMLINK else 0o777,
        symlink=target,
    )
    inode: meta_pb2.Inode = yield from with_path(core.meta("MakeNode", request), path)
    return inode


def mkdir(core: Core, path: Path, mode: int = 0o777) -> Operation[None]:
    """Make a directory."""
    yield from make(core, path, meta_pb2.DIRECTORY, mode)


def makedirs(core: Core, path: Path, mode: int = 0o777, exist_ok: bool = False) -> Operation[None]:
    """Make a directory and those above it that are missing."""
    names = [name for name in place_of(path).path.split(b"/") if name]
    whole = b"/".join(names)
    missing: list[bytes] = []
    while names:
        here = b"/".join(names)
        try:
            yield from make(core, here, meta_pb2.DIRECTORY, mode)
            break
        except Error as exc:
            if exc.code is Code.NOT_FOUND:
                missing.append(names.pop())
                continue
            if exc.code is not Code.EXISTS or (here == whole and not exist_ok):
                raise
            if here == whole:
                inode = yield from lookup(core, path)
                if inode.type != meta_pb2.DIRECTORY:
                    raise
            break
    for name in reversed(missing):
        names.append(name)
        try:
            yield from make(core, b"/".join(names), meta_pb2.DIRECTORY, mode)
        except Error as exc:
            if exc.code is not Code.EXISTS:
                raise


def remove(core: Core, path: Path, directory: bool = False) -> Operation[None]:
    """Unlink a file, or remove an empty directory."""
    hold = bool(core.held()) and not directory
    request = meta_pb2.UnlinkRequest(
        caller=core.caller(), place=place_of(path), directory=directory, hold=hold
    )
    reply = yield from with_path(core.meta("Unlink", request), path)
    if hold:
        yield from let_go(core, reply.inode)


def let_go(core: Core, inode: meta_pb2.Inode) -> Operation[None]:
    """End the hold that was asked for before it was known which inode loses its last name."""
    if not inode.id or inode.links or inode.type != meta_pb2.REGULAR:
        return
    if inode.id in core.held():
        core.nameless.add(inode.id)
        return
    request = meta_pb2.SettleRequest(
        caller=core.caller(), inode=inode.id, epoch=inode.epoch, close=True
    )
    yield from core.meta("Settle", request)


def rename(core: Core, source: Path, target: Path, no_replace: bool = False) -> Operation[None]:
    """Rename; an existing target is replaced in one step unless ``no_replace``."""
    request = meta_pb2.RenameRequest(
        caller=core.caller(), to=place_of(target), no_replace=no_replace, hold=bool(core.held())
    )
    getattr(request, "from").CopyFrom(place_of(source))
    reply = yield from with_path(core.meta("Rename", request), source)
    if request.hold and reply.HasField("replaced"):
        yield from let_go(core, reply.replaced)


def link(core: Core, source: Path, target: Path) -> Operation[None]:
    """Give a file another name."""
    inode = yield from lookup(core, source, False)
    request = meta_pb2.LinkRequest(caller=core.caller(), inode=inode.id, place=place_of(target))
    yield from with_path(core.meta("Link", request), target)


def readlink(core: Core, path: Path) -> Operation[str]:
    """Return where a symbolic link points."""
    inode = yield from lookup(core, path, False)
    if inode.type != meta_pb2.SYMLINK:
        raise Error(Code.INVALID, "not a symbolic link", path=os.fsdecode(path))
    return os.fsdecode(inode.symlink)


def truncate(core: Core, path: Path, length: int) -> Operation[None]:
    """Cut or extend a file."""
    inode = yield from lookup(core, path)
    request = meta_pb2.TruncateRequest(caller=core.caller(), inode=inode.id, length=length)
    yield from with_path(core.meta("Truncate", request), path)


def set_attributes(core: Core, path: Path, follow: bool = True, **fields: int) -> Operation[None]:
    """Change mode, uid, gid, atime_ns, mtime_ns: what is given."""
    inode = yield from lookup(core, path, follow)
    request = meta_pb2.SetAttributesRequest(caller=core.caller(), inode=inode.id)
    for name, value in fields.items():
        setattr(request, name, value)
    yield from with_path(core.meta("SetAttributes", request), path)


def set_times(
    core: Core, path: Path, times: tuple[float, float] | None, ns: tuple[int, int] | None
) -> Operation[None]:
    """Set the times of access and modification, in seconds or nanoseconds, to now by default."""
    if times is not None and ns is not None:
        raise ValueError("give times or ns, not both")
    if ns is None:
        now = core.wall_ns()
        ns = (now, now) if times is None else (int(times[0] * 1e9), int(times[1] * 1e9))
    yield from set_attributes(core, path, atime_ns=ns[0], mtime_ns=ns[1])


def attribute(
    core: Core,
    name: str,
    path: Path,
    attribute: str | bytes = b"",
    value: bytes = b"",
    flags: int = 0,
) -> Operation[Any]:
    """Call one of the four extended-attribute methods on a path."""
    inode = yield from lookup(core, path)
    request = meta_pb2.AttributeRequest(
        caller=core.caller(),
        inode=inode.id,
        name=os.fsencode(attribute),
        value=value,
        create=bool(flags & os.XATTR_CREATE),
        replace=bool(flags & os.XATTR_REPLACE),
    )
    return (yield from with_path(core.meta(name, request), path))


def statvfs(core: Core) -> Operation[os.statvfs_result]:
    """Return the space of the file system, in user bytes (replicas counted once)."""
    status = yield from core.meta("StatFileSystem", cluster_pb2.Empty())
    block = 4096
    total, used = status.capacity_bytes // block, status.used_bytes // block
    free = max(0, total - used)
    fields = (block, block, total, free, free, status.inodes, 2**31, 2**31, 0, 255, 0)
    return os.statvfs_result(fields)
