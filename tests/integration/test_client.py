"""The client against a real cluster of processes. Budget: 90 s.

One cluster serves all tests but the last, which kills one of its storage nodes.
"""

import asyncio
import io
import os
import random
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hillfire
from hillfire.client.aio import Client
from hillfire.client.filesystem import FileSystem
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2
from hillfire.proto.wire.base import Part
from tests.cluster import LocalCluster, cluster

MIB = 1 << 20
WORKERS = 4


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with cluster(tmp_path_factory.mktemp("client"), nodes=3, replicas=3) as local:
        yield local


@pytest.fixture(params=["shm", "tcp"])
def fs(running: LocalCluster, request: pytest.FixtureRequest) -> Iterator[FileSystem]:
    with hillfire.connect(running.address, transport=request.param) as made:
        home = f"/{request.node.name}"
        made.mkdir(home)
        yield made


@pytest.fixture
def home(request: pytest.FixtureRequest) -> str:
    return f"/{request.node.name}"


def test_a_file_equals_a_bytes_model(fs: FileSystem, home: str) -> None:
    chance, model = random.Random(1), bytearray()
    with fs.open(f"{home}/f", "w+b") as file:
        for _ in range(120):
            what = chance.choice(["write", "write", "seek", "read", "flush", "truncate", "big"])
            if what in ("write", "big"):
                data = chance.randbytes(chance.randrange(1, 5 * MIB if what == "big" else 20000))
                at = file.tell()
                assert file.write(data) == len(data)
                model.extend(bytes(max(0, at - len(model))))
                model[at : at + len(data)] = data
            elif what == "seek":
                file.seek(chance.randrange(len(model) + 9999))
            elif what == "read":
                at, count = file.tell(), chance.choice([1, 4096, 100_000, 3 * MIB])
                assert file.read(count) == model[at : at + count]
            elif what == "flush":
                file.flush()
                assert fs.stat(f"{home}/f").st_size == len(model)
            else:
                length = chance.randrange(len(model) + 100_000)
                file.truncate(length)
                del model[length:]
                model.extend(bytes(length - len(model)))
        file.fsync()
    assert fs.read_bytes(f"{home}/f") == model
    with fs.open(f"{home}/f", "rb") as file:
        into = bytearray(len(model) + 5)
        assert file.readinto(into) == len(model) and into[: len(model)] == model
        for _ in range(50):
            at, count = chance.randrange(len(model)), chance.randrange(50_000)
            assert file.read_at(at, count) == model[at : at + count]


def test_batches_with_good_and_bad_entries(fs: FileSystem, home: str) -> None:
    chance = random.Random(2)
    region, model = fs.register(4 * MIB), bytearray(8 * MIB)
    with fs.open(f"{home}/f", "w+b") as file, fs.open(f"{home}/g", "wb") as closed:
        closed.close()
        for _ in range(6):
            writes = []
            for place in range(0, 4 * MIB, 128 * 1024):
                length = chance.randrange(1, 128 * 1024)
                region.view[place : place + length] = chance.randbytes(length)
                at = chance.randrange(8 * MIB - length)
                writes.append((file, at, place, length))
                model[at : at + length] = region.view[place : place + length]
            assert fs.write_batch(writes, region) == [length for *_, length in writes]
        end = max(i for i, byte in enumerate(model) if byte) + 1
        reads = [
            (file, 0, 0, 4096),
            (closed, 0, 0, 4096),
            (file, -1, 0, 4096),
            (file, 0, 4 * MIB - 10, 4096),
            (file, end - 100, 8192, 4096),
            (file, end + 5, 8192, 4096),
            (file, 3 * MIB - 5, MIB, 2 * MIB),
        ]
        results = fs.read_batch(reads, region)
        codes = [r.code if isinstance(r, Error) else r for r in results]
        bad = Code.INVALID
        assert codes == [4096, bad, bad, bad, 100, 0, 2 * MIB]
        assert region.view[:4096] == model[:4096]
        assert region.view[8192:8292] == model[end - 100 : end]
        assert region.view[MIB : 3 * MIB] == model[3 * MIB - 5 : 5 * MIB - 5]
        foreign = fs.register(bytearray(MIB))
        assert fs.read_batch([(file, 777, 5, MIB - 5)], foreign) == [MIB - 5]
        assert foreign.view[5:] == model[777 : 777 + MIB - 5]
    assert fs.stat(f"{home}/f").st_size == end


def test_names(fs: FileSystem, home: str) -> None:
    fs.makedirs(f"{home}/a/b/c", exist_ok=True)
    fs.makedirs(f"{home}/a/b/c", exist_ok=True)
    with pytest.raises(FileExistsError):
        fs.makedirs(f"{home}/a/b/c")
    fs.write_bytes(f"{home}/a/one", b"1")
    fs.symlink("one", f"{home}/a/link")
    fs.link(f"{home}/a/one", f"{home}/a/two")
    assert fs.readlink(f"{home}/a/link") == "one"
    assert fs.read_bytes(f"{home}/a/link") == b"1"
    assert fs.listdir(f"{home}/a") == ["b", "link", "one", "two"]
    kinds = {
        e.name: (e.is_dir(), e.is_symlink(), e.stat().st_nlink) for e in fs.scandir(f"{home}/a")
    }
    assert kinds["one"] == (False, False, 2) and kinds["b"][0] and kinds["link"][1]
    assert [d for d, _, _ in fs.walk(home)] == [home, f"{home}/a", f"{home}/a/b", f"{home}/a/b/c"]
    fs.rename(f"{home}/a/two", f"{home}/a/b/two")
    with pytest.raises(FileExistsError):
        fs.rename(f"{home}/a/one", f"{home}/a/b/two", no_replace=True)
    fs.replace(f"{home}/a/one", f"{home}/a/b/two")
    with pytest.raises(OSError, match="empty"):
        fs.rmdir(f"{home}/a")
    with pytest.raises(FileNotFoundError) as caught:
        fs.stat(f"{home}/nothing")
    assert caught.value.filename == f"{home}/nothing"
    with pytest.raises(IsADirectoryError):
        fs.open(f"{home}/a", "rb")
    with pytest.raises(NotADirectoryError):
        fs.listdir(f"{home}/a/b/two")
    assert fs.exists(f"{home}/a/b/c") and not fs.exists(f"{home}/a/b/c/d")
    fs.rmdir(f"{home}/a/b/c")
    fs.chmod(f"{home}/a/b", 0o700)
    fs.chown(f"{home}/a/b", 12, -1)
    fs.utime(f"{home}/a/b", ns=(5, 7))
    found = fs.stat(f"{home}/a/b")
    assert (found.st_mode & 0o777, found.st_uid, found.st_mtime_ns) == (0o700, 12, 7)
    fs.setxattr(f"{home}/a", "user.k", b"v")
    assert fs.listxattr(f"{home}/a") == ["user.k"] and fs.getxattr(f"{home}/a", "user.k") == b"v"
    with pytest.raises(FileExistsError):
        fs.setxattr(f"{home}/a", "user.k", b"v", os.XATTR_CREATE)
    fs.removexattr(f"{home}/a", "user.k")
    assert fs.listxattr(f"{home}/a") == []
    assert fs.statvfs().f_blocks > 0
    for name in range(1500):
        fs.symlink("x", f"{home}/a/b/{name:04}")
    assert len(fs.listdir(f"{home}/a/b")) == 1501


def test_modes_text_and_lines(fs: FileSystem, home: str) -> None:
    path = f"{home}/t"
    with fs.open(path, "x") as text:
        text.write("".join(f"line {i} é\n" for i in range(20_000)))
    with pytest.raises(FileExistsError):
        fs.open(path, "xb")
    with fs.open(path) as text:
        lines = list(text)
    assert len(lines) == 20_000 and lines[-1] == "line 19999 é\n"
    with fs.open(path, "rb") as file:
        assert [line.decode() for line in file] == lines
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"")
    with fs.open(path, "a") as text:
        text.write("end")
    with fs.open(path, "r+b") as file:
        file.seek(-3, io.SEEK_END)
        assert file.read() == b"end"
        file.seek(0)
        file.write(b"LINE")
    assert fs.read_bytes(path)[:6] == b"LINE 0"
    with fs.open(path, "w"):
        pass
    assert fs.stat(path).st_size == 0
    fs.truncate(path, 10)
    assert fs.read_bytes(path) == bytes(10)


def test_a_file_without_a_name_stays_until_it_is_closed(fs: FileSystem, home: str) -> None:
    data = random.Random(3).randbytes(3 * MIB)
    fs.write_bytes(f"{home}/f", data)
    with fs.open(f"{home}/f", "rb") as file:
        fs.unlink(f"{home}/f")
        assert not fs.exists(f"{home}/f")
        assert file.read() == data


def test_two_clients_append_and_lose_nothing(running: LocalCluster) -> None:
    with hillfire.connect(running.address) as one, hillfire.connect(running.address) as two:
        with one.open("/log", "ab") as a, two.open("/log", "ab") as b:
            for number in range(60):
                (a if number % 2 else b).write(f"{number:05}\n".encode())
                if number % 3 == 0:
                    a.flush()
                    b.flush()
        found = one.read_bytes("/log").split()
        assert sorted(map(int, found)) == list(range(60))


def test_threads(running: LocalCluster) -> None:
    with hillfire.connect(running.address) as fs:
        common = random.Random(0).randbytes(4 * MIB)
        fs.write_bytes("/common", common)
        shared = fs.open("/common", "rb")
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                chance = random.Random(number)
                data = chance.randbytes(2 * MIB)
                fs.write_bytes(f"/thread-{number}", data)
                for _ in range(100):
                    at = chance.randrange(4 * MIB)
                    assert shared.read_at(at, 5000) == common[at : at + 5000]
                assert fs.read_bytes(f"/thread-{number}") == data
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shared.close()
        assert not failures


def in_children(work: Callable[[int], None]) -> None:
    """Fork ``WORKERS`` children, as a data loader does, and expect each to succeed."""
    pids = []
    for number in range(WORKERS):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(number)
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * WORKERS


def test_forked_workers_read_at_random(fs: FileSystem, home: str) -> None:
    data = random.Random(5).randbytes(8 * MIB)
    fs.write_bytes(f"{home}/data", data)
    parent = fs._shell.core.client
    writer = fs.open(f"{home}/parents", "wb")
    writer.write(b"once")
    with fs.open(f"{home}/data", "rb") as file:
        assert file.read(10) == data[:10]

        def work(number: int) -> None:
            assert fs._shell.core.client != parent
            chance, region = random.Random(number), fs.register(64 * 4096)
            for _ in range(20):
                at = chance.randrange(len(data))
                assert file.read_at(at, 10_000) == data[at : at + 10_000]
                batch = [(file, chance.randrange(7 * MIB), i * 4096, 4096) for i in range(64)]
                assert fs.read_batch(batch, region) == [4096] * 64
                for _, at, place, length in batch:
                    assert region.view[place : place + length] == data[at : at + length]
            fs.write_bytes(f"{home}/of-{number}", data[number : number + MIB])
            writer.close()

        in_children(work)
        assert file.read_at(MIB, 100) == data[MIB : MIB + 100]
    writer.close()
    assert fs.read_bytes(f"{home}/parents") == b"once"
    for number in range(WORKERS):
        assert fs.read_bytes(f"{home}/of-{number}") == data[number : number + MIB]


def test_the_async_face(running: LocalCluster) -> None:
    async def main() -> None:
        async with await hillfire.connect_async(running.address) as fs:
            await fs.makedirs("/async/deep")
            data = random.Random(6).randbytes(5 * MIB)

            async def one(number: int) -> None:
                path = f"/async/{number}"
                async with await fs.open(path, "wb") as file:
                    await file.write(data[number:])
                    await file.fsync()
                async with await fs.open(path, "rb") as file:
                    assert await file.read() == data[number:]
                    assert await file.read_at(MIB, 99) == data[number + MIB : number + MIB + 99]

            await asyncio.gather(*map(one, range(6)))
            async with await fs.open("/async/0", "r+b") as file:
                region = fs.register(MIB)
                reads = [(file, i * 9999, i * 4096, 4096) for i in range(100)]
                assert await fs.read_batch(reads, region) == [4096] * 100
                assert region.view[4096:8192] == data[9999 : 9999 + 4096]
                assert await fs.write_batch([(file, 5 * MIB, 0, 4096)], region) == [4096]
            assert (await fs.stat("/async/0")).st_size == 5 * MIB + 4096
            assert [top async for top, _, _ in fs.walk("/async")] == ["/async", "/async/deep"]
            with pytest.raises(FileNotFoundError):
                await fs.open("/async/none")

    asyncio.run(main())


def test_the_client_that_the_mount_uses(running: LocalCluster) -> None:
    async def main() -> None:
        client = await Client.connect(running.address)
        caller = meta_pb2.Caller(uid=0, gid=0, checked=True)
        place = meta_pb2.Place(parent=1, path=b"by-inode")
        inode = await client.meta("Create", meta_pb2.CreateRequest(caller=caller, place=place))
        client.hold.add(inode.id)
        part = await client.buffers.acquire_async(3 * MIB, 5.0)
        view = part.region.view[part.offset : part.offset + part.length]
        data = random.Random(7).randbytes(3 * MIB)
        view[:] = data
        await client.write(inode, MIB, part)
        await client.sync(inode, MIB, 4 * MIB)
        inode = await client.meta(
            "Settle",
            meta_pb2.SettleRequest(inode=inode.id, length=4 * MIB, sync=True, close=True),
        )
        view[:] = bytes(3 * MIB)
        assert await client.read(inode, 2 * MIB, part) == 2 * MIB
        assert view[: 2 * MIB] == data[MIB:]
        results = await client.read_batch(
            [(inode, 0, Part(part.region, part.offset, 4096)), (inode, 0, Part(part.region, -1, 1))]
        )
        assert results[0] == 4096 and isinstance(results[1], Error)
        assert view[:4096] == bytes(4096)
        assert await client.fetch(inode, MIB - 1, 4) == b"\0" + data[:3]
        with pytest.raises(FileNotFoundError):
            lookup = meta_pb2.LookupRequest(place=meta_pb2.Place(parent=1, path=b"missing"))
            await client.meta("Lookup", lookup)
        client.buffers.release(part)
        await client.close()

    asyncio.run(main())


def test_an_address_is_found_or_explained(
    running: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HILLFIRE_ADDRESS", running.address)
    hillfire.connect().close()
    monkeypatch.delenv("HILLFIRE_ADDRESS")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(Error, match="hillfire up"):
        hillfire.connect()
    (tmp_path / "hillfire").mkdir()
    (tmp_path / "hillfire" / "last-cluster").write_text(running.address + "\n")
    hillfire.connect().close()
    with pytest.raises(Error, match="host:port"):
        hillfire.connect("nonsense")


def test_a_metadata_service_that_crashes_is_only_slow(running: LocalCluster) -> None:
    with hillfire.connect(running.address) as fs, fs.open("/crash", "wb") as file:
        file.write(b"before")
        running.crash("meta")
        for number in range(30):
            fs.mkdir(f"/made-{number}")
        file.write(b" and after")
        file.fsync()
        assert fs.read_bytes("/crash") == b"before and after"
        running.crash("manager")
        assert {f"made-{number}" for number in range(30)} <= set(fs.listdir("/"))
    running.wait_serving()


def test_a_stopped_node_delays_reads_and_changes_no_byte(running: LocalCluster) -> None:
    """What it may still write into stays in quarantine until it goes on or has ended."""
    data = random.Random(11).randbytes(8 * MIB)
    # A client for each of the two, so that each has a connection of its own to the node already.
    with (
        hillfire.connect(running.address, transport="shm") as fs,
        hillfire.connect(running.address, transport="shm") as other,
    ):
        fs.write_bytes("/stopped", data)
        chance, region = random.Random(12), fs.register(64 * 4096)
        with fs.open("/stopped", "rb") as file, other.open("/stopped", "rb") as same:
            file.read_at(0, 8 * MIB)
            same.read_at(0, 8 * MIB)
            pid = running.pid("storage-103")
            os.kill(pid, signal.SIGSTOP)
            longest_s = 0.0
            try:
                batch = [(file, i * 100_000, i * 4096, 4096) for i in range(64)]
                found: list[list[int | Error]] = []
                reader = threading.Thread(target=lambda: found.append(fs.read_batch(batch, region)))
                reader.start()
                for _ in range(200):
                    at, began = chance.randrange(8 * MIB - 9000), time.monotonic()
                    assert same.read_at(at, 9000) == data[at : at + 9000]
                    longest_s = max(longest_s, time.monotonic() - began)
                assert reader.is_alive(), "its region may still be written into"
            finally:
                os.kill(pid, signal.SIGCONT)
            reader.join(30)
            assert found == [[4096] * 64] and longest_s < 8
            for _, at, place, length in batch:
                assert region.view[place : place + length] == data[at : at + length]
    running.wait_serving()


def test_killing_a_storage_node_under_load_is_no_error(running: LocalCluster) -> None:
    """Three threads write and read numbered, checksummed records while a node dies."""
    record, failures = 256 * 1024, list[BaseException]()
    with hillfire.connect(running.address) as fs:
        fs.write_bytes("/static", random.Random(8).randbytes(16 * MIB))
        static = fs.read_bytes("/static")
        stop, written = threading.Event(), [0, 0]
        reads = [0]
        longest_s = [0.0]

        def write(number: int) -> None:
            try:
                with fs.open(f"/records-{number}", "wb") as file:
                    while not stop.is_set():
                        body = random.Random(written[number]).randbytes(record - 12)
                        head = written[number].to_bytes(8, "little")
                        file.write(head + zlib.crc32(body).to_bytes(4, "little") + body)
                        written[number] += 1
            except BaseException as exc:
                failures.append(exc)

        def read() -> None:
            chance = random.Random(9)
            try:
                with fs.open("/static", "rb") as file:
                    while not stop.is_set():
                        at, began = chance.randrange(16 * MIB), time.monotonic()
                        assert file.read_at(at, 70_000) == static[at : at + 70_000]
                        longest_s[0] = max(longest_s[0], time.monotonic() - began)
                        reads[0] += 1
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
        threads.append(threading.Thread(target=read))
        for thread in threads:
            thread.start()

        def progress(count: int) -> None:
            """Wait until every thread has done ``count`` more."""
            goals = [written[0] + count, written[1] + count, reads[0] + count]
            end = time.monotonic() + 30
            while not failures and any(
                have < goal for have, goal in zip([*written, *reads], goals, strict=True)
            ):
                assert time.monotonic() < end, (written, reads)
                time.sleep(0.01)

        progress(20)
        version = fs._shell.core.routes.version
        running.kill("storage-102")
        progress(60)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures, failures
        assert fs._shell.core.routes.version > version
        for number in range(2):
            data = fs.read_bytes(f"/records-{number}")
            assert len(data) == written[number] * record
            for i in range(written[number]):
                one = data[i * record : (i + 1) * record]
                assert int.from_bytes(one[:8], "little") == i
                assert int.from_bytes(one[8:12], "little") == zlib.crc32(one[12:])
        assert longest_s[0] < 5
    running.start("storage-102")
    running.wait_serving()
    with hillfire.connect(running.address) as fs:
        assert fs.read_bytes("/static") == static
