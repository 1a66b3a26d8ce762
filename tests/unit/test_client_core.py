"""The client's operations against a scripted world. Budget: 10 s."""

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest

from hillfire.client import reading, writing
from hillfire.client.session import Session
from hillfire.client.stream import Stream
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2
from hillfire.proto.wire.base import Part
from hillfire.proto.wire.chunks import WriteItem
from hillfire.region import Region
from tests.unit.client_world import CHUNK, World, make_routing


def part(data: Iterable[int] | int) -> Part:
    region = Region.wrap(bytearray(data))
    return Part(region, 0, region.size)


def content(made: Part) -> bytes:
    return bytes(made.region.view[made.offset : made.offset + made.length])


def write(world: World, number: int, offset: int, data: bytes) -> Any:
    extent = world.core.extent(world.copy(number))
    return world.run(writing.write_batch(world.core, [(extent, offset, part(data))]))[0]


def read(world: World, number: int, offset: int, length: int) -> Any:
    into = part(length)
    extent = world.core.extent(world.copy(number))
    result = world.run(reading.read_batch(world.core, [(extent, offset, into)]))[0]
    return result if isinstance(result, Error) else content(into)[:result]


def test_holes_and_the_bytes_after_a_short_chunk_are_zeros() -> None:
    world = World()
    world.inode(5, 3 * CHUNK)
    assert write(world, 5, 10, b"abc") == 3
    assert read(world, 5, 0, 4 * CHUNK) == (bytes(10) + b"abc").ljust(3 * CHUNK, b"\0")
    assert read(world, 5, 3 * CHUNK, 10) == b""
    assert read(world, 5, 3 * CHUNK - 2, 10) == b"\0\0"


def test_not_committed_is_asked_of_the_tail() -> None:
    world = World()
    world.inode(5, 100)
    write(world, 5, 0, b"x" * 100)
    tails = {
        c: world.routing.node_of(chain.serving[-1]).id for c, chain in world.routing.chains.items()
    }
    world.fault = lambda node, item: (
        Code.NOT_COMMITTED
        if not isinstance(item, WriteItem) and node != tails[item.chain]
        else None
    )
    for _ in range(5):
        assert read(world, 5, 0, 100) == b"x" * 100
    assert not world.pauses, "the tail is asked at once"


def test_a_dead_node_costs_reads_no_pause_and_is_avoided() -> None:
    world = World()
    world.inode(5, 40 * CHUNK)
    world.down = {"n0"}
    into = part(40 * CHUNK)
    extent = world.core.extent(world.copy(5))
    assert world.run(reading.read_batch(world.core, [(extent, 0, into)])) == [40 * CHUNK]
    assert not world.pauses
    assert all(r.node != 101 for line in world.core.routes.lines.values() for r in line.turns)


def test_a_write_waits_for_newer_routing_and_keeps_its_tag() -> None:
    world = World()
    world.inode(5, 0)
    tries: list[tuple[int, int]] = []

    def fault(node: int, item: Any) -> Code | None:
        tries.append((item.channel, item.sequence))
        if len(tries) == 2:
            world.routing = make_routing(2)
            return Code.WRONG_CHAIN_VERSION
        return Code.TIMED_OUT if len(tries) == 1 else None

    world.fault = fault
    assert write(world, 5, 7, b"hello") == 5
    assert len(tries) == 3 and len(set(tries)) == 1
    assert world.core.routes.version == 2
    world.inodes[5].length = 12
    world.fault = lambda node, item: None
    assert read(world, 5, 7, 5) == b"hello"


def test_a_write_gives_up_at_the_deadline_with_its_last_error() -> None:
    world = World()
    world.inode(5, 0)
    world.down = {"n0", "n1", "n2"}
    began = world.now
    result = write(world, 5, 0, b"hello")
    assert isinstance(result, Error) and result.code is Code.CONNECTION
    assert 55 < world.now - began <= 60
    assert max(world.pauses) == 0.5


def test_a_truncate_that_overtakes_a_write() -> None:
    world = World()
    inode = world.inode(5, 10)
    extent = world.core.extent(inode)
    world.inodes[5].epoch = 3
    world.fault = lambda node, item: Code.STALE_EPOCH if item.epoch < 3 else None
    assert world.run(writing.write_batch(world.core, [(extent, 0, part(b"abc"))])) == [3]


def test_a_write_waits_for_the_end_of_a_truncate_that_overtook_it() -> None:
    """It may not write in the new epoch before that is published: the cut would miss the chunk."""
    world = World()
    extent = world.core.extent(world.inode(5, 10))
    world.inodes[5].cut_epoch = 1
    asked: list[float] = []

    def stat(request: Any) -> Any:
        asked.append(world.now)
        if len(asked) == 6:
            world.inodes[5].epoch = 1
        return world.copy(5)

    world.stat = stat  # type: ignore[method-assign]
    world.fault = lambda node, item: Code.STALE_EPOCH if item.epoch < 1 else None
    assert world.run(writing.write_batch(world.core, [(extent, 0, part(b"abc"))])) == [3]
    epochs = [item.epoch for _, item in world.seen if isinstance(item, WriteItem)]
    assert epochs == [0, 1]
    waits = [after - before for before, after in itertools.pairwise(asked)]
    assert waits == sorted(waits) and waits[0] < 0.01, "ever more slowly"


def test_who_saw_the_length_of_an_unfinished_truncate_writes_after_it() -> None:
    world = World()
    world.inode(5, 0)
    world.inodes[5].cut_epoch = 1
    extent = world.core.extent(world.copy(5))
    world.stat = lambda request: finished(world)  # type: ignore[method-assign]
    assert world.run(writing.write_batch(world.core, [(extent, 0, part(b"abc"))])) == [3]
    assert [item.epoch for _, item in world.seen if isinstance(item, WriteItem)] == [1]


def finished(world: World) -> Any:
    world.inodes[5].epoch = 1
    return world.copy(5)


def test_a_truncate_that_never_ends_fails_the_write_at_its_deadline() -> None:
    world = World()
    world.inode(5, 10)
    world.inodes[5].cut_epoch = 1
    extent, began = world.core.extent(world.copy(5)), world.now
    (result,) = world.run(writing.write_batch(world.core, [(extent, 0, part(b"abc"))]))
    assert isinstance(result, Error) and result.code is Code.TIMED_OUT
    assert "truncate" in str(result) and 55 < world.now - began <= 60
    assert world.core.channels.acquire()[0] == 1, "its channel was not lost"


def test_after_a_pause_longer_than_the_session_a_removed_file_is_stale_and_not_zeros() -> None:
    world = World()
    world.inode(5, 1000)
    world.inode(6, 1000)
    session = Session(world.core)
    world.run(session.beat())

    def stats() -> int:
        return sum(name == "Stat" for name, _ in world.meta_calls)

    assert read(world, 5, 0, 100) == bytes(100), "a hole"
    assert stats() == 0, "while the session runs nobody asks"
    world.now += 9.5  # longer than the lease of nine seconds
    assert read(world, 5, 0, 100) == bytes(100) and stats() == 1
    world.run(session.beat())
    for _ in range(3):
        assert read(world, 5, 0, 100) == bytes(100)
    assert stats() == 2, "once more after the session is back, then it is known"

    def gone(request: Any) -> Any:
        raise Error(Code.STALE, f"inode {request.inode} does not exist")

    world.stat = gone  # type: ignore[method-assign]
    result = read(world, 6, 0, 100)
    assert isinstance(result, Error) and result.code is Code.STALE
    world.inodes[6].links = 0
    world.stat = lambda request: world.copy(request.inode)  # type: ignore[method-assign]
    result = read(world, 6, 0, 100)
    assert isinstance(result, Error) and result.code is Code.STALE, (
        "its chunks are on their way out"
    )
    world.run(
        writing.write_batch(world.core, [(world.core.extent(world.copy(6)), 0, part(b"x" * 1000))])
    )
    assert read(world, 6, 0, 100) == b"x" * 100, "what is stored is read"


def test_bad_entries_do_not_disturb_good_ones() -> None:
    world = World()
    world.inode(5, 1000)
    write(world, 5, 0, bytes(range(250)) * 4)
    extent = world.core.extent(world.copy(5))
    region = Region.wrap(bytearray(300))
    entries = [
        (extent, 0, Part(region, 0, 100)),
        (extent, -5, Part(region, 0, 100)),
        (extent, 0, Part(region, 250, 100)),
        (extent, 950, Part(region, 100, 100)),
        (extent, 5000, Part(region, 200, 100)),
    ]
    results = world.run(reading.read_batch(world.core, entries))
    assert [r.code if isinstance(r, Error) else r for r in results] == [
        100, Code.INVALID, Code.INVALID, 50, 0,
    ]  # fmt: skip
    assert bytes(region.view[:150]) == bytes(range(100)) + bytes(range(200, 250))


def test_writes_of_one_chunk_in_one_batch_keep_their_order() -> None:
    world = World()
    world.inode(5, CHUNK)
    extent = world.core.extent(world.copy(5))
    entries = [(extent, 10 * i, part(bytes([i + 1]) * 40)) for i in range(9)]
    assert world.run(writing.write_batch(world.core, entries)) == [40] * 9
    data = read(world, 5, 0, 120)
    assert data[:90:10] == bytes(range(1, 10)) and data[119] == 9


def test_neighbours_are_written_together_and_fail_together() -> None:
    world = World()
    world.inode(5, 4 * CHUNK)
    extent = world.core.extent(world.copy(5))
    whole = part(random.Random(1).randbytes(2 * CHUNK))
    step = CHUNK // 8
    entries = [(extent, at, Part(whole.region, at, step)) for at in range(0, 2 * CHUNK, step)]
    entries.insert(3, (extent, 3 * CHUNK, Part(whole.region, 7, 9)))
    assert world.run(writing.write_batch(world.core, entries)) == [step] * 3 + [9] + [step] * 13
    sent = [item for _, item in world.seen if isinstance(item, WriteItem)]
    assert sorted(item.length for item in sent) == [9, 3 * step, 5 * step, CHUNK]
    assert read(world, 5, 0, 2 * CHUNK) == content(whole)
    world.fault = lambda node, item: Code.NO_SPACE if item.chain == 2 else None
    results = world.run(writing.write_batch(world.core, entries))
    assert [isinstance(r, Error) for r in results] == [False] * 9 + [True] * 8


def test_corrupt_data_is_read_from_another_replica_or_fails() -> None:
    world = World()
    world.inode(5, 100)
    world.fault = lambda node, item: Code.CORRUPT if node != 102 else None
    assert read(world, 5, 0, 100) == bytes(100)
    world.fault = lambda node, item: Code.CORRUPT
    result = read(world, 5, 0, 100)
    assert isinstance(result, Error) and result.code is Code.CORRUPT


def test_bytes_that_changed_on_their_way_are_not_returned() -> None:
    world = World()
    world.inode(5, 100)
    write(world, 5, 0, b"y" * 100)
    answer = world._answer
    flipped: list[bool] = []

    def unverified(call: Any) -> Any:
        outcome = answer(call)
        if call.request.destinations and not flipped:
            flipped.append(True)
            call.request.destinations[0].region.view[3] ^= 1
        return outcome._replace(verified=False)

    world._answer = unverified  # type: ignore[method-assign]
    assert read(world, 5, 0, 100) == b"y" * 100
    assert flipped


def test_metadata_retries_carry_the_same_request_number() -> None:
    world = World()
    world.inode(5, 0)
    world.down = {"meta"}
    seen = []
    operation = world.core.meta("Settle", meta_pb2.SettleRequest(inode=5, length=4))
    value = None
    while True:
        try:
            action: Any = operation.send(value)
        except StopIteration as stop:
            assert stop.value.length == 4
            break
        if hasattr(action, "calls"):
            if action.calls[0].endpoint.tcp.startswith("meta"):
                message = meta_pb2.SettleRequest.FromString(action.calls[0].request.body)
                seen.append((message.caller.client, message.caller.request))
                if len(seen) == 3:
                    world.down = set()
            value = [world._answer(call) for call in action.calls]
        else:
            value = None
    assert seen == [(7, 1)] * 3


def test_final_errors_of_metadata_are_not_retried() -> None:
    world = World()
    world.stat = lambda request: (_ for _ in ()).throw(Error(Code.NOT_FOUND))  # type: ignore[method-assign]
    with pytest.raises(FileNotFoundError):
        world.run(world.core.meta("Stat", meta_pb2.StatRequest(inode=77)))
    assert not world.pauses


def test_sync_asks_every_serving_replica_again_when_a_chain_changes() -> None:
    world = World()
    inode = world.inode(5, 3 * CHUNK)
    extent = world.core.extent(inode)
    world.routing = make_routing(2)
    world.run(writing.sync(world.core, extent, 0, 2 * CHUNK))
    good = {(name, m.chain) for name, m in world.seen if m.chain_version == 2}
    assert len(good) == 6


def test_orphans_that_are_held_are_reported_in_the_next_call() -> None:
    world = World()
    world.core.hold = {5}
    session = Session(world.core)
    assert world.run(session.beat()) == (0.0, [5])
    world.run(session.beat())
    assert [list(m.held) for _, m in world.meta_calls] == [[], [5]]
    assert [m.seen for _, m in world.meta_calls] == [0, 1]
    assert world.core.nameless == {5}


@pytest.mark.parametrize("seed", range(12))
def test_a_stream_equals_a_bytes_model(seed: int) -> None:
    """Random operations, spawned writes that end at any moment, and now and then an error."""
    chance, world = random.Random(seed), World(seed=seed)
    world.inode(5, 0)
    world.fault = lambda node, item: (
        chance.choice([Code.TIMED_OUT, Code.OVERLOADED, Code.NOT_COMMITTED])
        if chance.random() < 0.05 and isinstance(item, WriteItem)
        else None
    )
    stream = Stream(world.core, world.copy(5), read=True, write=True, append=False)
    model = bytearray()
    for _ in range(150):
        what = chance.choice(
            ["write", "write", "write", "seek", "read", "flush", "truncate", "big"]
        )
        if what in ("write", "big"):
            limit = 9 * CHUNK if what == "big" else 5000
            data = chance.randbytes(chance.randrange(1, limit))
            position = stream.position
            assert world.run(stream.write(memoryview(data))) == len(data)
            model.extend(bytes(max(0, position - len(model))))
            model[position : position + len(data)] = data
            assert stream.position == position + len(data)
        elif what == "seek":
            stream.position = chance.randrange(len(model) + 1000)
        elif what == "read":
            count = chance.choice([1, 100, 5000, 3 * CHUNK])
            position = stream.position
            assert world.run(stream.read(count)) == bytes(model[position : position + count])
        elif what == "flush":
            world.run(stream.flush())
            assert world.inodes[5].length == len(model)
        else:
            length = chance.randrange(len(model) + 5000)
            world.run(stream.truncate(length))
            del model[length:]
            model.extend(bytes(length - len(model)))
    world.run(stream.close(0))
    assert world.inodes[5].length == len(model)
    assert read(world, 5, 0, len(model) + 10) == bytes(model)


def test_two_appending_streams_lose_nothing() -> None:
    world = World()
    world.inode(5, 3)
    streams = [
        Stream(world.core, world.copy(5), read=False, write=True, append=True) for _ in range(2)
    ]
    chance = random.Random(4)
    sent: list[list[bytes]] = [[], []]
    for i in range(40):
        who = chance.randrange(2)
        line = bytes([65 + who]) * (i + 1)
        world.run(streams[who].write(memoryview(line)))
        sent[who].append(line)
        if chance.random() < 0.5:
            world.run(streams[who].flush())
    for stream in streams:
        world.run(stream.close(0))
    data = read(world, 5, 3, 1 << 20)
    for who in (0, 1):
        assert data.replace(bytes([66 - who]), b"") == b"".join(sent[who])
