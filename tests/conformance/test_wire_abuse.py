"""What a broken or hostile peer sends: it is refused, and the service lives and leaks nothing.

Budget: 40 s.
"""

import contextlib
import fcntl
import mmap
import os
import random
import socket
import struct
from array import array
from collections.abc import Iterator

import numpy as np
import pytest

from hillfire.errors import Code, Error
from hillfire.proto.wire import frame as frames
from hillfire.proto.wire.base import MAX_DATA_BYTES, WIRE_VERSION, Part, Parts, Request
from hillfire.proto.wire.blocking import BlockingConnection
from hillfire.proto.wire.frame import HEADER, MAGIC, PART, REGISTER, Kind, Role
from hillfire.proto.wire.parser import Parser
from hillfire.proto.wire.pick import connect_blocking
from hillfire.region import SEALS, Region
from tests.conformance.wire_child import ECHO, FILL, HOLD
from tests.conformance.wire_faces import Server, until

TRANSPORTS = ("shm", "tcp")
SIZE = 8192
MANY = (
    PART.pack(1, SIZE, 1),
    PART.pack(1, SIZE - 1, 2),
    PART.pack(1, 2**64 - 1, 2),
    PART.pack(1, 2**62 - 1, 1),
    PART.pack(99, 0, 1),
    PART.pack(2**64 - 1, 0, 1),
)
"""Behind twenty good parts: large batches are checked all at once."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    assert made.process.poll() is None, "the server has died"
    made.end()


class Raw:
    """A peer that says what it likes."""

    def __init__(self, server: Server, transport: str, *, greet: bool = True) -> None:
        if transport == "shm":
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(server.endpoint.shm)
        else:
            host, _, port = server.endpoint.tcp.rpartition(":")
            self.sock = socket.create_connection((host, int(port)))
        self.sock.settimeout(10)
        self.stream = b""
        if greet:
            self.send(frames.hello(Role.CLIENT, os.getpid()))
            assert self.frame().kind == Kind.HELLO

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        while data:
            sent = self.sock.sendmsg([data], rights)
            data, rights = data[sent:], []

    def frame(self) -> frames.Frame:
        """Receive one frame."""
        parser = Parser(lambda frame: [memoryview(bytearray(frame.data_bytes))])
        while True:
            if self.stream:
                view = parser.wanted()[0]
                view[: len(self.stream)] = self.stream
                parser.received(len(self.stream))
                self.stream = b""
            found = parser.next()
            if found is not None:
                return found
            self.stream = self.sock.recv(1)
            if not self.stream:
                raise EOFError

    def code(self) -> Code:
        return Code(self.frame().method)

    def ended(self) -> bool:
        """Wait for the server to close."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionError:
            pass
        return True

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def request(table: bytes = b"", *, destinations: int = 0, sources: int = 0, data: int = 0) -> bytes:
    return frames.encode(
        Kind.REQUEST,
        FILL,
        1,
        timeout_ms=1000,
        table=table,
        body=b"x",
        sources=sources,
        destinations=destinations,
        data_bytes=data,
    )


def memfd(size: int, seals: int = SEALS, *, allocate: bool = True) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    if allocate:
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def register(region: int, length: int) -> bytes:
    return frames.encode(Kind.REGISTER, body=REGISTER.pack(region, length))


def lives(server: Server) -> bool:
    return server.ask(ECHO, b"alive") == b"alive"


@contextlib.contextmanager
def same_descriptors(server: Server) -> Iterator[None]:
    before = server.state()["fds"]
    yield
    until(lambda: server.state()["fds"] == before, "the server closes its descriptors")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_other_version_is_refused_by_name(server: Server, transport: str) -> None:
    hello = bytearray(frames.hello(Role.CLIENT, 1))
    struct.pack_into("<H", hello, 4, WIRE_VERSION + 1)
    with Raw(server, transport, greet=False) as raw:
        raw.send(bytes(hello))
        answer = raw.frame()
        assert answer.method == Code.WRONG_PEER_VERSION
        assert f"wire version {WIRE_VERSION + 1}".encode() in bytes(answer.body)
        assert raw.ended()


def test_client_refuses_a_server_of_another_version() -> None:
    ours, theirs = socket.socketpair()
    hello = bytearray(frames.hello(Role.SERVER, 1))
    struct.pack_into("<H", hello, 4, WIRE_VERSION + 1)
    theirs.sendall(hello)
    with theirs, pytest.raises(Error) as caught:
        BlockingConnection(ours, 5)
    assert caught.value.code is Code.WRONG_PEER_VERSION


@pytest.mark.parametrize(
    "answer",
    [
        frames.encode(Kind.RESPONSE, 0, 77),
        frames.encode(Kind.RESPONSE, 0, 1, data_bytes=5),
        frames.encode(Kind.RESPONSE, 0, 1, table=b"\xff" * 4, destinations=1, data_bytes=5),
        frames.encode(Kind.REQUEST, 0, 1),
        b"\0" * 100,
    ],
    ids=["not-asked", "no-table", "too-much", "request", "no-frame"],
)
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_client_survives_nonsense_of_a_server(answer: bytes, family: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    if family == socket.AF_UNIX:
        ours, theirs = socket.socketpair()
    else:
        ours = socket.create_connection(listener.getsockname())
        theirs = listener.accept()[0]
    listener.close()
    theirs.sendall(frames.hello(Role.SERVER, 1))
    connection = BlockingConnection(ours, 5)
    region = Region.allocate(SIZE)
    ticket = connection.start(Request(FILL, b"", (), [Part(region, 0, 4)]), 5)
    theirs.sendall(answer + b"moredata")
    with pytest.raises(Error) as caught:
        connection.finish(ticket, 5)
    assert caught.value.code is Code.PROTOCOL
    with pytest.raises(Error):
        connection.start(Request(ECHO, b""), 5)
    theirs.close()
    region.check(0, SIZE)  # nothing stays in quarantine once the server is gone


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
@pytest.mark.parametrize(
    ("filled", "data"),
    [([5] * 19 + [11], 106), ([2**32 - 1] * 20, 10), ([5] * 20, 99), ([5] * 21, 105)],
    ids=["one-too-many", "far-too-many", "other-sum", "other-count"],
)
def test_client_survives_nonsense_about_a_large_batch(
    family: int, filled: list[int], data: int
) -> None:
    if family == socket.AF_UNIX:
        ours, theirs = socket.socketpair()
        region, data = Region.wrap(bytearray(SIZE)), 0  # through staging memory
        if filled == [5] * 20:
            filled = [10] * 20 + [0]
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs = listener.accept()[0]
        region = Region.allocate(SIZE)
    theirs.sendall(frames.hello(Role.SERVER, 1))
    connection = BlockingConnection(ours, 5)
    parts = Parts(region, np.arange(20) * 20, np.full(20, 10))
    ticket = connection.start(Request(FILL, b"", (), parts), 5)
    table = struct.pack(f"<{len(filled)}I", *filled)
    answer = frames.encode(
        Kind.RESPONSE, 0, 1, table=table, destinations=len(filled), data_bytes=data
    )
    theirs.sendall(answer + b"x" * data)
    with pytest.raises(Error) as caught:
        connection.finish(ticket, 5)
    assert caught.value.code is Code.PROTOCOL
    theirs.close()
    assert not any(region.view)
    region.check(0, SIZE)


def test_what_is_arriving_over_tcp_stays_in_quarantine_until_it_is_there() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    theirs = listener.accept()[0]
    listener.close()
    theirs.sendall(frames.hello(Role.SERVER, 1))
    connection = BlockingConnection(ours, 5)
    region = Region.allocate(SIZE)
    ticket = connection.start(Request(FILL, b"", (), [Part(region, 0, 100)]), 5)
    table = (100).to_bytes(4, "little")
    answer = frames.encode(Kind.RESPONSE, 0, 1, table=table, destinations=1, data_bytes=100)
    theirs.sendall(answer + b"a" * 50)
    with pytest.raises(Error) as caught:
        connection.finish(ticket, 0.05)
    assert caught.value.code is Code.TIMED_OUT
    with pytest.raises(Error, match="land"):
        region.check(0, 1)
    theirs.sendall(b"a" * 50)

    def there() -> bool:
        connection.drain()
        return not region.quarantined

    until(there, "it is there")
    assert region.view[:100] == b"a" * 100
    connection.close()
    theirs.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_request_before_hello_is_refused(server: Server, transport: str) -> None:
    with same_descriptors(server), Raw(server, transport, greet=False) as raw:
        raw.send(request())
        assert raw.code() is Code.PROTOCOL
        assert raw.ended()


@pytest.mark.parametrize(
    "table",
    [
        PART.pack(99, 0, 10),
        PART.pack(1, SIZE, 1),
        PART.pack(1, SIZE - 1, 2),
        PART.pack(1, 2**64 - 1, 2),
        PART.pack(1, 2**63, 2**32 - 1),
        PART.pack(2**64 - 1, 0, 1),
        PART.pack(1, 0, 1) + PART.pack(1, SIZE + 1, 0),
        *(PART.pack(1, 0, 1) * 20 + bad for bad in MANY),
        PART.pack(99, 0, 1) * 20,
    ],
    ids=["unknown", "behind", "across", "wraps", "far", "forged", "empty-behind"]
    + [f"many-{k}" for k in range(len(MANY) + 1)],
)
def test_forged_addresses_are_answered_and_change_nothing(server: Server, table: bytes) -> None:
    fd = memfd(SIZE)
    with same_descriptors(server), Raw(server, "shm") as raw:
        raw.send(register(1, SIZE), (fd,))
        raw.send(request(table, destinations=len(table) // PART.size))
        assert raw.code() is Code.INVALID
        good = PART.pack(1, SIZE - 2, 2)
        raw.send(request(good, destinations=1))
        assert raw.code() is Code.OK
    assert os.pread(fd, SIZE, 0) == bytes(SIZE - 2) + b"xx"
    os.close(fd)


@pytest.mark.parametrize(
    ("seals", "allocate", "length"),
    [
        (0, True, SIZE),
        (fcntl.F_SEAL_SHRINK, True, SIZE),
        (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, True, SIZE),
        (SEALS, False, SIZE),
        (SEALS, True, SIZE + 4096),
        (SEALS, True, SIZE - 4096),
    ],
    ids=["unsealed", "shrink", "no-seal", "holes", "longer", "shorter"],
)
def test_a_memfd_that_could_fault_is_refused(
    server: Server, seals: int, allocate: bool, length: int
) -> None:
    fd = memfd(SIZE, seals, allocate=allocate)
    with same_descriptors(server), Raw(server, "shm") as raw:
        raw.send(register(1, length), (fd,))
        raw.send(request(PART.pack(1, 0, 10), destinations=1))
        assert raw.code() is Code.NOT_PERMITTED
    assert os.pread(fd, SIZE, 0) == bytes(SIZE)
    os.close(fd)


def test_descriptors_that_are_no_memfd_are_refused(server: Server) -> None:
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    file = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
    os.posix_fallocate(file, 0, SIZE)
    readonly = os.open(f"/proc/self/fd/{(sealed := memfd(SIZE))}", os.O_RDONLY)
    with same_descriptors(server), Raw(server, "shm") as raw:
        for number, fd in enumerate((read, null, file, readonly), 1):
            raw.send(register(number, SIZE), (fd,))
            raw.send(request(PART.pack(number, 0, 10), destinations=1))
            assert raw.code() is Code.NOT_PERMITTED
    for fd in (read, write, null, file, readonly, sealed):
        os.close(fd)


def test_every_descriptor_that_came_in_is_closed(server: Server) -> None:
    fd = memfd(SIZE)
    with same_descriptors(server):
        with Raw(server, "shm") as raw:  # more than one at once for one REGISTER
            raw.send(register(1, SIZE), (fd, fd, fd))
        with Raw(server, "shm") as raw:  # too many at once
            raw.send(register(1, SIZE), (fd,) * 50)
            assert raw.ended()
        with Raw(server, "shm") as raw:  # with frames that want none
            for _ in range(20):
                with contextlib.suppress(OSError):
                    raw.send(request(), (fd,))
            assert raw.ended()
        with Raw(server, "shm", greet=False) as raw:  # before hello
            raw.send(register(1, SIZE), (fd,))
            assert raw.ended()
        with Raw(server, "shm") as raw:  # none where one is wanted
            raw.send(register(1, SIZE))
            assert raw.code() is Code.PROTOCOL
            assert raw.ended()
        with Raw(server, "shm") as raw:  # the same number twice
            raw.send(register(1, SIZE), (fd,))
            raw.send(register(1, SIZE), (fd,))
            assert raw.ended()
        with Raw(server, "shm") as raw:  # cut off within the frame
            raw.send(register(1, SIZE)[:20], (fd,))
        with Raw(server, "shm") as raw:  # of no length, and of all lengths
            raw.send(register(1, 0), (fd,))
            raw.send(register(2, 2**64 - 1), (fd,))
            for number in (1, 2):
                raw.send(request(PART.pack(number, 0, 1), destinations=1))
                assert raw.code() is Code.TOO_LARGE
    os.close(fd)


def test_unregistered_memory_is_not_used_again(server: Server) -> None:
    fd = memfd(SIZE)
    with same_descriptors(server), Raw(server, "shm") as raw:
        raw.send(register(1, SIZE), (fd,))
        raw.send(frames.encode(Kind.UNREGISTER, body=(1).to_bytes(8, "little")))
        raw.send(frames.encode(Kind.UNREGISTER, body=(5).to_bytes(8, "little")))
        raw.send(request(PART.pack(1, 0, 1), destinations=1))
        assert raw.code() is Code.INVALID
    os.close(fd)


@pytest.mark.parametrize(
    ("table", "sources", "destinations", "data"),
    [
        (b"", 0, 0, 10),
        (PART.pack(0, 0, 5), 1, 0, 10),
        (PART.pack(0, 0, 5), 0, 1, 5),
        (PART.pack(0, 0, 2**32 - 1) * 3, 1, 2, 2**20),
    ],
    ids=["no-parts", "too-little", "no-source", "huge"],
)
def test_tcp_data_that_does_not_add_up_ends_the_connection(
    server: Server, table: bytes, sources: int, destinations: int, data: int
) -> None:
    with Raw(server, "tcp") as raw:
        raw.send(request(table, sources=sources, destinations=destinations, data=data))
        assert raw.code() in (Code.PROTOCOL, Code.TOO_LARGE)
        assert raw.ended()
    assert lives(server)


def test_tcp_parts_beyond_the_limit_are_answered(server: Server) -> None:
    with Raw(server, "tcp") as raw:
        table = PART.pack(0, 0, MAX_DATA_BYTES) + PART.pack(0, 0, 1)
        raw.send(request(table, destinations=2))
        assert raw.code() is Code.TOO_LARGE
        table = PART.pack(0, 0, MAX_DATA_BYTES // 16) * 17
        raw.send(request(table, destinations=17))
        assert raw.code() is Code.TOO_LARGE
        raw.send(request(PART.pack(0, 0, 1), destinations=1))
        assert raw.code() is Code.OK


def test_data_over_shm_and_regions_over_tcp_are_refused(server: Server) -> None:
    with Raw(server, "shm") as raw:
        raw.send(request(PART.pack(1, 0, 5), sources=1, data=5) + b"12345")
        assert raw.code() is Code.PROTOCOL
    with Raw(server, "tcp") as raw:
        raw.send(register(1, SIZE))
        assert raw.code() is Code.PROTOCOL


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_peer_that_goes_in_the_middle_leaves_nothing(server: Server, transport: str) -> None:
    table = PART.pack(0, 0, 2**20)
    with same_descriptors(server):
        for cut in (1, 39, 40, 45, 100, 70_000):
            with Raw(server, transport) as raw:
                raw.send((request(table, sources=1, data=2**20) + bytes(2**20))[:cut])
        connection = connect_blocking(server.endpoint, 5, transport=transport)
        connection.start(Request(HOLD, b""), 5)
        until(lambda: server.state()["holding"] >= 1, "it is at work")
        connection.close()
        server.ask(5)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("body_bytes", [10, 2**20])
def test_a_peer_that_takes_no_answers_is_read_no_more(transport: str, body_bytes: int) -> None:
    server = Server(in_flight_bytes=4 * 2**20)
    try:
        with Raw(server, transport) as raw:
            raw.sock.settimeout(0.5)
            ask = frames.encode(Kind.REQUEST, ECHO, 1, timeout_ms=1000, body=bytes(body_bytes))
            count = 0
            with pytest.raises(TimeoutError):
                while count < 10**6:
                    raw.send(ask)
                    count += 1
            assert count * len(ask) < 64 * 2**20
            raw.sock.settimeout(10)
            for _ in range(count):  # what was asked is answered once the peer takes it
                if body_bytes == 10:
                    break
                assert len(receive(raw.sock, HEADER.size + body_bytes)) == HEADER.size + body_bytes
        assert lives(server)
    finally:
        server.end()


def receive(sock: socket.socket, n_bytes: int) -> bytes:
    got = b""
    while len(got) < n_bytes and (piece := sock.recv(n_bytes - len(got))):
        got += piece
    return got


def mutations(chance: random.Random, transport: str) -> Iterator[bytes]:
    """Yield streams, each worse than none."""
    good = request(PART.pack(1, 0, 10), destinations=1)
    for _ in range(60):
        yield chance.randbytes(chance.randrange(1, 400))
    for length in range(1, len(good)):
        yield good[:length]
    for _ in range(200):
        broken = bytearray(good * 3)
        for _ in range(chance.randrange(1, 6)):
            broken[chance.randrange(6, len(broken))] = chance.randrange(256)
        yield bytes(broken)
    for _ in range(100):
        numbers = [chance.choice((0, 1, 2**16, 2**31, 2**32 - 1)) for _ in range(6)]
        kind = chance.randrange(0, 8)
        yield (
            HEADER.pack(MAGIC, WIRE_VERSION, kind, numbers[0], chance.getrandbits(64), *numbers[1:])
            + bytes(100)
        )


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_fuzz(server: Server, transport: str) -> None:
    chance = random.Random(4711)
    with same_descriptors(server):
        for stream in mutations(chance, transport):
            with Raw(server, transport, greet=chance.random() < 0.8) as raw:
                with contextlib.suppress(ConnectionError):
                    raw.send(stream)
                    raw.sock.shutdown(socket.SHUT_WR)
                raw.ended()
        assert lives(server)
    assert server.process.poll() is None
    with open(f"/proc/{server.process.pid}/statm") as file:
        assert int(file.read().split()[1]) * mmap.PAGESIZE < 512 * 1024 * 1024
