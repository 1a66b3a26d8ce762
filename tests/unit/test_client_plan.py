"""The client's pure parts: plans, verdicts, channels, routing. Budget: 5 s."""

import random

import pytest

from hillfire.client import plan, retry
from hillfire.client.channels import Channels
from hillfire.client.plan import Extent
from hillfire.client.retry import History
from hillfire.client.routing import SUSPECT_S, RoutingCache
from hillfire.errors import Code, Error
from hillfire.layout import Layout
from hillfire.proto.wire.base import Part
from hillfire.region import Region
from hillfire.types import ChainId, InodeId, split_chunk_id
from tests.unit.client_world import CHAINS, CHUNK, endpoint, make_routing

LAYOUT = Layout(CHUNK, tuple(ChainId(c) for c in range(1, CHAINS + 1)))


def extent(length: int = 1 << 30) -> Extent:
    return Extent(9, length, 0, LAYOUT)


def test_pieces_cover_a_range_once_and_in_order() -> None:
    region, chance = Region.wrap(bytearray(1 << 20)), random.Random(1)
    for _ in range(300):
        offset, length = chance.randrange(1 << 22), chance.randrange(1, 1 << 19)
        entry = (extent(), offset, Part(region, 100, length))
        results: list[object] = [0]
        into = plan.split([entry], results, Part, reading=True)
        assert results == [length]
        at = offset
        for piece in into:
            inode, index = split_chunk_id(piece.chunk)  # type: ignore[arg-type]
            assert (inode, piece.item) == (InodeId(9), 0)
            assert piece.chain == LAYOUT.chain_of(index)
            assert index * CHUNK + piece.start == at
            assert piece.part.offset - 100 == at - offset
            assert piece.start + piece.part.length <= CHUNK
            at += piece.part.length
        assert at == offset + length


def test_reads_take_turns_and_prefer_their_own_host() -> None:
    region = Region.wrap(bytearray(4096))
    entries = [(extent(), number * CHUNK, Part(region, 0, 10)) for number in range(600)]
    into = plan.split(entries, [0] * 600, Part, reading=True)
    lines = plan.make_lines(make_routing(), "here")
    batches, stranded = plan.plan_reads(into, lines, 0)
    share = {b.node.node: 0 for b in batches}
    for batch in batches:
        share[batch.node.node] += len(batch.pieces)
        assert len(batch.pieces) <= plan.MAX_ITEMS
    assert not stranded and len(share) == 3
    assert max(share.values()) <= 2 * min(share.values())

    near = plan.make_lines(make_routing(hosts=["here", "b", "c"]), "here")
    batches, _ = plan.plan_reads(into, near, 0)
    mine = sum(len(b.pieces) for b in batches if b.node.node == 101)
    assert 300 < mine < 600


def test_a_request_is_bounded_in_items_and_bytes() -> None:
    batcher = plan.Batcher(max_items=4, max_bytes=1000)
    replica = plan.Replica(1, 101, endpoint("n0"))
    region = Region.wrap(bytearray(4096))
    for length in [900, 200, 100, 100, 100, 100, 4000]:
        batcher.add(replica, plan.Piece(0, b"", 1, 0, Part(region, 0, length)), ())
    assert [b.bytes for b in batcher.batches] == [900, 500, 100, 4000]
    assert [len(b.pieces) for b in batcher.batches] == [1, 4, 1, 1]


def test_suspects_are_asked_only_if_nobody_else_serves() -> None:
    lines = plan.make_lines(make_routing(), "here", {101})
    assert all(r.node != 101 for line in lines.values() for r in line.turns)
    lines = plan.make_lines(make_routing(), "here", {101, 102, 103})
    assert all(len(line.turns) == 3 for line in lines.values())


def test_updates_that_overlap_wait_for_each_other() -> None:
    region, chance = Region.wrap(bytearray(4096)), random.Random(3)
    made = [
        plan.Piece(i, bytes([chance.randrange(3)]), 1, chance.randrange(200), Part(region, 0, 20))
        for i in range(100)
    ]
    order: list[plan.Piece] = []
    waiting = made
    while waiting:
        now, waiting = plan.without_overlap(waiting)
        order += now
        for one in now:
            for other in now:
                apart = abs(one.start - other.start) >= 20
                assert one is other or one.chunk != other.chunk or apart
    for i, one in enumerate(order):
        for other in order[i + 1 :]:
            if one.chunk == other.chunk and abs(one.start - other.start) < 20:
                assert one.item < other.item
    ahead = [plan.Piece(i, b"c", 1, i * 20, Part(region, 0, 20)) for i in range(50)]
    assert plan.without_overlap(ahead) == (ahead, [])


def test_chains_of_a_range() -> None:
    chance = random.Random(2)
    for _ in range(200):
        start = chance.randrange(1 << 21)
        end = start + chance.randrange(1, 1 << 19)
        slow = {int(LAYOUT.chain_of(i)) for i in range(start // CHUNK, (end - 1) // CHUNK + 1)}
        assert plan.chains_of(extent(), start, end) == sorted(slow)
    assert plan.chains_of(extent(), 5, 5) == []


def test_ranges_that_no_file_has() -> None:
    for offset, length in [(-1, 5), (0, -1), (LAYOUT.max_length_bytes, 1)]:
        with pytest.raises(Error):
            plan.check_range(extent(), offset, length)


def test_not_committed_asks_the_tail_at_once_and_then_waits() -> None:
    history = History()
    first = retry.after_read(history, Code.NOT_COMMITTED, "", 1, 3, 0.0, 60.0)
    assert first == (True, 0.0, False) and history.tail
    second = retry.after_read(history, Code.NOT_COMMITTED, "", 3, 3, 0.0, 60.0)
    assert second.again and second.delay_s == retry.FIRST_DELAY_S and history.tail


def test_a_read_goes_to_every_replica_before_it_waits() -> None:
    history = History()
    verdicts = [
        retry.after_read(history, Code.CONNECTION, "", target, 3, 0.0, 60.0) for target in (1, 2, 3)
    ]
    assert [v.delay_s > 0 for v in verdicts] == [False, False, True]
    assert all(v.again and v.refresh for v in verdicts)
    assert not history.avoid, "all have failed, so all may be asked again"


def test_corrupt_everywhere_is_final() -> None:
    history = History()
    assert retry.after_read(history, Code.CORRUPT, "", 1, 2, 0.0, 60.0).again
    assert not retry.after_read(history, Code.CORRUPT, "", 2, 2, 0.0, 60.0).again


def test_a_read_fails_only_when_every_replica_itself_is_at_fault() -> None:
    """One that is out of reach for a moment may hold the only good copy."""
    history = retry.History()
    assert retry.after_read(history, Code.LEASE_EXPIRED, "", 1, 3, 0.0, 60.0).again
    assert retry.after_read(history, Code.CORRUPT, "", 2, 3, 0.0, 60.0).again
    later = retry.after_read(history, Code.CORRUPT, "", 3, 3, 0.0, 60.0)
    assert later.again and later.delay_s > 0 and later.refresh
    assert history.avoid == {2, 3}
    assert retry.after_read(history, Code.WRONG_CHAIN_VERSION, "", 1, 3, 0.0, 60.0).again
    assert history.avoid == {2, 3}
    assert not retry.after_read(history, Code.CORRUPT, "", 1, 3, 0.0, 60.0).again


def test_writes_give_up_at_their_deadline_and_for_final_errors() -> None:
    assert retry.after_write(History(), Code.NOT_SERVING, "", 1.0, 60.0) == (True, 0.005, True)
    assert not retry.after_write(History(), Code.NOT_SERVING, "", 59.999, 60.0).again
    assert not retry.after_write(History(), Code.NO_SPACE, "", 1.0, 60.0).again
    history = History()
    tries = [retry.after_write(history, Code.CHECKSUM, "", 1.0, 60.0).again for _ in range(5)]
    assert tries == [True, True, True, False, False]


def test_delays_double_between_their_bounds() -> None:
    delays = [retry.delay_s(count) for count in range(1, 40)]
    assert delays[:4] == [0.005, 0.01, 0.02, 0.04]
    assert max(delays) == delays[-1] == retry.LAST_DELAY_S


def test_channels_are_reused_and_their_sequences_grow() -> None:
    channels = Channels(1)
    first, second = channels.acquire(), channels.acquire()
    assert first[0] != second[0]
    channels.release(first[0])
    again = channels.acquire()
    assert again[0] == first[0] and again[1] > second[1]


def test_routing_only_grows_and_ends_mistrust() -> None:
    cache = RoutingCache(endpoint("manager"), "here")
    assert cache.take(make_routing(3)) and not cache.take(make_routing(2))
    cache.suspect(101, 10.0)
    assert all(r.node != 101 for line in cache.lines.values() for r in line.turns)
    cache.expire(10.0 + SUSPECT_S / 2)
    assert all(len(line.turns) == 2 for line in cache.lines.values())
    cache.expire(10.1 + SUSPECT_S)
    assert all(len(line.turns) == 3 for line in cache.lines.values())
    cache.suspect(101, 20.0)
    cache.take(make_routing(4))
    assert all(len(line.turns) == 3 for line in cache.lines.values())
