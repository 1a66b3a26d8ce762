"""What the wire costs: latency, batches of small reads, bulk; its limits beside, in one run.

Usage: python tests/bench/bench_wire.py [seconds a row]. Never a pass or fail. One server process
answers from memory, one client process asks. CPU figures are of user and system time together:
on a busy machine they say more than the clock.
"""

import asyncio
import contextlib
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable

import numpy as np

from hillfire.cluster import Endpoint
from hillfire.errors import Code
from hillfire.proto.wire.base import WIRE_VERSION, Answer, Incoming, Part, Parts, Request
from hillfire.proto.wire.pick import connect_async, connect_blocking, host_id
from hillfire.proto.wire.server import WireServer
from hillfire.region import Region

ECHO, READ, LATER, WRITE = 1, 2, 3, 4
MIB = 1024 * 1024
BATCH = 256
REGION_BYTES = 64 * MIB
ROUNDS = 5
_STORE = memoryview(os.urandom(REGION_BYTES))
_SINK = bytearray(4 * MIB)


def handle(incoming: Incoming) -> Answer | Awaitable[Answer]:
    """Copy from or to memory, as a storage node with everything cached would."""
    if incoming.method == ECHO:
        return Answer(Code.OK, bytes(incoming.body))
    if incoming.method == LATER:
        return _later(incoming)
    if incoming.method == WRITE:
        for view in incoming.sources:
            _SINK[: len(view)] = view
        return Answer()
    filled, offset = [], 0
    for view in incoming.destinations:
        size = len(view)
        view[:] = _STORE[offset : offset + size]
        filled.append(size)
        offset = (offset + size) % (REGION_BYTES - 4 * MIB)
    return Answer(Code.OK, b"", filled)


async def _later(incoming: Incoming) -> Answer:
    """Answer from a coroutine, which never waits."""
    return Answer(Code.OK, bytes(incoming.body))


def serve(folder: str, ready: int) -> None:
    """Serve until killed."""

    async def main() -> None:
        server = WireServer(handle, tcp="127.0.0.1:0", shm=f"{folder}/wire.sock")
        await server.start()
        os.write(ready, server.tcp_address.encode())
        os.close(ready)
        await asyncio.Event().wait()

    asyncio.run(main())


class Bench:
    """Prints one row a measurement."""

    def __init__(self, pid: int, seconds: float) -> None:
        """Watch the CPU time of the server ``pid``."""
        self.pid = pid
        self.seconds = seconds

    def _server_s(self) -> float:
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def row(self, name: str, once: Callable[[], object], items: int = 1, size: int = 0) -> None:
        """Repeat ``once``, which moves ``items`` items and ``size`` bytes; print the best round."""
        best, count = float("inf"), 0
        for _ in range(20):
            once()
        cpu, server = time.process_time(), self._server_s()
        for _ in range(ROUNDS):
            begun, done = time.perf_counter(), 0
            while time.perf_counter() - begun < self.seconds / ROUNDS:
                once()
                done += 1
            best = min(best, (time.perf_counter() - begun) / done)
            count += done
        cpu = (time.process_time() - cpu) / count * 1e6
        server = (self._server_s() - server) / count * 1e6
        text = f"{name:44s} {best * 1e6:9.1f} µs"
        text += f"  {items / best:11,.0f} /s" if items else " " * 15
        text += f"  {size / best / 2**30:6.2f} GiB/s" if size else " " * 14
        print(f"{text}   CPU µs: client {cpu:7.1f} server {server:7.1f}", flush=True)


def limits(bench: Bench) -> None:
    """Print what the machine can do at best."""
    source, target = memoryview(os.urandom(MIB)), memoryview(bytearray(REGION_BYTES))
    place = 0

    def copy() -> None:
        nonlocal place
        target[place : place + MIB] = source
        place = (place + MIB) % REGION_BYTES

    bench.row("limit: memcpy of 1 MiB", copy, 1, MIB)
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        here.close()
        buffer = bytearray(65536)
        while count := there.recv_into(buffer):
            there.send(memoryview(buffer)[:count])
        os._exit(0)
    there.close()
    buffer = bytearray(100)

    def echo() -> None:
        here.send(b"x" * 40)
        here.recv_into(buffer)

    bench.row("limit: bare echo of 40 B, blocking sockets", echo)
    here.close()
    os.waitpid(pid, 0)
    sendfile_pair(bench)


def sendfile_pair(bench: Bench) -> None:
    """Print what one process that sends a cached file and one that receives in place can do."""
    with tempfile.TemporaryFile() as file:
        file.write(_STORE)
        file.flush()
        listener = socket.create_server(("127.0.0.1", 0))
        pid = os.fork()
        if pid == 0:
            sock, _ = listener.accept()
            place = 0
            with contextlib.suppress(OSError):
                while True:
                    place += os.sendfile(sock.fileno(), file.fileno(), place, MIB - place % MIB)
                    place %= REGION_BYTES
            os._exit(0)
        sock = socket.create_connection(listener.getsockname())
        listener.close()
        region = Region.allocate(REGION_BYTES)
        at = 0

        def receive() -> None:
            nonlocal at
            end = at + MIB
            while at < end:
                at += sock.recv_into(region.view[at:end])
            at %= REGION_BYTES

        Bench(pid, bench.seconds).row("limit: sendfile -> recv_into of 1 MiB", receive, 1, MIB)
        sock.close()
        os.waitpid(pid, 0)


def blocking(bench: Bench, endpoint: Endpoint, transport: str) -> None:
    """Measure the blocking face."""
    connection = connect_blocking(endpoint, 10, transport=transport)

    def ask(request: Request) -> Callable[[], object]:
        return lambda: connection.finish(connection.start(request, 10), 10)

    def at_once(requests: list[Request]) -> Callable[[], object]:
        def work() -> None:
            for ticket in [connection.start(request, 10) for request in requests]:
                connection.finish(ticket, 10)

        return work

    def batch(region: Region) -> list[Part]:
        # Every other block, so that neighbours cannot travel as one.
        return [Part(region, k * 8192, 4096) for k in range(BATCH)]

    bench.row(f"{transport} blocking: echo", ask(Request(ECHO, b"x" * 40)))
    bench.row(f"{transport} blocking: echo from a coroutine", ask(Request(LATER, b"x" * 40)))
    for name, region in (
        ("memfd", Region.allocate(REGION_BYTES)),
        ("foreign", Region.wrap(bytearray(REGION_BYTES))),
    ):
        title = f"{transport} blocking, {name}:"
        one = Request(READ, b"x" * 40, (), [Part(region, 0, 4096)])
        bench.row(f"{title} read 4 KiB", ask(one), 1, 4096)
        many = Request(READ, b"x" * 40 * BATCH, (), batch(region))
        bench.row(f"{title} read {BATCH} x 4 KiB", ask(many), BATCH, BATCH * 4096)
        places, lengths = np.arange(BATCH) * 8192, np.full(BATCH, 4096)
        many = Request(READ, b"x" * 40 * BATCH, (), Parts(region, places, lengths))
        bench.row(f"{title} the same as arrays", ask(many), BATCH, BATCH * 4096)
        bulk = Request(READ, b"x" * 40, (), [Part(region, MIB, MIB)])
        bench.row(f"{title} read 1 MiB", ask(bulk), 1, MIB)
        bulk = Request(READ, b"x" * 40, (), [Part(region, k * MIB, MIB) for k in range(16)])
        bench.row(f"{title} read 16 x 1 MiB", ask(bulk), 16, 16 * MIB)
        ones = [Request(READ, b"x" * 40, (), [Part(region, k * MIB, MIB)]) for k in range(16)]
        bench.row(f"{title} 16 requests of 1 MiB at once", at_once(ones), 16, 16 * MIB)
        bulk = Request(WRITE, b"x" * 40, [Part(region, MIB, MIB)])
        bench.row(f"{title} write 1 MiB", ask(bulk), 1, MIB)
    connection.close()


async def concurrent(bench: Bench, endpoint: Endpoint, transport: str) -> None:
    """Measure the asyncio face."""
    connection = await connect_async(endpoint, 10, transport=transport)
    request = Request(ECHO, b"x" * 40)
    for tasks in (1, 32):
        each = 2000 // tasks

        async def work(count: int = each) -> None:
            for _ in range(count):
                await connection.request(request, 10)

        best = float("inf")
        cpu = time.process_time()
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(tasks)))
            best = min(best, (time.perf_counter() - begun) / (each * tasks))
        cpu = (time.process_time() - cpu) / (each * tasks * ROUNDS) * 1e6
        name = f"{transport} asyncio: echo, {tasks} tasks"
        print(f"{name:44s} {best * 1e6:9.1f} µs  {1 / best:11,.0f} /s", end="")
        print(f"{'':17s}CPU µs: client {cpu:7.1f}")
    connection.close()


def main() -> None:
    """Print every row."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    print(f"hillfire wire {WIRE_VERSION}, Python {platform.python_version()}, {platform.release()}")
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; no disk, replicas or checksums")
    with tempfile.TemporaryDirectory() as folder:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                serve(folder, write)
            finally:
                os._exit(1)
        os.close(write)
        endpoint = Endpoint("", os.read(read, 100).decode(), f"{folder}/wire.sock", host_id())
        try:
            bench = Bench(pid, seconds)
            limits(bench)
            for transport in ("shm", "tcp"):
                blocking(bench, endpoint, transport)
                asyncio.run(concurrent(bench, endpoint, transport))
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
