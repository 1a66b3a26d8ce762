"""Extended attributes: get, set, list, remove. One file, since they share all their rules.

Source: Linux xattr(7).
"""

from hillfire.errors import Code, Error
from hillfire.meta import access
from hillfire.meta.engine.base import Transaction
from hillfire.meta.host import Host
from hillfire.meta.keys import attribute_key, attribute_range, put_inode
from hillfire.meta.walk import load
from hillfire.proto.cluster_pb2 import Empty
from hillfire.proto.meta_pb2 import (
    DIRECTORY,
    REGULAR,
    AttributeReply,
    AttributeRequest,
    Caller,
    Inode,
)

MAX_NAME_BYTES = 255
MAX_VALUE_BYTES = 64 * 1024
MAX_LIST_BYTES = 64 * 1024
"""All names of one inode with a NUL each: what listxattr(2) can return."""


def get_attribute(txn: Transaction, request: AttributeRequest, host: Host) -> AttributeReply:
    """Return the value of an attribute.

    Raises:
        Error: NO_ATTRIBUTE, NOT_SUPPORTED, ACCESS, STALE.
    """
    _check_name(request.name)
    inode = load(txn, request.inode)
    _require_readable(inode, request.caller, request.name)
    value = txn.get(attribute_key(inode.id, request.name))
    if value is None:
        raise Error(Code.NO_ATTRIBUTE, f"inode {inode.id} has no such attribute")
    return AttributeReply(value=value)


def set_attribute(txn: Transaction, request: AttributeRequest, host: Host) -> Empty:
    """Set an attribute; ``create`` and ``replace`` as XATTR_CREATE and XATTR_REPLACE.

    Raises:
        Error: EXISTS, NO_ATTRIBUTE, TOO_LARGE, RANGE, NO_SPACE, NOT_SUPPORTED, ACCESS,
            NOT_PERMITTED, INVALID, STALE.
    """
    _check_name(request.name)
    if len(request.value) > MAX_VALUE_BYTES:
        raise Error(Code.TOO_LARGE, f"a value has at most {MAX_VALUE_BYTES} bytes")
    if request.create and request.replace:
        raise Error(Code.INVALID, "create and replace exclude each other")
    inode = load(txn, request.inode)
    _require_writable(inode, request.caller, request.name)
    key = attribute_key(inode.id, request.name)
    old = txn.get(key)
    if old is not None and request.create:
        raise Error(Code.EXISTS, f"inode {inode.id} has this attribute")
    if old is None:
        if request.replace:
            raise Error(Code.NO_ATTRIBUTE, f"inode {inode.id} has no such attribute")
        used = sum(len(name) + 1 for name in _names(txn, inode.id))
        if used + len(request.name) + 1 > MAX_LIST_BYTES:
            raise Error(Code.NO_SPACE, f"inode {inode.id} has {used} bytes of names already")
    txn.set(key, request.value)
    _changed(txn, inode, host)
    return Empty()


def list_attributes(txn: Transaction, request: AttributeRequest, host: Host) -> AttributeReply:
    """Return the names; those of "trusted." to root only.

    Raises:
        Error: STALE.
    """
    inode = load(txn, request.inode)
    names = _names(txn, inode.id)
    if request.caller.uid != 0:
        names = [name for name in names if not name.startswith(b"trusted.")]
    return AttributeReply(names=names)


def remove_attribute(txn: Transaction, request: AttributeRequest, host: Host) -> Empty:
    """Remove an attribute.

    Raises:
        Error: NO_ATTRIBUTE, NOT_SUPPORTED, ACCESS, NOT_PERMITTED, STALE.
    """
    _check_name(request.name)
    inode = load(txn, request.inode)
    _require_writable(inode, request.caller, request.name)
    key = attribute_key(inode.id, request.name)
    if txn.get(key) is None:
        raise Error(Code.NO_ATTRIBUTE, f"inode {inode.id} has no such attribute")
    txn.clear(key)
    _changed(txn, inode, host)
    return Empty()


def _names(txn: Transaction, inode: int) -> list[bytes]:
    skip = len(attribute_key(inode, b""))
    return [key[skip:] for key, _ in txn.range(*attribute_range(inode))]


def _changed(txn: Transaction, inode: Inode, host: Host) -> None:
    inode.ctime_ns = host.now_ns()
    put_inode(txn, inode)


def _check_name(name: bytes) -> None:
    if not name or len(name) > MAX_NAME_BYTES:
        raise Error(Code.RANGE, f"a name has 1 to {MAX_NAME_BYTES} bytes")
    space, dot, rest = name.partition(b".")
    if not dot or space not in (b"user", b"trusted", b"security"):
        raise Error(Code.NOT_SUPPORTED, "only user., trusted. and security. are stored")
    if not rest or b"\0" in name:
        raise Error(Code.INVALID, "the name is empty behind its prefix, or has a NUL in it")


def _require_readable(inode: Inode, caller: Caller, name: bytes) -> None:
    if caller.checked:
        return
    if name.startswith(b"user."):
        if inode.type not in (REGULAR, DIRECTORY):
            raise Error(Code.NO_ATTRIBUTE, "only files and directories have user attributes")
        access.require(inode, caller, access.READ)
    elif name.startswith(b"trusted.") and caller.uid != 0:
        raise Error(Code.NO_ATTRIBUTE, "trusted attributes are root's")


def _require_writable(inode: Inode, caller: Caller, name: bytes) -> None:
    if caller.checked:
        return
    if not name.startswith(b"user."):
        if caller.uid != 0:
            raise Error(Code.NOT_PERMITTED, "only user. attributes are for all")
        return
    if inode.type not in (REGULAR, DIRECTORY):
        raise Error(Code.NOT_PERMITTED, "only files and directories have user attributes")
    if inode.type == DIRECTORY and inode.mode & 0o1000:
        access.require_owner(inode, caller)
    access.require(inode, caller, access.WRITE)
