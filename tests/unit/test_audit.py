"""What a scrubber makes of records that differ between replicas."""

from hillfire.storage.audit import Finding, Pace, differences, judge, still
from hillfire.storage.comparison import Remote
from hillfire.types import ChunkId, TargetId, chunk_id

A, B, C = (TargetId(number) for number in (1, 2, 3))
ONE: ChunkId = chunk_id(7, 1)  # type: ignore[arg-type]
TWO: ChunkId = chunk_id(7, 2)  # type: ignore[arg-type]


def record(version: int, checksum: int = 5, pending: int = 0, removed: bool = False) -> Remote:
    return Remote(version, pending, 0 if removed else 100, checksum, 4, 1, removed)


def test_equal_and_absent_everywhere_is_sound() -> None:
    assert judge(record(3), [(A, record(3)), (B, record(3))], False).finding is Finding.SOUND
    assert judge(None, [(A, None), (B, record(0, 0, removed=True))], False).finding is Finding.SOUND
    # committed under other chain versions, as a death in between leaves it
    other = record(3)._replace(chain_version=9)
    assert judge(record(3), [(A, other)], False).finding is Finding.SOUND


def test_who_lacks_a_chunk_or_has_an_older_one_is_behind() -> None:
    for mine in (None, record(2)):
        found = judge(mine, [(A, record(3)), (B, record(2)), (C, record(3))], True)
        assert (found.finding, found.sources) == (Finding.BEHIND, (A, C))
    # a removal that was not done here is one, too
    assert judge(record(2), [(A, record(3, 0, removed=True))], True).finding is Finding.BEHIND


def test_who_is_ahead_leaves_it_to_the_others() -> None:
    assert judge(record(3), [(A, None), (B, record(2))], False).finding is Finding.SOUND


def test_an_update_on_its_way_decides_nothing() -> None:
    for mine, other in ((record(2, pending=3), record(3)), (record(2), record(2, pending=3))):
        assert judge(mine, [(A, other)], True).finding is Finding.BUSY


def test_the_greater_party_is_right_and_the_earlier_target_where_they_are_equal() -> None:
    mine, theirs = record(3, 5), record(3, 6)
    found = judge(mine, [(B, theirs), (C, theirs)], True)
    assert (found.finding, found.sources) == (Finding.ODD, (B, C))
    assert judge(mine, [(B, theirs), (C, mine)], False).finding is Finding.SOUND
    assert judge(mine, [(B, theirs)], True).finding is Finding.SOUND
    assert judge(mine, [(B, theirs)], False).finding is Finding.ODD
    # three that all differ: the first in the chain is right
    assert judge(mine, [(A, theirs), (C, record(3, 7))], False).sources == (A,)
    assert judge(mine, [(B, theirs), (C, record(3, 7))], True).finding is Finding.SOUND


def test_differences_are_named_from_both_sides() -> None:
    mine = {ONE: record(1)}
    assert differences(mine, [{ONE: record(1)}, {ONE: record(1), TWO: record(4)}]) == {TWO}
    assert differences(mine, [{}]) == {ONE}
    assert differences(mine, [{ONE: record(1)._replace(pending=2)}]) == set()


def test_a_difference_counts_when_it_is_seen_twice() -> None:
    first = judge(record(2), [(A, record(3))], False)
    assert still(first, judge(record(2), [(A, record(3))], False))
    assert not still(first, judge(record(3), [(A, record(4))], False))


def test_pace_walks_a_store_in_its_period_within_its_bounds() -> None:
    pace = Pace(1000, 50_000)
    assert pace.bytes_per_s(1_000_000, 100.0) == 10_000
    assert pace.bytes_per_s(1_000, 100.0) == 1000
    assert pace.bytes_per_s(10**9, 100.0) == 50_000
    assert pace.rest_s(20_000, 0.5, 1_000_000, 100.0) == 1.5
    assert pace.rest_s(20_000, 5.0, 1_000_000, 100.0) == 0
