"""Large batches as arrays: they read what pieces read, faults included. Budget: 10 s."""

import random
from typing import Any

import numpy as np
import pytest

from hillfire.client import bulk, plan, reading
from hillfire.client.bulk import Bulk
from hillfire.client.items import Items, longs
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Part
from hillfire.proto.wire.chunks import READ_ITEMS, ReadItem
from hillfire.region import Region
from hillfire.types import ByteRange
from tests.unit.client_world import CHUNK, World, endpoint

SPACE = 64 * CHUNK


def filled(world: World, lengths: list[int]) -> list[Any]:
    """Make files of these lengths, of bytes that tell file and place; some chunks are short."""
    chance, extents = random.Random(3), []
    for number, length in enumerate(lengths, 5):
        extents.append(world.core.extent(world.inode(number, length)))
        for index in range(-(-length // CHUNK)):
            name = b"\0\0" + number.to_bytes(8) + b"\0\0" + index.to_bytes(4)
            have = chance.choice((CHUNK, CHUNK, CHUNK // 2, 0))
            world.chunks[name] = bytearray(chance.randbytes(have))
    return extents


def some(chance: random.Random, extents: list[Any], count: int, longest: int) -> Items:
    region = Region.wrap(bytearray(SPACE))
    which = np.array([chance.randrange(len(extents)) for _ in range(count)])
    lengths = np.array([chance.randrange(1, longest) for _ in range(count)])
    places = np.cumsum(lengths) - lengths
    offsets = np.array([chance.randrange(extents[w].length + longest) for w in which])
    return Items(extents, which if len(extents) > 1 else None, offsets, places, lengths, region)


def one_by_one(world: World, items: Items) -> tuple[list[Any], bytes]:
    region = Region.wrap(bytearray(SPACE))
    entries = [
        (extent, offset, Part(region, part.offset, part.length))
        for extent, offset, part in items.entries()
    ]
    return world.run(reading.read_batch(world.core, entries)), bytes(region.view)


@pytest.mark.parametrize("files", [1, 5])
@pytest.mark.parametrize("longest", [200, CHUNK, 5 * CHUNK])
def test_arrays_read_what_pieces_read(files: int, longest: int) -> None:
    world = World()
    extents = filled(world, [7 * CHUNK + 100 * n for n in range(files)])
    chance = random.Random(longest + files)
    for _ in range(5):
        items = some(chance, extents, min(200, SPACE // longest), longest)
        results = world.run(reading.read_items(world.core, items))
        assert (results, bytes(items.region.view)) == one_by_one(world, items)


def test_a_plan_covers_every_byte_once_and_keeps_the_limits() -> None:
    world = World()
    extents = filled(world, [400 * CHUNK, 300 * CHUNK])
    chance = random.Random(1)
    region = Region.wrap(bytearray(1 << 28))
    lengths = longs([chance.choice((1, 4096, CHUNK, 100 * CHUNK)) for _ in range(900)], 900, "")
    items = Items(
        extents,
        longs([n % 2 for n in range(900)], 900, ""),
        longs([chance.randrange(100 * CHUNK) for _ in range(900)], 900, ""),
        longs(np.arange(900) * 4096, 900, ""),
        lengths,
        region,
    )
    planned = bulk.plan_reads(items, world.core.table(), 0)
    assert planned is not None
    requests, counts = planned
    assert counts.tolist() == lengths.tolist()
    wanted: list[Any] = [0] * 900
    expected = plan.split(items.entries(), wanted, Part, reading=True)
    assert wanted == counts.tolist()
    pieces = [request.piece(at) for request in requests for at in range(len(request.parts))]
    assert sorted(pieces, key=lambda p: p[:4]) == sorted(expected, key=lambda p: p[:4])
    for request in requests:
        assert len(request.parts) <= plan.MAX_ITEMS
        assert request.parts.lengths.sum() <= plan.MAX_BYTES or len(request.parts) == 1
        for item in READ_ITEMS.unpack(request.body):
            line = world.core.routes.lines[item.chain]
            assert request.node.node in {replica.node for replica in line.turns}
            assert item.chain_version == line.version


def test_replicas_take_turns() -> None:
    world = World()
    items = some(random.Random(0), filled(world, [8 * CHUNK]), 240, 100)
    items.offsets %= CHUNK // 2
    planned = bulk.plan_reads(items, world.core.table(), 11)
    assert planned is not None
    shares: dict[int, int] = {}
    for request in planned[0]:
        shares[request.node.node] = shares.get(request.node.node, 0) + len(request.items)
    assert set(shares.values()) == {80}


def test_of_many_nodes_few_are_asked_and_all_in_the_end() -> None:
    """A batch over sixteen chains of 48 nodes is sixteen requests, not 48."""
    lines = {
        chain: plan.Line(1, replicas, replicas)
        for chain in range(1, 17)
        for replicas in [
            tuple(plan.Replica(0, 3 * chain + i, endpoint(f"n{3 * chain + i}")) for i in range(3))
        ]
    }
    table, asked = bulk.Table(lines), dict[int, int]()
    rows = table.rows[np.arange(256) % 16 + 1]
    for turn in range(300):
        slots = bulk.choose(table, rows, turn)
        assert len(set(slots.tolist())) == 16
        for slot in set(slots.tolist()):
            asked[slot] = asked.get(slot, 0) + 1
    assert set(asked.values()) == {100}, "each in turn"


def batch(world: World) -> Items:
    """Forty reads of 100 bytes in the chunks of one file."""
    extents = filled(world, [40 * CHUNK])
    for data in world.chunks.values():
        data[:] = bytes(range(256)) * (CHUNK // 256)
    region = Region.wrap(bytearray(b"\xaa" * 4000))
    steps = np.arange(40)
    return Items(extents, None, steps * CHUNK + 7, steps * 100, np.full(40, 100), region)


GOOD = bytes(range(7, 107)) * 40


def test_what_fails_at_first_is_read_from_another() -> None:
    world = World()
    items = batch(world)
    once: set[bytes] = set()

    def fault(node: int, item: Any) -> Code | None:
        if isinstance(item, ReadItem) and item.chunk[-1] % 3 == 0 and item.chunk not in once:
            once.add(item.chunk)
            return Code.CORRUPT
        return None

    world.fault = fault
    assert world.run(reading.read_items(world.core, items)) == [100] * 40
    assert bytes(items.region.view) == GOOD and len(once) == 14


def test_a_dead_node_and_an_old_routing_cost_no_error() -> None:
    world = World()
    items = batch(world)
    world.core.table()  # made before the failure
    world.down = {"n1"}
    assert world.run(reading.read_items(world.core, items)) == [100] * 40
    assert bytes(items.region.view) == GOOD
    assert all(r.node != 102 for r in world.core.table().replicas), "it follows the mistrust"


def test_an_error_concerns_its_item_alone() -> None:
    world = World()
    items = batch(world)
    world.fault = lambda node, item: Code.IO if item.chunk[-1] == 9 else None
    results = world.run(reading.read_items(world.core, items))
    assert isinstance(results[9], Error) and results[9].code is Code.IO
    assert [each for n, each in enumerate(results) if n != 9] == [100] * 39


@pytest.mark.parametrize(
    ("field", "value"),
    [("offsets", -1), ("places", -1), ("places", 3950), ("lengths", 5000), ("lengths", -1)],
)
def test_a_bad_range_fails_alone(field: str, value: int) -> None:
    world = World()
    items = batch(world)
    getattr(items, field)[3] = value
    results = world.run(reading.read_items(world.core, items))
    assert isinstance(results[3], Error), results[3]
    assert results[:3] + results[4:] == [100] * 39


def test_far_past_the_end_is_nothing() -> None:
    world = World()
    items = batch(world)
    items.offsets[3] = 1 << 62
    items.offsets[4] = 40 * CHUNK - 10
    items.offsets[5] = 40 * CHUNK
    results = world.run(reading.read_items(world.core, items))
    assert results == [100] * 3 + [0, 10, 0] + [100] * 34


def test_quarantine_refuses_its_range_alone() -> None:
    world = World()
    items = batch(world)
    items.region.quarantine(ByteRange(250, 10))
    results = world.run(reading.read_items(world.core, items))
    assert isinstance(results[2], Error) and results[2].code is Code.BUSY
    assert results[:2] + results[3:] == [100] * 39


def test_bytes_that_changed_on_their_way_are_fetched_again() -> None:
    world = World()
    items = batch(world)
    plain, spoilt = world._answer, list[Any]()

    def answer(call: Any) -> Any:
        outcome = plain(call)
        if call.request.method == 1 and not spoilt:
            spoilt.append(call)
            part = call.request.destinations[2]
            part.region.view[part.offset] ^= 1
        return outcome._replace(verified=False)

    world._answer = answer  # type: ignore[method-assign]
    assert world.run(reading.read_items(world.core, items)) == [100] * 40
    assert spoilt and bytes(items.region.view) == GOOD


def test_nobody_serves_a_chain() -> None:
    world = World()
    items = batch(world)
    lines = dict(world.core.routes.lines)
    lines[2] = lines[2]._replace(serving=(), turns=())
    world.core.routes.lines = lines
    assert bulk.plan_reads(items, world.core.table(), 0) is None
    del lines[2]
    world.core.routes.lines = dict(lines)
    assert bulk.plan_reads(items, world.core.table(), 0) is None


def test_numbers_are_whole() -> None:
    assert longs(7, 3, "x").tolist() == [7, 7, 7]
    assert longs(np.array([1, 2], np.uint8), 2, "x").dtype == np.int64
    for bad in ([1.5, 2], ["a", "b"], [[1, 2]], [1], [1 << 63, 0]):
        with pytest.raises(Error) as caught:
            longs(bad, 2, "offsets")
        assert caught.value.code is Code.INVALID and "offsets" in str(caught.value)


def test_a_bulk_names_its_pieces() -> None:
    world = World()
    items = batch(world)
    planned = bulk.plan_reads(items, world.core.table(), 0)
    assert planned is not None and isinstance(planned[0][0], Bulk)
    piece = planned[0][0].piece(0)
    assert piece.start == 7 and piece.part == Part(items.region, piece.item * 100, 100)
    assert int.from_bytes(piece.chunk[12:]) == piece.item
