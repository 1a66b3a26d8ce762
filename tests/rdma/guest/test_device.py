"""What only a device can show: keys, registrations, two hosts, what happens when one is gone."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hillfire.cluster import Endpoint
from hillfire.errors import Code, Error
from hillfire.proto.wire import calls_rdma, rdma_device
from hillfire.proto.wire.base import PART, Part, Request
from hillfire.proto.wire.calls_rdma import IN_PLACE_BYTES, RdmaCalls
from hillfire.proto.wire.pick import _open_rdma, connect_blocking
from hillfire.proto.wire.rdma_flow import READY, Kind
from hillfire.proto.wire.rdma_stream import RdmaStream
from hillfire.proto.wire.rdma_window import Window
from hillfire.region import Region
from tests.conformance.wire_child import ECHO, FILL, HOLD, JOIN, RELEASE
from tests.conformance.wire_faces import FACES, TIMEOUT_S, Face, Server, until

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.end()


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest, server: Server) -> Iterator[Face]:
    made = FACES[request.param](server.endpoint, "rdma")
    yield made
    made.end()


@pytest.mark.parametrize("direction", ["write", "read"])
def test_a_wrong_key_ends_the_connection_and_nothing_else(
    face: Face, server: Server, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = RdmaCalls.pack

    def wrong(self: RdmaCalls, request: Request, parts: Sequence[Part], out: object) -> object:
        table, data, loan = packed(self, request, parts, out)  # type: ignore[arg-type]
        key, address, length = PART.unpack(table)
        return PART.pack(key ^ 0xFF, address, length), data, loan

    region = Region.allocate(MIB)
    part = [Part(region, 0, 4096)]
    monkeypatch.setattr(RdmaCalls, "pack", wrong)
    bad = Request(JOIN, b"", part) if direction == "read" else Request(FILL, b"x", (), part)
    with pytest.raises(Error) as caught:
        face.request(bad)
    assert caught.value.code is Code.CONNECTION
    assert not any(region.view)
    assert not region.quarantined
    monkeypatch.undo()
    again = connect_blocking(server.endpoint, TIMEOUT_S, transport="rdma")
    again.finish(again.start(Request(FILL, b"x", (), part), TIMEOUT_S), TIMEOUT_S)
    assert region.view[:4096] == b"x" * 4096
    again.close()


def test_another_process_sees_in_the_memfd_what_the_device_wrote(face: Face) -> None:
    region = Region.allocate(MIB)
    face.request(Request(FILL, b"s", (), [Part(region, 1000, 5000)]))
    script = (
        "import mmap,sys; m = mmap.mmap(int(sys.argv[1]), 1048576); print(m[999:6001].count(b's'))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(region.fd)],
        pass_fds=[region.fd],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "5000"


def test_registered_once_and_until_the_region_ends(face: Face) -> None:
    region = Region.allocate(MIB)
    for _ in range(3):
        face.request(Request(FILL, b"r", (), [Part(region, 0, 100)]))
    device = next(iter(rdma_device._devices.values()))
    assert device.keys(region) is device.keys(region)
    assert device.knows(region)
    region.close()
    other = Region.allocate(MIB)
    face.request(Request(FILL, b"r", (), [Part(other, 0, 100)]))
    assert not device.knows(region)


def test_a_large_foreign_buffer_is_filled_in_place_and_a_small_one_too(face: Face) -> None:
    buffer = bytearray(2 * IN_PLACE_BYTES)
    region = Region.wrap(buffer)
    device = next(iter(rdma_device._devices.values()))
    face.request(Request(FILL, b"1", (), [Part(region, 0, 100)]))
    assert not device.knows(region)  # it passed through staging memory
    face.request(Request(FILL, b"2", (), [Part(region, 100, IN_PLACE_BYTES)]))
    assert device.knows(region)
    assert buffer == b"1" * 100 + b"2" * IN_PLACE_BYTES + bytes(IN_PLACE_BYTES - 100)
    whole = bytes(range(256)) * (IN_PLACE_BYTES // 256)
    assert face.request(Request(JOIN, b"", [Part(Region.wrap(whole), 0, len(whole))])).body == whole


class Watched(Window):
    """Remembers the most that was on its way."""

    most = 0
    late = 0

    def take(self, n_bytes: int) -> bool:
        taken = super().take(n_bytes)
        self.most = max(self.most, self.taken)
        self.late += not taken
        return taken

    def retry(self, waiter: object) -> bool:
        taken = super().retry(waiter)  # type: ignore[arg-type]
        self.most = max(self.most, self.taken)
        return taken


def test_no_more_is_on_its_way_than_the_reader_has_room_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = Watched(2 * MIB)
    monkeypatch.setattr(calls_rdma, "_window", window)
    faces = [FACES["async"](server.endpoint, "rdma") for _ in range(2)]
    regions = [Region.allocate(MIB) for _ in range(12)]
    sent = [
        face.send([Request(FILL, bytes([65 + n]), (), [Part(r, 0, MIB)]) for n, r in mine])
        for face, mine in zip(
            faces, (list(enumerate(regions))[:6], list(enumerate(regions))[6:]), strict=True
        )
    ]
    loops = [threading.Thread(target=faces[k].gather, args=(sent[k],)) for k in range(2)]
    for thread in loops:
        thread.start()
    for thread in loops:
        thread.join(TIMEOUT_S)
    for n, region in enumerate(regions):
        assert bytes(region.view) == bytes([65 + n]) * MIB
    assert window.late > 0
    assert window.most == 2 * MIB
    assert window.taken == 0
    assert not window.waiting
    for face in faces:
        face.end()


def test_a_thread_that_takes_answers_in_the_wrong_order_is_not_stopped(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls_rdma, "_window", Window(MIB))
    first, second = (connect_blocking(server.endpoint, TIMEOUT_S, transport="rdma") for _ in "12")
    region = Region.allocate(2 * MIB)
    early = first.start(Request(FILL, b"1", (), [Part(region, 0, MIB)]), TIMEOUT_S)
    late = second.start(Request(FILL, b"2", (), [Part(region, MIB, MIB)]), TIMEOUT_S)
    second.finish(late, TIMEOUT_S)
    first.finish(early, TIMEOUT_S)
    assert bytes(region.view) == b"1" * MIB + b"2" * MIB
    first.close()
    second.close()


TWO_HOSTS = """
import sys
from hillfire.cluster import Endpoint
from hillfire.errors import Error
from hillfire.proto.wire.base import Part, Request
from hillfire.proto.wire.pick import connect_blocking
from hillfire.region import Region
from tests.conformance.wire_child import FILL, JOIN
region = Region.allocate(1 << 20)
endpoint = Endpoint("", "", "", "", sys.argv[1])

def ask():
    connection = connect_blocking(endpoint, 30, transport="rdma")
    connection.finish(connection.start(Request(FILL, b"h", (), [Part(region, 0, 1 << 20)]), 60), 60)
    parts = [Part(region, 0, 1 << 20)]
    reply = connection.finish(connection.start(Request(JOIN, b"", parts), 60), 60)
    assert reply.body == b"h" * (1 << 20)
    return connection

connection = ask()
print("both ways", flush=True)
sys.stdin.readline()
try:
    connection.finish(connection.start(Request(FILL, b"i", (), [Part(region, 0, 1 << 20)]), 60), 60)
except Error as exc:
    print(exc.code.name, exc.strerror, flush=True)
sys.stdin.readline()
ask()
print("again", flush=True)
"""


def packets(link: str) -> int:
    return int(Path(f"/sys/class/net/{link}/statistics/tx_bytes").read_text())


def address(link_layer: str) -> None:
    """Say where the host at the other end of va is."""
    command = ["ip", "neigh", "replace", "10.1.0.2", "dev", "va", "lladdr", link_layer]
    subprocess.run([*command, "nud", "permanent"], check=True)


def test_two_devices_and_a_cable_that_is_pulled(server: Server) -> None:
    environment = {**os.environ, "HILLFIRE_RDMA": "rxa:1:1"}
    before = packets("va"), packets("vb")
    child = subprocess.Popen(
        [sys.executable, "-c", TWO_HOSTS, server.endpoint.rdma],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "both ways\n"
        after = packets("va"), packets("vb")
        assert after[0] - before[0] > MIB  # the write's bytes, and the read's
        assert after[1] - before[1] > MIB
        address("02:00:00:00:00:01")  # nobody's: what leaves va arrives nowhere
        begun = time.monotonic()
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline().startswith("CONNECTION")
        assert time.monotonic() - begun < 30
        address(Path("/sys/class/net/vb/address").read_text().strip())
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "again\n"
        assert child.wait(TIMEOUT_S) == 0
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def test_without_a_device_tcp_is_taken(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    here = server.endpoint
    elsewhere = Endpoint("", here.tcp, here.shm, "another boot id", here.rdma)
    for setting, kind in (("", "rdma"), ("off", "tcp"), ("nosuch", "tcp")):
        monkeypatch.setenv("HILLFIRE_RDMA", setting)
        connection = connect_blocking(elsewhere, TIMEOUT_S)
        assert connection.kind == kind
        connection.close()
    monkeypatch.delenv("HILLFIRE_RDMA")
    monkeypatch.setenv("HILLFIRE_TRANSPORTS", "rdma,tcp")
    connection = connect_blocking(here, TIMEOUT_S)
    assert connection.kind == "rdma"
    connection.close()


def test_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIRE_TEST_RDMA_POLL_US", "2000")
    monkeypatch.setenv("HILLFIRE_RDMA_POLL_US", "2000")
    server = Server()
    try:
        face = FACES["blocking"](server.endpoint, "rdma")
        region = Region.allocate(MIB)
        for k in range(20):
            face.request(Request(FILL, bytes([k]), (), [Part(region, 0, MIB)]))
            assert region.view[0] == region.view[-1] == k
        face.end()
    finally:
        server.end()


def test_nonsense_over_the_queue_pair_ends_it_and_nothing_else(server: Server) -> None:
    for nonsense in (b"GET / HTTP/1.1\r\n" * 10, bytes(range(256)) * 4, None):
        stream = _open_rdma(server.endpoint.rdma, TIMEOUT_S)
        assert isinstance(stream, RdmaStream)
        stream.settimeout(TIMEOUT_S)
        if nonsense is None:
            stream.say(Kind.READY, READY.pack(1, 1))  # what only servers say
        else:
            stream.send(nonsense)
        answer = memoryview(bytearray(4096))
        while stream.recv_into(answer):
            pass  # it may have said why
        stream.close()
        stream.close()
        assert server.ask(ECHO, b"alive") == b"alive"


def test_connections_leave_nothing_behind(server: Server) -> None:
    def resources() -> str:
        told = subprocess.run(["rdma", "resource"], capture_output=True, text=True, check=True)
        return told.stdout

    def count(text: str, what: str) -> int:
        return sum(int(line.split(what + " ")[1].split()[0]) for line in text.splitlines())

    region = Region.allocate(MIB)
    before = resources()
    for kind in FACES:
        for _ in range(5):
            face = FACES[kind](server.endpoint, "rdma")
            face.send([Request(HOLD, b"", (), [Part(region, 0, 10)])])
            face.request(Request(ECHO, b""))
            face.end()
    server.ask(RELEASE)
    for what in ("qp", "cq"):
        until(lambda what=what: count(resources(), what) <= count(before, what), what)  # type: ignore[misc]
    assert count(resources(), "mr") <= count(before, "mr") + 24  # rings, kept for the next ones
