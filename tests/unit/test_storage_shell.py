"""The shell of one target on a store in memory. Budget: 5 s."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from crc32c import crc32c

from hillfire.cluster import Chain, PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind, WriteItem
from hillfire.storage import storing
from hillfire.storage.craq import effects, events
from hillfire.storage.dataplane import DataPlane
from hillfire.storage.peers import Peers
from hillfire.storage.pool import Pools
from hillfire.storage.shell import TargetShell
from hillfire.storage.store.base import Image, Update
from hillfire.storage.store.memory import MemoryStore
from hillfire.storage.threads import Group, Threads
from hillfire.storage.throttle import Meter
from hillfire.types import ChainId, TargetId, chunk_id

CHUNK = chunk_id(7, 0)  # type: ignore[arg-type]


def test_tags_of_idle_clients_are_forgotten_in_table_and_store() -> None:
    async def work(executor: ThreadPoolExecutor) -> None:
        store = MemoryStore()
        shell = TargetShell(
            TargetId(1), store, peers=Peers(), pools=Pools(1 << 20), executor=executor,
            routing=lambda: Routing("", 0), stopped=lambda *_: None, poke=lambda: None,
        )  # fmt: skip
        shell.routing_changed(Chain(ChainId(1), 2, ((TargetId(1), PublicState.SERVING),)))
        data = DataPlane(lambda chain: shell, lambda: True, Meter())

        async def write(client: int) -> None:
            item = WriteItem(
                CHUNK, 1, 2, Kind.WRITE, 0, 1, crc32c(b"x"), 0, 65536, client, 0, 1
            )  # fmt: skip
            (result,) = await data.update(1, [item], [memoryview(b"x")], events.WritesArrived, 5)
            assert result.code == 0

        for client in (5, 6):
            await write(client)
        await shell.forget_idle()
        assert {tag.client for tag, _, _ in store.tags()} == {5, 6}
        await write(7)
        await shell.forget_idle()
        assert {tag.client for tag, _, _ in store.tags()} == {7}
        await write(6)
        assert store.get(CHUNK).version == 4, "it was not kept"  # type: ignore[union-attr]
        await shell.drained()

    with ThreadPoolExecutor(2) as executor:
        asyncio.run(asyncio.wait_for(work(executor), 10))


@pytest.mark.parametrize("where", ["handle", "effect", "store"])
def test_an_exception_that_should_not_be_answers_who_waits_and_stops_the_target(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MemoryStore):
        def prepare(self, updates: Sequence[Update]) -> list[Image | Exception]:
            raise ZeroDivisionError

    async def work(executor: ThreadPoolExecutor) -> None:
        store = Broken() if where == "store" else MemoryStore()
        stops: list[effects.Stop] = []
        shell = TargetShell(
            TargetId(1), store, peers=Peers(), pools=Pools(1 << 20), executor=executor,
            routing=lambda: Routing("", 0), stopped=lambda _, stop: stops.append(stop),
            poke=lambda: None,
        )  # fmt: skip
        shell.routing_changed(Chain(ChainId(1), 2, ((TargetId(1), PublicState.SERVING),)))
        if where == "handle":
            shell.replica._arrive = None  # type: ignore[assignment,method-assign]
        elif where == "effect":
            shell.threads.submit = None  # type: ignore[assignment,method-assign]
        data = DataPlane(lambda chain: shell, lambda: True, Meter())
        payload = b"x" * 100_000  # not inline
        item = WriteItem(
            CHUNK, 1, 2, Kind.WRITE, 0, len(payload), crc32c(payload), 0, 1 << 20, 9, 0, 1
        )
        results = await asyncio.wait_for(
            data.update(1, [item], [memoryview(payload)], events.WritesArrived, 5), 5
        )
        assert results[0].code in (Code.NOT_SERVING, Code.IO)
        assert len(stops) == 1 and shell.replica.stopped is not None
        again = await data.update(1, [item], [memoryview(payload)], events.WritesArrived, 5)
        assert again[0].code == Code.NOT_SERVING

    with ThreadPoolExecutor(2) as executor:
        asyncio.run(asyncio.wait_for(work(executor), 10))
    assert "event=defect" in caplog.text or "event=store_failed" in caplog.text


def test_those_who_want_a_sync_during_one_share_the_next() -> None:
    async def work(executor: ThreadPoolExecutor) -> None:
        runs, go = 0, threading.Semaphore(0)

        def sync() -> None:
            nonlocal runs
            assert go.acquire(timeout=5)
            runs += 1
            if runs == 3:
                raise Error(Code.IO, "the disk is gone")

        group = Group(Threads(executor), sync)
        first = asyncio.ensure_future(group.join())
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(group.join()) for _ in range(20)]
        await asyncio.sleep(0)
        go.release()
        await first
        assert not any(other.done() for other in others), "theirs begins after they asked"
        last = asyncio.ensure_future(group.join())
        await asyncio.sleep(0)
        go.release()
        await asyncio.gather(*others)
        assert runs == 2
        go.release()
        with pytest.raises(Error, match="the disk is gone"):
            await last
        go.release()
        await group.join()
        assert runs == 4

    with ThreadPoolExecutor(2) as executor:
        asyncio.run(asyncio.wait_for(work(executor), 10))


def test_after_the_loop_had_to_wait_for_the_disk_threads_do(monkeypatch: Any) -> None:
    monkeypatch.setattr(storing, "SLOW_NS", 20_000_000)
    monkeypatch.setattr(storing, "WARY_NS", 60_000_000_000)

    class Slow(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.threads: list[int] = []
            self.slow = False

        def prepare(self, updates: Sequence[Update]) -> list[Image | Exception]:
            self.threads.append(threading.get_ident())
            if self.slow:
                threading.Event().wait(0.03)
            return super().prepare(updates)

        def commit(self, chunks: Any) -> None:
            self.threads.append(threading.get_ident())
            super().commit(chunks)

    async def work(executor: ThreadPoolExecutor) -> None:
        store = Slow()
        shell = TargetShell(
            TargetId(1), store, peers=Peers(), pools=Pools(1 << 20), executor=executor,
            routing=lambda: Routing("", 0), stopped=lambda *_: None, poke=lambda: None,
        )  # fmt: skip
        shell.routing_changed(Chain(ChainId(1), 2, ((TargetId(1), PublicState.SERVING),)))
        data = DataPlane(lambda chain: shell, lambda: True, Meter())
        mine = threading.get_ident()

        async def write(sequence: int) -> list[bool]:
            store.threads.clear()
            item = WriteItem(
                CHUNK, 1, 2, Kind.WRITE, 0, 1, crc32c(b"x"), 0, 65536, 1, 0, sequence
            )  # fmt: skip
            (result,) = await data.update(1, [item], [memoryview(b"x")], events.WritesArrived, 5)
            assert result.code == 0
            return [thread == mine for thread in store.threads]

        assert await write(1) == [True, True]
        store.slow = True
        assert await write(2) == [True, False], "it has just waited"
        store.slow = False
        assert await write(3) == [False, False]
        monkeypatch.setattr(shell._storing, "_wary_until_ns", 0)
        assert await write(4) == [True, True]

    with ThreadPoolExecutor(2) as executor:
        asyncio.run(asyncio.wait_for(work(executor), 10))
