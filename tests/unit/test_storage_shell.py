"""The shell of one target on a store in memory. Budget: 5 s."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from crc32c import crc32c

from hillfire.cluster import Chain, PublicState, Routing
from hillfire.proto.wire.chunks import Kind, WriteItem
from hillfire.storage.craq import events
from hillfire.storage.dataplane import DataPlane
from hillfire.storage.peers import Peers
from hillfire.storage.pool import Pools
from hillfire.storage.shell import TargetShell
from hillfire.storage.store.memory import MemoryStore
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
