"""Clones hold both chunks' locks, in the order of ids; writes ask for a quorum of servers."""

# mypy: ignore-errors

from hillfire.errors import Code
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.craq import events
from hillfire.storage.craq.operation import Stage
from hillfire.storage.store.base import Pending, Tag
from tests.unit.replica_talk import A, B, S, Talk, W, Y, forward_item, head, meta, middle, tail


def held(talk):
    return sorted(talk.replica.holders)


def test_a_clone_passes_the_head_with_both_locks():
    talk = head(metas={A: meta(5), B: meta(2)})
    assert talk.clone(B, A) == [("prepare", [(B, 3)])]
    clone = talk.operations[B]
    assert (clone.source, clone.source_version) == (A, 5) and held(talk) == [A, B]
    assert talk.write((A, 1, 1)) == []  # the source stays as it is
    assert talk.prepared(B) == [("forward", 2, 2, [(B, 3, 1)])]
    assert talk.answered(B) == [("commit", 2, [(B, 3)])]
    said = talk.committed(B)
    assert said == [("prepare", [(A, 6)]), ("reply", [(1, 0, Code.OK, 3)]), ("finish", 1)]
    assert held(talk) == [A]


def test_clones_in_both_directions_take_the_locks_in_one_order():
    talk = head(metas={A: meta(1), B: meta(1)})
    assert talk.write((A, 9, 9)) == [("prepare", [(A, 2)])]
    assert talk.clone(B, A, 1) == []
    assert talk.clone(A, B, 2) == []
    assert held(talk) == [A]  # nobody has taken B before A
    talk.prepared(A)
    talk.answered(A)
    assert ("prepare", [(B, 2)]) in talk.committed(A)
    talk.prepared(B)
    talk.answered(B)
    assert ("prepare", [(A, 3)]) in talk.committed(B)
    assert talk.operations[A].source_version == 2


def test_a_clone_that_waits_when_the_chain_changes_lets_go_of_what_it_holds():
    talk = head(metas={A: meta(1), B: meta(1)})
    talk.write((B, 9, 9))
    talk.clone(B, A)
    assert held(talk) == [A, B]
    talk.chain(3, (1, S), (2, S), (3, W))
    talk.prepared(B)
    talk.operations[B].attempt = talk.operations[B].attempt
    talk.answered(B)
    said = talk.committed(B)
    assert ("reply", [(1, 0, Code.OK, 2), (2, 0, Code.WRONG_CHAIN_VERSION, 0)]) in said
    assert held(talk) == [] and not talk.replica.waiting


def test_a_clone_of_itself_is_refused_and_an_older_epoch_too():
    talk = head(metas={A: meta(1), B: meta(1, epoch=4)})
    assert talk.clone(A, A) == [("reply", [(1, 0, Code.INVALID, 0)])]
    assert talk.clone(B, A, epoch=3)[0] == ("reply", [(2, 0, Code.STALE_EPOCH, 1)])
    assert held(talk) == []


def test_a_forwarded_clone_names_its_source_and_a_stopped_one_lets_go():
    talk = tail(metas={A: meta(5), B: meta(2)})
    item = forward_item(B, 3, kind=Kind.CLONE)._replace(source=A, source_version=5)
    said = talk.say(events.ForwardsArrived(1, [item], [b""]))
    assert said == [("prepare", [(B, 3)])]
    assert talk.operations[B].source_version == 5 and held(talk) == [A, B]
    assert talk.prepared(B) == [("commit", 2, [(B, 3)])]
    assert talk.committed(B)[0] == ("reply", [(1, 0, Code.OK, 3)])
    assert held(talk) == []


def test_a_syncing_target_without_the_source_is_sent_the_whole_chunk():
    talk = Talk(2, metas={A: meta(4), B: meta(2)})
    talk.chain(2, (1, S), (2, Y))
    item = forward_item(B, 3, kind=Kind.CLONE)._replace(source=A, source_version=5)
    talk.say(events.ForwardsArrived(1, [item], [b""]))
    assert talk.prepared(B, code=Code.CONFLICT)[0] == ("reply", [(1, 0, Code.MISSING_UPDATE, 0)])
    assert held(talk) == [] and talk.replica.stopped is None


def test_a_pending_clone_of_an_earlier_life_holds_its_source():
    pending = [(B, Pending(3, 4, 3, Tag(1, 0, 1), 1, Kind.CLONE, 0, 0, 0, A, 5))]
    talk = Talk(1, metas={A: meta(5), B: meta(2)}, pending=pending)
    assert held(talk) == [A, B]
    assert talk.chain(2, (1, S), (2, S)) == [("forward", 2, 2, [(B, 3, 1)])]
    assert talk.operations[B].source_version == 5
    talk.answered(B, checksum=3)
    talk.committed(B)
    assert held(talk) == []


def test_a_write_is_neither_taken_nor_acknowledged_below_the_quorum():
    talk = Talk(1)
    talk.chain(2, (1, S), (2, S), min_serving=2)
    talk.write((A, 1))
    talk.prepared(A)
    said = talk.chain(3, (1, S), (2, W), min_serving=2)
    assert said == [("commit", 3, [(A, 1)])]
    assert talk.committed(A)[0] == ("reply", [(1, 0, Code.UNAVAILABLE, 0)])
    assert talk.write((B, 2), version=3) == [("reply", [(2, 0, Code.UNAVAILABLE, 0)])]
    # what was done by too few is not told as done before enough have it
    assert talk.write((A, 1), version=3) == [("reply", [(3, 0, Code.UNAVAILABLE, 0)])]
    talk.chain(4, (1, S), (2, Y), min_serving=2)
    talk.chain(5, (1, S), (2, S), min_serving=2)
    assert talk.write((A, 1), version=5) == [("reply", [(4, 0, Code.OK, 1)])]


def test_a_refusal_ends_an_update_only_if_no_earlier_successor_may_have_shown_it():
    talk = head(metas={A: meta(3)})
    talk.write((A, 2))
    talk.prepared(A)
    assert talk.answered(A, Code.NO_SPACE)[0] == ("discard", [A])
    talk.write((A, 3))
    talk.prepared(A)
    talk.chain(3, (1, S), (3, S), (2, W))  # 2 may have committed and shown it
    assert talk.answered(A, Code.NO_SPACE) == [("retry",)]
    assert talk.operations[A].stage == Stage.PENDING


def test_a_middle_forwards_a_clone_by_name():
    talk = middle(metas={A: meta(5), B: meta(2)})
    item = forward_item(B, 3, kind=Kind.CLONE)._replace(source=A, source_version=5)
    talk.say(events.ForwardsArrived(1, [item], [b""]))
    assert talk.prepared(B) == [("forward", 3, 2, [(B, 3, 1)])]


def test_a_clone_that_waits_for_its_source_is_answered_when_the_target_stops():
    """It stands in line by its HOLD only (simulator, seed 3)."""
    talk = head(metas={A: meta(1), B: meta(1)})
    talk.write((A, 9, 9))
    assert talk.clone(B, A) == []
    said = talk.chain(3, (2, S), (1, W))
    replies = [each for kind, *rest in said if kind == "reply" for each in rest[0]]
    assert {(request, code) for request, _, code, _ in replies} == {
        (1, Code.NOT_SERVING),
        (2, Code.NOT_SERVING),
    }
