"""The key layout of the name space, one table.

=====  =============================================  ==========================================
table  key after the table's letter                   value
=====  =============================================  ==========================================
``I``  inode (8)                                      ``Inode`` message
``D``  parent (8), name                               inode (8), type (1): a struct, 5 times
                                                      cheaper to read than the message
``W``  inode (8), client (8)                          handles open for writing (4), held (1)
``O``  sequence (8, big-endian)                       inode (8): an orphan to be collected
``A``  inode (8), attribute name                      value of the extended attribute
``R``  client (8, big-endian), request (8, big-e.)    time in ns (8), reply: idempotency record
``T``  inode (8), epoch (4, big-endian)               intent of a truncate (``intents.Intent``)
``L``  slot (2): the low bits of a log sequence       that sequence (8): see ``meta/journal.py``
``C``  counter name                                   number (8); POSITION has three
=====  =============================================  ==========================================

Numbers are little-endian unless it says otherwise: ids are given out in order, and their low
byte first spreads neighbours over the key space. Where a range must come in the order of the
numbers, they are big-endian. Clients' ids are random already.
"""

from struct import Struct
from typing import NamedTuple

from hillfire.meta.engine.base import Transaction
from hillfire.proto.meta_pb2 import FileType, Inode

_ID = Struct("<Q")
_PAIR = Struct("<QQ")
_BIG = Struct(">Q")
_BIG_PAIR = Struct(">QQ")
_DENTRY = Struct("<QB")
_SESSION = Struct("<IB")
_EPOCH = Struct(">I")
_SLOT = Struct("<H")

Range = tuple[bytes, bytes]

INODES: Range = (b"I", b"J")
DENTRIES: Range = (b"D", b"E")
SESSIONS: Range = (b"W", b"X")
ORPHANS: Range = (b"O", b"P")
ATTRIBUTES: Range = (b"A", b"B")
REPLIES: Range = (b"R", b"S")
INTENTS: Range = (b"T", b"U")
LOG: Range = (b"L", b"M")

NEXT_INODE = b"Cnext inode"
NEXT_SEQUENCE = b"Cnext sequence"
"""of orphans and truncates, together: it tells their orders to storage apart"""
SERVICE_TAG = b"Cservice tag"
INODE_COUNT = b"Cinodes at stop"
POSITION = b"Clog position"
"""of the last transaction in the copied log, with it (``meta/journal.py``)"""
RESTORED = b"Crestored"
"""after a restore, until the files that were being written have been measured: the first inode
number that may have been given out and lost"""
FIRST_SEQUENCE = 2
"""so that a client that has seen 1 has seen something: 0 is one that never asked"""
FORMAT = b"Cformat"
FORMAT_VERSION = 2


class Entry(NamedTuple):
    """Where a name leads."""

    inode: int
    type: FileType.ValueType


class WriteSession(NamedTuple):
    """What one client has open of one inode: handles for writing, and an orphan kept for it."""

    writers: int
    held: bool


def after(prefix: bytes) -> bytes:
    """Return the first key behind all that begin with ``prefix``."""
    return (int.from_bytes(prefix, "big") + 1).to_bytes(len(prefix), "big")


def inode_key(inode: int) -> bytes:
    """Key of an inode."""
    return b"I" + _ID.pack(inode)


def dentry_key(parent: int, name: bytes) -> bytes:
    """Key of a name in a directory."""
    return b"D" + _ID.pack(parent) + name


def dentry_range(parent: int) -> Range:
    """All names of a directory, in the order of their bytes."""
    prefix = b"D" + _ID.pack(parent)
    return prefix, after(prefix)


def session_key(inode: int, client: int) -> bytes:
    """Key of what a client has open of an inode."""
    return b"W" + _PAIR.pack(inode, client)


def session_range(inode: int) -> Range:
    """All clients that have an inode open."""
    prefix = b"W" + _ID.pack(inode)
    return prefix, after(prefix)


def split_session_key(key: bytes) -> tuple[int, int]:
    """Return the inode and the client."""
    inode, client = _PAIR.unpack_from(key, 1)
    return inode, client


def orphan_key(sequence: int) -> bytes:
    """Key of an orphan by the order in which they became so."""
    return b"O" + _BIG.pack(sequence)


def split_orphan(key: bytes, value: bytes) -> tuple[int, int]:
    """Return the sequence and the inode."""
    return _BIG.unpack_from(key, 1)[0], _ID.unpack(value)[0]


def attribute_key(inode: int, name: bytes) -> bytes:
    """Key of an extended attribute."""
    return b"A" + _ID.pack(inode) + name


def attribute_range(inode: int) -> Range:
    """All extended attributes of an inode."""
    prefix = b"A" + _ID.pack(inode)
    return prefix, after(prefix)


def reply_key(client: int, request: int) -> bytes:
    """Key of the answer that a mutation got."""
    return b"R" + _BIG_PAIR.pack(client, request)


def split_reply_key(key: bytes) -> tuple[int, int]:
    """Return the client and the request."""
    client, request = _BIG_PAIR.unpack_from(key, 1)
    return client, request


def intent_key(inode: int, epoch: int) -> bytes:
    """Key of a truncate that is not finished."""
    return b"T" + _ID.pack(inode) + _EPOCH.pack(epoch)


def split_intent_key(key: bytes) -> tuple[int, int]:
    """Return the inode and the epoch."""
    return _ID.unpack_from(key, 1)[0], _EPOCH.unpack_from(key, 9)[0]


def log_key(slot: int) -> bytes:
    """Key of a transaction's place in the order, among the last ones."""
    return b"L" + _SLOT.pack(slot)


def number(value: int) -> bytes:
    """Encode a counter's or an orphan's value."""
    return _ID.pack(value)


def read_number(value: bytes | None, default: int = 0) -> int:
    """Decode it; an absent one is ``default``."""
    return default if value is None else int(_ID.unpack(value)[0])


def entry_value(inode: int, type_: FileType.ValueType) -> bytes:
    """Encode where a name leads."""
    return _DENTRY.pack(inode, type_)


def read_entry(value: bytes) -> Entry:
    """Decode where a name leads."""
    return Entry._make(_DENTRY.unpack(value))


def session_value(session: WriteSession) -> bytes:
    """Encode what a client has open."""
    return _SESSION.pack(*session)


def read_session(value: bytes | None) -> WriteSession:
    """Decode what a client has open; absent is nothing."""
    if value is None:
        return WriteSession(0, False)
    writers, held = _SESSION.unpack(value)
    return WriteSession(writers, bool(held))


def take_number(txn: Transaction, counter: bytes, count: int = 1, first: int = 1) -> int:
    """Advance a counter by ``count`` and return what it was."""
    taken = read_number(txn.get(counter), first)
    txn.set(counter, number(taken + count))
    return taken


def put_inode(txn: Transaction, inode: Inode) -> None:
    """Write an inode."""
    txn.set(b"I" + _ID.pack(inode.id), inode.SerializeToString())
