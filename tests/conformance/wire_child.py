"""A wire server in a process of its own, which the wire's tests talk to and kill.

Usage: wire_child.py SOCKET [LIMIT=VALUE ...]; prints its tcp address once it listens. With the
address of an RDMA device in WIRE_TEST_RDMA it has a door there, and prints that address as well.
"""

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Awaitable

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Answer, Incoming
from hillfire.proto.wire.limits import Limits
from hillfire.proto.wire.server import WireServer

ECHO, FILL, JOIN, HOLD, RELEASE, FAIL, CRASH, HALF, STATE, SLOW_ECHO, BAD = range(1, 12)
"""What the server can be asked to do; see ``Child``."""


class Child:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.holding = 0
        self.most_held = 0

    def handle(self, incoming: Incoming) -> Answer | Awaitable[Answer]:
        method = incoming.method
        if method == ECHO:
            return Answer(body=bytes(incoming.body))
        if method == FILL:
            return self.fill(incoming, bytes(incoming.body))
        if method == HALF:
            return self.fill(incoming, bytes(incoming.body), 2)
        if method == JOIN:
            return Answer(body=b"".join(incoming.sources))
        if method == HOLD:
            return self.hold(incoming)
        if method == RELEASE:
            self.gate.set()
            self.gate = asyncio.Event()
            return Answer()
        if method == FAIL:
            raise Error(Code(int(bytes(incoming.body))), "as told: ä")
        if method == STATE:
            state = {
                "pid": os.getpid(),
                "fds": len(os.listdir("/proc/self/fd")),
                "holding": self.holding,
                "most_held": self.most_held,
                "timeout_s": incoming.timeout_s,
                "peer": incoming.peer,
            }
            return Answer(body=json.dumps(state).encode())
        if method == SLOW_ECHO:
            return self.slow_echo(incoming)
        if method == BAD:
            return Answer(filled=(1, 2, 3))
        raise ValueError("told to crash")

    @staticmethod
    def fill(incoming: Incoming, pattern: bytes, divisor: int = 1) -> Answer:
        filled = []
        for view in incoming.destinations:
            count = len(view) // divisor
            view[:count] = pattern * count
            filled.append(count)
        return Answer(filled=filled)

    async def hold(self, incoming: Incoming) -> Answer:
        self.holding += 1
        self.most_held = max(self.most_held, self.holding)
        await self.gate.wait()
        self.holding -= 1
        return self.fill(incoming, b"L")

    @staticmethod
    async def slow_echo(incoming: Incoming) -> Answer:
        await asyncio.sleep(0)
        return Answer(body=bytes(incoming.body))


async def main() -> None:
    limits = dataclasses.replace(
        Limits(), **{key: int(value) for key, value in (arg.split("=") for arg in sys.argv[2:])}
    )
    door = None
    if where := os.environ.get("WIRE_TEST_RDMA"):
        from hillfire.proto.wire.rdma import Door

        device = os.environ.get("WIRE_TEST_RDMA_DEVICE", "")
        poll_us = int(os.environ.get("WIRE_TEST_RDMA_POLL_US", "0"))
        door = f"{where}:0", Door(device, poll_us)
    server = WireServer(
        Child().handle, tcp="127.0.0.1:0", shm=sys.argv[1], rdma=door, limits=limits
    )
    await server.start()
    print(server.tcp_address, server.rdma_address, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
