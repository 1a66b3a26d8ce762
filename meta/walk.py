"""From a place (a parent and a path) to the directory, the name and what is there.

Every directory and name on the way becomes a conflict key of the transaction. The mount sends one
name at a time, which takes the short way; clients by path send whole ones.
Source: POSIX.1-2017, 4.13 "Pathname Resolution"; Linux path_resolution(7).
"""

from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.meta import access
from hillfire.meta.engine.base import Transaction
from hillfire.meta.keys import Entry, dentry_key, inode_key, read_entry
from hillfire.proto.meta_pb2 import DIRECTORY, SYMLINK, Caller, Inode, Place
from hillfire.types import ROOT_INODE

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4096
MAX_SYMLINKS = 40

DOTS = (b"", b".", b"..")
"""ends of paths that are no names: the directory itself and its parent"""


class Found(NamedTuple):
    """The end of a walk."""

    parent: Inode
    """the directory that the last name is looked up in"""
    name: bytes
    """the last name; "", "." or ".." if the path ends so: then ``inode`` is that directory"""
    inode: Inode | None
    """what the name leads to, if it exists"""
    slash: bool
    """whether the path ended in "/", which only a directory may"""

    def require_name(self, code: Code) -> None:
        """Raise ``code`` if the path ends in no name that could be made, moved or removed."""
        if self.name in DOTS:
            raise Error(code, "the path does not end in a name")

    def require(self) -> Inode:
        """Return the inode.

        Raises:
            Error: NOT_FOUND; NOT_DIRECTORY if a slash follows something else.
        """
        if self.inode is None:
            raise Error(Code.NOT_FOUND, f"no {_shown(self.name)} in inode {self.parent.id}")
        if self.slash and self.inode.type != DIRECTORY:
            raise Error(Code.NOT_DIRECTORY, f"{_shown(self.name)} is no directory")
        return self.inode


def load(txn: Transaction, inode: int) -> Inode:
    """Read an inode that a request names by number.

    Raises:
        Error: STALE if it is gone.
    """
    raw = txn.get(inode_key(inode))
    if raw is None:
        raise Error(Code.STALE, f"inode {inode} is gone")
    return Inode.FromString(raw)


def load_directory(txn: Transaction, inode: int) -> Inode:
    """Read the directory that names are looked up in.

    Raises:
        Error: NOT_FOUND if it was removed, NOT_DIRECTORY.
    """
    raw = txn.get(inode_key(inode))
    if raw is None:
        raise Error(Code.NOT_FOUND, f"directory {inode} was removed")
    found = Inode.FromString(raw)
    if found.type != DIRECTORY:
        raise Error(Code.NOT_DIRECTORY, f"inode {inode} is no directory")
    return found


def look_up(txn: Transaction, parent: int, name: bytes) -> Entry | None:
    """Read one name of a directory."""
    raw = txn.get(dentry_key(parent, name))
    return None if raw is None else read_entry(raw)


def walk(
    txn: Transaction,
    caller: Caller,
    place: Place,
    *,
    follow: bool = False,
    follow_slash: bool = False,
) -> Found:
    """Walk to a place. ``follow``: a symbolic link at the last name is followed too.

    ``follow_slash``: also when a slash is behind it. Operations that make, move or remove the name
    itself never do.

    Raises:
        Error: NOT_FOUND, NOT_DIRECTORY, ACCESS, LOOP, NAME_TOO_LONG, INVALID.
    """
    path = place.path
    if b"/" not in path and path not in DOTS and b"\0" not in path:
        parent = load_directory(txn, place.parent)
        child = _child(txn, caller, parent, path)
        if child is None or not follow or child.type != SYMLINK:
            return Found(parent, path, child, False)
    return _long_walk(txn, caller, place, follow, follow_slash)


def _long_walk(
    txn: Transaction, caller: Caller, place: Place, follow: bool, follow_slash: bool
) -> Found:
    path = place.path
    if len(path) > MAX_PATH_BYTES:
        raise Error(Code.NAME_TOO_LONG, f"paths have at most {MAX_PATH_BYTES} bytes")
    if b"\0" in path:
        raise Error(Code.INVALID, "a path has no NUL in it")
    at = load_directory(txn, ROOT_INODE if path.startswith(b"/") else place.parent)
    names, slash = _names(path)
    links = 0
    found = Found(at, b"", at, slash)
    while names:
        name = names.pop()
        last = not names
        if name in DOTS:
            access.require(at, caller, access.EXECUTE)
            child: Inode | None = load_directory(txn, at.parent) if name == b".." else at
        else:
            child = _child(txn, caller, at, name)
        if (
            child is not None
            and child.type == SYMLINK
            and (not last or (follow_slash if slash else follow))
        ):
            links += 1
            if links > MAX_SYMLINKS:
                raise Error(Code.LOOP, f"more than {MAX_SYMLINKS} symbolic links")
            more, ends_in_slash = _names(child.symlink)
            slash = slash or (last and ends_in_slash)
            names += more
            if child.symlink.startswith(b"/"):
                at = load_directory(txn, ROOT_INODE)
                found = Found(at, b"", at, slash)
            continue
        found = Found(at, name, child, slash)
        if not last:
            at = _enter(child, name)
    return found


def _names(path: bytes) -> tuple[list[bytes], bool]:
    """Split into names, the first one last, and whether a slash ends it."""
    return [name for name in reversed(path.split(b"/")) if name], path.endswith(b"/")


def _child(txn: Transaction, caller: Caller, parent: Inode, name: bytes) -> Inode | None:
    if len(name) > MAX_NAME_BYTES:
        raise Error(Code.NAME_TOO_LONG, f"names have at most {MAX_NAME_BYTES} bytes")
    if not caller.checked:
        access.require(parent, caller, access.EXECUTE)
    raw = txn.get(dentry_key(parent.id, name))
    if raw is None:
        return None
    inode = txn.get(inode_key(read_entry(raw).inode))
    if inode is None:
        raise Error(Code.CORRUPT, f"{_shown(name)} in inode {parent.id} leads nowhere")
    return Inode.FromString(inode)


def _enter(child: Inode | None, name: bytes) -> Inode:
    if child is None:
        raise Error(Code.NOT_FOUND, f"no directory {_shown(name)}")
    if child.type != DIRECTORY:
        raise Error(Code.NOT_DIRECTORY, f"{_shown(name)} is no directory")
    return child


def _shown(name: bytes) -> str:
    return repr(name.decode(errors="backslashreplace"))
