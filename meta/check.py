"""Is the name space whole? A pure reading of one snapshot, for tests and for repair.

Invariants, each numbered in what it reports:

1. Every name lies in a directory that exists and leads to an inode of the type it says.
2. A directory but the root has one name; its parent pointer says where.
3. Links: of a directory 2 and one for each subdirectory; of anything else its number of names.
4. An inode without names is a regular file, and an orphan; every orphan is one, once.
5. Every directory is reached from the root.
6. Sessions, attributes and intents belong to inodes that exist.
7. The counters are beyond everything that was given out.
8. A file is being cut if and only if an intent of its newest epoch says so.
"""

from collections import Counter

from hillfire.meta import keys
from hillfire.meta.engine.base import Transaction
from hillfire.proto.meta_pb2 import DIRECTORY, REGULAR, Inode
from hillfire.types import ROOT_INODE


def check(txn: Transaction) -> list[str]:
    """Return what is wrong, one line each; reads everything."""
    inodes = {
        inode.id: inode
        for _, raw in txn.snapshot_range(*keys.INODES)
        for inode in (Inode.FromString(raw),)
    }
    wrong: list[str] = []
    names, children = _check_names(txn, inodes, wrong)
    orphans = _orphans(txn)
    for number, inode in inodes.items():
        _check_inode(inode, names[number], children[number], orphans[number], wrong)
    wrong += [f"4: orphan {number} does not exist" for number in orphans if number not in inodes]
    _check_reached(inodes, wrong)
    _check_belongings(txn, inodes, wrong)
    next_inode = keys.read_number(txn.snapshot_get(keys.NEXT_INODE), ROOT_INODE + 1)
    if max(inodes) >= next_inode:
        wrong.append(f"7: inode {max(inodes)} was never given out")
    return wrong


def _check_names(
    txn: Transaction, inodes: dict[int, Inode], wrong: list[str]
) -> tuple[Counter[int], Counter[int]]:
    """Check 1 and 2; return how many names each inode and how many subdirectories each has."""
    names: Counter[int] = Counter()
    children: Counter[int] = Counter()
    for key, value in txn.snapshot_range(*keys.DENTRIES):
        parent, name = int.from_bytes(key[1:9], "little"), key[9:]
        entry = keys.read_entry(value)
        names[entry.inode] += 1
        inode, directory = inodes.get(entry.inode), inodes.get(parent)
        if directory is None or directory.type != DIRECTORY:
            wrong.append(f"1: {name!r} lies in {parent}, which is no directory")
        if inode is None or inode.type != entry.type:
            wrong.append(f"1: {name!r} in {parent} leads to {entry.inode}, which is not that")
        elif inode.type == DIRECTORY:
            children[parent] += 1
            if inode.parent != parent:
                wrong.append(f"2: {entry.inode} lies in {parent}, its parent is {inode.parent}")
    return names, children


def _orphans(txn: Transaction) -> Counter[int]:
    return Counter(keys.split_orphan(*pair)[1] for pair in txn.snapshot_range(*keys.ORPHANS))


def _check_inode(inode: Inode, names: int, children: int, orphaned: int, wrong: list[str]) -> None:
    if inode.type == DIRECTORY:
        if names != (inode.id != ROOT_INODE):
            wrong.append(f"2: directory {inode.id} has {names} names")
        if inode.links != 2 + children:
            wrong.append(f"3: directory {inode.id}: {inode.links} links, {children} in it")
    elif inode.links != names:
        wrong.append(f"3: inode {inode.id} has {inode.links} links and {names} names")
    lost = not names and inode.id != ROOT_INODE
    if orphaned != (lost and inode.type == REGULAR) or (lost and inode.type != REGULAR):
        wrong.append(f"4: inode {inode.id} has {names} names and is {orphaned} times an orphan")


def _check_reached(inodes: dict[int, Inode], wrong: list[str]) -> None:
    reached = {int(ROOT_INODE)}
    for number, inode in inodes.items():
        path: list[int] = []
        at: int = number
        while inode.type == DIRECTORY and at not in reached and at not in path and at in inodes:
            path.append(at)
            at = inodes[at].parent
        if at in reached:
            reached.update(path)
        elif inode.type == DIRECTORY:
            wrong.append(f"5: directory {number} is not reached from the root")


def _check_belongings(txn: Transaction, inodes: dict[int, Inode], wrong: list[str]) -> None:
    for table in (keys.SESSIONS, keys.ATTRIBUTES, keys.INTENTS):
        for key, _ in txn.snapshot_range(*table):
            owner = int.from_bytes(key[1:9], "little")
            if owner not in inodes:
                wrong.append(f"6: {key!r} belongs to inode {owner}, which is gone")
    cutting = {
        (inode.id, inode.cut_epoch) for inode in inodes.values() if inode.cut_epoch > inode.epoch
    }
    intents = {keys.split_intent_key(key) for key, _ in txn.snapshot_range(*keys.INTENTS)}
    wrong += [
        f"8: inode {number} and its intent, epoch {epoch}" for number, epoch in cutting ^ intents
    ]
