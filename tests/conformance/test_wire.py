"""One suite over both transports and both faces of the wire.

Budget: 60 s.
"""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hillfire import metrics
from hillfire.cluster import Endpoint
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import (
    MAX_BODY_BYTES,
    MAX_DATA_BYTES,
    MAX_PARTS,
    Answer,
    Incoming,
    Part,
    Parts,
    Reply,
    Request,
)
from hillfire.proto.wire.blocking import BlockingConnection
from hillfire.proto.wire.chunks import READ
from hillfire.proto.wire.limits import Limits
from hillfire.proto.wire.pick import connect_async, connect_blocking
from hillfire.proto.wire.server import WireServer
from hillfire.region import Region
from tests.conformance.wire_child import (
    BAD,
    CRASH,
    ECHO,
    FAIL,
    FILL,
    HALF,
    HOLD,
    JOIN,
    RELEASE,
    SLOW_ECHO,
    STATE,
)
from tests.conformance.wire_faces import FACES, TIMEOUT_S, Face, Server, until

MIB = 1024 * 1024
SHORT_S = 0.05
DEVICE = os.environ.get("WIRE_TEST_RDMA", "")
"""The address of an RDMA device, where there is one: see tests/rdma."""
TRANSPORTS = ("shm", "tcp", "rdma") if DEVICE else ("shm", "tcp")
BOTH = list(itertools.product(TRANSPORTS, FACES))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.end()


@pytest.fixture
def mortal() -> Iterator[Server]:
    """A server that the test may kill."""
    made = Server()
    yield made
    made.end()


@pytest.fixture(params=BOTH, ids="-".join)
def face(request: pytest.FixtureRequest, server: Server) -> Iterator[Face]:
    transport, kind = request.param
    made = FACES[kind](server.endpoint, transport)
    yield made
    made.end()


@pytest.fixture(params=["memfd", "foreign"])
def region(request: pytest.FixtureRequest) -> Region:
    if request.param == "memfd":
        return Region.allocate(4 * MIB)
    return Region.wrap(bytearray(4 * MIB))


def door() -> tuple[str, Any] | None:
    if not DEVICE:
        return None
    from hillfire.proto.wire.rdma import Door

    return f"{DEVICE}:0", Door()


def refusal(face: Face, request: Request, timeout_s: float = TIMEOUT_S) -> Error:
    with pytest.raises(Error) as caught:
        face.request(request, timeout_s)
    return caught.value


def free(region: Region, offset: int, length: int) -> bool:
    try:
        region.check(offset, length)
    except Error as exc:
        assert exc.code is Code.BUSY
        return False
    return True


def test_echo(face: Face) -> None:
    for size in (0, 1, 40, 65_495, 65_496, 65_497, MIB, MAX_BODY_BYTES):
        body = os.urandom(min(size, 4096)) * (size // 4096 or 1)
        assert face.request(Request(ECHO, body)).body == body
        assert face.request(Request(SLOW_ECHO, body)).body == body


def test_destinations(face: Face, region: Region) -> None:
    parts = [Part(region, 8192, 4096), Part(region, 12288, 100), Part(region, 0, 10)]
    face.request(Request(FILL, b"a", (), parts))
    assert region.view[8192:12388] == b"a" * 4196
    assert region.view[:10] == b"a" * 10
    assert not any(region.view[10:8192])
    assert not any(region.view[12388:])


def test_destinations_filled_in_part(face: Face, region: Region) -> None:
    parts = [Part(region, k * 100, 100) for k in range(50)] + [Part(region, MIB, 3 * MIB)]
    face.request(Request(HALF, b"b", (), parts))
    for k in range(50):
        assert region.view[k * 100 : k * 100 + 50] == b"b" * 50
        assert not any(region.view[k * 100 + 50 : k * 100 + 100])
    assert region.view[MIB : MIB + 3 * MIB // 2] == b"b" * (3 * MIB // 2)
    assert not any(region.view[MIB + 3 * MIB // 2 :])


def test_sources(face: Face, region: Region) -> None:
    noise = os.urandom(len(region.view))
    region.view[:] = noise
    parts = [Part(region, 5, 1000), Part(region, 1005, 0), Part(region, 1005, 7)]
    parts.append(Part(region, MIB, 2 * MIB))
    reply = face.request(Request(JOIN, b"", parts))
    assert reply.body == noise[5:1012] + noise[MIB : 3 * MIB]


def test_sources_and_destinations_of_several_regions(face: Face) -> None:
    regions = [Region.allocate(8192), Region.wrap(bytearray(8192)), Region.allocate(8192)]
    sources = [Part(regions[0], 0, 100), Part(regions[1], 50, 100)]
    destinations = [Part(regions[2], 4000, 100), Part(regions[1], 4000, 100)]
    regions[0].view[:100] = b"0" * 100
    regions[1].view[50:150] = b"1" * 100
    face.request(Request(FILL, b"z", sources, destinations))
    assert regions[2].view[4000:4100] == regions[1].view[4000:4100] == b"z" * 100
    assert face.request(Request(JOIN, b"", sources)).body == b"0" * 100 + b"1" * 100


def test_most_parts(face: Face) -> None:
    region = Region.allocate(MAX_PARTS * 16)
    face.request(Request(FILL, b"p", (), [Part(region, k * 16, 8) for k in range(MAX_PARTS)]))
    assert bytes(region.view) == (b"p" * 8 + bytes(8)) * MAX_PARTS


def test_most_data(face: Face) -> None:
    region = Region.allocate(MAX_DATA_BYTES)
    face.request(Request(FILL, b"q", (), [Part(region, 0, MAX_DATA_BYTES)]))
    assert region.view[0] == region.view[-1] == ord("q")


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.NOT_COMMITTED, Code.CORRUPT])
def test_errors_travel(face: Face, code: Code) -> None:
    error = refusal(face, Request(FAIL, str(int(code)).encode()))
    assert (error.code, error.strerror) == (code, "as told: ä")


def test_a_handler_that_fails_is_internal_and_the_connection_lives(face: Face) -> None:
    region = Region.allocate(4096)
    assert refusal(face, Request(CRASH, b"")).code is Code.INTERNAL
    assert refusal(face, Request(999, b"")).code is Code.INTERNAL
    assert refusal(face, Request(BAD, b"", (), [Part(region, 0, 10)])).code is Code.INTERNAL
    assert face.request(Request(ECHO, b"still")).body == b"still"


def test_limits_of_a_request(face: Face) -> None:
    region = Region.wrap(bytearray(100))
    large = Region.allocate(MAX_DATA_BYTES + 1)
    assert refusal(face, Request(ECHO, bytes(MAX_BODY_BYTES + 1))).code is Code.TOO_LARGE
    many = [Part(region, 0, 1)] * (MAX_PARTS + 1)
    assert refusal(face, Request(FILL, b"x", (), many)).code is Code.TOO_LARGE
    assert refusal(face, Request(FILL, b"x", (), [Part(large, 0, large.size)])).code is (
        Code.TOO_LARGE
    )
    for offset, length in ((-1, 5), (0, -1), (96, 5), (101, 0)):
        part = Part(region, offset, length)
        assert refusal(face, Request(FILL, b"x", (), [part])).code is Code.INVALID
    assert face.request(Request(ECHO, b"still")).body == b"still"


def test_many_outstanding_are_answered_in_any_order(face: Face, region: Region) -> None:
    requests = []
    for k in range(300):
        part = Part(region, k * 512, 512)
        method = SLOW_ECHO if k % 3 == 0 else ECHO
        requests.append(Request(FILL, bytes([k % 251]), (), [part]))
        requests.append(Request(method, str(k).encode()))
    replies = face.gather(face.send(requests))
    for k in range(300):
        echoed = replies[2 * k + 1]
        assert not isinstance(echoed, Error)
        assert echoed.body == str(k).encode()
        assert region.view[k * 512 : k * 512 + 512] == bytes([k % 251]) * 512


def test_both_sides_send_more_than_sockets_hold(face: Face) -> None:
    """Forty requests of 4 MiB, each answered with 4 MiB: whoever only sent would wait for ever."""
    region = Region.allocate(4 * MIB)
    region.view[:] = os.urandom(4 * MIB)
    whole = bytes(region.view)
    body = Request(ECHO, whole)
    sources = Request(JOIN, b"", [Part(region, 0, 4 * MIB)])
    for reply in face.gather(face.send([body, sources] * 20)):
        assert not isinstance(reply, Error)
        assert reply.body == whole


def test_timeout_reaches_the_handler(face: Face) -> None:
    state = json.loads(face.request(Request(STATE, b""), 7.5).body)
    assert state["timeout_s"] == 7.5
    assert state["pid"] == face.connection.server_pid
    assert f"pid={os.getpid()}" in state["peer"]


def test_quarantine_until_the_answer_arrives(face: Face, server: Server) -> None:
    region = Region.allocate(MIB)
    request = Request(HOLD, b"", [Part(region, 300, 100)], [Part(region, 0, 100)])
    assert refusal(face, request, SHORT_S).code is Code.TIMED_OUT
    # Over tcp an answer that comes too late is thrown away: nothing can land any more.
    tcp = face.connection.kind == "tcp"
    assert free(region, 50, 100) == tcp
    assert free(region, 100, 200)
    busy = Request(FILL, b"x", (), [Part(region, 99, 2)])
    if not tcp:
        assert refusal(face, busy).code is Code.BUSY
    # What the operation only reads may be read by others, but not be written into.
    face.request(Request(JOIN, b"", [Part(region, 300, 100)]))
    assert refusal(face, Request(FILL, b"x", (), [Part(region, 399, 2)])).code is Code.BUSY
    server.ask(RELEASE)
    until(lambda: bool(face.request(Request(ECHO, b""))) and free(region, 0, MIB), "released")
    assert bytes(region.view[:100]) == (bytes(100) if tcp else b"L" * 100)
    face.request(busy)
    assert bytes(region.view[99:101]) == b"xx"


def test_quarantine_outlasts_a_stopped_server_and_ends_with_its_death(mortal: Server) -> None:
    faces = {(t, f): FACES[f](mortal.endpoint, t) for t, f in BOTH}
    regions = {key: Region.allocate(4096) for key in faces}
    for key, face in faces.items():
        face.request(Request(FILL, b"x", (), [Part(regions[key], 0, 4096)]))
    mortal.signal(signal.SIGSTOP)
    for key, face in faces.items():
        request = Request(FILL, b"y", (), [Part(regions[key], 0, 4096)])
        assert refusal(face, request, SHORT_S).code is Code.TIMED_OUT
        assert free(regions[key], 0, 1) == (key[0] == "tcp")
    mortal.kill()
    for key, face in faces.items():
        assert refusal(face, Request(ECHO, b"")).code is Code.CONNECTION
        assert free(regions[key], 0, 4096)
        face.end()


def test_peer_death_fails_what_is_outstanding(mortal: Server) -> None:
    faces = {(t, f): FACES[f](mortal.endpoint, t) for t, f in BOTH}
    region = Region.allocate(4096)
    holds = [Request(HOLD, b"", (), [Part(region, k, 1)]) for k in range(5)]
    sent = {key: face.send(holds) for key, face in faces.items()}
    until(lambda: mortal.state()["holding"] == 5 * len(faces), "all requests arrive")
    mortal.kill()
    for key, face in faces.items():
        replies = face.gather(sent[key])
        assert [r.code for r in replies if isinstance(r, Error)] == [Code.CONNECTION] * 5
        assert free(region, 0, 4096)
        face.end()


def test_close_leaves_a_quarantine_until_the_server_lets_go(face: Face, server: Server) -> None:
    region = Region.allocate(4096)
    kind = face.connection.kind
    face.request(Request(FILL, b"a", (), [Part(region, 0, 100)]))
    face.send([Request(HOLD, b"", (), [Part(region, 0, 100)])])
    until(lambda: server.state()["holding"] == 1, "the request arrives")
    face.close()
    assert refusal(face, Request(ECHO, b"")).code is Code.CONNECTION
    # Else nothing can arrive any more; over shm the server still has the memory mapped.
    assert free(region, 0, 4096) == (kind != "shm")
    server.ask(RELEASE)
    until(lambda: free(region, 0, 4096), "released")
    assert server.state()["holding"] == 0
    if kind == "shm":
        assert region.view[:100] == b"L" * 100


def test_late_answers_do_not_reach_foreign_memory(face: Face, server: Server) -> None:
    buffer = bytearray(4096)
    region = Region.wrap(buffer)
    request = Request(HOLD, b"", (), [Part(region, 0, 4096)])
    assert refusal(face, request, SHORT_S).code is Code.TIMED_OUT
    server.ask(RELEASE)
    until(lambda: server.state()["holding"] == 0, "answered")
    until(lambda: bool(face.request(Request(ECHO, b""))) and not region.quarantined, "released")
    assert not any(buffer)


def test_back_pressure_by_requests() -> None:
    server = Server(requests=8)
    try:
        for transport, kind in BOTH:
            face = FACES[kind](server.endpoint, transport)
            sent = face.send([Request(HOLD, b"")] * 40)
            for _ in range(5):  # eight at a time, five times
                until(lambda: server.state()["holding"] == 8, "eight are at work")
                server.ask(RELEASE)
            assert not any(isinstance(reply, Error) for reply in face.gather(sent))
            assert server.state()["most_held"] == 8
            face.end()
    finally:
        server.end()


class Releaser(threading.Thread):
    """Lets held requests go again and again, while another thread takes the answers."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.002):
            self.server.ask(RELEASE)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


@pytest.mark.parametrize("limit", ["in_flight_bytes", "total_bytes"])
def test_back_pressure_by_bytes(limit: str) -> None:
    server = Server(**{limit: 4 * MIB})
    region = Region.wrap(bytearray(MIB))
    try:
        for kind in FACES:
            face = FACES[kind](server.endpoint, "tcp")
            sent = face.send([Request(HOLD, b"", (), [Part(region, 0, MIB)])] * 12)
            until(lambda: server.state()["holding"] == 4, "four are at work")
            with Releaser(server):
                assert not any(isinstance(reply, Error) for reply in face.gather(sent))
            assert server.state()["most_held"] == 4
            face.end()
    finally:
        server.end()


def test_region_limits_and_their_return() -> None:
    server = Server(region_bytes=6 * MIB, regions=3)
    try:
        for kind in FACES:
            face = FACES[kind](server.endpoint, "shm")
            fds = server.state()["fds"]
            regions = [Region.allocate(2 * MIB), Region.allocate(2 * MIB), Region.allocate(4 * MIB)]
            for region in regions[:2]:
                face.request(Request(FILL, b"a", (), [Part(region, 0, 1)]))
            refused = refusal(face, Request(FILL, b"a", (), [Part(regions[2], 0, 1)]))
            assert refused.code is Code.TOO_LARGE
            regions[0].close()
            del regions[1], region  # dropped is as good as closed
            again = Region.allocate(6 * MIB)
            face.request(Request(FILL, b"a", (), [Part(again, 6 * MIB - 1, 1)]))
            face.end()
            until(lambda before=fds: server.state()["fds"] == before - 1, "descriptors closed")  # type: ignore[misc]
    finally:
        server.end()


def test_long_socket_paths_and_stale_sockets() -> None:
    deep = "d" * 100
    server = Server()
    try:
        path = f"{server.folder.name}/{deep}/{deep}/wire.sock"
        os.makedirs(os.path.dirname(path))
        for _ in range(2):  # the second finds the first one's socket, whose process was killed
            child = subprocess.Popen(
                [sys.executable, os.path.join(os.path.dirname(__file__), "wire_child.py"), path],
                stdout=subprocess.PIPE,
            )
            assert child.stdout is not None
            child.stdout.readline()
            endpoint = Endpoint("", "", path, server.endpoint.host)
            for kind in FACES:
                face = FACES[kind](endpoint, "shm")
                assert face.request(Request(ECHO, b"far")).body == b"far"
                face.end()
            child.kill()
            child.wait()
            child.stdout.close()
    finally:
        server.end()


OTHER_USER = """
import encodings.idna, os, sys  # what is imported later, nobody may read
from hillfire.cluster import Endpoint
from hillfire.errors import Error
from hillfire.proto.wire.base import Request
from hillfire.proto.wire.blocking import BlockingConnection
from hillfire.proto.wire.pick import connect_blocking, host_id
endpoint = Endpoint("", sys.argv[2], sys.argv[1], host_id())
import hillfire.proto.wire.blocking
os.setuid(65534)
try:
    connect_blocking(endpoint, 5, transport="shm")
except Error as exc:
    print(exc.code.name)
connection = connect_blocking(endpoint, 5)
print(connection.kind, connection.finish(connection.start(Request(1, b"hello"), 5), 5).body)
connection.close()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_shared_memory_and_gets_tcp(mortal: Server) -> None:
    command = [sys.executable, "-c", OTHER_USER, mortal.endpoint.shm, mortal.endpoint.tcp]
    os.chmod(mortal.folder.name, 0o755)
    told = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert told.stdout.split("\n")[:2] == ["CONNECTION", "tcp b'hello'"], told.stderr
    os.chmod(mortal.endpoint.shm, 0o666)  # past the file's permissions, the server looks itself
    told = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert told.stdout.split("\n")[:2] == ["UNAUTHENTICATED", "tcp b'hello'"], told.stderr


def test_a_forked_child_leaves_its_parents_connection_alone(face: Face, server: Server) -> None:
    region = Region.allocate(4096)
    assert refusal(face, Request(HOLD, b"", (), [Part(region, 0, 1)]), SHORT_S).code is (
        Code.TIMED_OUT
    )
    pid = os.fork()
    if pid == 0:
        try:
            same = face.connection
            if isinstance(same, BlockingConnection):
                with pytest.raises(Error, match="forked"):
                    same.start(Request(ECHO, b""), 1)
            assert free(region, 0, 1) == (same.kind == "tcp")
            same.close()
            again = connect_blocking(server.endpoint, TIMEOUT_S, transport=same.kind)
            ticket = again.start(Request(FILL, b"c", (), [Part(region, 100, 1)]), TIMEOUT_S)
            again.finish(ticket, TIMEOUT_S)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert region.view[100] == ord("c")
    assert face.request(Request(ECHO, b"mine")).body == b"mine"
    server.ask(RELEASE)
    until(lambda: bool(face.request(Request(ECHO, b""))) and free(region, 0, 1), "released")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("patient", [True, False])
def test_a_server_that_stops_lets_go_before_it_closes(
    tmp_path: Path, transport: str, patient: bool
) -> None:
    async def main() -> None:
        begun, gate = asyncio.Event(), asyncio.Event()
        over: list[str] = []

        async def handle(incoming: Incoming) -> Answer:
            begun.set()
            try:
                await gate.wait()
            except asyncio.CancelledError:
                await asyncio.sleep(SHORT_S)  # a thread that takes its time
                raise
            finally:
                over.append("handler")
            return Answer()

        server = WireServer(handle, tcp="127.0.0.1:0", shm=str(tmp_path / "wire.sock"), rdma=door())
        await server.start()
        endpoint = Endpoint("", server.tcp_address, server.shm_path, "", server.rdma_address)
        connection = await connect_async(endpoint, TIMEOUT_S, transport=transport)
        region = Region.allocate(4096)
        asked = asyncio.ensure_future(
            connection.request(Request(HOLD, b"", (), [Part(region, 0, 1)]), TIMEOUT_S)
        )
        asked.add_done_callback(lambda _: over.append("client"))
        await begun.wait()
        stopping = asyncio.ensure_future(server.stop(TIMEOUT_S if patient else 0.001))
        if patient:
            gate.set()
            await asked
        else:
            with pytest.raises(Error) as caught:
                await asked
            assert caught.value.code is Code.CONNECTION
        await stopping
        assert over == ["handler", "client"]
        assert not (tmp_path / "wire.sock").exists()
        with pytest.raises(Error):
            await connect_async(endpoint, TIMEOUT_S, transport=transport)
        connection.close()

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_submitted_requests_call_back_once(mortal: Server, transport: str) -> None:
    async def main() -> None:
        connection = await connect_async(mortal.endpoint, TIMEOUT_S, transport=transport)
        region = Region.allocate(4096)
        heard: dict[str, list[Reply | Error]] = {}
        changed = asyncio.Event()

        def submit(name: str, request: Request, timeout_s: float = TIMEOUT_S) -> None:
            def done(outcome: Reply | Error) -> None:
                heard.setdefault(name, []).append(outcome)
                changed.set()
                if name == "echo":
                    raise ValueError("a receiver that fails")

            connection.submit(request, timeout_s, done)

        async def until_heard(name: str) -> Reply | Error:
            while name not in heard:
                changed.clear()
                await asyncio.wait_for(changed.wait(), TIMEOUT_S)
            return heard[name][0]

        submit("echo", Request(ECHO, b"hello"))
        submit("fill", Request(FILL, b"z", (), [Part(region, 0, 10)]))
        submit("fail", Request(FAIL, str(int(Code.NOT_FOUND)).encode()))
        submit("late", Request(HOLD, b""), SHORT_S)
        submit("lost", Request(HOLD, b""))
        found = await until_heard("fill")
        assert isinstance(found, Reply)
        assert region.view[:11] == b"z" * 10 + bytes(1)
        assert await until_heard("echo") == Reply(b"hello")
        for name, code in (("fail", Code.NOT_FOUND), ("late", Code.TIMED_OUT)):
            error = await until_heard(name)
            assert isinstance(error, Error)
            assert error.code is code
        with pytest.raises(Error):
            submit("wrong", Request(FILL, b"z", (), [Part(region, 4096, 1)]))
        mortal.kill()
        error = await until_heard("lost")
        assert isinstance(error, Error)
        assert error.code is Code.CONNECTION
        with pytest.raises(Error):
            submit("after", Request(ECHO, b""))
        assert {name: len(outcomes) for name, outcomes in heard.items()} == dict.fromkeys(
            ("echo", "fill", "fail", "late", "lost"), 1
        )
        connection.close()

    asyncio.run(main())


def test_arrays_of_parts(face: Face, region: Region) -> None:
    """A large batch as two arrays does what it does as a list, and is refused alike."""
    count = 300
    chance = np.random.default_rng(7)
    places = chance.permutation(count) * 8192
    lengths = chance.integers(0, 4096, count)
    parts = Parts(region, places, lengths)
    region.view[:] = bytes(4 * MIB)
    face.request(Request(FILL, b"n", (), parts))
    for place, length in zip(places.tolist(), lengths.tolist(), strict=True):
        assert region.view[place : place + length] == b"n" * length
        assert not any(region.view[place + length : place + 8192])
    face.request(Request(HALF, b"h", (), parts))
    for place, length in zip(places.tolist(), lengths.tolist(), strict=True):
        half = length // 2
        assert region.view[place : place + length] == b"h" * half + b"n" * (length - half)
    joined = b"".join(bytes(region.view[p : p + n]) for p, n in zip(places, lengths, strict=True))
    assert face.request(Request(JOIN, b"", parts)).body == joined
    whole = Parts(region, np.arange(64) * 4096, np.full(64, 4096))
    face.request(Request(FILL, b"w", (), whole))
    assert region.view[: 64 * 4096] == b"w" * (64 * 4096)
    for wrong in ((-1, 5), (0, -1), (4 * MIB - 4, 5), (4 * MIB + 1, 0), (2**62, 2**62)):
        bad = Parts(region, np.array([0] * 20 + [wrong[0]]), np.array([1] * 20 + [wrong[1]]))
        assert refusal(face, Request(FILL, b"x", (), bad)).code is Code.INVALID
    many = Parts(region, np.zeros(MAX_PARTS + 1, np.int64), np.zeros(MAX_PARTS + 1, np.int64))
    assert refusal(face, Request(FILL, b"x", (), many)).code is Code.TOO_LARGE
    assert face.request(Request(ECHO, b"still")).body == b"still"


def test_connections_are_counted_by_transport(server: Server) -> None:
    def counted() -> dict[str, float]:
        found = [s for s in metrics.REGISTRY.collect() if s.name == "hillfire_connections"]
        here = [s for s in found if s.label("peer") == server.endpoint.tcp]
        return {s.label("transport"): s.value for s in here}

    assert counted() == {}
    faces = [FACES[kind](server.endpoint, transport) for transport, kind in BOTH]
    assert counted() == dict.fromkeys(TRANSPORTS, 2)
    faces[0].close()
    assert counted() == {**dict.fromkeys(TRANSPORTS, 2), TRANSPORTS[0]: 1}
    for face in faces:
        face.end()
    assert counted() == {}


def test_answers_that_are_not_taken_hold_further_requests_back() -> None:
    """Over tcp a server works ahead of a slow client by a few answers only."""
    many, limit = 100, 2 * MIB

    async def main() -> None:
        asked = 0

        def handle(incoming: Incoming) -> Answer:
            nonlocal asked
            asked += incoming.method == FILL
            return Answer(filled=[len(view) for view in incoming.destinations])

        limits = Limits(unsent_bytes=limit)
        server = WireServer(handle, tcp="127.0.0.1:0", shm=None, limits=limits)
        await server.start()
        endpoint = Endpoint("", server.tcp_address, "", "")
        slow = await asyncio.to_thread(connect_blocking, endpoint, TIMEOUT_S, transport="tcp")
        region = Region.allocate(MIB)
        fill = Request(FILL, b"", (), [Part(region, 0, MIB)])
        tickets = [slow.start(fill, TIMEOUT_S) for _ in range(many)]
        other = await connect_async(endpoint, TIMEOUT_S, transport="tcp")
        for _ in range(20):
            await other.request(Request(ECHO, b""), TIMEOUT_S)
        in_sockets = 12 * MIB  # what kernels take at most, on both sides
        assert 0 < asked <= (limit + in_sockets) // MIB + 1
        for ticket in tickets:
            await asyncio.to_thread(slow.finish, ticket, TIMEOUT_S)
        assert asked == many
        slow.close()
        other.close()
        await server.stop()

    asyncio.run(main())


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_way_is_timed_apart_from_the_server(tmp_path: Path, transport: str) -> None:
    """A response tells how long its request was at the server: the rest was spent on the way."""

    async def main() -> None:
        begun, gate = asyncio.Event(), asyncio.Event()

        async def handle(incoming: Incoming) -> Answer:
            begun.set()
            await gate.wait()
            return Answer()

        server = WireServer(handle, tcp="127.0.0.1:0", shm=str(tmp_path / "wire.sock"), rdma=door())
        await server.start()
        endpoint = Endpoint("", server.tcp_address, server.shm_path, "", server.rdma_address)
        connection = await connect_async(endpoint, TIMEOUT_S, transport=transport)
        on_way_ns, at_server_ns = metrics.READ.wire.total_ns, metrics.READ.server.total_ns
        sent_ns = time.monotonic_ns()
        asked = asyncio.ensure_future(connection.request(Request(READ, b""), TIMEOUT_S))
        await begun.wait()
        arrived_ns, held_ns = time.monotonic_ns(), 0

        def release() -> None:
            nonlocal held_ns
            held_ns = time.monotonic_ns() - arrived_ns
            gate.set()

        asyncio.get_running_loop().call_later(SHORT_S, release)
        await asked
        whole_ns = time.monotonic_ns() - sent_ns
        on_way_ns = metrics.READ.wire.total_ns - on_way_ns
        at_server_ns = metrics.READ.server.total_ns - at_server_ns
        assert held_ns <= at_server_ns <= whole_ns
        assert on_way_ns <= whole_ns - held_ns + 1000  # it travels as whole microseconds
        connection.close()
        await server.stop()

    asyncio.run(main())


def test_an_address_that_is_taken_is_named(server: Server, tmp_path: Path) -> None:
    async def main() -> None:
        taken = WireServer(lambda _: Answer(), tcp=server.endpoint.tcp, shm=None)
        with pytest.raises(Error, match=server.endpoint.tcp) as caught:
            await taken.start()
        assert caught.value.code is Code.CONFIGURATION
        for tcp, shm in (("nonsense", None), (None, str(tmp_path / "no" / "folder"))):
            with pytest.raises(Error) as caught:
                await WireServer(lambda _: Answer(), tcp=tcp, shm=shm).start()
            assert caught.value.code is Code.CONFIGURATION

    asyncio.run(main())


def test_nobody_there(server: Server) -> None:
    gone = Endpoint("", "127.0.0.1:1", server.endpoint.shm + "x", server.endpoint.host)
    for transport, kind in [*BOTH, (None, "blocking"), (None, "async")]:
        with pytest.raises(Error) as caught:
            FACES[kind](gone, transport)  # type: ignore[arg-type]
        assert caught.value.code is Code.CONNECTION


def test_choice_of_transport(server: Server) -> None:
    here = server.endpoint
    elsewhere = Endpoint("", here.tcp, here.shm, "another boot id")
    unreachable = Endpoint("", here.tcp, here.shm + "x", here.host)
    for endpoint, kind in ((here, "shm"), (elsewhere, "tcp"), (unreachable, "tcp")):
        connection = connect_blocking(endpoint, TIMEOUT_S)
        assert connection.kind == kind
        connection.close()
