"""The metadata service and a client over chunks that keep epochs: a cut that is half made.

One client truncates; the chains are cut one after another. Another writes meanwhile, to a chunk
that was cut and to one that was not. Budget: 5 s.
"""

import asyncio
from typing import Any

import pytest

from hillfire.client import writing
from hillfire.client.actions import Exchange, Operation, Pause
from hillfire.errors import Code
from hillfire.meta.engine.memory import MemoryEngine
from hillfire.meta.intents import Intent
from hillfire.proto import meta_pb2 as pb
from hillfire.proto.wire.chunks import WriteItem
from hillfire.types import InodeId, chunk_id, split_chunk_id
from tests.unit import client_world, meta_world
from tests.unit.client_world import CHAINS, CHUNK
from tests.unit.meta_world import RecordedStorage
from tests.unit.test_client_core import part


class Chunks(RecordedStorage):
    """Cuts chunks by the rules: an older epoch is refused, its own is left alone (R11, R12)."""

    def __init__(self) -> None:
        super().__init__()
        self.data: dict[bytes, bytearray] = {}
        self.epochs: dict[bytes, int] = {}
        self.chains: list[int] = []
        self.between = asyncio.Event()
        self.go_on = asyncio.Event()

    def admit(self, node: int, item: Any) -> Code | None:
        if not isinstance(item, WriteItem):
            return None
        if self.epochs.get(item.chunk, 0) > item.epoch:
            return Code.STALE_EPOCH
        self.epochs[item.chunk] = item.epoch
        return None

    async def truncate(self, intent: Intent, timeout_s: float) -> None:
        for number, chain in enumerate(intent.chains):
            if number:
                self.between.set()
                await self.go_on.wait()
            for chunk in list(self.data):
                inode, index = split_chunk_id(chunk)  # type: ignore[arg-type]
                if inode == intent.inode and self.chains[index % CHAINS] == chain:
                    self._make_cut(chunk, intent.epoch, max(0, intent.length - index * CHUNK))

    def _make_cut(self, chunk: bytes, epoch: int, length: int) -> None:
        if self.epochs.get(chunk, 0) < epoch and len(self.data[chunk]) > length:
            del self.data[chunk][length:]
            self.epochs[chunk] = epoch


class Joint(client_world.World):
    """A client whose metadata service is the real one."""

    def __init__(self) -> None:
        self.meta = meta_world.World(MemoryEngine())
        self.storage = self.meta.storage = Chunks()
        self.meta.restart()
        self.meta.host.set_chains(range(1, CHAINS + 1))
        super().__init__()
        self.chunks = self.storage.data
        self.fault = self.storage.admit
        self.waiting = asyncio.Event()

    def stat(self, request: Any) -> pb.Inode:
        return self.meta.stat(request.inode)

    async def drive(self, operation: Operation[Any]) -> Any:
        """Run an operation beside others."""
        value: Any = None
        while True:
            try:
                action = operation.send(value)
            except StopIteration as stop:
                return stop.value
            if isinstance(action, Exchange):
                value = [self._answer(call) for call in action.calls]
            else:
                assert isinstance(action, Pause)
                value = None
                self.waiting.set()
                self.now += action.seconds / 1000
            await asyncio.sleep(0)


@pytest.mark.parametrize("looks", [False, True], ids=["has it open", "looks at it"])
@pytest.mark.parametrize("length", [0, CHUNK + 100])
def test_old_bytes_do_not_survive_a_cut_in_a_chunk_that_another_client_writes(
    length: int, looks: bool
) -> None:
    async def main() -> None:
        joint = Joint()
        file = joint.meta.create(b"f")
        joint.storage.chains = list(file.layout.chains)
        old = part(b"o" * CHUNK)
        extent = joint.core.extent(joint.meta.stat(file.id))
        for index in range(CHAINS):
            await joint.drive(writing.write_batch(joint.core, [(extent, index * CHUNK, old)]))
        inode = joint.meta.settle(file.id, length=CHAINS * CHUNK)
        extent = joint.core.extent(inode)

        request = pb.TruncateRequest(caller=meta_world.ROOT, inode=file.id, length=length)
        cut = asyncio.ensure_future(joint.meta.start("Truncate", request))
        await joint.storage.between.wait()
        first = length // CHUNK  # cut already; the last is not
        if looks:
            extent = joint.core.extent(joint.meta.stat(file.id))
        places = [(extent, at * CHUNK + 200, part(b"new")) for at in (first, CHAINS - 1)]
        writer = asyncio.ensure_future(joint.drive(writing.write_batch(joint.core, places)))
        waits = asyncio.ensure_future(joint.waiting.wait())
        await asyncio.wait([writer, waits], return_when=asyncio.FIRST_COMPLETED)
        waits.cancel()
        joint.storage.go_on.set()
        answer = await cut
        assert await writer == [3, 3]
        assert (answer.length, answer.epoch) == (length, 1)

        for index in range(CHAINS):
            data = bytes(joint.chunks.get(chunk_id(InodeId(file.id), index), b""))
            kept = min(CHUNK, max(0, length - index * CHUNK))
            assert b"o" not in data[kept:], f"chunk {index}"
        assert joint.chunks[chunk_id(InodeId(file.id), first)][200:203] == b"new"

    asyncio.run(main())
