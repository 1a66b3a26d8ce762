"""Copies of the metadata's log: what a node takes and refuses, what a restore chooses. 10 s."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hillfire.cli.meta import problems_of
from hillfire.cluster import Endpoint, Node, NodeKind
from hillfire.errors import Code, Error
from hillfire.meta import journal as journal_module
from hillfire.meta import keys
from hillfire.meta.copies import choose
from hillfire.meta.engine.base import Transaction
from hillfire.meta.engine.memory import MemoryEngine
from hillfire.meta.engine.retry import transact
from hillfire.meta.engine.rocksdb import RocksEngine
from hillfire.meta.host import Host
from hillfire.meta.journal import Journal
from hillfire.meta.restore import LOG_EPOCHS, SKIPPED_EPOCHS, SKIPPED_INODES, copies_in, restore
from hillfire.meta.server import prepare
from hillfire.meta.ship import Snapshot, refusal
from hillfire.proto import meta_pb2 as pb
from hillfire.proto import metalog_files as files
from hillfire.proto import metalog_format as form
from hillfire.proto import metalog_pb2 as messages
from hillfire.proto.metalog_format import SnapshotHead
from hillfire.storage.metalog import LogCopy
from hillfire.types import NodeId
from tests.unit.meta_world import fails

CLUSTER = "c1"


class Source:
    """A database, and a copy of it that is kept by hand."""

    def __init__(self, directory: Path, history: int = 0) -> None:
        self.engine = MemoryEngine()
        if history:
            place = journal_module.Place(history, 0, 0)
            transact(
                self.engine, lambda txn: txn.set(keys.POSITION, journal_module.place_value(place))
            )
        self.journal = Journal(self.engine)
        transact(self.engine, prepare)
        self.host = Host(self.engine, chunk_bytes=65536, stripe=4)
        self.host.set_chains([1, 2])
        self.shipped = 0
        self.node = directory
        self.copy = LogCopy(directory / "meta-log" / CLUSTER)

    def file(self, name: bytes, epoch: int = 0) -> int:
        number = self.host.new_inode()
        inode = pb.Inode(id=number, type=pb.REGULAR, links=1, epoch=epoch)

        def body(txn: Transaction) -> None:
            keys.put_inode(txn, inode)
            txn.set(keys.dentry_key(1, name), keys.entry_value(number, pb.REGULAR))

        transact(self.engine, body)
        return number

    def ship(self, follows: int | None = None) -> None:
        records, last = self.journal.take(self.shipped + 1, 1 << 30)
        epoch = self.journal.epoch
        before = (epoch if self.shipped else 0) if follows is None else follows
        self.copy.append(self.journal.history, epoch, self.shipped + 1, before, records)
        self.shipped = last

    def snapshot(self) -> None:
        made = Snapshot(self.engine, self.journal)
        head = SnapshotHead(self.journal.history, self.journal.epoch, made.sequence, made.time_ns)
        last = False
        while not last:
            piece, last = made.piece()
            self.copy.snapshot(head, made.offset, piece, last)
            made.offset += len(piece)

    @property
    def found(self) -> list[tuple[str, Path]]:
        return [("copy", copy) for copy in copies_in(self.node)]


def names(directory: Path) -> list[bytes]:
    engine = RocksEngine(directory / "db")
    try:
        with engine.transaction() as txn:
            return [key[9:] for key, _ in txn.snapshot_range(*keys.dentry_range(1))]
    finally:
        engine.close()


def test_a_copy_refuses_gaps_older_epochs_other_databases_and_damage(tmp_path: Path) -> None:
    source = Source(tmp_path)
    history = source.journal.history
    first = form.encode_record(2, 1, 0, {b"a": b"1"})
    second = form.encode_record(2, 2, 0, {b"b": None})
    copy = source.copy
    assert not copy.append(history, 2, 1, 0, first).complete, "its snapshot is to come"
    assert copy.append(history, 2, 1, 0, first).sequence == 1, "told again: nothing happens"
    assert copy.append(history, 2, 1, 2, first + second).sequence == 2, "the rest of a retry"
    later = form.encode_record(2, 4, 0, {})
    with fails(Code.MISSING_UPDATE):
        copy.append(history, 2, 4, 2, later)
    with fails(Code.MISSING_UPDATE):
        copy.append(history, 3, 9, 2, form.encode_record(3, 9, 0, {}))
    with fails(Code.STALE):
        copy.append(history, 1, 3, 1, form.encode_record(1, 3, 0, {}))
    with fails(Code.STALE):
        copy.append(history + 1, 2, 3, 2, form.encode_record(2, 3, 0, {}))
    damaged = bytearray(form.encode_record(2, 3, 0, {b"c": b"123"}))
    damaged[-1] ^= 1
    for records in (bytes(damaged), b"", form.encode_record(2, 3, 0, {}) + b"x"):
        with fails(Code.CHECKSUM):
            copy.append(history, 2, 3, 2, records)
    assert copy.position()[:3] == (history, 2, 2)
    follows = copy.append(history, 3, 3, 2, form.encode_record(3, 3, 0, {}))
    assert (follows.epoch, follows.sequence) == (3, 3), "a restart that lost nothing goes on"


def test_a_snapshot_under_way_does_not_cost_the_copy_that_is_there(tmp_path: Path) -> None:
    source = Source(tmp_path)
    source.file(b"one")
    source.ship()
    source.snapshot()
    made = Snapshot(source.engine, source.journal)
    piece, _ = made.piece()
    head = SnapshotHead(source.journal.history, source.journal.epoch, made.sequence, 0)
    assert source.copy.snapshot(head, 0, piece[:100], False).complete
    with fails(Code.MISSING_UPDATE):
        source.copy.snapshot(head, 99, piece[99:], True)
    with fails(Code.CORRUPT):
        source.copy.snapshot(head, 0, piece[:-3], True)
    source.copy.close()
    assert source.copy.position().complete
    restore(source.found, tmp_path / "meta")
    assert names(tmp_path / "meta") == [b"one"]


def test_a_snapshot_makes_older_files_go(tmp_path: Path) -> None:
    source = Source(tmp_path)
    for round_ in range(5):
        source.file(b"file %d" % round_)
        source.ship()
        source.snapshot()
        source.copy._end = 1 << 30  # the log file is full
    assert len(source.copy.listing()) <= 3
    restore(source.found, tmp_path / "meta")
    assert len(names(tmp_path / "meta")) == 5


def test_a_restore_leaps_ahead_of_everything_that_was_given_out(tmp_path: Path) -> None:
    source = Source(tmp_path)
    number = source.file(b"f", epoch=7)
    cut = pb.Inode(id=source.file(b"g"), type=pb.REGULAR, links=1, epoch=2, cut_epoch=3)

    def half_cut(txn: Transaction) -> None:
        keys.put_inode(txn, cut)
        txn.set(keys.intent_key(cut.id, 3), b"\0" * 20)

    transact(source.engine, half_cut)
    source.ship()
    source.snapshot()
    done = restore(source.found, tmp_path / "meta")
    engine = RocksEngine(tmp_path / "meta" / "db")
    try:
        journal = Journal(engine)
        assert journal.history == source.journal.history
        assert journal.epoch > source.journal.epoch + LOG_EPOCHS
        assert journal.sequence == source.journal.sequence
        host = Host(engine, chunk_bytes=65536, stripe=4)
        assert host.new_inode() >= number + SKIPPED_INODES
        assert done.first_lost_inode > number and done.inodes == 3
        with engine.transaction() as txn:
            found = [
                pb.Inode.FromString(txn.get(keys.inode_key(each)) or b"")
                for each in (number, cut.id)
            ]
            assert found[0].epoch == 7 + SKIPPED_EPOCHS
            assert (found[1].epoch, found[1].cut_epoch) == (2 + SKIPPED_EPOCHS, 3 + SKIPPED_EPOCHS)
            assert txn.get(keys.intent_key(cut.id, 3 + SKIPPED_EPOCHS)) is not None
            assert txn.get(keys.intent_key(cut.id, 3)) is None
    finally:
        engine.close()


def test_the_newest_whole_copy_is_taken(tmp_path: Path) -> None:
    source = Source(tmp_path / "a")
    source.file(b"first")
    source.ship()
    source.snapshot()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    source.file(b"second")
    source.ship()
    found = [(str(p), p) for n in "ba" for p in copies_in(tmp_path / n)]
    assert restore(found, tmp_path / "meta").source == str(source.found[0][1])
    assert names(tmp_path / "meta") == [b"first", b"second"]
    (snapshot,) = (path for _, path in files.snapshots(source.found[0][1]))
    raw = bytearray(snapshot.read_bytes())
    raw[len(raw) // 2] ^= 1
    snapshot.write_bytes(raw)
    done = restore(found, tmp_path / "meta", force=True)
    assert done.source == str(tmp_path / "b" / "meta-log" / CLUSTER)
    assert any("snapshot" in problem for problem in done.problems)
    assert names(tmp_path / "meta") == [b"first"]
    with pytest.raises(Error, match="nothing to restore from"):
        restore(found[1:], tmp_path / "other")


def test_damage_in_the_log_ends_a_copy_there(tmp_path: Path) -> None:
    source = Source(tmp_path)
    source.ship()
    source.snapshot()
    for name in (b"a", b"b", b"c"):
        source.file(name)
        source.ship()
    ((_, path),) = files.segments(source.found[0][1])
    raw = bytearray(path.read_bytes())
    at = raw.index(keys.dentry_key(1, b"b"))
    raw[at] ^= 1
    path.write_bytes(raw)
    done = restore(source.found, tmp_path / "meta")
    assert names(tmp_path / "meta") == [b"a"]
    assert any("damaged or torn" in problem for problem in done.problems)


def test_what_is_not_restored_over(tmp_path: Path) -> None:
    source = Source(tmp_path / "a")
    source.ship()
    source.snapshot()
    other = Source(tmp_path / "b", history=5)
    other.ship()
    other.snapshot()
    with pytest.raises(Error, match="different metadata"):
        restore([*source.found, *other.found], tmp_path / "meta")
    restore(source.found, tmp_path / "meta")
    with pytest.raises(Error, match="--force"):
        restore(source.found, tmp_path / "meta")
    restore(source.found, tmp_path / "meta", force=True)
    assert len(list((tmp_path / "meta").glob("db.before-*"))) == 1
    with pytest.raises(Error, match="nothing to restore from"):
        restore([], tmp_path / "meta", force=True)


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    source = Source(tmp_path)
    source.ship()
    source.snapshot()
    ((_, path),) = files.segments(source.found[0][1])
    path.write_bytes(b"hfmlog99" + path.read_bytes()[8:])
    with pytest.raises(Error, match="hfmlog99") as caught:
        restore(source.found, tmp_path / "meta")
    assert caught.value.code is Code.WRONG_PEER_VERSION


def test_a_hole_in_the_log_is_noticed(tmp_path: Path) -> None:
    source = Source(tmp_path)
    source.file(b"one")
    transact(source.engine, lambda txn: None)
    source.engine.journal = None
    lost = source.journal.sequence - 1
    slot = keys.log_key(lost % journal_module.SLOTS)
    transact(source.engine, lambda txn: txn.clear(slot))
    with pytest.raises(Error, match=f"transactions {lost} to {lost} out") as caught:
        Journal(source.engine)
    assert caught.value.code is Code.CORRUPT


def test_records_wait_up_to_a_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(journal_module, "MAX_WAITING_BYTES", 3000)
    source = Source(tmp_path)
    journal = source.journal
    for number in range(50):
        source.file(b"%d" % number)
    assert (
        not journal.has(1) and journal.has(journal.sequence) and journal.has(journal.sequence + 1)
    )
    assert not journal.has(journal.sequence + 2)
    assert journal._bytes <= 3000
    assert journal.age_ns(journal.sequence) == 0 < journal.age_ns(0)
    journal.forget(journal.sequence - 1)
    assert journal.take(journal.sequence, 1)[1] == journal.sequence
    assert journal.waiting(3) == journal.sequence - 3


def node(number: int, host: str, kind: NodeKind = NodeKind.STORAGE, alive: bool = True) -> Node:
    return Node(NodeId(number), kind, Endpoint(f"n{number}:1", "", "", host), 1, alive)


def test_copies_go_to_other_hosts_first() -> None:
    made = [
        node(1, "m", NodeKind.META), node(101, "m"), node(102, "a"), node(103, "a"), node(104, "b"),
        node(105, "c", alive=False),
    ]  # fmt: skip
    nodes = {each.id: each for each in made}
    assert choose(nodes, [], 2, "m") == [102, 104]
    assert choose(nodes, [], 4, "m") == [102, 104, 101, 103]
    assert choose(nodes, [NodeId(103)], 2, "m") == [103, 104]
    assert choose(nodes, [NodeId(105), NodeId(9)], 2, "m") == [105, 102], "the dead one has a while"
    racked = {each.id: replace(each, rack="ab"[each.id % 2]) for each in made}
    assert choose(racked, [NodeId(102)], 2, "m") == [102, 104], "another host before another rack"
    racked[NodeId(106)] = replace(node(106, "d"), rack="b")
    assert choose(racked, [NodeId(102)], 2, "m") == [102, 106]
    assert choose(nodes, [], 9, "m") == [102, 104, 101, 103]


def test_an_empty_and_an_older_database_are_known_by_the_copies(tmp_path: Path) -> None:
    source = Source(tmp_path)
    source.ship()
    source.snapshot()

    def said(journal: Journal) -> str:
        at = source.copy.position()
        message = messages.LogPosition(history=at.history, epoch=at.epoch, sequence=at.sequence)
        return refusal(message, journal)

    backup = MemoryEngine()
    transact(backup, lambda txn: txn._writes.update(source.engine.freeze()))
    assert said(source.journal) == "" == said(Journal(backup)), "no start has come in between"
    restarted = Journal(source.engine)
    source.file(b"after the backup")
    source.journal, source.shipped = restarted, restarted.start.sequence
    source.ship(follows=restarted.start.epoch)
    assert said(restarted) == ""
    assert "newer metadata" in said(Journal(backup))
    assert "other metadata" in said(Journal(MemoryEngine()))
    assert refusal(messages.LogPosition(), Journal(MemoryEngine())) == "", "the first of all"


def test_what_status_says_of_copies() -> None:
    def said(wanted: int, *behind_ms: int | None, age_ms: int = 60_000) -> list[str]:
        copies = [
            messages.CopyStatus(complete=each is not None, behind_ms=each or 0)
            for each in behind_ms
        ]
        return problems_of(messages.CopiesReply(wanted=wanted, copies=copies, age_ms=age_ms))

    assert said(2, 0, 900) == []
    assert said(2, 0, 1500) == ["1 of 2 copies of the metadata are up to date"]
    assert said(2, 1500, 2500) == ["the best copy of the metadata is 1.5 s behind"]
    assert said(2, None) == ["no copy of the metadata is whole: its disk is all there is"]
    assert said(2, age_ms=100) == [] and said(0) == []
