"""The metadata service as a real process, with real storage behind it. Budget: 40 s."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hillfire.config import MetaConfig
from hillfire.errors import Code, Error
from hillfire.meta.check import check
from hillfire.meta.engine.retry import transact
from hillfire.meta.engine.rocksdb import RocksEngine
from hillfire.meta.server import MetaServer
from hillfire.proto import meta_pb2 as pb
from hillfire.proto import service
from hillfire.proto.wire.base import BlockingConnection
from hillfire.proto.wire.pick import connect_blocking
from hillfire.types import InodeId, chunk_id
from tests.integration.chain import HERE, Client, Cluster

LEASE_MS = 1000
MIB = 1 << 20


class Meta:
    """A client of the metadata service: finds it by routing, and tries again."""

    def __init__(self, cluster: Cluster, transport: str | None = None) -> None:
        self.cluster = cluster
        self.transport = transport
        self.number = random.getrandbits(63) | 1
        self.requests = 0
        self.retries = 0
        self._connection: BlockingConnection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def caller(self) -> pb.Caller:
        self.requests += 1
        return pb.Caller(client=self.number, request=self.requests)

    def once(self, name: str, message: Any, timeout_s: float = 5.0) -> Any:
        called = service.method("Meta", name)
        if self._connection is None:
            endpoint = self.cluster.routing().meta().endpoint
            self._connection = connect_blocking(endpoint, 2, transport=self.transport)
        ticket = self._connection.start(service.encode(called, message), timeout_s)
        return service.decode(called, self._connection.finish(ticket, timeout_s))

    def call(self, name: str, message: Any) -> Any:
        """Until it is answered, always with the same number."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.once(name, message)
            except Error as error:
                if not error.retry or time.monotonic() > deadline:
                    raise
                if error.code in (Code.CONNECTION, Code.TIMED_OUT):
                    self.close()
                self.retries += 1
                time.sleep(0.02)

    def create(self, path: bytes) -> pb.Inode:
        request = pb.CreateRequest(
            caller=self.caller(), place=place(path), mode=0o644, exclusive=True
        )
        found: pb.Inode = self.call("Create", request)
        return found

    def settle(self, inode: pb.Inode, **fields: Any) -> pb.Inode:
        request = pb.SettleRequest(
            caller=self.caller(), inode=inode.id, epoch=inode.epoch, **fields
        )
        found: pb.Inode = self.call("Settle", request)
        return found

    def stat(self, inode: int) -> pb.Inode:
        found: pb.Inode = self.call("Stat", pb.StatRequest(inode=inode))
        return found


def place(path: bytes) -> pb.Place:
    return pb.Place(parent=1, path=path)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("meta")) as made:
        made.wait()
        start(made)
        yield made


def start(cluster: Cluster) -> str:
    arguments = [str(HERE / "meta_child.py"), str(cluster.directory / "meta"), cluster.address]
    address = cluster._spawn("meta", [*arguments, str(LEASE_MS)])
    assert address, (cluster.directory / "log").read_text()[-4000:]
    return address


@pytest.fixture
def meta(cluster: Cluster) -> Iterator[Meta]:
    made = Meta(cluster)
    yield made
    made.close()


def until(what: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Wait for another process, which has no event for it."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stored(client: Client, inode: pb.Inode, index: int) -> int:
    """How many bytes of a chunk there are at the tail."""
    client.routing = client.cluster.routing()
    tail = client.chain().serving[-1]
    chunk = chunk_id(InodeId(inode.id), index)
    ((result, _),) = client.read_from(tail, [(chunk, 0, MIB)])
    assert not result.code
    return result.filled


def write(client: Client, inode: pb.Inode, *lengths: int) -> None:
    client.routing = client.cluster.routing()
    client.write(
        [
            (chunk_id(InodeId(inode.id), index), 0, b"x" * length)
            for index, length in enumerate(lengths)
        ],
        epoch=inode.epoch,
    )


@pytest.fixture
def chunks(cluster: Cluster) -> Iterator[Client]:
    made = Client(cluster)
    yield made
    made.close()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_killed_service_keeps_what_it_acknowledged(cluster: Cluster, transport: str) -> None:
    """Creates and renames go on while it is killed three times and started again."""
    workers = [Meta(cluster, transport) for _ in range(2)]
    done: list[list[tuple[bytes, int]]] = [[], []]
    stop = threading.Event()

    def work(number: int) -> None:
        meta, mine = workers[number], done[number]
        while not stop.is_set():
            name = b"%s-%d-%d" % (transport.encode(), number, len(mine))
            inode = meta.create(name)
            meta.settle(inode, length=len(mine), close=True)
            request = pb.RenameRequest(caller=meta.caller(), to=place(name + b".done"))
            getattr(request, "from").CopyFrom(place(name))
            meta.call("Rename", request)
            mine.append((name + b".done", inode.id))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        before = sum(map(len, done))
        until(lambda before=before: sum(map(len, done)) > before + 100)  # type: ignore[misc]
        cluster.kill("meta")
        start(cluster)
    stop.set()
    for thread in threads:
        thread.join()
    assert sum(worker.retries for worker in workers) >= 3, "each kill met a request under way"
    for number, mine in enumerate(done):
        for length, (name, inode) in enumerate(mine):
            found = workers[number].call("Lookup", pb.LookupRequest(place=place(name)))
            assert (found.id, found.length, found.links) == (inode, length, 1)
        workers[number].close()


def test_a_retry_over_a_restart_gets_the_first_answer(cluster: Cluster, meta: Meta) -> None:
    request = pb.CreateRequest(caller=meta.caller(), place=place(b"once"), exclusive=True)
    first = meta.call("Create", request)
    cluster.kill("meta")
    start(cluster)
    assert meta.call("Create", request) == first


def test_truncate_cuts_the_chunks_before_it_answers(meta: Meta, chunks: Client) -> None:
    inode = meta.create(b"cut")
    write(chunks, inode, MIB, MIB, 1000)
    meta.settle(inode, length=2 * MIB + 1000)
    request = pb.TruncateRequest(caller=meta.caller(), inode=inode.id, length=MIB + 5)
    cut = meta.call("Truncate", request)
    assert (cut.length, cut.epoch) == (MIB + 5, 1)
    assert [stored(chunks, inode, index) for index in range(3)] == [MIB, 5, 0]


def test_an_unlinked_file_s_chunks_go(meta: Meta, chunks: Client) -> None:
    inode = meta.create(b"gone")
    write(chunks, inode, MIB, 10)
    meta.settle(inode, length=MIB + 10, close=True)
    meta.call("Unlink", pb.UnlinkRequest(caller=meta.caller(), place=place(b"gone")))
    meta.call("Session", pb.SessionRequest(client=meta.number, end=True))
    until(lambda: stored(chunks, inode, 0) == stored(chunks, inode, 1) == 0)
    until(lambda: is_stale(meta, inode))


def is_stale(meta: Meta, inode: pb.Inode) -> bool:
    try:
        meta.stat(inode.id)
    except Error as error:
        assert error.code is Code.STALE
        return True
    return False


def test_a_held_file_stays_until_it_is_closed(meta: Meta, chunks: Client) -> None:
    inode = meta.create(b"held")
    write(chunks, inode, 10)
    meta.settle(inode, length=10, close=True)
    request = pb.UnlinkRequest(caller=meta.caller(), place=place(b"held"), hold=True)
    assert meta.call("Unlink", request).inode.links == 0
    seen = 0
    for _ in range(8):  # more than a lease
        seen = meta.call("Session", pb.SessionRequest(client=meta.number, seen=seen)).seen
        time.sleep(LEASE_MS / 4000)
    assert stored(chunks, inode, 0) == 10
    meta.settle(inode, close=True)
    meta.call("Session", pb.SessionRequest(client=meta.number, end=True))
    until(lambda: is_stale(meta, inode))


def test_a_dead_writer_s_file_has_the_length_of_its_chunks(
    cluster: Cluster, meta: Meta, chunks: Client
) -> None:
    writer = Meta(cluster)
    inode = writer.create(b"torn")
    write(chunks, inode, MIB, 77)
    writer.close()
    until(lambda: meta.stat(inode.id).length == MIB + 77)


def test_a_second_process_or_another_cluster_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    async def refused(directory: Path) -> Error:
        server = MetaServer(MetaConfig(node=9, directory=directory, manager=cluster.address))
        with pytest.raises(Error) as caught:
            await server.start()
        await server.stop()
        return caught.value

    assert asyncio.run(refused(cluster.directory / "meta")).code is Code.BUSY
    (tmp_path / "cluster").write_text("another\n")
    error = asyncio.run(refused(tmp_path))
    assert error.code is Code.WRONG_CLUSTER
    assert "another" in str(error)


def test_stopped_and_started_it_is_whole(cluster: Cluster, meta: Meta) -> None:
    """Runs last: it stops the service that the others use."""
    before = meta.call("ReadDirectory", pb.ReadDirectoryRequest(inode=1, attributes=True))
    meta.close()
    cluster.stop("meta")
    engine = RocksEngine(cluster.directory / "meta" / "db")
    assert transact(engine, check) == []
    engine.close()
    start(cluster)
    assert meta.call("ReadDirectory", pb.ReadDirectoryRequest(inode=1, attributes=True)) == before
    space = meta.call("StatFileSystem", pb.StatRequest())
    assert space.inodes > 100
    until(lambda: meta.call("StatFileSystem", pb.StatRequest()).capacity_bytes > 0)
