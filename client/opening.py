"""Opening a file by path, in the modes of the built-in ``open``: one or two metadata trips."""

import os

from hillfire.client.actions import Operation
from hillfire.client.core import Core
from hillfire.client.namespace import Path, lookup, place_of, with_path
from hillfire.client.stream import Stream
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2


def open_stream(core: Core, path: Path, mode: str) -> Operation[Stream]:
    """Open a path as ``open`` does: ``r w a x``, ``+``; "b" and "t" are the face's affair."""
    kind = mode.replace("b", "").replace("t", "").replace("+", "")
    if kind not in ("r", "w", "a", "x") or mode.count("+") > 1:
        raise ValueError(f"invalid mode: {mode!r}")
    plus = "+" in mode
    read, write = kind == "r" or plus, kind != "r" or plus
    if kind == "r":
        inode = yield from readable(core, path, write)
        if write:
            inode = yield from with_path(_open(core, inode.id), path)
    else:
        request = meta_pb2.CreateRequest(
            caller=core.caller(),
            place=place_of(path),
            mode=0o666 & ~core.identity.umask,
            exclusive=kind == "x",
        )
        inode = yield from with_path(core.meta("Create", request), path)
        if inode.type != meta_pb2.REGULAR:
            raise Error(Code.INVALID, "not a regular file", path=os.fsdecode(path))
        if kind == "w" and inode.length:
            truncate = meta_pb2.TruncateRequest(caller=core.caller(), inode=inode.id)
            inode = yield from with_path(core.meta("Truncate", truncate), path)
    stream = Stream(core, inode, read=read, write=write, append=kind == "a")
    if kind == "a":
        stream.position = inode.length
    return stream


def readable(core: Core, path: Path, write: bool = False) -> Operation[meta_pb2.Inode]:
    """Return the inode of a regular file that may be read: all that a read needs, in one trip.

    Raises:
        Error: NOT_FOUND, IS_DIRECTORY, ACCESS and the like.
    """
    inode = yield from lookup(core, path)
    _check(core, inode, path, write)
    return inode


def _open(core: Core, inode: int) -> Operation[meta_pb2.Inode]:
    request = meta_pb2.OpenRequest(caller=core.caller(), inode=inode, write=True)
    opened: meta_pb2.Inode = yield from core.meta("Open", request)
    return opened


def _check(core: Core, inode: meta_pb2.Inode, path: Path, write: bool) -> None:
    """Refuse what cannot be opened; the mode bits of a read are checked here, at no trip."""
    name = os.fsdecode(path)
    if inode.type == meta_pb2.DIRECTORY:
        raise Error(Code.IS_DIRECTORY, "is a directory", path=name)
    if inode.type != meta_pb2.REGULAR:
        raise Error(Code.INVALID, "not a regular file", path=name)
    who = core.identity
    if who.uid == 0 or write:
        return
    shift = 6 if who.uid == inode.uid else 3 if inode.gid in (who.gid, *who.groups) else 0
    if not inode.mode >> shift & 4:
        raise Error(Code.ACCESS, "permission denied", path=name)
