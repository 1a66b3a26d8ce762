"""Both faces of the wire's client behind one, and a server in a child process for them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hillfire.cluster import Endpoint
from hillfire.errors import Error
from hillfire.proto.wire.base import Reply, Request
from hillfire.proto.wire.pick import connect_async, connect_blocking, host_id
from tests.conformance.wire_child import STATE

TIMEOUT_S = float(os.environ.get("WIRE_TEST_TIMEOUT_S", "10"))


class Server:
    """wire_child.py, running."""

    def __init__(self, **limits: int) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="hillfire-wire-")
        path = f"{self.folder.name}/wire.sock"
        script = Path(__file__).with_name("wire_child.py")
        command = [sys.executable, str(script), path]
        command += [f"{key}={value}" for key, value in limits.items()]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        tcp, *rdma = self.process.stdout.readline().split()
        self.endpoint = Endpoint("", tcp, path, host_id(), rdma[0] if rdma else "")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT_S)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.folder.cleanup()

    def ask(self, method: int, body: bytes = b"") -> bytes:
        """Ask over a connection of its own."""
        connection = connect_blocking(self.endpoint, TIMEOUT_S, transport="shm")
        try:
            return connection.finish(connection.start(Request(method, body), TIMEOUT_S), 10).body
        finally:
            connection.close()

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask(STATE))
        return found


class BlockingFace:
    def __init__(self, endpoint: Endpoint, transport: str) -> None:
        self.connection = connect_blocking(endpoint, TIMEOUT_S, transport=transport)

    def request(self, request: Request, timeout_s: float = TIMEOUT_S) -> Reply:
        return self.connection.finish(self.connection.start(request, timeout_s), timeout_s)

    def send(self, requests: Sequence[Request]) -> Any:
        return [self.connection.start(request, TIMEOUT_S) for request in requests]

    def gather(self, sent: Any) -> list[Reply | Error]:
        """Finish, last first."""
        replies: list[Reply | Error] = []
        for ticket in reversed(sent):
            try:
                replies.append(self.connection.finish(ticket, TIMEOUT_S))
            except Error as exc:
                replies.append(exc)
        return replies[::-1]

    def close(self) -> None:
        self.connection.close()

    def end(self) -> None:
        self.connection.close()


class AsyncFace:
    def __init__(self, endpoint: Endpoint, transport: str) -> None:
        self.loop = asyncio.new_event_loop()
        try:
            self.connection = self.loop.run_until_complete(
                connect_async(endpoint, TIMEOUT_S, transport=transport)
            )
        except BaseException:
            self.loop.close()
            raise

    def request(self, request: Request, timeout_s: float = TIMEOUT_S) -> Reply:
        return self.loop.run_until_complete(self.connection.request(request, timeout_s))

    def send(self, requests: Sequence[Request]) -> Any:
        async def begin() -> list[asyncio.Task[Reply]]:
            tasks = [
                asyncio.ensure_future(self.connection.request(request, TIMEOUT_S))
                for request in requests
            ]
            await asyncio.sleep(0)
            return tasks

        return self.loop.run_until_complete(begin())

    def gather(self, sent: Any) -> list[Reply | Error]:
        async def wait() -> list[Any]:
            return await asyncio.gather(*sent, return_exceptions=True)

        return self.loop.run_until_complete(wait())

    def close(self) -> None:
        self.connection.close()

    def end(self) -> None:
        self.connection.close()
        self.loop.close()


Face = BlockingFace | AsyncFace
FACES: dict[str, type[BlockingFace] | type[AsyncFace]] = {
    "blocking": BlockingFace,
    "async": AsyncFace,
}


def until(holds: Callable[[], bool], what: str) -> None:
    """Ask again and again until something holds."""
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)
