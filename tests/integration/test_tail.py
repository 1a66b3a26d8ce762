"""One slow node must not make reads slow. Budget: 25 s.

A storage node of three is really stopped (SIGSTOP) for 120 ms again and again, as a disk that
stalls or a host that swaps would stop it; reads begin every few milliseconds whatever became of
the one before.
"""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

import hillfire
from hillfire.client.aio import Client
from hillfire.proto import meta_pb2
from hillfire.proto.wire.base import Part
from hillfire.region import Region
from tests.cluster import LocalCluster, cluster

STOPPED_S = 0.12
RUNNING_S = 0.18
READS = 400
TRIES = 3
"""Other work on the machine stops processes too: one clear run will do."""
EVERY_S = 0.004
MIB = 1 << 20
DATA = random.Random(5).randbytes(16 * MIB)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with cluster(tmp_path_factory.mktemp("tail"), nodes=3, replicas=3) as local:
        with hillfire.connect(local.address) as fs, fs.open("/data", "wb") as file:
            file.write(DATA)
        yield local


@contextmanager
def stuttering(pid: int) -> Iterator[None]:
    """A process that stands still again and again."""
    ended = threading.Event()

    def work() -> None:
        try:
            while not ended.wait(RUNNING_S):
                os.kill(pid, signal.SIGSTOP)
                ended.wait(STOPPED_S)
                os.kill(pid, signal.SIGCONT)
        finally:
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


Read = Callable[[int], Awaitable[bytes]]


async def latencies(read: Read) -> list[float]:
    """Begin a read every few milliseconds and return how long they took, the shortest first."""
    chance = random.Random(9)

    async def timed(offset: int, due: float) -> float:
        data = await read(offset)
        took_s = time.monotonic() - due
        assert data == DATA[offset : offset + 4096]
        return took_s

    start, begun = time.monotonic(), []
    for number in range(READS):
        due = start + number * EVERY_S
        await asyncio.sleep(due - time.monotonic())
        offset = chance.randrange(len(DATA) - 4096)
        begun.append(asyncio.create_task(timed(offset, time.monotonic())))
    return sorted(await asyncio.gather(*begun))


def reader(client: Client, inode: meta_pb2.Inode, transport: str) -> Read:
    """Return what reads 4 KiB: through staging memory over shm, into memory of ours over tcp."""

    async def fetch(offset: int) -> bytes:
        return await client.fetch(inode, offset, 4096)

    async def read(offset: int) -> bytes:
        into = Part(Region.allocate(4096), 0, 4096)
        assert await client.read(inode, offset, into) == 4096
        return bytes(into.region.view)

    return fetch if transport == "shm" else read


async def measured(address: str, inode: int, transport: str, hedged: bool, pid: int) -> list[float]:
    """Learn what is usual; then measure while the node stutters."""
    client = await Client.connect(address, transport)
    try:
        client.core.hedging.enabled = hedged
        read = reader(
            client, await client.meta("Stat", meta_pb2.StatRequest(inode=inode)), transport
        )
        for offset in range(0, 600 * 4096, 4096):
            await read(offset)
        with stuttering(pid):
            return await latencies(read)
    finally:
        await client.close()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_hedged_reads_cut_the_tail_of_a_stuttering_node(
    running: LocalCluster, transport: str
) -> None:
    pid = running.pid(running.storage_names[1])
    with hillfire.connect(running.address) as fs:
        inode = fs.stat("/data").st_ino
    for _ in range(TRIES):
        p99: dict[bool, float] = {}
        for hedged in (False, True):
            times = asyncio.run(measured(running.address, inode, transport, hedged, pid))
            p99[hedged] = times[int(0.99 * len(times))]
        shown = {kind: f"{value * 1e3:.1f} ms" for kind, value in p99.items()}
        print(f"p99 of 4 KiB reads over {transport}, by whether they are hedged: {shown}")
        if p99[False] > STOPPED_S / 2 and p99[True] < p99[False] / 2:
            break
    assert p99[False] > STOPPED_S / 2, f"nothing was late: {shown}"
    assert p99[True] < p99[False] / 2, f"hedged reads were as late as others: {shown}"
