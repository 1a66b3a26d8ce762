"""READ as the data plane serves it, over real stores (budget: 15 s)."""

import asyncio
import os
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from hillfire import metrics
from hillfire.cluster import Chain, PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.native import crc32c
from hillfire.proto.wire.base import Answer, Incoming
from hillfire.proto.wire.chunks import (
    READ,
    READ_ITEMS,
    READ_RESULTS,
    RELAXED,
    Kind,
    ReadItem,
    ReadResult,
)
from hillfire.storage.peers import Peers
from hillfire.storage.pool import Pools
from hillfire.storage.reads import INLINE_READ_BYTES, Reads
from hillfire.storage.shell import TargetShell
from hillfire.storage.store.base import Tag, Update
from hillfire.storage.store.engine import open_store
from hillfire.storage.throttle import Meter
from hillfire.types import ChainId, ChunkId, TargetId, Version, chunk_id

KIB = 1024
MIB = 1024 * KIB
CHAINS = (1, 2)
VERSION = 3
PER_CHAIN = 4
WRITTEN = random.Random(3).randbytes(MIB)


def name(chain: int, index: int) -> ChunkId:
    return chunk_id(chain, index)  # type: ignore[arg-type]


class World(NamedTuple):
    shells: dict[int, TargetShell]
    reads: Reads
    damaged: list[ChunkId]
    lease: list[bool]


def build(directory: Path, executor: ThreadPoolExecutor, direct: bool) -> World:
    shells: dict[int, TargetShell] = {}
    damaged: list[ChunkId] = []
    for chain in CHAINS:
        store = open_store(directory / str(chain), direct=direct, direct_reads=direct)
        shell = shells[chain] = TargetShell(
            TargetId(chain), store, peers=Peers(), pools=Pools(1 << 20), executor=executor,
            routing=lambda: Routing("", 0), stopped=lambda *_: None, poke=lambda: None,
            damaged=lambda chunk, why: damaged.append(chunk),
        )  # fmt: skip
        members = ((TargetId(chain), PublicState.SERVING),)
        shell.routing_changed(Chain(ChainId(chain), VERSION, members))
        for index in range(PER_CHAIN):
            update = Update(
                name(chain, index), Version(1), Kind.WRITE, 0, MIB, memoryview(WRITTEN),
                crc32c(WRITTEN), Tag(1, chain, index), 0, VERSION, MIB,
            )  # fmt: skip
            store.prepare([update])
            store.commit([(name(chain, index), Version(1), VERSION)])
        store.sync()
    lease = [True]
    return World(shells, Reads(shells.get, lambda: lease[0], Meter()), damaged, lease)


Run = Callable[[Callable[[World], Coroutine[None, None, None]]], None]


@pytest.fixture(params=["cached", "direct"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    def go(test: Callable[[World], Coroutine[None, None, None]]) -> None:
        async def work() -> None:
            world = build(tmp_path, executor, request.param == "direct")
            await asyncio.wait_for(test(world), 20)
            for shell in world.shells.values():
                await shell.drained()
                shell.store.close()

        asyncio.run(work())

    with ThreadPoolExecutor(4) as executor:
        yield go


async def ask(
    world: World, wanted: Iterable[ReadItem], length: int
) -> tuple[list[ReadResult], list[memoryview]]:
    items = list(wanted)
    into = [memoryview(bytearray(length)) for _ in items]
    body = memoryview(READ_ITEMS.pack(items))
    answer = world.reads.read(Incoming(READ, body, (), into, 5.0, "test"))
    if not isinstance(answer, Answer):
        answer = await answer
    results = READ_RESULTS.unpack(answer.body)
    assert [result.filled for result in results] == list(answer.filled)
    return results, into


def check(items: list[ReadItem], results: list[ReadResult], into: list[memoryview]) -> None:
    for item, result, view in zip(items, results, into, strict=True):
        expected = WRITTEN[item.offset : item.offset + len(view)]
        assert result == (0, len(expected), crc32c(expected), 1)
        assert view[: len(expected)] == expected


def everything(length: int) -> list[ReadItem]:
    return [
        ReadItem(name(chain, index), chain, VERSION, offset)
        for index in range(PER_CHAIN)
        for chain in CHAINS
        for offset in range(0, MIB, MIB if length == MIB else 100_000)
    ]


def empty_cache(world: World) -> None:
    for shell in world.shells.values():
        direct = shell.store.direct()
        assert direct is not None
        os.posix_fadvise(direct.files[1][20], 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("length", [4096, 5000, 100_000, MIB])
def test_cold_or_cached_a_request_is_answered_in_full(run: Run, length: int) -> None:
    async def test(world: World) -> None:
        items = everything(length)
        assert length < MIB or len(items) * length > INLINE_READ_BYTES
        for _ in range(2):
            empty_cache(world)
            for _ in range(2):
                check(items, *await ask(world, items, length))

    run(test)


def test_what_is_cached_is_answered_at_once(run: Run) -> None:
    async def test(world: World) -> None:
        items = everything(4096)[:40]
        await ask(world, items, 4096)
        before = metrics.READ.items.value
        body = memoryview(READ_ITEMS.pack(items))
        into = [memoryview(bytearray(4096)) for _ in items]
        assert isinstance(world.reads.read(Incoming(READ, body, (), into, 5.0, "test")), Answer)
        assert metrics.READ.items.value == before + len(items)

    run(test)


def test_each_item_is_refused_for_itself(run: Run) -> None:
    async def test(world: World) -> None:
        good = name(1, 0)
        items = [
            ReadItem(good, 9, VERSION, 0),
            ReadItem(good, 1, VERSION - 1, 0),
            ReadItem(good, 1, VERSION, 0),
            ReadItem(name(1, 99), 1, VERSION, 0),
            ReadItem(good, 1, VERSION, 2**32 - 1),
        ]
        for length in (4096, 2 * MIB):  # at once, and by threads
            results, _ = await ask(world, items, length)
            assert [result.code for result in results] == [
                Code.NOT_SERVING, Code.WRONG_CHAIN_VERSION, 0, 0, 0,
            ]  # fmt: skip
            assert [result.filled for result in results] == [0, 0, min(length, MIB), 0, 0]
            assert [result.version for result in results] == [0, 0, 1, 0, 1]

    run(test)


def test_a_chunk_with_something_pending_is_asked_about(run: Run) -> None:
    async def test(world: World) -> None:
        replica = world.shells[1].replica
        held = name(1, 2)
        asked: list[tuple[ChunkId, bool]] = []
        refuse = replica.refuse_read

        def refuse_read(chunk: ChunkId, chain_version: int, relaxed: bool) -> Code:
            if chunk != held:
                return refuse(chunk, chain_version, relaxed)
            asked.append((chunk, relaxed))
            return Code.OK if relaxed else Code.NOT_COMMITTED

        replica.refuse_read = refuse_read  # type: ignore[method-assign]
        replica.holders[held] = object()  # type: ignore[assignment]
        try:
            items = [
                ReadItem(name(1, 1), 1, VERSION, 0),
                ReadItem(held, 1, VERSION, 0),
                ReadItem(held, 1, VERSION, 0, RELAXED),
            ]
            results, _ = await ask(world, items, 4096)
        finally:
            del replica.holders[held]
        assert [result.code for result in results] == [0, Code.NOT_COMMITTED, 0]
        assert asked == [(held, False), (held, True)]

    run(test)


def test_damage_is_told_and_its_neighbours_are_answered(run: Run, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        (path,) = (tmp_path / "1" / "blocks").glob("1024K")
        fd = os.open(path, os.O_RDWR)
        (byte,) = os.pread(fd, 1, 70_000)  # of the block that was taken first
        os.pwrite(fd, bytes([byte ^ 1]), 70_000)
        os.fsync(fd)
        os.close(fd)
        for length in (4096, MIB):
            world.damaged.clear()
            items = [ReadItem(name(1, index), 1, VERSION, 0) for index in range(PER_CHAIN)]
            if length == 4096:
                items = [item._replace(offset=69_632) for item in items]
            results, into = await ask(world, items, length)
            (bad,) = [at for at, result in enumerate(results) if result.code]
            assert results[bad] == (Code.CORRUPT, 0, 0, 0)
            assert world.damaged == [items[bad].chunk]
            for each in (items, results, into):
                del each[bad]
            check(items, results, into)

    run(test)


def test_a_lease_that_ended_meanwhile_gives_nothing_away(run: Run) -> None:
    async def test(world: World) -> None:
        items = everything(MIB)
        into = [memoryview(bytearray(MIB)) for _ in items]
        body = memoryview(READ_ITEMS.pack(items))
        reading = world.reads.read(Incoming(READ, body, (), into, 5.0, "test"))
        assert not isinstance(reading, Answer)
        world.lease[0] = False
        with pytest.raises(Error) as caught:
            await reading
        assert caught.value.code == Code.LEASE_EXPIRED

    run(test)


def test_a_cancelled_read_waits_for_its_threads(run: Run) -> None:
    async def test(world: World) -> None:
        empty_cache(world)
        items = everything(MIB)
        into = [memoryview(bytearray(MIB)) for _ in items]
        body = memoryview(READ_ITEMS.pack(items))
        reading = world.reads.read(Incoming(READ, body, (), into, 5.0, "test"))
        assert not isinstance(reading, Answer)
        task = asyncio.ensure_future(reading)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = [crc32c(view) for view in into]
        for shell in world.shells.values():
            await shell.threads.idle()
        assert [crc32c(view) for view in into] == before, "a thread wrote after the end"

    run(test)


def test_writes_while_it_is_read(run: Run) -> None:
    """Whatever is returned is one image of a chunk, old or new, under updates and checkpoints."""

    async def test(world: World) -> None:
        shell, chunk = world.shells[1], name(1, 0)
        images = {1: WRITTEN}
        loop = asyncio.get_running_loop()

        def write() -> None:
            chance = random.Random(5)
            for version in range(2, 60):
                old = images[version - 1]
                at = chance.randrange(250) * 4096
                payload = chance.randbytes(4096)
                images[version] = old[:at] + payload + old[at + 4096 :]
                update = Update(
                    chunk, Version(version), Kind.WRITE, at, 4096, memoryview(payload),
                    crc32c(payload), Tag(1, 77, version), 0, VERSION, MIB,
                )  # fmt: skip
                shell.store.prepare([update])
                shell.store.commit([(chunk, Version(version), VERSION)])
                if version % 10 == 0:
                    shell.store.maintain()

        writing = loop.run_in_executor(None, write)
        while True:
            await asyncio.sleep(0)  # else nobody hears of the writer's end
            last = writing.done()
            items = [ReadItem(chunk, 1, VERSION, at * 4096) for at in range(0, 256, 8)]
            results, into = await ask(world, items, 8192)
            for item, result, view in zip(items, results, into, strict=True):
                image = images[result.version][item.offset : item.offset + 8192]
                assert (result.code, result.checksum) == (0, crc32c(image)) and view == image
            if last:
                break
        await writing

    run(test)
