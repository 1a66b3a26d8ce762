"""Damaged chunks: repaired under their lock from another's copy, or lost and said so. No I/O."""

# mypy: ignore-errors

from hillfire.errors import Code
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.craq import events
from hillfire.storage.craq.admission import admit_forward
from hillfire.storage.craq.events import Copy
from hillfire.storage.craq.operation import Operation, Stage
from hillfire.storage.craq.repair import MAX_ROUNDS
from hillfire.storage.store.base import Image, Tag
from tests.unit.replica_talk import A, B, S, Talk, W, Y, head, meta, middle


def test_a_write_onto_damaged_bytes_repairs_them_and_goes_on():
    talk = head(metas={A: meta(3)})
    talk.write((A, 2))
    assert talk.prepared(A, code=Code.CORRUPT) == [("fetch", 2, 2, [(A, 1)])]
    write = talk.operations[A]
    assert talk.fetched(A) == [("prepare", [(A, 3)])]
    assert talk.operations[A] is write.repair
    assert talk.prepared(A, image=Image(4, 3)) == [("commit", 2, [(A, 3)])]
    assert talk.committed(A) == [("prepare", [(A, 4)])]
    assert talk.prepared(A) == [("forward", 2, 2, [(A, 4, 1)])]
    talk.answered(A)
    said = talk.committed(A)
    assert said == [("reply", [(1, 0, Code.OK, 4)]), ("finish", 2)]  # the repair's memory too
    assert not talk.replica.holders and talk.replica.stopped is None


def test_a_copy_of_another_version_or_image_is_no_repair():
    talk = middle(metas={A: meta(3)})
    assert talk.repair(A) == [("fetch", 1, 2, [(A, 1)])]
    assert talk.fetched(A, version=1) == [("fetch", 3, 2, [(A, 2)])]
    said = talk.fetched(A, checksum=77)
    assert said == [("lost", [A]), ("reply", [(1, 0, Code.CORRUPT, 0)]), ("finish", 2)]


def test_a_copy_that_does_not_add_up_here_is_discarded_and_the_next_target_asked():
    talk = middle(metas={A: meta(3)})
    talk.repair(A)
    talk.fetched(A)
    said = talk.prepared(A, image=Image(4, 99))
    assert said == [("discard", [A]), ("fetch", 3, 2, [(A, 2)]), ("finish", 1)]


def test_a_predecessor_that_is_a_commit_behind_is_asked_again():
    talk = middle(metas={A: meta(3)})
    talk.repair(A)
    talk.fetched(A, version=2)
    assert talk.fetched(A, Code.CORRUPT) == [("retry",)]
    assert talk.say(_retry()) == [("fetch", 1, 2, [(A, 4)])]


def test_targets_that_cannot_be_reached_are_asked_a_bounded_number_of_times():
    talk = Talk(1, metas={A: meta(3)})
    talk.chain(2, (1, S), (2, S))
    talk.repair(A)
    for _ in range(MAX_ROUNDS - 1):
        assert talk.fetched(A, Code.CONNECTION) == [("retry",)]
        talk.say(_retry())
    assert talk.fetched(A, Code.CONNECTION)[0] == ("reply", [(1, 0, Code.UNAVAILABLE, 0)])
    assert not talk.replica.holders


def test_a_repair_whose_target_left_the_chain_asks_the_others():
    talk = head(metas={A: meta(3)})
    talk.repair(A)
    assert talk.chain(3, (1, S), (3, S), (2, W)) == [("fetch", 3, 3, [(A, 2)])]
    stale = talk.operations[A]
    assert stale.repair.attempt == 2


def test_reads_go_on_while_a_chunk_is_repaired_and_others_wait_in_line():
    talk = head(metas={A: meta(3)})
    talk.repair(A)
    assert talk.replica.refuse_read(A, 2, False) == Code.OK
    assert talk.write((A, 2)) == []
    talk.fetched(A)
    talk.prepared(A, image=Image(4, 3))
    assert talk.committed(A) == [
        ("prepare", [(A, 4)]),
        ("reply", [(1, 0, Code.OK, 3)]),
        ("finish", 2),
    ]


def test_what_is_absent_here_and_elsewhere_is_in_order():
    talk = head(metas={A: meta(3, removed=True)})
    assert talk.repair(A) == [("fetch", 2, 2, [(A, 1)])]
    talk.fetched(A, Copy(3, 0, 3, 0, b"", removed=True))
    assert talk.fetched(A, Copy(3, 0, 3, 0, b"", removed=True))[0] == (
        "reply", [(1, 0, Code.OK, 0)]
    )  # fmt: skip
    assert talk.repair(B) == [("fetch", 2, 2, [(B, 1)])]
    talk.fetched(B, Copy(0, 0, 0, 0, b""))
    assert talk.fetched(B, Copy(0, 0, 0, 0, b""))[0] == ("reply", [(2, 0, Code.OK, 0)])
    assert talk.repair(A, version=1)[0][1][0][2] == Code.WRONG_CHAIN_VERSION


def test_what_is_missing_or_older_here_is_taken_over_from_who_serves():
    for metas in ({}, {A: meta(2)}):
        talk = middle(metas=metas)
        talk.repair(A)
        newer = Copy(3, 4, 3, 9, b"c", Tag(7, 0, 5), 1)
        assert talk.fetched(A, newer) == [("prepare", [(A, 3)])]
        assert talk.operations[A].tag == Tag(7, 0, 5)
        talk.prepared(A, image=Image(4, 3))
        assert talk.committed(A)[0] == ("reply", [(1, 0, Code.OK, 3)])
    talk = middle(metas={A: meta(2)})
    talk.repair(A)
    assert talk.fetched(A, Copy(3, 0, 0, 0, b"", Tag(7, 0, 5), 2, True)) == [("prepare", [(A, 3)])]
    assert talk.operations[A].kind == Kind.REMOVE


def test_a_newer_copy_of_a_target_that_does_not_serve_is_not_taken():
    talk = Talk(1, metas={A: meta(2)})
    talk.chain(2, (1, S), (2, Y))
    talk.repair(A)
    assert talk.fetched(A, Copy(3, 4, 3, 9, b"c"))[0] == ("lost", [A])


def test_a_chunk_damaged_at_the_last_serving_target_does_not_stop_its_resync():
    talk = Talk(1, metas={A: meta(3), B: meta(2)})
    talk.chain(2, (1, S), (2, Y))
    assert talk.say(_sync(1, A, B)) == [("transfer", 2, 2, [(A, 1), (B, 2)])]
    assert talk.unreadable(A) == [("fetch", 2, 2, [(A, 1)])]
    assert talk.answered(B)[0] == ("reply", [(1, 1, Code.OK, 0)])
    # the successor has an older version: no good copy is left, and it must not show that one
    said = talk.fetched(A, version=2)
    assert said == [("transfer", 2, 2, [(A, 3)]), ("lost", [A])]
    assert talk.operations[A].lost
    assert talk.answered(A)[0] == ("reply", [(1, 0, Code.OK, 0)])
    assert not talk.replica.holders


def test_a_syncing_successors_copy_of_the_same_version_repairs_the_last_serving_target():
    talk = Talk(1, metas={A: meta(3)})
    talk.chain(2, (1, S), (2, Y))
    talk.say(_sync(1, A))
    talk.unreadable(A)
    sync = talk.operations[A]
    assert talk.fetched(A) == [("prepare", [(A, 3)])]
    assert talk.prepared(A, image=Image(4, 3)) == [("commit", 2, [(A, 3)])]
    assert talk.committed(A) == [("transfer", 2, 2, [(A, 2)])]
    assert talk.operations[A] is sync and sync.stage == Stage.COMMITTED
    assert talk.answered(A)[0] == ("reply", [(1, 0, Code.OK, 0)])


def test_a_lost_chunk_is_taken_as_such_by_a_syncing_target_only():
    talk = middle(metas={A: meta(3)})
    assert talk.forward((A, 3), kind=6)[0] == ("reply", [(1, 0, Code.CONFLICT, 0)])
    talk = Talk(2, metas={A: meta(2)})
    talk.chain(2, (1, S), (2, Y))
    assert talk.forward((A, 3), kind=6) == [("prepare", [(A, 3)])]


def test_a_sync_whose_chain_changes_during_a_repair_ends_after_it():
    talk = Talk(1, metas={A: meta(3)})
    talk.chain(2, (1, S), (2, Y))
    talk.say(_sync(1, A))
    talk.unreadable(A)
    talk.fetched(A)
    assert talk.chain(3, (1, S), (2, W)) == []
    assert talk.prepared(A, image=Image(4, 3)) == [("commit", 3, [(A, 3)])]
    assert talk.committed(A)[0] == ("reply", [(1, 0, Code.WRONG_CHAIN_VERSION, 0)])
    assert not talk.replica.holders


def _retry():
    return events.RetryDue()


def _sync(request, *chunks):
    return events.SyncArrived(request, 2, chunks)


def test_a_late_copy_of_a_transfer_does_not_undo_what_came_after_it():
    """The sender has gone on, under the same chain version (simulator, seed 22)."""

    def whole(version, kind=Kind.REPLACE, chain_version=4):
        operation = Operation(A, kind, 0, 4, 0, 1, 65536, Tag(1, 0, 1), chain_version, None)
        operation.forwarded, operation.version = True, version
        return operation

    here = meta(5)._replace(chain_version=4)
    late = admit_forward(whole(4), here, None, True, None)
    assert (late.code, late.version) == (Code.OK, 5)
    assert admit_forward(whole(0, Kind.REMOVE), here, None, True, None).version == 5
    assert admit_forward(whole(5, Kind.LOST), here, None, True, None).version == 5
    # What is taken: its repair, what follows, and anything over what is of an earlier chain.
    assert admit_forward(whole(5), here, None, True, None) is None
    assert admit_forward(whole(6), here, None, True, None) is None
    assert admit_forward(whole(4), here._replace(chain_version=3), None, True, None) is None
    assert admit_forward(whole(4), None, None, True, None) is None
