"""A chain of three storage processes under a manager: kill, restart, resync, compare.

Time budget: 60 s.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hillfire.errors import Code, Error
from hillfire.proto import service
from hillfire.proto import storage_pb2 as pb
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store.base import ChunkMeta
from hillfire.storage.store.engine import open_store
from hillfire.types import ChunkId, chunk_id
from tests.integration.chain import NODES, Client, Cluster

MIB = 1 << 20


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as running:
        running.wait()
        yield running


class Writer(threading.Thread):
    """Writes numbered records to chunks of its own and remembers what was acknowledged."""

    def __init__(self, cluster: Cluster, inode: int, size: int) -> None:
        super().__init__()
        self.client = Client(cluster)
        self.inode = inode
        self.size = size
        self.ending = threading.Event()
        self.acknowledged: dict[ChunkId, bytes] = {}
        self.writes = 0
        self.slowest_s = 0.0
        self.in_flight = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                self.writes += 1
                chunk = chunk_id(self.inode, self.writes % 16)  # type: ignore[arg-type]
                data = f"{self.inode}/{self.writes} ".encode().ljust(self.size, b"x")
                began = time.monotonic()
                self.in_flight = True
                self.client.write([(chunk, 0, data)])
                self.in_flight = False
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.acknowledged[chunk] = data
        except BaseException as exc:
            self.error = exc
        finally:
            self.client.close()

    def wait_for(self, more: int) -> None:
        goal = self.writes + more
        while self.writes < goal and self.error is None:
            self.ending.wait(0.005)
        assert self.error is None, self.error


def stores(directory: Path) -> list[dict[ChunkId, ChunkMeta]]:
    """Read the stopped nodes' stores: every byte is verified by the store as it is read."""
    found = []
    for node in NODES:
        (path,) = (directory / str(node) / "targets").iterdir()
        store = open_store(path)
        try:
            assert not list(store.pending())
            records = {}
            for chunk, meta in store.scan():
                into = memoryview(bytearray(MIB))
                count, _, _ = store.read(chunk, 0, into)
                assert count == meta.length
                if meta.version:
                    records[chunk] = meta._replace(chain_version=0)
            found.append(records)
        finally:
            store.close()
    return found


def compare(cluster: Cluster, writers: list[Writer]) -> None:
    """All replicas are equal and hold what was acknowledged."""
    reader = Client(cluster)
    for writer in writers:
        for chunk, data in writer.acknowledged.items():
            for target in reader.chain().serving:
                result, found = reader.read_at(target, chunk, MIB)
                assert result.code == 0
                assert found == data, (chunk.hex(), found[:20], data[:20])
    reader.close()
    cluster.stop("manager", *NODES)
    first, second, third = stores(cluster.directory)
    assert first == second == third
    assert len(first) >= sum(len(writer.acknowledged) for writer in writers)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["head", "middle", "tail"])
def test_a_killed_node_leaves_and_returns_with_writes_in_flight(
    cluster: Cluster, place: int
) -> None:
    writers = [Writer(cluster, 10, 100_000), Writer(cluster, 11, 5000)]
    for writer in writers:
        writer.start()
    try:
        for writer in writers:
            writer.wait_for(10)
        routing = cluster.routing()
        (chain,) = routing.chains.values()
        node = routing.targets[chain.serving[place]].node
        while not any(writer.in_flight for writer in writers):
            pass
        cluster.kill(node)
        cluster.wait(serving=2)
        for writer in writers:
            writer.wait_for(20)
        cluster.start(node)
        cluster.wait(serving=3)
        for writer in writers:
            writer.wait_for(20)
    finally:
        for writer in writers:
            writer.ending.set()
        for writer in writers:
            writer.join()
    assert all(writer.error is None for writer in writers), [w.error for w in writers]
    assert max(writer.slowest_s for writer in writers) < 4
    compare(cluster, writers)


def test_all_nodes_killed_at_once_come_back_with_everything(cluster: Cluster) -> None:
    writer = Writer(cluster, 10, 50_000)
    writer.start()
    try:
        writer.wait_for(20)
        cluster.kill(*NODES)
        cluster.start(*NODES)
        cluster.wait()
        writer.wait_for(5)
    finally:
        writer.ending.set()
        writer.join()
    assert writer.error is None
    compare(cluster, [writer])


def test_a_stopped_cluster_comes_back_without_copying_what_is_equal(cluster: Cluster) -> None:
    client = Client(cluster)
    data = os.urandom(MIB)
    for index in range(0, 24, 4):
        client.write([(chunk_id(7, index + k), 0, data) for k in range(4)])  # type: ignore[arg-type]
    client.close()
    cluster.stop("manager", *NODES)
    before = stores(cluster.directory)[0]
    cluster.start_manager()
    cluster.start(*NODES)
    cluster.wait()
    again = Client(cluster)
    assert again.read(chunk_id(7, 5)) == data  # type: ignore[arg-type]
    again.close()
    log = (cluster.directory / "log").read_text()
    done = [line for line in log.splitlines() if "event=resync_done" in line]
    assert len(done) >= 2  # a change of the chain meanwhile begins one anew
    assert all(line.endswith("sent=0") for line in done), done
    cluster.stop("manager", *NODES)
    assert stores(cluster.directory)[0] == before


def test_a_returning_node_is_sent_only_what_changed(cluster: Cluster) -> None:
    client = Client(cluster)
    for index in range(20):
        client.write([(chunk_id(7, index), 0, b"old" * 1000)])  # type: ignore[arg-type]
    cluster.kill(103)
    cluster.wait(serving=2)
    client.write([(chunk_id(7, 3), 0, b"new")])  # type: ignore[arg-type]
    client.write([(chunk_id(7, 4), 0, b"")], kind=Kind.REMOVE, epoch=2)  # type: ignore[arg-type]
    client.write([(chunk_id(7, 30), 0, b"fresh")])  # type: ignore[arg-type]
    cluster.start(103)
    client.routing = cluster.wait()
    assert "sent=3" in (cluster.directory / "log").read_text()
    tail = client.chain().serving[-1]
    assert client.routing.targets[tail].node == 103
    wanted = {3: (b"new" + b"old" * 1000)[:6], 4: b"", 30: b"fresh", 9: b"oldold"}
    wanted[3] = b"newold"
    for index, data in wanted.items():
        result, found = client.read_at(tail, chunk_id(7, index), 6)  # type: ignore[arg-type]
        assert (result.code, found) == (0, data[:6]), index
    client.close()


def test_a_paused_node_answers_nothing_when_it_wakes(cluster: Cluster) -> None:
    """A SIGSTOPped tail wakes with a read already queued: its lease is over, it must refuse."""
    client, other = Client(cluster), Client(cluster)
    chunk = chunk_id(7, 0)  # type: ignore[arg-type]
    client.write([(chunk, 0, b"one")])
    tail = other.chain().serving[-1]
    node = other.routing.targets[tail].node
    other.read_from(tail, [(chunk, 0, 3)])
    cluster.kill(node, number=signal.SIGSTOP)
    answer: list[object] = []

    def read() -> None:
        try:
            answer.append(other.read_from(tail, [(chunk, 0, 3)]))
        except Error as error:
            answer.append(error.code)

    thread = threading.Thread(target=read)
    thread.start()
    client.write([(chunk, 0, b"two")])  # waits until the manager has removed the tail
    cluster.kill(node, number=signal.SIGCONT)
    thread.join()
    stale = answer[0]
    if isinstance(stale, list):
        assert stale[0][0].code in (Code.WRONG_CHAIN_VERSION, Code.NOT_SERVING)
    else:
        assert stale in (Code.LEASE_EXPIRED, Code.TIMED_OUT)
    cluster.wait()
    other.routing = cluster.routing()
    for target in other.chain().serving:
        assert other.read_at(target, chunk, 3)[1] == b"two"
    client.close()
    other.close()


def test_a_write_onto_bytes_damaged_at_the_head_is_done_and_repairs_them(cluster: Cluster) -> None:
    client = Client(cluster)
    chunk, data = chunk_id(9, 0), bytearray(os.urandom(200_000))  # type: ignore[arg-type]
    client.write([(chunk, 0, bytes(data))])
    head = client.chain().serving[0]
    node = client.routing.targets[head].node
    damaged = 0
    for path in (cluster.directory / str(node) / "targets").rglob("*"):
        if path.is_file() and (at := path.read_bytes().find(data[:64])) >= 0:
            with path.open("r+b") as file:
                file.seek(at + 1000)
                file.write(bytes([data[1000] ^ 1]))
            damaged += 1
    assert damaged == 1
    assert client.read_at(head, chunk, MIB)[0].code == Code.CORRUPT
    assert client.read_at(client.chain().serving[1], chunk, MIB)[1] == data
    data[100:200] = b"y" * 100
    client.write([(chunk, 100, bytes(data[100:200]))])
    cluster.wait()
    client.routing = cluster.routing()
    for target in client.chain().serving:
        result, found = client.read_at(target, chunk, MIB)
        assert result.code == 0 and found == data
    client.close()


def test_a_retry_is_applied_once_and_an_older_sequence_refused(cluster: Cluster) -> None:
    client = Client(cluster)
    chunk = chunk_id(7, 0)  # type: ignore[arg-type]
    first = client.write_once([(chunk, 0, b"a")], 5)
    assert client.write_once([(chunk, 0, b"a")], 5) == first
    assert client.write_once([(chunk, 0, b"b")], 6)[0].version == 2
    assert client.write_once([(chunk, 0, b"a")], 5)[0].code == Code.STALE
    # the chain's head dies: its successor knows the tags too
    head = client.chain().serving[0]
    cluster.kill(client.routing.targets[head].node)
    client.routing = cluster.wait(serving=2)
    again = client.write_once([(chunk, 0, b"b")], 6)[0]
    while again.code == Code.WRONG_CHAIN_VERSION:  # the new head hears of it after us
        again = client.write_once([(chunk, 0, b"b")], 6)[0]
    assert (again.code, again.version) == (0, 2)
    client.close()


def test_truncate_by_epoch_and_last_byte_over_grpc(cluster: Cluster) -> None:
    import asyncio

    client = Client(cluster)
    for index in range(4):
        client.write([(chunk_id(9, index), 0, b"x" * MIB)])  # type: ignore[arg-type]
    chain = client.chain()
    head = client.routing.node_of(chain.serving[0]).endpoint.grpc

    async def main() -> None:
        grpc = service.GrpcClient(head)
        cut = pb.TruncateChunksRequest(
            chain=chain.id, chain_version=chain.version, inode=9, epoch=2,
            length=MIB + 5, chunk_bytes=MIB, sequence=1,
        )  # fmt: skip
        end = pb.LastByteRequest(
            chain=chain.id, chain_version=chain.version, inode=9, chunk_bytes=MIB
        )
        call, last = service.method("Storage", "Truncate"), service.method("Storage", "LastByte")
        assert (await grpc.call(last, end, 10)).length == 4 * MIB
        assert (await grpc.call(call, cut, 10)).chunks == 3
        assert (await grpc.call(last, end, 10)).length == MIB + 5
        assert (await grpc.call(call, cut, 10)).chunks == 0
        cut.remove, cut.epoch = True, 3
        assert (await grpc.call(call, cut, 10)).chunks == 2
        assert (await grpc.call(last, end, 10)).length == 0
        await grpc.call(
            service.method("Storage", "Sync"),
            pb.SyncRequest(chain=chain.id, chain_version=chain.version),
            10,
        )
        cut.chain_version += 1
        with pytest.raises(Error) as caught:
            await grpc.call(call, cut, 10)
        assert caught.value.code is Code.WRONG_CHAIN_VERSION
        await grpc.close()

    asyncio.run(main())
    # a write of the older epoch came too late
    late = client.write_once([(chunk_id(9, 2), 0, b"late")], 99, epoch=1)  # type: ignore[arg-type]
    assert late[0].code == Code.STALE_EPOCH
    client.close()


def test_reads_name_the_chain_version_and_come_over_both_transports(cluster: Cluster) -> None:
    chunk = chunk_id(7, 0)  # type: ignore[arg-type]
    for transport in ("shm", "tcp"):
        client = Client(cluster, transport=transport)
        data = os.urandom(300_000)
        client.write([(chunk, 1000, data)])
        for target in client.chain().serving:
            assert client.connection(target).kind == transport
            result, found = client.read_from(target, [(chunk, 0, MIB)])[0]
            assert (result.code, found) == (0, bytes(1000) + data)
            assert client.read_from(target, [(chunk_id(8, 0), 0, 10)])[0][1] == b""  # type: ignore[arg-type]
        chain = client.chain()
        old = type(chain)(chain.id, chain.version - 1, chain.targets)
        client.routing.chains[chain.id] = old  # type: ignore[index]
        wrong = client.read_from(chain.serving[0], [(chunk, 0, 10)])[0][0]
        assert wrong.code == Code.WRONG_CHAIN_VERSION
        results = client.write_once([(chunk, 0, b"x")], 77)
        assert results[0].code == Code.WRONG_CHAIN_VERSION
        client.close()
        chunk = chunk_id(7, 1)  # type: ignore[arg-type]


def test_a_directory_of_another_cluster_or_in_use_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cluster").write_text("f" * 32 + "\n")
    import asyncio

    from hillfire.config import StorageConfig
    from hillfire.storage.server import StorageServer

    async def refused(directory: Path) -> Code:
        server = StorageServer(
            StorageConfig(node=150, directory=directory, manager=cluster.address)
        )
        with pytest.raises(Error) as caught:
            await server.start()
        return caught.value.code

    assert asyncio.run(refused(tmp_path / "other")) is Code.WRONG_CLUSTER
    assert asyncio.run(refused(tmp_path / "101")) is Code.BUSY
    cluster.wait()
