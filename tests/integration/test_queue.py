"""Arrays, regions and queues against a real cluster, on both faces. Budget: 30 s."""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import hillfire
from hillfire.client.filesystem import FileSystem
from hillfire.errors import Code, Error
from hillfire.proto.wire import copies
from tests.cluster import LocalCluster, cluster

MIB = 1 << 20
SAMPLE = 4096
SAMPLES = 2048


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with cluster(tmp_path_factory.mktemp("queue"), nodes=3, replicas=3) as local:
        with hillfire.connect(local.address) as fs:
            fs.write_bytes("/samples", samples().tobytes())
        yield local


def samples() -> Any:
    """The whole data set: each sample's bytes tell its number."""
    numbers = np.arange(SAMPLES, dtype="<u4")
    return np.repeat(numbers, SAMPLE // 4).reshape(SAMPLES, SAMPLE // 4)


@pytest.fixture(params=["shm", "tcp"])
def fs(running: LocalCluster, request: pytest.FixtureRequest) -> Iterator[FileSystem]:
    with hillfire.connect(running.address, transport=request.param) as made:
        yield made


def chosen(count: int, seed: int = 0) -> Any:
    return np.array(random.Random(seed).sample(range(SAMPLES), count))


def test_rows_of_an_array_are_filled_in_place(fs: FileSystem) -> None:
    region = fs.register(512 * SAMPLE)
    batch = region.numpy("<u4", (512, SAMPLE // 4))
    copied = copies.CLIENT.value
    foreign = np.zeros((100, SAMPLE // 4), "<u4")
    with fs.open("/samples", "rb") as file:
        index = chosen(512)
        results = fs.read_many(file, index * SAMPLE, batch).check()
        assert results.n_bytes == 512 * SAMPLE and list(results) == [SAMPLE] * 512
        assert (batch == index[:, None]).all()
        assert (
            fs.read_many(file, index[:7] * SAMPLE, batch[3:10]).check().counts.sum() == 7 * SAMPLE
        )
        assert (batch[3:10] == index[:7, None]).all() and (batch[10] == index[10]).all()
        assert copies.CLIENT.value == copied, "nothing is copied into memory of a region"
        fs.read_many(file, index[:100] * SAMPLE, foreign).check()
        if fs._shell._transport == "shm":
            assert copies.CLIENT.value == copied + 100 * SAMPLE
        assert (foreign == index[:100, None]).all()
        one = fs.read_many(file, 5 * SAMPLE, batch[0])
        assert list(one) == [SAMPLE] and (batch[0] == 5).all()
        scattered = fs.read_many(
            file, index[:20] * SAMPLE, region, lengths=100, places=np.arange(20) * 5000
        )
        assert list(scattered) == [100] * 20
        for i in range(20):
            assert bytes(region.view[5000 * i : 5000 * i + 4]) == int(index[i]).to_bytes(
                4, "little"
            )
        tail = fs.read_many(file, [SAMPLES * SAMPLE - 10, SAMPLES * SAMPLE], region, lengths=4096)
        assert list(tail) == [10, 0]


def test_a_file_is_read_into_a_region_past_staging(fs: FileSystem) -> None:
    region = fs.register(SAMPLES * SAMPLE)
    numbers = region.numpy("<u4", (SAMPLES, SAMPLE // 4))
    with fs.open("/samples", "rb") as file:
        assert file.readinto(numbers) == SAMPLES * SAMPLE == file.tell()
        assert (numbers == np.arange(SAMPLES)[:, None]).all()
        assert file.readinto(numbers) == 0
        numbers[:] = 0
        file.seek(-100 * SAMPLE, 2)
        assert file.readinto(numbers) == 100 * SAMPLE, "short at the end"
        assert (numbers[:100, 0] == np.arange(SAMPLES - 100, SAMPLES)).all()
        assert not numbers[100:].any()
        file.seek(0)
        assert file.read(2 * SAMPLE) == samples()[:2].tobytes()
        assert file.readinto(numbers[:50]) == 50 * SAMPLE
        assert (numbers[:50, 9] == np.arange(2, 52)).all()


def test_many_files_and_one_write(fs: FileSystem) -> None:
    home = f"/many-{fs._core.client}"
    fs.mkdir(home)
    region = fs.register(64 * SAMPLE)
    batch = region.numpy("<u4", (64, SAMPLE // 4))
    batch[:] = np.arange(64)[:, None]
    files = [fs.open(f"{home}/{n}", "w+b") for n in range(8)]
    which, offsets = np.arange(64) % 8, np.arange(64) // 8 * SAMPLE
    fs.write_many(files, offsets, batch, which=which).check()
    batch[:] = 0
    fs.read_many(files, offsets[::-1], batch, which=which[::-1]).check()
    assert (batch == np.arange(64)[::-1][:, None]).all()
    for n, file in enumerate(files):
        assert file.stat().st_size == 8 * SAMPLE
        file.close()
        assert fs.stat(f"{home}/{n}").st_size == 8 * SAMPLE
    assert fs.read_bytes(f"{home}/3")[SAMPLE : SAMPLE + 4] == (11).to_bytes(4, "little")


def test_a_queue_keeps_slots_full_and_hands_each_batch_out_once(fs: FileSystem) -> None:
    region = fs.register(8 * 64 * SAMPLE)
    slots = region.numpy("<u4", (8, 64, SAMPLE // 4))
    wanted = [chosen(64, number) for number in range(40)]
    numbers, seen = iter(range(40)), list[int]()
    with fs.open("/samples", "rb") as file, fs.queue(depth=300) as queue:

        def submit(number: int, slot: int) -> None:
            queue.read(file, wanted[number] * SAMPLE, slots[slot], tag=(number, slot))

        for slot in range(8):
            submit(next(numbers), slot)
        assert len(queue) == 8 and "256 of 300" in repr(queue), "the rest waits for its turn"
        for transfer in queue:
            number, slot = transfer.tag
            assert transfer.done and transfer.result().check().n_bytes == 64 * SAMPLE
            assert (slots[slot] == wanted[number][:, None]).all()
            seen.append(number)
            following = next(numbers, None)
            if following is not None:
                submit(following, slot)
        assert sorted(seen) == list(range(40)) and not len(queue)
        assert queue.wait() == [] == queue.drain()
        last = queue.read(file, 0, slots[0, 0])
        assert last.result().n_bytes == SAMPLE and queue.wait() == []
        with pytest.raises(Error, match="not open for writing"):
            queue.write(file, 0, slots[0, 0])


def test_an_error_is_one_entrys_and_an_unseen_one_is_raised_at_the_end(fs: FileSystem) -> None:
    region = fs.register(64 * SAMPLE)
    with fs.open("/samples", "rb") as file:
        with pytest.raises(Error) as caught, fs.queue() as queue:
            places = np.arange(20) * 1000
            places[7] = region.size - 10
            transfer = queue.read(file, np.arange(20), region, lengths=100, places=places)
            assert queue.wait() == [transfer]
            results = transfer.result()
            assert list(results.errors) == [7] and results.errors[7].code is Code.INVALID
            assert results[6] == 100 and results.counts[7] == -1 and results.n_bytes == 1900
            queue.read(file, np.arange(20), region, lengths=100, places=places)
        assert caught.value.code is Code.INVALID
        with fs.queue() as queue:
            queue.read(file, 0, region, lengths=10)
        with pytest.raises(Error, match="closed"):
            queue.read(file, 0, region, lengths=10)


def test_writes_are_queued_beside_reads(fs: FileSystem) -> None:
    path, pieces = f"/queued-{fs._core.client}", 24
    rows = fs.register(pieces * MIB).numpy("u1", (pieces, MIB))
    rows[:] = np.arange(1, pieces + 1, dtype="u1")[:, None]
    back = fs.register(pieces * MIB).numpy("u1", (pieces, MIB))
    with fs.open(path, "w+b") as file, fs.queue(depth=8) as queue:
        order = random.Random(4).sample(range(pieces), pieces)
        for at in order:  # each a batch of its own, over all chains
            queue.write(file, at * MIB, rows[at], tag=at)
        for transfer in queue:
            at = transfer.tag
            if at >= 0:
                assert transfer.result().check().n_bytes == MIB
                queue.read(file, at * MIB, back[at], tag=-1)
        assert (back == rows).all()
        file.fsync()
        assert fs.stat(path).st_size == pieces * MIB
        overlapping = np.arange(40) * 1000
        queue.write(file, overlapping, rows[0].reshape(-1, 4096)[:40])
    with fs.open(path, "rb") as file:
        assert file.read(39 * 1000 + 4096) == bytes([1]) * (39 * 1000 + 4096)


@contextmanager
def stopped(running: LocalCluster, names: list[str]) -> Iterator[None]:
    pids = [running.pid(name) for name in names]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_deadlines_cancellation_and_who_is_done_first(running: LocalCluster) -> None:
    """What a stopped node holds up does not hold up the rest, and can be given up."""
    with hillfire.connect(running.address) as fs, fs.open("/samples", "rb") as file:
        region = fs.register(64 * SAMPLE)
        rows = region.numpy("u1", (64, SAMPLE))
        with fs.queue() as queue:
            wide = np.empty((512, SAMPLE), "u1")
            queue.read(file, np.arange(512) * SAMPLE, wide).result()  # connects to every node
            began = time.monotonic()
            with stopped(running, ["storage-101"]):
                transfers = [queue.read(file, n * SAMPLE, rows[n], tag=n) for n in range(12)]
                quick = queue.wait(at_least=4, timeout_s=5)
                assert len(quick) >= 4 and time.monotonic() - began < 1
                assert all(each.result().n_bytes == SAMPLE for each in quick)
            assert all(each.result(20).n_bytes == SAMPLE for each in transfers)
            with stopped(running, running.storage_names):
                stuck = [queue.read(file, n * SAMPLE, rows[n], deadline_s=0.2) for n in range(12)]
                began = time.monotonic()
                assert queue.wait(timeout_s=0.02) == [] and time.monotonic() - began < 0.15
                with pytest.raises(TimeoutError):
                    stuck[3].result(timeout_s=0.01)
                stuck[3].cancel()
                assert stuck[3].result().errors[0].code is Code.CANCELLED
                ended = queue.wait(at_least=11, timeout_s=10)
                assert {each.result().errors[0].code for each in ended} == {Code.TIMED_OUT}
                refused = queue.read(file, 0, rows[3], deadline_s=0.2).result()
                assert refused.errors[0].code is Code.BUSY, "its memory is in quarantine"
            again = fs.read_many(file, 0, fs.register(SAMPLE), lengths=SAMPLE).check()
            assert again.n_bytes == SAMPLE


def test_a_queue_is_of_one_thread_and_one_process(running: LocalCluster) -> None:
    with hillfire.connect(running.address) as fs, fs.open("/samples", "rb") as file:
        region = fs.register(SAMPLE)
        with fs.queue() as queue:
            refused = list[Code]()

            def other() -> None:
                try:
                    queue.wait()
                except Error as exc:
                    refused.append(exc.code)

            with queue._alone():
                thread = threading.Thread(target=other)
                thread.start()
                thread.join()
            assert refused == [Code.BUSY]
            queue.read(file, 0, region, lengths=SAMPLE)
            pid = os.fork()
            if pid == 0:
                try:
                    queue.wait()
                except Error as exc:
                    os._exit(0 if exc.code is Code.INVALID else 2)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert len(queue.wait()) == 1


def test_the_async_queue(running: LocalCluster) -> None:
    async def main() -> None:
        async with await hillfire.connect_async(running.address) as fs:
            region = fs.register(8 * 64 * SAMPLE)
            slots = region.numpy("<u4", (8, 64, SAMPLE // 4))
            wanted = [chosen(64, number) for number in range(24)]
            file = await fs.open("/samples", "rb")
            numbers, seen = iter(range(24)), list[int]()
            async with fs.queue(depth=300) as queue:
                for slot in range(8):
                    number = next(numbers)
                    queue.read(file, wanted[number] * SAMPLE, slots[slot], tag=(number, slot))
                assert len(queue) == 8 and "256 of 300" in repr(queue)
                async for transfer in queue:
                    number, slot = transfer.tag
                    assert (await transfer).check().n_bytes == 64 * SAMPLE
                    assert (slots[slot] == wanted[number][:, None]).all()
                    seen.append(number)
                    following = next(numbers, None)
                    if following is not None:
                        rows = slots[slot]
                        queue.read(file, wanted[following] * SAMPLE, rows, tag=(following, slot))
                assert sorted(seen) == list(range(24)) and await queue.drain() == []
                assert (await queue.read(file, 0, slots[0, 0])).n_bytes == SAMPLE
                assert await queue.wait() == []
                transfers = [queue.read(file, wanted[0] * SAMPLE, slots[0]) for _ in range(9)]
                transfers[8].cancel()
                transfers[0].cancel()
                ended = await queue.wait(at_least=9, timeout_s=10)
                assert set(ended) == set(transfers)
                assert (await transfers[8]).errors[0].code is Code.CANCELLED
                assert (await transfers[0]).errors[0].code is Code.CANCELLED
                assert (await transfers[4]).check().n_bytes == 64 * SAMPLE
            results = await fs.read_many([file, file], [0, SAMPLE], slots[0, :2])
            assert list(results) == [SAMPLE, SAMPLE] and (slots[0, 1] == 1).all()
            home = f"/async-{fs._core.client}"
            async with await fs.open(home, "w+b") as new:
                assert list(await fs.write_many(new, [0, SAMPLE], slots[0, :2])) == [SAMPLE, SAMPLE]
                with pytest.raises(Error):
                    async with fs.queue() as queue:
                        queue.read(new, [0, 1], region, lengths=8, places=[0, region.size])
            assert (await fs.stat(home)).st_size == 2 * SAMPLE
            await file.close()

    asyncio.run(main())
