"""What fsspec's own suite does not ask of ``hillfire://`` and its users do. Budget: 40 s."""

import asyncio
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.dirfs import DirFileSystem

import hillfire
from hillfire.client.adapters.fsspec import HillfireFileSystem
from hillfire.errors import Code, Error
from tests.cluster import LocalCluster


@pytest.fixture
def fs(running: LocalCluster) -> HillfireFileSystem:
    found = fsspec.filesystem("hillfire")
    assert isinstance(found, HillfireFileSystem)
    return found


@pytest.fixture
def top(fs: HillfireFileSystem, request: pytest.FixtureRequest) -> Iterator[str]:
    path = f"/{request.node.name.replace('[', '-').rstrip(']')}"
    fs.mkdir(path)
    yield path
    fs.rm(path, recursive=True)


def test_a_url_with_an_address_names_its_cluster(
    running: LocalCluster, fs: HillfireFileSystem, top: str
) -> None:
    url = f"hillfire://{running.address}{top}/x"
    with fsspec.open(url, "wb") as file:
        file.write(b"abc")
    other, path = fsspec.url_to_fs(url)
    assert path == f"{top}/x" and other.unstrip_protocol(path) == url
    assert other == fs and hash(other) == hash(fs) and other.client is fs.client
    assert fs.cat(f"{top}/x") == b"abc"
    with pytest.raises(TypeError, match="adress"):
        fsspec.filesystem("hillfire", adress="h:1")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_copies_of_it_in_other_processes(
    fs: HillfireFileSystem, top: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HILLFIRE_ADDRESS", "127.0.0.1:1")  # theirs: the copies bring the right one
    fs.pipe(f"{top}/x", b"0123456789")
    file = fs.open(f"{top}/x")
    assert file.read(3) == b"012"
    again = pickle.loads(pickle.dumps(file))
    assert again.read() == b"3456789" and again.fs == fs
    assert pickle.loads(pickle.dumps(fs)) == fs
    with fs.open(f"{top}/y", "wb") as writer, pytest.raises(TypeError):
        pickle.dumps(writer)
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.starmap(_read, [(fs, f"{top}/x", at) for at in range(10)]) == [
                bytes([48 + at]) for at in range(10)
            ]
    assert file.read() == b"3456789"  # the parent's own


def _read(fs: HillfireFileSystem, path: str, at: int) -> bytes:
    with fs.open(path) as file:
        file.seek(at)
        return bytes(file.read(1))


def test_errors_are_what_programs_catch(fs: HillfireFileSystem, top: str) -> None:
    fs.mkdir(f"{top}/d")
    fs.touch(f"{top}/d/x")
    for wrong, call in [
        (FileNotFoundError, lambda: fs.open(f"{top}/none")),
        (FileNotFoundError, lambda: fs.info(f"{top}/none")),
        (FileNotFoundError, lambda: fs.ls(f"{top}/none")),
        (FileNotFoundError, lambda: fs.cat(f"{top}/none")),
        (FileNotFoundError, lambda: fs.rm(f"{top}/none")),
        (FileNotFoundError, lambda: fs.mv(f"{top}/none", f"{top}/new/deep")),
        (FileExistsError, lambda: fs.mkdir(f"{top}/d")),
        (FileExistsError, lambda: fs.makedirs(f"{top}/d")),
        (IsADirectoryError, lambda: fs.open(f"{top}/d")),
        (IsADirectoryError, lambda: fs.rm(f"{top}/d")),
        (NotADirectoryError, lambda: fs.open(f"{top}/d/x/y", "wb")),
        (OSError, lambda: fs.rmdir(f"{top}/d")),
    ]:
        with pytest.raises(wrong) as raised:
            call()  # type: ignore[no-untyped-call]
        assert isinstance(raised.value, Error)
    assert not fs.exists(f"{top}/new")
    assert not fs.exists(f"{top}/d/x/y") and not fs.isdir(f"{top}/none")
    strict = fsspec.filesystem("hillfire", auto_mkdir=False)
    with pytest.raises(FileNotFoundError):
        strict.pipe(f"{top}/e/f/x", b"")
    fs.pipe(f"{top}/e/f/x", b"")


def test_an_outage_is_not_an_empty_directory(running: LocalCluster) -> None:
    lost = fsspec.filesystem("hillfire", address="127.0.0.1:1", io_timeout_s=0.2)
    calls: list[Callable[[str], Any]] = [lost.exists, lost.isdir, lost.isfile, lost.find, lost.glob]
    calls.append(lambda path: list(lost.walk(path)))
    for call in calls:
        with pytest.raises(Error) as raised:
            call("/data/*" if call == lost.glob else "/data")
        assert raised.value.code is Code.UNAVAILABLE


def test_what_others_write_is_seen_at_once(
    running: LocalCluster, fs: HillfireFileSystem, top: str
) -> None:
    """Listings are not cached: another client's file is there when it is."""
    assert fs.ls(top) == []
    with hillfire.connect(running.address) as other:
        other.write_bytes(f"{top}/x", b"abc")
        assert [(info["name"], info["size"]) for info in fs.ls(top)] == [(f"{top}/x", 3)]
        other.write_bytes(f"{top}/x", b"defghi")
    assert fs.cat(f"{top}/x") == b"defghi"
    assert fs.size(f"{top}/x") == 6


def test_ranges_of_many_files_in_one_call(fs: HillfireFileSystem, top: str) -> None:
    large = os.urandom(20 << 20)
    fs.pipe({f"{top}/{number}": bytes([number]) * 1000 for number in range(50)})
    fs.pipe(f"{top}/large", large)
    paths = [f"{top}/{number % 50}" for number in range(3000)] + [f"{top}/large"] * 4
    starts: list[Any] = [number // 50 for number in range(3000)] + [0, 5, -(9 << 20), 1 << 30]
    ends: list[Any] = [number // 50 + 7 for number in range(3000)] + [None, -5, None, None]
    found = fs.cat_ranges(paths, starts, ends)
    assert found[:3000] == [bytes([number % 50]) * 7 for number in range(3000)]
    assert found[3000:] == [large, large[5:-5], large[-(9 << 20) :], b""]
    mixed = fs.cat_ranges([f"{top}/1", f"{top}/none"], 0, 2)
    assert mixed[0] == b"\1\1" and isinstance(mixed[1], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([f"{top}/none"], 0, 1, on_error="raise")
    assert fs.cat([f"{top}/1", f"{top}/none"], on_error="omit") == {f"{top}/1": b"\1" * 1000}


def test_links_are_followed_to_be_read_and_not_to_be_removed(
    fs: HillfireFileSystem, top: str
) -> None:
    fs.pipe(f"{top}/real/x", b"abc")
    fs.symlink("real", f"{top}/latest")
    fs.symlink(f"{top}/real/x", f"{top}/file")
    fs.symlink("nowhere", f"{top}/broken")
    fs.symlink("..", f"{top}/real/up")
    assert fs.info(f"{top}/latest")["type"] == "directory"
    assert fs.info(f"{top}/latest")["destination"] == "real"
    assert fs.cat(f"{top}/latest/x") == fs.cat(f"{top}/file") == b"abc"
    kinds = {info["name"].rsplit("/")[-1]: info["type"] for info in fs.ls(top)}
    assert kinds == {"broken": "link", "file": "file", "latest": "directory", "real": "directory"}
    assert fs.lexists(f"{top}/broken") and not fs.exists(f"{top}/broken")
    assert [name for name in fs.find(top) if name.endswith("x")] == [f"{top}/real/x"]
    assert fs.du(top) == 6  # the file, and the link to it
    fs.rm(f"{top}/latest", recursive=True)
    assert fs.exists(f"{top}/real/x")


def test_renames(fs: HillfireFileSystem, top: str) -> None:
    fs.pipe({f"{top}/a/x": b"x", f"{top}/a/y": b"y", f"{top}/z": b"z"})
    fs.mv(f"{top}/z", f"{top}/a/x")  # over it, in one step
    assert fs.cat(f"{top}/a/x") == b"z"
    fs.mv(f"{top}/a", f"{top}/b/c")
    assert fs.find(top) == [f"{top}/b/c/x", f"{top}/b/c/y"]
    fs.mkdir(f"{top}/into")
    fs.mv(f"{top}/b/c/*", f"{top}/into/")
    assert fs.find(top) == [f"{top}/into/x", f"{top}/into/y"]


def test_transactions(fs: HillfireFileSystem, top: str) -> None:
    with fs.transaction:
        with fs.open(f"{top}/x", "wb") as file:
            file.write(b"abc")
        assert not fs.exists(f"{top}/x")
    assert fs.cat(f"{top}/x") == b"abc"
    with pytest.raises(RuntimeError), fs.transaction:
        with fs.open(f"{top}/y", "wb") as file:
            file.write(b"abc")
        raise RuntimeError
    assert fs.ls(top, detail=False) == [f"{top}/x"]


def test_text_lines_compression_and_appending(fs: HillfireFileSystem, top: str) -> None:
    with fsspec.open(f"hillfire://{top}/t.gz", "wt", compression="infer") as text:
        text.write("zwölf\nBoxkämpfer\n")
    with fsspec.open(f"hillfire://{top}/t.gz", "rt", compression="infer") as text:
        assert list(text) == ["zwölf\n", "Boxkämpfer\n"]
    with fs.open(f"{top}/a", "ab") as file:
        file.write(b"one;;two;;three")
        file.flush(force=True)
        assert fs.size(f"{top}/a") == 15
    with fs.open(f"{top}/a", "ab") as file:
        file.write(b";;four")
    with fs.open(f"{top}/a") as file:
        assert [file.readuntil(b";;", blocks=4) for _ in range(5)] == [
            b"one;;", b"two;;", b"three;;", b"four", b"",
        ]  # fmt: skip
    assert fs.read_block(f"{top}/a", 0, 4, delimiter=b";;") == b"one;;two;;"
    assert fs.tail(f"{top}/a", 4) == b"four" and fs.head(f"{top}/a", 3) == b"one"


def test_local_files_there_and_back(fs: HillfireFileSystem, top: str, tmp_path: Path) -> None:
    data = os.urandom((20 << 20) + 17)
    (tmp_path / "source").write_bytes(data)
    fs.put(str(tmp_path / "source"), f"{top}/deep/x")
    fs.cp(f"{top}/deep/x", f"{top}/copy")
    fs.get(f"{top}/copy", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    with pytest.raises(Error):
        fs.cp_file(f"{top}/copy", f"{top}/copy")
    assert fs.size(f"{top}/copy") == len(data)


def test_layers_of_fsspec_over_it(fs: HillfireFileSystem, top: str, tmp_path: Path) -> None:
    fs.pipe(f"{top}/x", b"abc")
    assert DirFileSystem(top, fs).cat("x") == b"abc"
    mapper = fs.get_mapper(top)
    mapper["k/v"] = b"value"
    assert dict(mapper) == {"x": b"abc", "k/v": b"value"}
    cached = fsspec.open(
        f"simplecache::hillfire://{top}/x", simplecache={"cache_storage": str(tmp_path)}
    )
    with cached as file:
        assert file.read() == b"abc"
    assert fs.created(f"{top}/x").tzinfo is not None
    before = fs.ukey(f"{top}/x")
    fs.pipe(f"{top}/x", b"abd")
    assert fs.ukey(f"{top}/x") != before


def test_a_closed_durable_file_is_on_the_disks(fs: HillfireFileSystem, top: str) -> None:
    durable = fsspec.filesystem("hillfire", durable=True)
    assert durable != fs and durable.client is fs.client
    with durable.open(f"{top}/x", "wb") as file:
        file.write(b"abc")
        calls: list[str] = []
        fsync = file.fsync

        def spy() -> None:
            calls.append("fsync")
            fsync()

        file.fsync = spy
    assert calls == ["fsync"] and fs.cat(f"{top}/x") == b"abc"


def test_coroutines(running: LocalCluster, top: str) -> None:
    async def work() -> None:
        fs = fsspec.filesystem("hillfire", asynchronous=True)
        try:
            await asyncio.gather(*(fs._pipe_file(f"{top}/n/{i}", b"%d" % i) for i in range(40)))
            found = await asyncio.gather(*(fs._cat_file(f"{top}/n/{i}") for i in range(40)))
            assert found == [b"%d" % i for i in range(40)]
            assert await fs._cat_ranges([f"{top}/n/7", f"{top}/n/12"], 0, 1) == [b"7", b"1"]
            assert len(await fs._find(top)) == len(await fs._glob(f"{top}/n/*")) == 40
            assert (await fs._info(f"{top}/n/7"))["size"] == 1
            assert await fs._isdir(f"{top}/n") and not await fs._exists(f"{top}/m")
            with pytest.raises(FileExistsError):
                await fs._pipe_file(f"{top}/n/7", b"", mode="create")
            with pytest.raises(FileNotFoundError):
                await fs._cat_file(f"{top}/none")
            await fs._cp_file(f"{top}/n/7", f"{top}/o/7")
            await fs._mv_file(f"{top}/o/7", f"{top}/o/8")
            async with await fs.open_async(f"{top}/o/8") as file:
                assert await file.read() == b"7"
            await fs._rm(f"{top}/n", recursive=True)
            assert [info["name"] for info in await fs._ls(top)] == [f"{top}/o"]
            # and the synchronous face beside it, without the loop
            assert await asyncio.to_thread(fs.cat, f"{top}/o/8") == b"7"
            await fs._rm(f"{top}/o", recursive=True)
        finally:
            await fs.aclose()

    asyncio.run(work())
    asyncio.run(work())  # another loop has a client of its own
