"""What nobody sane sends, to every port of every process of a running cluster. Budget: 40 s.

Whatever comes, it is refused or the connection is closed; afterwards every process is the same
one, has no more memory or descriptors than before, and the files are what they were.
"""

import contextlib
import fcntl
import itertools
import os
import random
import socket
import struct
import time
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grpc
import pytest
from crc32c import crc32c
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import hillfire
from hillfire.cluster import Chain, Endpoint, Routing
from hillfire.errors import Code, Error
from hillfire.proto import storage_pb2
from hillfire.proto.dispatch import Method, method, methods
from hillfire.proto.wire import frame as frames
from hillfire.proto.wire.base import MAX_DATA_BYTES, WIRE_VERSION, Part, Request
from hillfire.proto.wire.chunks import (
    FORWARD,
    FORWARD_ITEMS,
    READ,
    READ_ITEMS,
    READ_RESULTS,
    WRITE,
    WRITE_ITEMS,
    WRITE_RESULTS,
    ForwardItem,
    Kind,
    ReadItem,
    WriteItem,
)
from hillfire.proto.wire.frame import HEADER, MAGIC, PART, REGISTER, Role
from hillfire.proto.wire.pick import connect_blocking
from hillfire.region import SEALS, Region
from hillfire.types import InodeId, chunk_id
from tests.cluster import LocalCluster, cluster

SEED = 20
TIMEOUT_S = 10.0
GROWTH_BYTES = 128 << 20
"""How much more a process may hold afterwards: it keeps a buffer for the next large request."""
DESCRIPTORS = 24
"""Likewise: connections and their regions come and go; hundreds of hostile ones must not stay."""
CROWD = 150
"""Connections at once to one port."""
U16, U32, U64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1
METHODS = [found for name in ("Manager", "Meta", "Storage") for found in methods(name)]
SURPRISES = (Code.INTERNAL, Code.CONNECTION, Code.TIMED_OUT)
"""Answers that say that the service did not know what to do."""


class Process(NamedTuple):
    name: str
    pid: int
    endpoint: Endpoint


class World(NamedTuple):
    local: LocalCluster
    processes: list[Process]
    routing: Routing
    files: dict[str, bytes]
    names: list[str]
    memory: dict[str, int]
    descriptors: dict[str, int]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    chance = random.Random(SEED)
    with cluster(tmp_path_factory.mktemp("hostile")) as local:
        files = {f"/kept/{n}": chance.randbytes(n) for n in (0, 1, 4096, 70_000, 3_000_000)}
        with hillfire.connect(local.address) as fs:
            fs.mkdir("/kept")
            for path, data in files.items():
                fs.write_bytes(path, data)
            names = tree(fs)
        routing = local.routing()
        assert routing.manager is not None
        processes = [Process("manager", local.pid("manager"), routing.manager)]
        for node in routing.nodes.values():
            name = "meta" if node.kind.name == "META" else f"storage-{node.id}"
            processes.append(Process(name, local.pid(name), node.endpoint))
        made = World(
            local,
            processes,
            routing,
            files,
            names,
            {p.name: resident(p.pid) for p in processes},
            {p.name: descriptors(p.pid) for p in processes},
        )
        assert len(processes) == 5
        yield made


def tree(fs: Any) -> list[str]:
    return sorted(f"{top}/{name}" for top, dirs, names in fs.walk("/") for name in dirs + names)


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def wires(world: World) -> Iterator[tuple[Process, str]]:
    for process in world.processes:
        assert process.endpoint.tcp and process.endpoint.shm and process.endpoint.grpc
        yield process, "tcp"
        yield process, "shm"


# ---------------------------------------------------------------- raw bytes


def dial(process: Process, transport: str) -> socket.socket:
    if transport == "shm":
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(TIMEOUT_S)
        sock.connect(process.endpoint.shm)
        return sock
    address = process.endpoint.tcp if transport == "tcp" else process.endpoint.grpc
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), TIMEOUT_S)


def say(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send, unless the peer has had enough of it."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    with contextlib.suppress(ConnectionError):
        while data:
            data, rights = data[sock.sendmsg([data], rights) :], []


def rest(sock: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    got = b""
    with contextlib.suppress(OSError):  # it may have closed already
        sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(1 << 16):
            got += piece
    return got


def request(
    method: int, body: bytes, table: bytes = b"", *, sources: int = 0, destinations: int = 0,
    data: int = 0,
) -> bytes:  # fmt: skip
    return frames.encode(
        frames.Kind.REQUEST, method, 1, timeout_ms=1000, table=table, body=body,
        sources=sources, destinations=destinations, data_bytes=data,
    )  # fmt: skip


def streams(chance: random.Random) -> Iterator[tuple[bool, bytes]]:
    """Yield bytes to send, and whether a hello goes before them."""
    item = READ_ITEMS.pack([ReadItem(chunk_id(InodeId(9), 0), 1, 1, 0)])
    good = request(READ, item, PART.pack(1, 0, 10), destinations=1)
    hello = frames.hello(Role.CLIENT, 1)
    for size in (1, 5, 39, 40, 41, 1000, 200_000):
        yield False, chance.randbytes(size)
        yield True, chance.randbytes(size)
    for size in range(1, len(good), 7):
        yield True, good[:size]
    for size in range(1, len(hello), 5):
        yield False, hello[:size]
    yield False, good
    yield True, hello
    yield False, frames.hello(Role.SERVER, 1)
    yield False, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    for version in (0, WIRE_VERSION + 1, U16):
        yield False, hello[:4] + struct.pack("<H", version) + hello[6:]
        yield True, good[:4] + struct.pack("<H", version) + good[6:]
    huge = (0, 1, 4096, 16 << 20, (16 << 20) + 1, MAX_DATA_BYTES, 1 << 31, U32)
    for _ in range(40):
        numbers = [chance.choice(huge) for _ in range(6)]
        head = HEADER.pack(
            MAGIC,
            WIRE_VERSION,
            chance.randrange(7),
            numbers[0],
            chance.getrandbits(64),
            *numbers[1:],
        )
        yield True, head + bytes(chance.choice((0, 100, 70_000)))
    for _ in range(60):
        broken = bytearray(good * 3)
        for _ in range(chance.randrange(1, 6)):
            broken[chance.randrange(6, len(broken))] = chance.randrange(256)
        yield True, bytes(broken)


def test_bytes_that_are_no_frames(world: World) -> None:
    for process, transport in wires(world):
        chance = random.Random(SEED)
        for greet, stream in streams(chance):
            with dial(process, transport) as sock:
                say(sock, (frames.hello(Role.CLIENT, 1) if greet else b"") + stream)
                rest(sock)
    for process, transport in wires(world):
        other = bytearray(frames.hello(Role.CLIENT, 1))
        struct.pack_into("<H", other, 4, WIRE_VERSION + 1)
        with dial(process, transport) as sock:
            say(sock, bytes(other))
            assert f"wire version {WIRE_VERSION + 1}".encode() in rest(sock)


def test_bytes_that_are_no_http2(world: World) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\0\0\0\x04\0\0\0\0\0"
    chance = random.Random(SEED)
    for process in world.processes:
        sent = [preface[:11], preface, preface + settings, frames.hello(Role.CLIENT, 1)]
        sent += [preface + settings + chance.randbytes(size) for size in (9, 500, 50_000)]
        sent += [preface + settings + b"\xff\xff\xff\x01\x05\0\0\0\x01" + bytes(4000)]
        sent += [chance.randbytes(size) for size in (1, 100, 100_000)]
        for stream in sent:
            with dial(process, "grpc") as sock:
                say(sock, stream)
                rest(sock)  # the server closes in time, or this fails
        assert world.local.pid(process.name) == process.pid, f"{process.name} has died"


# ---------------------------------------------------------------- forged parts


def test_forged_parts(world: World) -> None:
    """Regions that are not there, ranges outside of them, bytes that do not add up."""
    size = 8192
    memory = os.memfd_create("hostile", os.MFD_ALLOW_SEALING)
    os.posix_fallocate(memory, 0, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
    chain = next(iter(world.routing.chains.values()))
    item = ReadItem(chunk_id(InodeId(U64), 0), chain.id, chain.version, 0)
    update = write_item(chain, length=U32)
    places = [(0, 0, 1), (2, 0, 10), (U64, 0, 1), (1, size, 1), (1, size - 1, 2), (1, U64, 2)]
    places += [(1, 1 << 63, U32), (1, 0, U32), (1, size + 1, 0)]
    for process, transport in wires(world):
        for place, sources in itertools.product(places, (0, 1)):
            body = WRITE_ITEMS.pack([update]) if sources else READ_ITEMS.pack([item])
            data = min(place[2], 1000) if transport == "tcp" and sources else 0
            forged = request(
                WRITE if sources else READ, body, PART.pack(*place),
                sources=sources, destinations=1 - sources, data=data,
            )  # fmt: skip
            with dial(process, transport) as sock:
                say(sock, frames.hello(Role.CLIENT, 1))
                if transport == "shm":
                    region = frames.encode(frames.Kind.REGISTER, body=REGISTER.pack(1, size))
                    say(sock, region, [memory])
                say(sock, forged + bytes(data))
                rest(sock)
    assert os.pread(memory, size, 0) == bytes(size)
    os.close(memory)


# ---------------------------------------------------------------- messages


def write_item(of: Chain, **changes: Any) -> WriteItem:
    """Return an update of a chunk of nobody's that is refused, if only for its checksum."""
    item = WriteItem(
        chunk_id(InodeId(U64), 0), of.id, of.version, Kind.WRITE, 0, 4, 0xBAD, 1, 1 << 20,
        1, 1, 1,
    )  # fmt: skip
    return item._replace(**changes)


def extreme(chance: random.Random, kind: type[Message]) -> Message:
    """Return a message of nothing but smallest and largest values: no such thing exists."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if field.name == "wait_ms":  # it is answered when it is over: another test's affair
            continue
        values: list[Any] = []
        for _ in range(chance.choice((1, 3)) if field.is_repeated else 1):
            values.append(extreme_value(chance, field))
        if field.is_repeated:
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                for value in values:
                    getattr(message, field.name).add().CopyFrom(value)
            else:
                getattr(message, field.name).extend(values)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            getattr(message, field.name).CopyFrom(values[0])
        else:
            setattr(message, field.name, values[0])
    return message


def extreme_value(chance: random.Random, field: Any) -> Any:
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE:
            return extreme(chance, GetMessageClass(field.message_type))
        case FieldDescriptor.TYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.TYPE_BYTES:
            return chance.choice((b"", b"\xff" * 300, b"a/" * 3000, b"\0", b".."))
        case FieldDescriptor.TYPE_STRING:
            return chance.choice(("", "x" * 5000, "\n\x1b[2J"))
        case FieldDescriptor.TYPE_ENUM:
            return chance.choice((0, 99))
        case FieldDescriptor.TYPE_INT64:
            return chance.choice((-(1 << 63), (1 << 63) - 1))
        case FieldDescriptor.TYPE_UINT64:
            return chance.choice((0, U64))
    return chance.choice((0, U32))


def bodies(chance: random.Random, called: Method) -> Iterator[bytes]:
    """Yield bodies for a method that no well-meaning client sends."""
    yield b"\xff" * 11
    for size in (1, 3, 30, 2000):
        yield chance.randbytes(size)
    for _ in range(4):
        good = extreme(chance, called.request_type).SerializeToString()
        yield good
        yield good[: chance.randrange(len(good) + 1)]
        broken = bytearray(good or b"x")
        broken[chance.randrange(len(broken))] = chance.randrange(256)
        yield bytes(broken)


def ask_all(process: Process, transport: str, requests: Sequence[Request]) -> list[bytes | Error]:
    """Send all over one connection, which none of them may cost us."""
    connection = connect_blocking(process.endpoint, TIMEOUT_S, transport=transport)
    answers: list[bytes | Error] = []
    try:
        for each in requests:
            ticket = connection.start(each, TIMEOUT_S)
            try:
                answers.append(connection.finish(ticket, TIMEOUT_S).body)
            except Error as error:
                assert error.code not in SURPRISES, (process.name, transport, each, error)
                answers.append(error)
    finally:
        connection.close()
    return answers


def test_malformed_bodies_of_every_method_over_the_wire(world: World) -> None:
    for process, transport in wires(world):
        chance = random.Random(SEED)
        sent = [Request(each.id, body) for each in METHODS for body in bodies(chance, each)]
        sent += [Request(number, b"x") for number in (0, 4, 255, 256, U32)]
        answers = ask_all(process, transport, sent)
        assert len(answers) == len(sent), (process.name, transport)


def test_malformed_bodies_of_every_method_over_grpc(world: World) -> None:
    for process in world.processes:
        chance = random.Random(SEED)
        with grpc.insecure_channel(
            process.endpoint.grpc, [("grpc.enable_http_proxy", 0)]
        ) as channel:
            paths = [(each.path, body) for each in METHODS for body in bodies(chance, each)]
            paths += [("/hillfire.Meta/Nothing", b""), ("/x", b"x"), ("/", b"")]
            for path, body in paths:
                try:
                    call: Any = channel.unary_unary(path)
                    call(body, timeout=TIMEOUT_S)
                except grpc.RpcError as error:
                    assert isinstance(error, grpc.Call)
                    told = dict(error.trailing_metadata() or ()).get("hillfire-code")
                    if told is None:
                        assert error.code() is grpc.StatusCode.UNIMPLEMENTED, (path, body, error)
                    else:
                        assert Code(int(told)) not in SURPRISES, (path, body, error)


def storage_requests(chain: Chain) -> Iterator[Request]:
    """Yield requests that name a real chain at its real version, and are wrong all the same."""
    known: dict[str, Any] = {"chain": chain.id, "chain_version": chain.version}
    pb = storage_pb2
    short = pb.TagRecord(client=U64, channel=U32, sequence=U64, chunk=b"x", version=U64)
    tag = pb.TagRecord(client=1, channel=1, sequence=U64, chunk=bytes(16), version=1)
    calls: list[tuple[str, Message]] = [
        ("Truncate", pb.TruncateChunksRequest(**known, inode=U64, remove=True, epoch=U32)),
        ("Truncate", pb.TruncateChunksRequest(**known, inode=2, length=U64, chunk_bytes=0)),
        ("Truncate", pb.TruncateChunksRequest(**known, inode=2, chunk_bytes=U32)),
        ("LastByte", pb.LastByteRequest(**known, inode=2, chunk_bytes=U32)),
        ("LastByte", pb.LastByteRequest(**known, inode=0)),
        ("ListChunks", pb.ListChunksRequest(**known, after=b"short", limit=U32)),
        ("ListChunks", pb.ListChunksRequest(**known, after=b"\xff" * 5000, limit=1)),
        # A target that serves believes nobody that an update was done.
        ("SyncDone", pb.SyncDoneRequest(**known, tags=[short], more=True)),
        ("SyncDone", pb.SyncDoneRequest(**known, tags=[tag], more=True)),
        ("SyncDone", pb.SyncDoneRequest(**known, tags=[tag] * 1000, more=False)),
        ("SyncDone", pb.SyncDoneRequest(chain=chain.id, chain_version=U32, more=False)),
    ]
    for name, message in calls:
        yield Request(method("Storage", name).id, message.SerializeToString())


def test_storage_calls_that_name_a_real_chain(world: World) -> None:
    for chain, process, _ in members(world):
        sent = list(storage_requests(chain))
        for asked, answer in zip(sent, ask_all(process, "tcp", sent), strict=True):
            assert isinstance(answer, Error), asked
            assert answer.code in (Code.INVALID, Code.WRONG_CHAIN_VERSION), (asked, answer)


def members(world: World) -> Iterator[tuple[Chain, Process, bool]]:
    by_name = {process.name: process for process in world.processes}
    for chain in world.routing.chains.values():
        for position, (target, _) in enumerate(chain.targets):
            node = world.routing.targets[target].node
            yield chain, by_name[f"storage-{node}"], position == 0


def updates(chain: Chain) -> Iterator[WriteItem]:
    """Yield updates of which each must be refused by all, for one reason only."""
    good = write_item(chain, checksum=crc32c(bytes(4)))
    for number in (0, 77, U32):
        yield good._replace(chain=number)
    for version in (0, chain.version + 1, U32):
        yield good._replace(chain_version=version)
    for kind in (0, Kind.REPLACE, 5, U32):
        yield good._replace(kind=kind)
    for offset in ((1 << 20) - 3, 1 << 31, U32):
        yield good._replace(offset=offset)
    for chunk_bytes in (0, 3, U32):
        yield good._replace(chunk_bytes=chunk_bytes)
    for length in (0, 3, 5, U32):
        yield good._replace(length=length)
    yield good._replace(kind=Kind.TRUNCATE)  # with a payload
    yield write_item(chain, client=U64, channel=U32, sequence=U64)
    yield write_item(chain, client=0, channel=0, sequence=0)
    for inode in range(1, 9):  # the files that are there
        yield write_item(chain, chunk=chunk_id(InodeId(inode), 0))
        yield write_item(chain, chunk=chunk_id(InodeId(inode), 0), epoch=U32)


def test_items_that_are_nonsense(world: World) -> None:
    region = Region.allocate(1 << 20)
    four = Part(region, 0, 4)
    for (chain, process, head), transport in itertools.product(members(world), ("tcp", "shm")):
        sent: list[Request] = []
        for update in updates(chain):
            sent.append(Request(WRITE, WRITE_ITEMS.pack([update]), [four]))
            forward = ForwardItem(
                **{**update._asdict(), "version": 0, "post_length": U32, "post_checksum": 1}
            )
            sent.append(Request(FORWARD, FORWARD_ITEMS.pack([forward]), [four]))
            whole = forward._replace(kind=Kind.REPLACE, version=U64, post_length=4)
            sent.append(Request(FORWARD, FORWARD_ITEMS.pack([whole]), [four]))
            if head:  # nobody is before the head
                forward = forward._replace(version=U64)
                sent.append(Request(FORWARD, FORWARD_ITEMS.pack([forward]), [four]))
        for body in (b"", b"x", WRITE_ITEMS.pack([write_item(chain)] * 3)[:-1], bytes(6000)):
            for number in (WRITE, FORWARD):
                sent.append(Request(number, body, [four]))
                sent.append(Request(number, body, [], [four]))
            sent.append(Request(READ, body, [], [four, four]))
        many = WRITE_ITEMS.pack([write_item(chain, chain=n % 5) for n in range(4000)])
        sent.append(Request(WRITE, many, [Part(region, 0, 4)] * 4000))
        for answer in ask_all(process, transport, sent):
            if not isinstance(answer, Error):
                for result in WRITE_RESULTS.unpack(answer):
                    assert result.code not in (Code.OK, *SURPRISES), result
        reads = [
            ReadItem(chunk_id(InodeId(inode), U32), *at, offset, flags)
            for inode in (0, 2, U64)
            for at in ((chain.id, chain.version), (chain.id, U32), (0, 0), (U32, 1))
            for offset in (0, 1 << 20, U32)
            for flags in (0, U32)
        ]
        asked = [Request(READ, READ_ITEMS.pack([each]), [], [four]) for each in reads]
        for answer in ask_all(process, transport, asked):
            assert not isinstance(answer, Error)
            for found in READ_RESULTS.unpack(answer):
                assert found.filled == 0
                assert found.code not in SURPRISES


# ---------------------------------------------------------------- many of them


def test_crowds_and_half_open_connections(world: World) -> None:
    """They say nothing, or begin and do not end; others are served meanwhile."""
    begun = request(WRITE, b"x" * 100, PART.pack(0, 0, 1 << 20), sources=1, data=1 << 20)
    hello = frames.hello(Role.CLIENT, 1)
    said = (b"", hello[:20], hello, hello + begun[:50], hello + begun + bytes(5000))
    large = hello + frames.encode(frames.Kind.REQUEST, READ, 1)[:24] + struct.pack("<I", 16 << 20)
    with contextlib.ExitStack() as crowd:
        for process in world.processes:
            for transport in ("tcp", "shm", "grpc"):
                for i in range(CROWD):
                    sock = crowd.enter_context(dial(process, transport))
                    if transport == "grpc":
                        say(sock, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[: i % 25])
                    else:
                        say(sock, large + bytes(12) if i % 10 == 9 else said[i % len(said)])
        verify_files(world)
        with hillfire.connect(world.local.address) as fs:
            fs.write_bytes("/meanwhile", b"x" * 100_000)
            assert fs.read_bytes("/meanwhile") == b"x" * 100_000
            fs.unlink("/meanwhile")


def test_large_answers_that_nobody_takes(world: World) -> None:
    """Asked for again and again and not received: the server stops reading, and serves others."""
    directory = method("Meta", "ReadDirectory")
    body = directory.request_type(inode=1, limit=U32, attributes=True).SerializeToString()
    meta = next(process for process in world.processes if process.name == "meta")
    asked = [(meta, request(directory.id, body) * 5000)]
    for chain, process, _ in members(world):
        item = READ_ITEMS.pack([ReadItem(chunk_id(InodeId(U64), 0), chain.id, chain.version, 0)])
        table = PART.pack(0, 0, MAX_DATA_BYTES)
        asked.append((process, request(READ, item, table, destinations=1) * 500))
    with contextlib.ExitStack() as open_sockets:
        for process, stream in asked:
            sock = open_sockets.enter_context(dial(process, "tcp"))
            say(sock, frames.hello(Role.CLIENT, 1))
            assert sock.recv(1)  # it listens
            sock.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                say(sock, stream)
        verify_files(world)


# ---------------------------------------------------------------- afterwards


def verify_files(world: World) -> None:
    with hillfire.connect(world.local.address) as fs:
        for path, data in world.files.items():
            assert fs.read_bytes(path) == data, path
        assert tree(fs) == world.names


def await_descriptors(process: Process, most: int) -> None:
    """Wait until a process has closed what the connections cost it."""
    deadline = time.monotonic() + TIMEOUT_S
    while (found := descriptors(process.pid)) > most:
        assert time.monotonic() < deadline, f"{process.name}: {found} descriptors, not {most}"
        time.sleep(0.05)


def test_afterwards_all_is_as_it_was(world: World) -> None:
    for process in world.processes:
        assert world.local.pid(process.name) == process.pid, f"{process.name} has died"
        log = world.local.directory.service_log(process.name).read_text(errors="replace")
        assert "Traceback" not in log, (process.name, log[log.index("Traceback") :][:3000])
    routing = world.local.wait_serving(timeout_s=20)
    assert set(routing.nodes) == set(world.routing.nodes)
    for number, chain in routing.chains.items():
        assert chain == world.routing.chains[number], "a chain has changed"
    assert routing.tables == world.routing.tables
    where = ["--dir", str(world.local.directory.path)]
    done = world.local.command("status", *where)
    assert done.returncode == 0, done.stdout
    verify_files(world)
    for process in world.processes:
        before = world.descriptors[process.name]
        await_descriptors(process, before + DESCRIPTORS)
        grown = resident(process.pid) - world.memory[process.name]
        held = f"{before} -> {descriptors(process.pid)}"
        print(f"\n{process.name}: {grown / (1 << 20):+.0f} MiB, descriptors {held}", end=" ")
        assert grown < GROWTH_BYTES, f"{process.name} has grown by {grown} bytes"
