"""Who may do what to an inode: pure decisions over modes, owners and groups.

A caller that is ``checked`` was let through by the kernel already (a mount with
default_permissions); nothing here applies to it. Source: POSIX.1-2017, 4.5 "File Access
Permissions"; the set-id rules as Linux has them (``fs/attr.c``, ``fs/inode.c``).
"""

from stat import S_ISGID, S_ISUID, S_ISVTX, S_IXGRP

from hillfire.errors import Code, Error
from hillfire.proto.meta_pb2 import DIRECTORY, REGULAR, Caller, Inode

READ, WRITE, EXECUTE = 4, 2, 1


def in_group(caller: Caller, gid: int) -> bool:
    """Tell whether a caller belongs to a group."""
    return caller.gid == gid or gid in caller.groups


def allowed(inode: Inode, caller: Caller, want: int) -> bool:
    """Tell whether the mode bits grant all of ``want`` (READ, WRITE, EXECUTE added up)."""
    if caller.checked:
        return True
    mode = inode.mode
    if caller.uid == 0:
        return not want & EXECUTE or bool(mode & 0o111) or inode.type == DIRECTORY
    if caller.uid == inode.uid:
        mode >>= 6
    elif in_group(caller, inode.gid):
        mode >>= 3
    return mode & want == want


def require(inode: Inode, caller: Caller, want: int) -> None:
    """Raise unless the mode bits grant ``want``.

    Raises:
        Error: ACCESS.
    """
    if not allowed(inode, caller, want):
        raise Error(Code.ACCESS, f"mode {inode.mode:04o} of inode {inode.id} denies it")


def require_owner(inode: Inode, caller: Caller) -> None:
    """Raise unless the caller owns the inode or is root.

    Raises:
        Error: NOT_PERMITTED.
    """
    if not caller.checked and caller.uid not in (0, inode.uid):
        raise Error(Code.NOT_PERMITTED, f"only uid {inode.uid} and root may do this")


def require_removal(directory: Inode, victim: Inode, caller: Caller) -> None:
    """Raise unless the caller may take the name of ``victim`` out of ``directory``.

    Raises:
        Error: ACCESS by the mode, NOT_PERMITTED by the sticky bit.
    """
    if caller.checked:
        return
    require(directory, caller, WRITE | EXECUTE)
    if directory.mode & S_ISVTX and caller.uid not in (0, directory.uid, victim.uid):
        raise Error(Code.NOT_PERMITTED, "the directory is sticky and neither it nor this is yours")


def require_linkable(inode: Inode, caller: Caller) -> None:
    """Raise unless the caller owns the inode, or might as well copy it: a name could outlive a fix.

    Source: Linux ``fs.protected_hardlinks`` = 1, which distributions set.

    Raises:
        Error: NOT_PERMITTED.
    """
    if caller.checked or caller.uid in (0, inode.uid):
        return
    runs_as_another = inode.mode & S_ISUID or inode.mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP
    if inode.type != REGULAR or runs_as_another or not allowed(inode, caller, READ | WRITE):
        raise Error(Code.NOT_PERMITTED, f"inode {inode.id} is not yours to link")


def inherited(directory: Inode, caller: Caller, mode: int, is_directory: bool) -> tuple[int, int]:
    """Return the gid and the mode of what is made in ``directory``."""
    mode &= 0o7777
    if not directory.mode & S_ISGID:
        return caller.gid, mode
    if is_directory:
        return directory.gid, mode | S_ISGID
    if (
        mode & (S_ISGID | S_IXGRP) == S_ISGID | S_IXGRP
        and not caller.checked
        and caller.uid != 0
        and not in_group(caller, directory.gid)
    ):
        mode &= ~S_ISGID
    return directory.gid, mode


def mode_after_chmod(inode: Inode, caller: Caller, mode: int, gid: int) -> int:
    """Return the mode that chmod leaves: set-gid only for members of the group and root."""
    mode &= 0o7777
    if mode & S_ISGID and not caller.checked and caller.uid != 0 and not in_group(caller, gid):
        mode &= ~S_ISGID
    return mode


def mode_without_ids(inode: Inode, caller: Caller) -> int:
    """Return the mode that a change of owner or contents leaves: no set-uid, no set-gid.

    Without group execution set-gid meant mandatory locking, and stays for members and root.
    """
    if inode.type == DIRECTORY:
        return inode.mode
    mode = inode.mode & ~S_ISUID
    member = caller.checked or caller.uid == 0 or in_group(caller, inode.gid)
    return mode if member and not mode & S_IXGRP else mode & ~S_ISGID


def drop_ids_on_write(inode: Inode, caller: Caller) -> None:
    """Clear the set-id bits of a file that somebody but root changes the contents of."""
    if caller.uid != 0 and not caller.checked:
        inode.mode = mode_without_ids(inode, caller)
