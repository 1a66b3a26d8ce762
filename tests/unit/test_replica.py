"""The replica's rules, one transcript each: events in, effects out, nothing else happens."""

# mypy: ignore-errors

import pytest

from hillfire.errors import Code
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.craq import events, operation
from hillfire.storage.craq.check import Broken, check
from hillfire.storage.craq.locking import MAX_WAITING
from hillfire.storage.store.base import Pending, Tag
from tests.unit.replica_talk import (
    OFF,
    A,
    B,
    L,
    S,
    Talk,
    W,
    Y,
    head,
    meta,
    middle,
    tail,
)


def test_a_write_passes_the_head_in_one_call_each():
    talk = head()
    assert talk.write((A, 1, 0), (B, 1, 1)) == [("prepare", [(A, 1), (B, 1)])]
    assert talk.prepared(A, B) == [("forward", 2, 2, [(A, 1, 1), (B, 1, 2)])]
    assert talk.answered(A) == [("commit", 2, [(A, 1)])]
    assert talk.committed(A) == [("reply", [(1, 0, Code.OK, 1)]), ("finish", 1)]
    assert talk.answered(B) == [("commit", 2, [(B, 1)])]
    assert talk.committed(B) == [("reply", [(1, 1, Code.OK, 1)]), ("finish", 1)]
    assert not talk.replica.holders


def test_the_tail_commits_at_once():
    talk = tail()
    assert talk.forward((A, 1)) == [("prepare", [(A, 1)])]
    assert talk.prepared(A) == [("commit", 2, [(A, 1)])]
    assert talk.committed(A) == [("reply", [(1, 0, Code.OK, 1)]), ("finish", 1)]


def test_rule_1_the_chain_version_is_checked_on_arrival():
    assert head().write((A,), version=1) == [("reply", [(1, 0, Code.WRONG_CHAIN_VERSION, 0)])]
    assert head().write((A,), version=3) == [("reply", [(1, 0, Code.WRONG_CHAIN_VERSION, 0)])]
    assert tail().forward((A, 1), version=1) == [("reply", [(1, 0, Code.WRONG_CHAIN_VERSION, 0)])]


def test_rule_1_and_again_once_the_lock_is_held():
    talk = head()
    talk.write((A, 1, 0))
    assert talk.write((A, 1, 1)) == []  # in line
    talk.prepared(A)
    assert talk.chain(3, (1, S), (2, S), (3, OFF)) == [("forward", 2, 3, [(A, 1, 2)])]
    talk.answered(A)
    assert talk.committed(A) == [
        ("reply", [(1, 0, Code.OK, 1), (2, 0, Code.WRONG_CHAIN_VERSION, 0)]),
        ("finish", 2),
    ]


def test_rule_2_versions_follow_each_other_and_one_is_pending_at_a_time():
    talk = head(metas={A: meta(6)})
    assert talk.write((A, 2, 0)) == [("prepare", [(A, 7)])]
    assert talk.write((A, 1, 1)) == []
    talk.prepared(A)
    talk.answered(A)
    assert talk.committed(A) == [
        ("prepare", [(A, 8)]),
        ("reply", [(1, 0, Code.OK, 7)]),
        ("finish", 1),
    ]


def test_rule_2_versions_go_on_after_a_removal():
    talk = head(metas={A: meta(6, removed=True)})
    assert talk.write((A, 2)) == [("prepare", [(A, 7)])]


def test_rule_2_only_the_head_takes_writes_and_only_others_take_forwards():
    assert middle().write((A,)) == [("reply", [(1, 0, Code.NOT_SERVING, 0)])]
    assert head().forward((A, 1)) == [("reply", [(1, 0, Code.NOT_SERVING, 0)])]


def test_the_line_before_a_lock_is_bounded():
    talk = head()
    talk.write(*((A, 1, channel) for channel in range(MAX_WAITING + 1)))
    assert talk.write((A, 1, 9999)) == [
        ("reply", [(2, 0, Code.OVERLOADED, 0)]),
        ("finish", 1),
    ]


def test_rule_3_a_post_image_that_differs_takes_this_target_offline():
    talk = middle()
    talk.forward((A, 1), checksum=99)
    assert talk.prepared(A) == [
        ("discard", [A]),
        ("reply", [(1, 0, Code.CHECKSUM, 0)]),
        ("finish", 1),
        ("stop", Code.CORRUPT),
    ]
    assert talk.forward((A, 1)) == [("reply", [(2, 0, Code.NOT_SERVING, 0)])]


def test_rule_3_an_answer_that_differs_stops_the_sender():
    talk = head()
    talk.write((A,))
    talk.prepared(A)
    stopped = talk.answered(A, checksum=99)
    assert stopped[-1] == ("stop", Code.CORRUPT)
    assert ("reply", [(1, 0, Code.NOT_SERVING, 0)]) in stopped
    assert talk.metas == {}


def test_rule_3_damaged_payloads_are_refused_before_they_count():
    talk = head()
    talk.write((A,))
    assert talk.prepared(A, code=Code.CHECKSUM) == [
        ("reply", [(1, 0, Code.CHECKSUM, 0)]),
        ("finish", 1),
    ]
    assert talk.write((A,)) == [("prepare", [(A, 1)])]


def test_rule_3_a_successor_with_damaged_bytes_is_repaired_with_the_whole_chunk():
    talk = head(metas={A: meta(3)})
    talk.write((A, 2))
    talk.prepared(A)
    assert talk.answered(A, Code.CORRUPT) == [("transfer", 2, 2, [(A, 2)])]
    assert talk.answered(A) == [("forward", 2, 2, [(A, 4, 3)])]
    assert talk.answered(A) == [("commit", 2, [(A, 4)])]


def test_rule_3_a_serving_target_takes_a_repair_of_its_own_version_only():
    talk = middle(metas={A: meta(3)})
    assert talk.forward((A, 3), kind=Kind.REPLACE) == [("prepare", [(A, 3)])]
    assert talk.prepared(A) == [("commit", 2, [(A, 3)])]
    talk.committed(A)
    assert talk.forward((A, 5), kind=Kind.REPLACE) == [
        ("reply", [(2, 0, Code.CONFLICT, 0)]),
        ("finish", 1),
    ]


def test_rule_4_a_duplicate_of_the_committed_version_is_done_if_the_tag_is_the_same():
    talk = middle(metas={A: meta(3, (1, 0, 8))})
    assert talk.forward((A, 3, 8))[0] == ("reply", [(1, 0, Code.OK, 3)])
    assert talk.forward((A, 3, 9))[0] == ("reply", [(2, 0, Code.CONFLICT, 3)])


def test_rule_4_an_older_version_is_done_only_if_its_channel_remembers_it():
    tags = [(Tag(1, 5, 8), A, 2)]
    talk = middle(metas={A: meta(3, (1, 0, 8))}, tags=tags)
    assert talk.forward((A, 2, 8, 5))[0] == ("reply", [(1, 0, Code.OK, 2)])
    assert talk.forward((A, 1, 8, 5))[0] == ("reply", [(2, 0, Code.CONFLICT, 3)])


def test_rule_4_a_duplicate_of_the_pending_version_joins_it():
    talk = middle()
    talk.forward((A, 1))
    talk.prepared(A)
    assert talk.forward((A, 1)) == []
    assert talk.forward((A, 1, 2)) == [("reply", [(3, 0, Code.CONFLICT, 0)])]
    talk.answered(A)
    assert talk.committed(A) == [
        ("reply", [(1, 0, Code.OK, 1), (2, 0, Code.OK, 1)]),
        ("finish", 1),
    ]


def test_rule_4_a_missed_update_takes_a_serving_target_offline():
    talk = middle(metas={A: meta(3)})
    said = talk.forward((A, 5))
    assert said[0] == ("reply", [(1, 0, Code.MISSING_UPDATE, 3)])
    assert said[-1] == ("stop", Code.MISSING_UPDATE)


def test_rule_4_a_sender_that_diverged_goes_offline():
    talk = head()
    talk.write((A,))
    talk.prepared(A)
    assert talk.answered(A, Code.CONFLICT)[-1] == ("stop", Code.CONFLICT)


def test_rule_5_a_retry_is_answered_with_the_result_and_an_older_one_refused():
    talk = head()
    talk.write((A, 4))
    talk.prepared(A)
    talk.answered(A)
    talk.committed(A)
    assert talk.write((A, 4)) == [("reply", [(2, 0, Code.OK, 1)])]
    assert talk.write((A, 3)) == [("reply", [(3, 0, Code.STALE, 0)])]
    assert talk.write((A, 5)) == [("prepare", [(A, 2)])]


def test_rule_5_a_retry_of_an_update_in_flight_joins_it():
    talk = head()
    talk.write((A, 4, 0))
    talk.write((A, 7, 1))  # in line
    assert talk.write((A, 4, 0)) == []
    assert talk.write((A, 7, 1)) == []
    talk.prepared(A)
    talk.answered(A)
    assert talk.committed(A)[1] == ("reply", [(1, 0, Code.OK, 1), (3, 0, Code.OK, 1)])


def test_rule_5_the_table_is_restored_and_followers_fill_it():
    talk = head(metas={A: meta(3, (1, 0, 8))}, tags=[(Tag(1, 0, 8), A, 3)])
    assert talk.write((A, 8)) == [("reply", [(1, 0, Code.OK, 3)])]
    talk = middle()
    talk.forward((A, 1, 8))
    talk.prepared(A)
    talk.answered(A)
    talk.committed(A)
    talk.chain(3, (2, S), (3, S), (1, OFF))
    assert talk.write((A, 8), version=3) == [("reply", [(2, 0, Code.OK, 1)])]
    talk.say(events.SessionsEnded([1]))
    assert talk.write((A, 8), version=3) == [("prepare", [(A, 2)])]


def test_rule_5_a_retry_at_a_new_head_joins_what_the_old_one_forwarded():
    talk = middle()
    talk.forward((A, 1, 8))
    talk.prepared(A)
    assert talk.chain(3, (2, S), (3, S), (1, OFF)) == [("forward", 3, 3, [(A, 1, 2)])]
    assert talk.write((A, 8), version=3) == []
    talk.answered(A)
    assert talk.committed(A)[0] == ("reply", [(1, 0, Code.OK, 1), (2, 0, Code.OK, 1)])
    assert not talk.replica.holders


def test_rule_5_is_looked_at_again_once_the_lock_is_held():
    talk = head()
    talk.write((A, 4, 0))
    talk.write((A, 6, 1), (A, 5, 1))  # the channel's later update overtakes its earlier one
    talk.prepared(A)
    talk.answered(A)
    talk.committed(A)
    talk.prepared(A)
    talk.answered(A)
    assert talk.committed(A)[0] == ("reply", [(2, 0, Code.OK, 2), (2, 1, Code.STALE, 0)])


def test_rule_5_who_is_idle_for_a_whole_turn_is_forgotten():
    talk = tail(tags=[(Tag(9, 0, 1), B, 1)])
    channels = talk.replica.channels
    talk.forward((A, 1))
    talk.prepared(A)
    assert channels.turn() == set(), "restored in this turn"
    assert channels.turn() == {9}, "client 1 has an update under way"
    talk.committed(A)
    assert channels.turn() == {9}
    assert channels.turn() == {1, 9}
    talk.say(events.SessionsEnded({9}))
    assert channels.last(Tag(9, 0, 1)) is None and channels.last(Tag(1, 0, 1))


def test_rule_6_a_new_tail_commits_what_is_pending():
    talk = middle()
    talk.forward((A, 1))
    talk.prepared(A)
    assert talk.chain(3, (1, S), (2, S), (3, OFF)) == [("commit", 3, [(A, 1)])]


def test_rule_6_others_forward_again_and_old_answers_say_nothing():
    talk = head()
    talk.write((A,))
    talk.prepared(A)
    assert talk.chain(3, (1, S), (3, S), (2, OFF)) == [("forward", 3, 3, [(A, 1, 2)])]
    assert talk.answered(A, attempt=1) == []
    assert talk.answered(A) == [("commit", 3, [(A, 1)])]


def test_rule_6_what_an_earlier_life_left_pending_is_driven_again():
    left = [(A, Pending(4, 9, 77, Tag(1, 0, 8), 1, Kind.WRITE, 0, 4, 0))]
    talk = Talk(1, metas={A: meta(3)}, pending=left)
    assert talk.chain(5, (1, L), (2, OFF), (3, OFF)) == []
    assert talk.chain(6, (1, S), (2, OFF), (3, OFF)) == [("commit", 6, [(A, 4)])]
    assert talk.write((A, 8), version=6) == []  # the client's retry joins it
    assert talk.committed(A) == [("reply", [(1, 0, Code.OK, 4)]), ("finish", 1)]


def test_rule_6_a_syncing_target_drops_what_an_earlier_life_left_pending():
    left = [(A, Pending(4, 9, 77, Tag(1, 0, 8), 1, Kind.WRITE, 0, 4, 0))]
    talk = Talk(1, metas={A: meta(3)}, pending=left)
    said = talk.chain(6, (2, S), (1, Y), (3, OFF))
    assert said == [("discard", [A]), ("finish", 1)]


def test_rule_7_a_pending_version_keeps_reads_away_except_at_the_tail():
    talk = head(metas={A: meta(3)})
    refuse = talk.replica.refuse_read
    assert refuse(A, 2, False) is Code.OK
    talk.write((A, 2))
    assert refuse(A, 2, False) is Code.OK  # nobody can have committed it yet
    talk.prepared(A)
    assert refuse(A, 2, False) is Code.NOT_COMMITTED
    assert refuse(A, 2, True) is Code.OK
    assert refuse(B, 2, False) is Code.OK
    talk.answered(A)
    assert refuse(A, 2, False) is Code.NOT_COMMITTED
    talk.committed(A)
    assert refuse(A, 2, False) is Code.OK
    talk = tail()
    talk.forward((A, 1))
    talk.prepared(A)
    assert talk.replica.refuse_read(A, 2, False) is Code.OK


def test_rule_7_a_new_tail_shows_nothing_older_than_the_old_tail_may_have_shown():
    talk = middle()
    talk.forward((A, 1))
    talk.prepared(A)
    assert talk.chain(3, (1, S), (2, S), (3, OFF)) == [("commit", 3, [(A, 1)])]
    assert talk.replica.refuse_read(A, 3, False) is Code.NOT_COMMITTED
    talk.committed(A)
    assert talk.replica.refuse_read(A, 3, False) is Code.OK
    left = [(A, Pending(4, 9, 77, Tag(1, 0, 8), 1, Kind.WRITE, 0, 4, 0))]
    talk = Talk(1, metas={A: meta(3)}, pending=left)
    talk.chain(6, (1, S), (2, OFF), (3, OFF))
    assert talk.replica.refuse_read(A, 6, False) is Code.NOT_COMMITTED


def test_rule_7_only_serving_targets_of_this_chain_version_answer_reads():
    talk = Talk(3)
    talk.chain(2, (1, S), (2, S), (3, Y))
    assert talk.replica.refuse_read(A, 2, False) is Code.NOT_SERVING
    assert talk.replica.refuse_read(A, 1, False) is Code.WRONG_CHAIN_VERSION


def test_epochs_late_writes_are_refused_and_removal_touches_older_epochs_only():
    talk = head(metas={A: meta(3, epoch=5)})
    assert talk.write((A, 2), epoch=4)[0] == ("reply", [(1, 0, Code.STALE_EPOCH, 3)])
    assert talk.write((A, 2), epoch=4, kind=Kind.REMOVE)[0][1][0][2] is Code.STALE_EPOCH
    assert talk.write((A, 2), epoch=5, kind=Kind.TRUNCATE)[0] == (
        "reply",
        [(3, 0, Code.OK, 3)],
    )
    # what was written in the epoch of the removal came after the cut: acknowledged, it stays
    assert talk.write((A, 2), epoch=5, kind=Kind.REMOVE)[0] == ("reply", [(4, 0, Code.OK, 3)])
    assert talk.write((A, 2), epoch=5) == [("prepare", [(A, 4)])]
    assert talk.write((B, 3, 1), epoch=6, kind=Kind.REMOVE)[0] == (
        "reply",
        [(6, 0, Code.OK, 0)],
    )


def test_refusals_by_the_successor_end_the_update_everywhere():
    talk = head()
    talk.write((A,))
    talk.prepared(A)
    assert talk.answered(A, Code.NO_SPACE) == [
        ("discard", [A]),
        ("reply", [(1, 0, Code.NO_SPACE, 0)]),
        ("finish", 1),
    ]
    assert talk.write((A, 2)) == [("prepare", [(A, 1)])]


def test_a_late_copy_of_what_was_refused_is_not_done():
    """Its client was told that it failed, and the chunk's next update has its version."""
    late = [(2, 0, Code.STALE, 0)]
    for talk in (tail(), middle()):
        talk.forward((A, 1), serial=7)
        if talk.replica.successor is None:
            talk.prepared(A, code=Code.NO_SPACE)
        else:
            talk.prepared(A)
            talk.answered(A, Code.NO_SPACE)
        assert talk.forward((A, 1), serial=7) == [("reply", late)]
        assert talk.forward((B, 1, 1), serial=8) == [("prepare", [(B, 1)])]
        assert talk.forward((A, 1, 2), serial=9) == [("prepare", [(A, 1)])]
    talk.chain(3, (1, S), (2, S), (3, OFF))
    assert talk.forward((W, 1, 3), version=3, serial=1) == [("prepare", [(W, 1)])]


def test_forwards_are_numbered_across_chunks_and_attempts():
    talk = head()
    talk.write((A,))
    assert talk.prepared(A) == [("forward", 2, 2, [(A, 1, 1)])]
    talk.write((B, 1, 1))
    assert talk.prepared(B) == [("forward", 2, 2, [(B, 1, 2)])]
    talk.answered(A, Code.UNAVAILABLE)
    assert talk.say(events.RetryDue()) == [("forward", 2, 2, [(A, 1, 3)])]


def test_a_forward_that_failed_is_sent_again_after_a_while():
    talk = head()
    talk.write((A, 1, 0), (B, 1, 1))
    talk.prepared(A, B)
    assert talk.answered(A, Code.CONNECTION) == [("retry",)]
    assert talk.answered(B, Code.WRONG_CHAIN_VERSION) == []  # one retry for all
    assert talk.say(events.RetryDue()) == [("forward", 2, 2, [(A, 1, 3), (B, 1, 4)])]


def test_a_store_that_fails_takes_its_target_offline_and_answers_everyone():
    talk = head()
    talk.write((A, 1, 0))
    talk.write((A, 1, 1))
    assert talk.say(events.StoreFailed(Code.IO, "gone")) == [
        ("reply", [(1, 0, Code.NOT_SERVING, 0), (2, 0, Code.NOT_SERVING, 0)]),
        ("finish", 2),
        ("stop", Code.IO),
    ]
    assert talk.prepared(A) == []


@pytest.mark.parametrize("state", [OFF, L, W, Y])
def test_leases_a_serving_target_that_sees_itself_removed_stops(state):
    talk = head()
    talk.write((A,))
    said = talk.chain(3, (2, S), (3, S), (1, state))
    assert said[0] == ("reply", [(1, 0, Code.NOT_SERVING, 0)])
    assert said[-1] == ("stop", Code.NOT_SERVING)
    assert "chain" in talk.replica.stopped.story


def syncing_pair(**more):
    talk = Talk(1, **more)
    talk.chain(2, (1, S), (2, Y), (3, OFF))
    return talk


def test_recovery_the_last_serving_target_does_not_wait_for_a_syncing_successor():
    talk = syncing_pair()
    talk.write((A, 1))
    assert talk.prepared(A) == [("forward", 2, 2, [(A, 1, 1)]), ("commit", 2, [(A, 1)])]
    assert talk.committed(A) == [("reply", [(1, 0, Code.OK, 1)])]
    assert talk.write((A, 2)) == []  # the lock is held until the successor has it
    assert talk.answered(A) == [("prepare", [(A, 2)]), ("finish", 1)]


def test_recovery_a_successor_whose_version_differs_gets_the_whole_chunk():
    talk = syncing_pair(metas={A: meta(3)})
    talk.write((A, 2))
    talk.prepared(A)
    assert talk.answered(A, Code.MISSING_UPDATE) == []  # once it is committed here
    assert talk.committed(A) == [
        ("transfer", 2, 2, [(A, 2)]),
        ("reply", [(1, 0, Code.OK, 4)]),
    ]
    assert talk.answered(A) == [("finish", 1)]


def test_recovery_sends_chunks_under_their_locks_naming_the_chain_version():
    talk = syncing_pair(metas={A: meta(3), B: meta(4)})
    talk.write((A, 2))
    assert talk.say(events.SyncArrived(9, 2, [A, B])) == [("transfer", 2, 2, [(B, 1)])]
    assert talk.answered(B) == [("reply", [(9, 1, Code.OK, 0)]), ("finish", 1)]
    talk.prepared(A)
    talk.answered(A)
    assert talk.committed(A)[0] == ("transfer", 2, 2, [(A, 3)])
    assert talk.answered(A, Code.CONNECTION) == [
        ("reply", [(9, 0, Code.CONNECTION, 0)]),
        ("finish", 1),
    ]
    assert talk.say(events.SyncArrived(10, 1, [A]))[0] == (
        "reply",
        [(10, 0, Code.WRONG_CHAIN_VERSION, 0)],
    )


def test_recovery_completes_once_nothing_is_missing_and_commits_wait_from_then_on():
    talk = syncing_pair()
    talk.write((A, 1))
    talk.prepared(A)
    talk.committed(A)
    assert talk.say(events.SyncCompleting(9, 2)) == []
    talk.write((B, 1, 1))
    assert talk.prepared(B) == [("forward", 2, 2, [(B, 1, 2)])]  # and no commit
    assert talk.replica.refuse_read(B, 2, False) is Code.NOT_COMMITTED
    assert talk.answered(A) == [("reply", [(9, 0, Code.OK, 0)]), ("finish", 1)]
    assert talk.answered(B) == [("commit", 2, [(B, 1)])]
    assert talk.say(events.SyncCompleting(10, 1)) == [
        ("reply", [(10, 0, Code.WRONG_CHAIN_VERSION, 0)])
    ]


def test_recovery_a_syncing_target_takes_whole_images_of_any_version():
    talk = Talk(2, metas={A: meta(9), B: meta(2)})
    talk.chain(2, (1, S), (2, Y))
    assert talk.forward((A, 4), kind=Kind.REPLACE) == [("prepare", [(A, 4)])]
    assert talk.prepared(A) == [("commit", 2, [(A, 4)])]
    talk.committed(A)
    assert talk.forward((A, 5, 2)) == [("prepare", [(A, 5)])]  # equal now: ordinary forwards
    assert talk.forward((B, 7))[0] == ("reply", [(3, 0, Code.MISSING_UPDATE, 2)])
    assert talk.forward((B, 0), kind=Kind.REMOVE) == [("prepare", [(B, 0)])]
    assert talk.replica.stopped is None


def test_kinds_and_limits_agree_with_the_wires():
    internal = (operation.Kind.SYNC, operation.Kind.REPAIR, operation.Kind.HOLD)
    ours = {k.name: int(k) for k in operation.Kind if k not in internal}
    assert ours == {k.name: int(k) for k in Kind}


def test_a_broken_invariant_tells_the_story():
    talk = head()
    talk.write((A,))
    talk.replica.holders[A].stage = operation.Stage.PENDING
    with pytest.raises(Broken, match=r"I7 at target 1.*(\n.*)*WritesArrived"):
        check(talk.replica)
