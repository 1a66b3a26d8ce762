"""A target's lives, one transcript each: what it reports, and when a life begins and ends."""

# mypy: ignore-errors

import pytest

from hillfire.cluster import Chain, LocalState, PublicState
from hillfire.errors import Code
from hillfire.storage import lifecycle as life
from hillfire.storage.lifecycle import MAX_DEFECTS, Lifecycle
from hillfire.types import ChainId, TargetId

S, Y, W, OFF, L = (
    PublicState.SERVING,
    PublicState.SYNCING,
    PublicState.WAITING,
    PublicState.OFFLINE,
    PublicState.LAST_SERVING,
)


def chain(version, mine, *others):
    members = [(TargetId(1), mine), *((TargetId(n + 2), s) for n, s in enumerate(others))]
    return Chain(ChainId(1), version, tuple(sorted(members, key=lambda m: m[1])))


def names(effects):
    return [type(effect).__name__ for effect in effects]


def opened(mine, *others, new=False, version=5):
    machine = Lifecycle(TargetId(1))
    assert names(machine.handle(life.Found(new, chain(version, mine, *others)))) == ["Open"]
    return machine, machine.handle(life.Opened())


def test_a_fresh_store_of_a_chain_that_never_served_is_up_to_date():
    machine, effects = opened(OFF, OFF, OFF, new=True, version=1)
    assert names(effects) == ["Begin", "Route", "EndSync", "Report", "Report"]
    assert machine.local is LocalState.UP_TO_DATE
    machine.handle(life.Routed(chain(2, S, S, S)))
    assert machine.local is LocalState.UP_TO_DATE and machine.state is S


def test_a_restarted_target_is_not_taken_up_while_the_routing_shows_it_serving():
    machine, effects = opened(S, S)
    assert names(effects) == ["Begin", "Report", "Report"] and machine.version == 0
    assert machine.local is LocalState.OFFLINE and machine.settled
    effects = machine.handle(life.Routed(chain(6, OFF, S)))
    assert "Route" in names(effects) and machine.local is LocalState.ONLINE


def test_a_last_serving_target_comes_back_at_once():
    machine, effects = opened(L, OFF)
    assert "Route" in names(effects) and machine.local is LocalState.ONLINE


def test_a_missing_store_stays_out_until_the_disk_is_back():
    machine = Lifecycle(TargetId(1))
    effects = machine.handle(life.Found(True, chain(5, S, S)))
    assert names(effects) == ["Alarm", "Report"] and machine.settled
    assert machine.local is LocalState.OFFLINE and "missing" in machine.reason
    machine.handle(life.Routed(chain(6, OFF, S)))
    assert names(machine.handle(life.Healed())) == ["Look"]
    assert names(machine.handle(life.Found(False, chain(6, OFF, S)))) == ["Open"]
    assert "Begin" in names(machine.handle(life.Opened()))
    assert machine.local is LocalState.ONLINE and machine.reason == ""


def test_up_to_date_is_believed_of_the_present_chain_version_only():
    machine, _ = opened(OFF, S)
    machine.handle(life.Routed(chain(6, Y, S)))
    assert machine.handle(life.Synced(5)) == [] and machine.local is LocalState.ONLINE
    machine.handle(life.Synced(6))
    assert machine.local is LocalState.UP_TO_DATE
    machine.handle(life.Routed(chain(7, Y, S, S)))
    assert machine.local is LocalState.ONLINE  # a sync begins anew
    machine.handle(life.Synced(7))
    machine.handle(life.Routed(chain(8, S, S, S)))
    assert machine.local is LocalState.UP_TO_DATE


def test_the_predecessor_of_a_syncing_target_syncs_it_once_a_chain_version():
    machine, _ = opened(OFF, S)
    machine.handle(life.Routed(chain(6, Y, S)))
    machine.handle(life.Synced(6))
    effects = machine.handle(life.Routed(chain(7, S, Y)))
    assert names(effects) == ["Route", "EndSync", "Sync", "Report"]
    assert effects[2].successor == TargetId(2)
    assert machine.handle(life.Routed(chain(7, S, Y))) == []
    assert names(machine.handle(life.Routed(chain(8, S, W)))) == ["Route", "EndSync", "Report"]


def test_a_stopped_target_comes_back_once_it_let_go_and_the_routing_took_note():
    machine, _ = opened(L, OFF)
    machine.handle(life.Routed(chain(6, S, OFF)))
    effects = machine.handle(life.Stopped(Code.CORRUPT, "diverged"))
    assert names(effects) == ["EndSync", "Drain", "Report"]
    assert machine.local is LocalState.OFFLINE and machine.reason == "diverged"
    assert names(machine.handle(life.Drained())) == ["Report", "LookLater"]  # still shown serving
    assert names(machine.handle(life.LookDue())) == ["Report", "LookLater"]
    assert "Begin" in names(machine.handle(life.Routed(chain(7, OFF, S))))
    assert machine.local is LocalState.ONLINE and machine.reason == ""


def test_it_does_not_come_back_before_it_let_go():
    machine, _ = opened(OFF, S)
    machine.handle(life.Stopped(Code.NOT_SERVING, "routing"))
    assert machine.handle(life.Routed(chain(9, OFF, S))) == []
    assert "Begin" in names(machine.handle(life.Drained()))


@pytest.mark.parametrize(("code", "next_effect"), [(Code.IO, "Look"), (Code.NO_SPACE, "Begin")])
def test_a_failed_or_full_disk_keeps_it_out_until_the_disk_is_good(code, next_effect):
    machine, _ = opened(OFF, S)
    assert "Alarm" in names(machine.handle(life.Stopped(code, "disk")))
    assert machine.handle(life.Drained()) == []
    assert machine.handle(life.Routed(chain(9, OFF, S))) == []
    assert (machine.local, machine.code, machine.reason) == (LocalState.OFFLINE, code, "disk")
    assert next_effect in names(machine.handle(life.Healed()))


def test_a_store_that_a_full_disk_kept_from_opening_is_opened_once_there_is_room():
    """There is nothing yet to begin a life on (simulator, seed 30017)."""
    machine = Lifecycle(TargetId(1))
    machine.handle(life.Found(False, chain(5, OFF, S)))
    assert "Alarm" in names(machine.handle(life.OpenFailed(Code.NO_SPACE, "full")))
    assert names(machine.handle(life.Healed())) == ["Look"]
    assert machine.handle(life.Healed()) == []  # once is enough
    assert names(machine.handle(life.Found(False, chain(5, OFF, S)))) == ["Open"]
    assert machine.handle(life.Healed()) == []
    assert "Begin" in names(machine.handle(life.Opened()))


def test_a_conflict_that_no_resync_may_decide_keeps_it_out_for_good():
    machine, _ = opened(OFF, S)
    machine.handle(life.Routed(chain(6, Y, S)))
    assert machine.handle(life.Refused(5, "old")) == []
    effects = machine.handle(life.Refused(6, "newer here"))
    assert effects == [life.StopReplica(Code.CONFLICT, "newer here")]
    assert "Alarm" in names(machine.handle(life.Stopped(Code.CONFLICT, "newer here")))
    machine.handle(life.Drained())
    machine.handle(life.Routed(chain(9, OFF, S)))
    assert machine.handle(life.Healed()) == []
    assert (machine.local, machine.reason) == (LocalState.OFFLINE, "newer here")


def test_defects_end_lives_and_after_several_the_target_stays_out():
    machine, _ = opened(OFF, S)
    for _ in range(MAX_DEFECTS - 1):
        machine.handle(life.Stopped(Code.INTERNAL, "a defect"))
        assert "Begin" in names(machine.handle(life.Drained()))
    machine.handle(life.Stopped(Code.INTERNAL, "a defect"))
    assert machine.handle(life.Drained()) == [] and machine.code is Code.INTERNAL


def test_a_target_withdrawn_by_order_stops_at_once_and_returns_when_the_order_is_gone():
    machine, _ = opened(OFF, S)
    machine.handle(life.Routed(chain(6, Y, S)))
    machine.handle(life.Routed(chain(7, S, S)))
    effects = machine.handle(life.Routed(chain(7, S, S), withdrawn=True))
    assert names(effects) == ["StopReplica"]
    machine.handle(life.Stopped(effects[0].code, effects[0].reason))
    assert machine.local is LocalState.OFFLINE
    assert machine.handle(life.Drained()) == []
    assert machine.handle(life.Routed(chain(8, OFF, S), withdrawn=True)) == []
    assert "Begin" in names(machine.handle(life.Routed(chain(8, OFF, S))))
    assert machine.local is LocalState.ONLINE


def test_a_withdrawn_target_opens_and_waits():
    machine = Lifecycle(TargetId(1))
    machine.handle(life.Found(False, chain(5, OFF, S), withdrawn=True))
    assert names(machine.handle(life.Opened())) == ["Report"]
    assert machine.settled and not machine.living
    assert "Begin" in names(machine.handle(life.Routed(chain(5, OFF, S))))
