"""Rebuild a metadata database from the copies of its log on storage nodes.

The newest copy that is whole wins. What was committed after its end is lost, and some of it has
left traces: numbers that were given out, chunks that were written or cut. So everything that is
given out or compared leaps ahead of whatever may have been used: inode numbers, the epochs of
files, the order of orphans and truncates, and the epoch of the log itself, by which the copies
refuse a service that still runs on the old database.
"""

import logging
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.meta import journal, keys
from hillfire.meta.directory import Directory
from hillfire.meta.engine.rocksdb import RocksEngine
from hillfire.meta.keys import take_number
from hillfire.proto import metalog_files as files
from hillfire.proto.meta_pb2 import REGULAR, Inode
from hillfire.proto.metalog_files import Run
from hillfire.types import ROOT_INODE

log = logging.getLogger(__name__)

LOG_EPOCHS = 1 << 40
"""More than the epoch of the lost database can have grown since; there are 2^64."""
SKIPPED_INODES = 1 << 32
"""More than can have been created since; there are 2^64."""
SKIPPED_EPOCHS = 1 << 16
"""More cuts than one file can have had since; there are 2^32."""
SKIPPED_SEQUENCES = 1 << 32
BATCH = 4096

COPIES = "meta-log"


class Candidate(NamedTuple):
    """A copy of one cluster's metadata, and what can be rebuilt from it."""

    source: str
    cluster: str
    run: Run


class Restored(NamedTuple):
    """What a restore did."""

    source: str
    cluster: str
    epoch: int
    sequence: int
    time_ns: int
    """when the last transaction that is there was committed"""
    inodes: int
    first_lost_inode: int
    """no inode from here to ``next_inode`` is known: chunks of such are orphans"""
    next_inode: int
    problems: tuple[str, ...]


def copies_in(path: Path) -> list[Path]:
    """Return the copies at a path: of a node's directory, of all in a cluster's, or itself.

    A copy's directory is called as its cluster.
    """
    if path.parent.name == COPIES:
        return [path]
    roots = [path] if path.name == COPIES else [path / COPIES, *path.glob(f"*/{COPIES}")]
    return [copy for root in roots if root.is_dir() for copy in root.iterdir() if copy.is_dir()]


def candidates(found: Iterable[tuple[str, Path]]) -> tuple[list[Candidate], list[str]]:
    """Return what can be rebuilt from copies, newest first, and the damage that was met.

    A snapshot that is damaged is passed over for an older one.
    """
    good, problems = list[Candidate](), list[str]()
    for source, copy in found:
        runs = files.runs(copy)
        if not runs:
            problems.append(f"{source}: no finished snapshot there")
        for run in runs:
            try:
                files.check_snapshot(run.snapshot)
            except Error as error:
                problems.append(str(error.strerror))
                continue
            good.append(Candidate(source, copy.name, run))
            break
    good.sort(key=lambda each: each.run.position, reverse=True)
    return good, problems


def restore(found: Iterable[tuple[str, Path]], directory: Path, *, force: bool = False) -> Restored:
    """Rebuild ``directory`` / "db" from the newest of the copies (source, path).

    Raises:
        Error: NOT_FOUND without a copy that is whole, INVALID for copies of several databases,
            EXISTS when there is a database and not ``force``, BUSY, CORRUPT, IO, NO_SPACE.
    """
    good, problems = candidates(found)
    if not good:
        reason = "; ".join(problems) or "no copy of the metadata was found there"
        raise Error(Code.NOT_FOUND, f"nothing to restore from: {reason}")
    best = good[0]
    kinds = {(each.cluster, each.run.history) for each in good}
    if len(kinds) > 1:
        shown = ", ".join(f"{each.source} (cluster {each.cluster})" for each in good)
        raise Error(Code.INVALID, f"these are copies of different metadata: {shown}: name one")
    owner = Directory(directory)
    try:
        database = directory / "db"
        if owner.cluster not in ("", best.cluster):
            text = f"{directory} belongs to cluster {owner.cluster}, the copies to {best.cluster}"
            raise Error(Code.WRONG_CLUSTER, text)
        if database.exists() and owner.cluster and not force:  # else it never served
            raise Error(
                Code.EXISTS,
                f"there is a database in {directory}: --force puts it aside and rebuilds it",
            )
        made = directory / "db.restoring"
        shutil.rmtree(made, ignore_errors=True)
        restored = _rebuild(best, made, tuple(problems))
        if database.exists():
            database.rename(directory / f"db.before-{time.time_ns()}")
        made.rename(database)
        owner.join(best.cluster)
    except OSError as error:
        if isinstance(error, Error):
            raise
        raise Error(Code.IO, f"cannot write in {directory}: {error}") from error
    finally:
        owner.close()
    return restored


def _rebuild(best: Candidate, directory: Path, problems: tuple[str, ...]) -> Restored:
    engine = RocksEngine(directory)
    try:
        for pairs in files.read_snapshot(best.run.snapshot):
            engine.load(dict(pairs))
        last = best.run.position
        for record in files.read_records(best.run):
            engine.load(dict(record.writes))
            last = (record.epoch, record.sequence)
        if last < best.run.position:
            raise Error(Code.CORRUPT, f"{best.source}: the log ends before {best.run.position}")
        first_lost, inodes = _leap(engine, best.run)
    finally:
        engine.close()
    return Restored(
        best.source,
        best.cluster,
        *best.run.position,
        best.run.time_ns,
        inodes,
        first_lost,
        first_lost + SKIPPED_INODES,
        (*problems, *best.run.problems),
    )


def _leap(engine: RocksEngine, run: Run) -> tuple[int, int]:
    """Move everything ahead of what may have been used; return the first number that may be lost.

    The whole database is then on the disk.
    """
    inodes = _raise_epochs(engine)
    with engine.transaction() as txn:
        first_lost = take_number(txn, keys.NEXT_INODE, SKIPPED_INODES, ROOT_INODE + 1)
        take_number(txn, keys.NEXT_SEQUENCE, SKIPPED_SEQUENCES, keys.FIRST_SEQUENCE)
        txn.set(keys.SERVICE_TAG, keys.number(secrets.randbits(63) | 1))
        txn.set(keys.INODE_COUNT, keys.number(inodes))
        txn.set(keys.RESTORED, keys.number(first_lost))
        epoch, sequence = run.position
        where = journal.Place(run.history, epoch + LOG_EPOCHS, sequence)
        txn.set(keys.POSITION, journal.place_value(where))
        txn.commit(sync=True)
    return first_lost, inodes


def _raise_epochs(engine: RocksEngine) -> int:
    """Raise the epoch of every file, and of the cuts that are still to be made, alike.

    Storage may have seen higher ones than the copy has, and refuses what is older. Returns the
    number of inodes.
    """
    count, begin = 0, keys.INODES[0]
    while True:
        with engine.transaction() as txn:
            page = txn.snapshot_range(begin, keys.INODES[1], limit=BATCH)
            for _, value in page:
                inode = Inode.FromString(value)
                if inode.type == REGULAR:
                    inode.epoch += SKIPPED_EPOCHS
                    inode.cut_epoch += SKIPPED_EPOCHS if inode.cut_epoch else 0
                    keys.put_inode(txn, inode)
            txn.commit()
        if not page:
            break
        count += len(page)
        begin = page[-1][0] + b"\0"
    with engine.transaction() as txn:
        for key, value in txn.snapshot_range(*keys.INTENTS):
            inode_number, epoch = keys.split_intent_key(key)
            txn.clear(key)
            txn.set(keys.intent_key(inode_number, epoch + SKIPPED_EPOCHS), value)
        txn.commit()
    return count
