"""The first binding: pyfuse3 (libfuse) on asyncio. The only module that imports pyfuse3.

Turns requests into calls of ``Operations`` and results into replies. A memoryview that ``read``
returns is sent by pyfuse3 before anything else runs, so its memory needs no copy. Messages that
pyfuse3 cannot pass on (byte-range locks, fallocate, lseek, ioctl) are the raw binding's.
"""

import errno
import functools
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pyfuse3

from hillfire.errors import Code, Error
from hillfire.fuse.attributes import PREFERRED_IO_BYTES, Attributes, Caller, Changes
from hillfire.fuse.data import Opened
from hillfire.fuse.operations import Operations
from hillfire.fuse.pyfuse3_loop import Loop

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Method = Callable[Concatenate["Binding", P], Coroutine[Any, Any, R]]

MIN_TASKS = 8
MAX_TASKS = 96
"""Requests handled at once."""
MAX_REASON = 2000
"""Bytes of what fusermount3 says when it refuses."""


def _answered(method: Method[P, R]) -> Method[P, R]:
    """Turn errors into errno; a defect is logged and answered EIO, and the mount goes on."""

    @functools.wraps(method)
    async def call(self: "Binding", /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await method(self, *args, **kwargs)
        except Error as exc:
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            log.exception("operation=%s", method.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return call


class Binding(pyfuse3.Operations):
    """pyfuse3's operations on ours."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, operations: Operations) -> None:
        """``operations`` does the work."""
        super().__init__()
        self._do = operations
        self._attribute_timeout_s = operations.config.attribute_timeout_s
        self._entry_timeout_s = operations.config.entry_timeout_s

    def _entry(self, found: Attributes) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = found.inode
        entry.generation = 0
        entry.entry_timeout = self._entry_timeout_s
        entry.attr_timeout = self._attribute_timeout_s
        entry.st_mode = found.mode
        entry.st_nlink = found.links
        entry.st_uid = found.uid
        entry.st_gid = found.gid
        entry.st_rdev = found.device
        entry.st_size = found.length
        entry.st_blksize = PREFERRED_IO_BYTES
        entry.st_blocks = found.blocks
        entry.st_atime_ns = found.atime_ns
        entry.st_mtime_ns = found.mtime_ns
        entry.st_ctime_ns = found.ctime_ns
        return entry

    def _file(self, opened: Opened, inode: int) -> pyfuse3.FileInfo:
        if opened.refresh:
            try:  # only forgets attributes: takes no lock that a request could hold
                pyfuse3.invalidate_inode(inode, attr_only=True)
            except OSError as exc:
                log.debug("invalidate inode=%d error=%s", inode, exc)
        number = opened.number
        return pyfuse3.FileInfo(fh=number, keep_cache=opened.keep_cache)

    @_answered
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find a name."""
        return self._entry(await self._do.lookup(parent_inode, name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Take references back."""
        self._do.forget(list(inode_list))

    @_answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Tell attributes."""
        return self._entry(await self._do.getattr(inode))

    @_answered
    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields,
        fh: int | None, ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:  # fmt: skip
        """Change attributes."""
        changes = Changes(
            attr.st_mode if fields.update_mode else None,
            attr.st_uid if fields.update_uid else None,
            attr.st_gid if fields.update_gid else None,
            attr.st_size if fields.update_size else None,
            attr.st_atime_ns if fields.update_atime else None,
            attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._entry(await self._do.setattr(inode, changes, _caller(ctx)))

    @_answered
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """Tell where a symbolic link points."""
        return await self._do.readlink(inode)

    @_answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a file or a special file."""
        return self._entry(await self._do.mknod(parent_inode, name, mode, rdev, _caller(ctx)))

    @_answered
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a directory."""
        return self._entry(await self._do.mkdir(parent_inode, name, mode, _caller(ctx)))

    @_answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove a name."""
        await self._do.unlink(parent_inode, name, _caller(ctx))

    @_answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove a directory."""
        await self._do.rmdir(parent_inode, name, _caller(ctx))

    @_answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a symbolic link."""
        return self._entry(await self._do.symlink(parent_inode, name, target, _caller(ctx)))

    @_answered
    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes,
        flags: int, ctx: pyfuse3.RequestContext,
    ) -> None:  # fmt: skip
        """Move a name."""
        await self._do.rename(
            parent_inode_old, name_old, parent_inode_new, name_new, flags, _caller(ctx)
        )

    @_answered
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a hard link."""
        return self._entry(await self._do.link(inode, new_parent_inode, new_name, _caller(ctx)))

    @_answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a file."""
        return self._file(await self._do.open(inode, flags, _caller(ctx)), inode)

    @_answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Create and open a file."""
        opened, found = await self._do.create(parent_inode, name, mode, flags, _caller(ctx))
        return self._file(opened, found.inode), self._entry(found)

    @_answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read; the memory is sent before any other task runs."""
        return cast(bytes, await self._do.read(fh, off, size))

    @_answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write."""
        return await self._do.write(fh, off, buf)

    @_answered
    async def flush(self, fh: int) -> None:
        """Close one descriptor of an open file."""
        await self._do.flush(fh)

    @_answered
    async def release(self, fh: int) -> None:
        """Close the last one."""
        await self._do.release(fh)

    @_answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Make durable."""
        await self._do.fsync(fh, datasync)

    @_answered
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        """Open a directory."""
        return await self._do.opendir(inode)

    @_answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List entries."""
        reply, entry = pyfuse3.readdir_reply, self._entry

        def emit(name: bytes, found: Attributes, after: int) -> bool:
            return reply(token, name, entry(found), after)

        await self._do.readdir(fh, start_id, emit)

    @_answered
    async def releasedir(self, fh: int) -> None:
        """Close a directory."""
        await self._do.releasedir(fh)

    @_answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Make a directory durable."""
        await self._do.fsyncdir(fh)

    @_answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Tell the space."""
        space, data = await self._do.statfs(), pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = space.block_bytes
        data.f_blocks, data.f_bfree, data.f_bavail = space.blocks, space.free, space.free
        data.f_files, data.f_ffree, data.f_favail = (
            space.files, space.free_files, space.free_files,
        )  # fmt: skip
        data.f_namemax = space.name_max
        return data

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """Tell an extended attribute."""
        return await self._do.getxattr(inode, name)

    @_answered
    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        """Set one; pyfuse3 has seen to XATTR_CREATE and XATTR_REPLACE."""
        await self._do.setxattr(inode, name, value, 0, _caller(ctx))

    @_answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """List them."""
        return await self._do.listxattr(inode)

    @_answered
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove one."""
        await self._do.removexattr(inode, name, _caller(ctx))


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid)


def attach(operations: Operations, mountpoint: str, options: set[str]) -> None:
    """Mount.

    Raises:
        Error: CONFIGURATION when the kernel or fusermount3 refuses.
    """
    setattr(pyfuse3, "trio", Loop())  # noqa: B010  as pyfuse3.asyncio.enable() does
    chosen = set(pyfuse3.default_options) | options
    with tempfile.TemporaryFile() as said:
        try:
            with _standard_error_to(said.fileno()):
                pyfuse3.init(Binding(operations), mountpoint, chosen)
        except RuntimeError as exc:
            said.seek(0)
            reason = said.read(MAX_REASON).decode(errors="replace").strip()
            text = f"cannot mount at {mountpoint}: {reason or exc}"
            raise Error(Code.CONFIGURATION, text) from exc


@contextmanager
def _standard_error_to(fd: int) -> Iterator[None]:
    """Catch what libfuse and fusermount3 print: there alone is why they failed."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        os.dup2(fd, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


async def serve() -> None:
    """Answer requests until the file system is unmounted or ``stop`` is called.

    Raises:
        Error: IO when the device cannot be read any more.
    """
    try:
        await pyfuse3.main(MIN_TASKS, MAX_TASKS)
    except OSError as exc:
        raise Error(Code.IO, f"the kernel's side of the mount failed: {exc}") from exc
    finally:
        getattr(pyfuse3, "trio").release()  # noqa: B009  the Loop of ``attach``


def stop() -> None:
    """Have ``serve`` return."""
    pyfuse3.terminate()


def detach(unmount: bool) -> None:
    """Unmount, if it still is mounted, and give back what libfuse holds."""
    pyfuse3.close(unmount=unmount)
