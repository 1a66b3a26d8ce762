"""The chunk store cut at every write, killed for real, damaged and filled up (budget: 60 s)."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from crc32c import crc32c
from rocksdict import Options, Rdict

from hillfire.errors import Code, Error
from hillfire.proto.wire.chunks import Kind
from hillfire.storage.store import allocator as allocator_module
from hillfire.storage.store.base import ChunkStore, Tag, Update
from hillfire.storage.store.engine import Options as StoreOptions
from hillfire.storage.store.engine import open_store
from hillfire.storage.store.memory import MemoryStore
from hillfire.storage.store.metadata import Metadata
from hillfire.storage.store.parts import Buffer
from hillfire.storage.store.system import System
from hillfire.types import ChunkId, InodeId, Version, chunk_id

KIB = 1024
MIB = 1024 * KIB
CHUNK = 256 * KIB
NAMES = [chunk_id(InodeId(3), index) for index in range(6)]


def nth_update(seed: int, chunk: ChunkId, version: int) -> Update:
    """The update that makes a chunk's version: the same in every process."""
    rng = random.Random(f"{seed} {chunk.hex()} {version}")
    kind = rng.choices([Kind.WRITE, Kind.TRUNCATE, Kind.REMOVE, Kind.REPLACE], [16, 3, 1, 1])[0]
    offset = rng.choice([0, 0, rng.randrange(CHUNK - 1), rng.randrange(5000), 70_000])
    if kind != Kind.WRITE:
        offset = 0
    length = rng.choice([rng.randrange(1, 9000), 4096, rng.randrange(1, CHUNK), CHUNK])
    length = min(length, CHUNK - offset)
    payload = rng.randbytes(length) if kind in (Kind.WRITE, Kind.REPLACE) else b""
    return Update(
        chunk,
        Version(version),
        kind,
        offset,
        length,
        memoryview(payload),
        crc32c(payload),
        Tag(1, chunk[-1], version),
        0,
        1,
        CHUNK,
    )


def write(chunk: ChunkId, version: int, payload: bytes, offset: int = 0) -> Update:
    return nth_update(0, chunk, version)._replace(
        kind=Kind.WRITE,
        offset=offset,
        length=len(payload),
        payload=memoryview(payload),
        checksum=crc32c(payload),
    )


def content(store: ChunkStore, chunk: ChunkId) -> bytes:
    into = bytearray(CHUNK)
    count, _, _ = store.read(chunk, 0, memoryview(into))
    return bytes(into[:count])


def state(store: ChunkStore, names: Iterable[ChunkId]) -> dict[ChunkId, object]:
    """All that may be known of a store from outside."""
    pending = dict(store.pending())
    return {name: (store.get(name), content(store, name), pending.get(name)) for name in names}


# --- every prefix of the system calls


class Recorder(System):
    """Records what a store does to its files, and does the first so many of it again."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.entries: list[tuple[str, object, object, object]] = []
        self.paths: dict[int, Path] = {}
        write_batch = Metadata.write

        def record_batch(
            metadata: Metadata,
            puts: Iterable[tuple[bytes, bytes]] = (),
            deletes: Iterable[bytes] = (),
        ) -> None:
            puts, deletes = list(puts), list(deletes)
            self.entries.append(("batch", puts, deletes, None))
            write_batch(metadata, puts, deletes)

        monkeypatch.setattr(Metadata, "write", record_batch)

    def _note(self, what: str, path: Path, second: object = None, third: object = None) -> None:
        self.entries.append((what, path.relative_to(self.directory), second, third))

    def open(self, path: Path, flags: int) -> int:
        fd = super().open(path, flags)
        self.paths[fd] = path
        if flags & os.O_CREAT:
            self._note("create", path)
        return fd

    def pwrite(self, fd: int, data: Buffer, at: int) -> int:
        self._note("pwrite", self.paths[fd], at, bytes(data))
        return super().pwrite(fd, data, at)

    def scatter(self, fd: int, pieces: Sequence[tuple[int, Buffer]]) -> None:
        for at, data in pieces:
            self.write_all(fd, data, at)

    def pwritev(self, fd: int, data: Sequence[Buffer], at: int) -> int:
        self._note("pwrite", self.paths[fd], at, b"".join(data))
        return super().pwritev(fd, data, at)

    def fallocate(self, fd: int, at: int, n_bytes: int) -> None:
        self._note("grow", self.paths[fd], at, n_bytes)
        super().fallocate(fd, at, n_bytes)

    def punch(self, fd: int, at: int, n_bytes: int) -> bool:
        self._note("pwrite", self.paths[fd], at, bytes(n_bytes))
        return super().punch(fd, at, n_bytes)

    def rename(self, old: Path, new: Path) -> None:
        self._note("rename", old, new.relative_to(self.directory))
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._note("unlink", path)
        super().unlink(path)

    def replay(self, count: int, directory: Path, torn: int | None = None) -> None:
        """Make a store's files as ``count`` entries left them, the last torn after some bytes."""
        for name in ("blocks", "log"):
            (directory / name).mkdir(parents=True)
        options = Options(raw_mode=True)
        database = Rdict(str(directory / "records"), options)
        for number, (what, first, second, third) in enumerate(self.entries[:count]):
            if what == "batch":
                for key in second:  # type: ignore[attr-defined]
                    database.delete(key)
                for key, value in first:  # type: ignore[attr-defined]
                    database[key] = value
                continue
            path = directory / str(first)
            if what == "rename":
                path.rename(directory / str(second))
                continue
            if what == "unlink":
                path.unlink()
                continue
            fd = os.open(path, os.O_RDWR | os.O_CREAT)
            if what == "grow":
                os.posix_fallocate(fd, second, third)  # type: ignore[arg-type]
            elif what == "pwrite":
                data = third if torn is None or number < count - 1 else third[:torn]  # type: ignore[index]
                os.pwrite(fd, data, second)  # type: ignore[arg-type]
            os.close(fd)
        database.close()


@pytest.mark.parametrize("seed", [1])  # more of it, and RocksDB's own calls: test_store_power.py
def test_every_prefix_of_the_system_calls_opens_at_the_old_or_the_new_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(allocator_module, "GROW_BYTES", 512 * KIB)
    rng = random.Random(seed)
    journal = Recorder(tmp_path / "live", monkeypatch)
    small = StoreOptions(segment_bytes=100_000, segment_records=20, spare_bytes=KIB)
    store = open_store(tmp_path / "live", direct=bool(seed), options=small, system=journal)
    store.keeper.close()  # type: ignore[union-attr]
    store.keeper, model = None, MemoryStore()
    versions = dict.fromkeys(NAMES, 0)
    ends: list[tuple[int, dict[ChunkId, object]]] = [(len(journal.entries), state(model, NAMES))]
    first = NAMES[0]  # an append takes the place of one that is pending
    for versions[first], size, offset in ((1, 1000, 0), (2, 5000, 1000), (2, 4000, 1000)):
        updates = [write(first, versions[first], rng.randbytes(size), offset)]
        assert store.prepare(updates) == model.prepare(updates)
        ends.append((len(journal.entries), state(model, NAMES)))
        if offset == 0:
            store.commit([(first, Version(1), 1)])
            model.commit([(first, Version(1), 1)])
            ends.append((len(journal.entries), state(model, NAMES)))
    for turn in range(16):
        chosen = rng.sample(NAMES, 3)
        for chunk in chosen:
            versions[chunk] += 1
        updates = [nth_update(seed, chunk, versions[chunk]) for chunk in chosen]
        assert store.prepare(updates) == model.prepare(updates)
        ends.append((len(journal.entries), state(model, NAMES)))
        if rng.random() < 0.5:  # another update takes the place of one that is pending
            other = [nth_update(seed + 100 + turn, chosen[0], versions[chosen[0]])]
            assert store.prepare(other) == model.prepare(other)
            ends.append((len(journal.entries), state(model, NAMES)))
        if rng.random() < 0.1:
            store.discard(chosen[0])
            model.discard(chosen[0])
            ends.append((len(journal.entries), state(model, NAMES)))
            chosen = chosen[1:]
        todo = [(chunk, Version(versions[chunk]), 1) for chunk in chosen]
        store.commit(todo)
        model.commit(todo)
        ends.append((len(journal.entries), state(model, NAMES)))
    last = state(model, NAMES)
    assert state(store, NAMES) == last
    store.close()  # with a checkpoint, which changes nothing
    ends.append((len(journal.entries), last))
    monkeypatch.undo()
    cuts: list[tuple[int, int | None]] = []
    for number, entry in enumerate(journal.entries):
        cuts.append((number + 1, None))
        if entry[0] == "pwrite":
            cuts.append((number + 1, len(entry[3]) // 2))  # type: ignore[arg-type]
    assert len(cuts) > 100
    for count, torn in cuts[seed::3]:
        done = count - (torn is not None)
        before = [image for end, image in ends if end <= done]
        after = [image for end, image in ends if end >= count]
        if not before:
            continue  # the store was being created
        directory = tmp_path / f"{count}-{torn}"
        journal.replay(count, directory, torn)
        opened = open_store(directory)
        try:
            found = state(opened, NAMES)
            allowed = [before[-1], after[0]]
            for name in NAMES:
                assert any(found[name] == each[name] for each in allowed), (count, torn, name)
            for name, pending in opened.pending():
                into = memoryview(bytearray(CHUNK))
                assert opened.read_pending(name, into) == pending.payload_length
            for name, pending in opened.pending():  # what is pending can be committed whole
                opened.commit([(name, pending.version, 1)])
                data = content(opened, name)
                meta = opened.get(name)
                assert meta is not None and len(data) == pending.length
                assert meta.checksum == pending.checksum
        finally:
            opened.close()


# --- a real process, killed

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_store_crash import work
work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""


def work(directory: Path, seed: int, turn: int) -> None:
    """What the child does for ever: prepare, say so, commit, say so."""
    store = open_store(directory, direct=turn % 2 == 0)
    rng = random.Random(turn)
    versions = {name: meta.version for name, meta in store.scan()}
    todo = [(name, pending.version, 1) for name, pending in store.pending()]
    store.commit(todo)
    versions.update((name, version) for name, version, _ in todo)
    os.write(1, b"ready\n")
    while True:
        chosen = rng.sample(NAMES, rng.randrange(1, 4))
        for name in chosen:
            versions[name] = Version(versions.get(name, 0) + 1)
        answers = store.prepare([nth_update(seed, name, versions[name]) for name in chosen])
        assert not any(isinstance(answer, Exception) for answer in answers), answers
        text = "".join(f"{name.hex()} {versions[name]} " for name in chosen)
        os.write(1, f"prepared {text}\n".encode())
        store.commit([(name, versions[name], 1) for name in chosen])
        os.write(1, f"committed {text}\n".encode())


def images(seed: int, chunk: ChunkId, until: int) -> list[bytes]:
    """A chunk's image at each version."""
    model, found = MemoryStore(), [b""]
    for version in range(1, until + 1):
        model.prepare([nth_update(seed, chunk, version)])
        model.commit([(chunk, Version(version), 1)])
        found.append(content(model, chunk))
    return found


def said(lines: list[str], word: str) -> dict[ChunkId, int]:
    latest: dict[ChunkId, int] = {}
    for line in lines:
        first, *rest = line.split()
        if first == word:
            for name, version in zip(rest[::2], rest[1::2], strict=True):
                latest[ChunkId(bytes.fromhex(name))] = int(version)
    return latest


KILLS, MAX_KILLS = 14, 60
"""How often the child is killed; more often as long as no kill has met a pending update."""


def test_kill_at_any_moment(tmp_path: Path) -> None:
    seed, rng = 11, random.Random(5)
    directory = tmp_path / "store"
    script = CHILD.format(tests=str(Path(__file__).parent))
    committed: dict[ChunkId, int] = {}
    in_flight = 0
    for turn in range(MAX_KILLS):
        if turn >= KILLS and in_flight:
            break
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(directory), str(seed), str(turn)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        try:
            text = child.stdout.readline()
            assert text == b"ready\n"
            for _ in range(rng.randrange(1, 80)):
                text = child.stdout.readline()
            while turn % 2 and text and not text.startswith(b"prepared"):
                text = child.stdout.readline()  # the kill shall fall between prepare and commit
            spent = rng.randrange(20_000) if turn % 2 == 0 else 0
            while spent:  # a moment within a step, not at its end
                spent -= 1
            assert child.poll() is None
        finally:
            child.send_signal(signal.SIGKILL)
        lines = child.stdout.read().decode()
        child.wait()
        child.stdout.close()
        whole = [line for line in lines.split("\n")[:-1] if line]
        committed |= {k: max(v, committed.get(k, 0)) for k, v in said(whole, "committed").items()}
        prepared = said(whole, "prepared")
        store = open_store(directory)
        try:
            pending = dict(store.pending())
            in_flight += bool(pending)
            for name in NAMES:
                meta = store.get(name)
                version = 0 if meta is None else meta.version
                top = max(version, pending[name].version if name in pending else 0)
                assert version >= committed.get(name, 0)
                assert top >= prepared.get(name, 0) and top <= version + 1
                history = images(seed, name, top)
                assert content(store, name) == history[version]
                if name in pending:
                    store.commit([(name, pending[name].version, 1)])
                    assert content(store, name) == history[top]
                committed[name] = top
        finally:
            store.close()
    assert in_flight, "no kill met an update that was pending"


# --- the host's power


@pytest.mark.parametrize(
    "step", ["overwrite", "cut and append", "remove", "append", "copy", "patch"]
)
def test_what_was_synced_outlives_the_loss_of_everything_since_but_the_bytes(
    tmp_path: Path, step: str
) -> None:
    """The worst that the page cache can do: later bytes reached the disk, later records did not."""
    rng = random.Random(6)
    data = rng.randbytes(200_000)
    store = open_store(tmp_path / "store")
    one(store, 1, data)
    store.sync()
    for part in ("records", "log"):
        shutil.copytree(tmp_path / "store" / part, tmp_path / "lost" / part)
    (tmp_path / "lost" / "records" / "LOCK").unlink()
    removal = write(NAMES[0], 2, b"")._replace(kind=Kind.REMOVE)
    cut = removal._replace(kind=Kind.TRUNCATE, length=180_000)
    if step in ("remove", "cut and append"):
        store.prepare([removal if step == "remove" else cut])
        store.commit([(NAMES[0], Version(2), 1)])
    if step != "remove":
        offset = {"append": 200_000, "copy": 1000, "cut and append": 180_000}.get(step, 0)
        size = {"overwrite": 220_000, "copy": 70_000}.get(step, 20_000)
        one(store, 3, rng.randbytes(size), offset)
    for index in range(1, 6):  # blocks that were freed would be used again
        store.prepare([write(NAMES[index], 1, rng.randbytes(200_000))])
        store.commit([(NAMES[index], Version(1), 1)])
    shutil.copytree(tmp_path / "store" / "blocks", tmp_path / "lost" / "blocks")
    store.close()
    lost = open_store(tmp_path / "lost")
    assert content(lost, NAMES[0]) == data
    lost.close()


def test_a_freed_block_is_used_again_after_a_checkpoint(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for version in range(1, 400):  # 100 MiB in a file that grows by 16
        one(store, version, random.Random(version).randbytes(200_000))
        if version % 20 == 0:
            store.maintain()
    store.close()
    assert (tmp_path / "blocks" / "256K").stat().st_size == allocator_module.GROW_BYTES


# --- damage


def one(store: ChunkStore, version: int, payload: bytes, offset: int = 0) -> None:
    (answer,) = store.prepare([write(NAMES[0], version, payload, offset)])
    if isinstance(answer, Exception):
        raise answer
    store.commit([(NAMES[0], Version(version), 1)])


def flip(path: Path, at: int) -> None:
    fd = os.open(path, os.O_RDWR)
    (byte,) = os.pread(fd, 1, at)
    os.pwrite(fd, bytes([byte ^ 4]), at)
    os.close(fd)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("at", [0, 1, 65535, 65536, 150_000, 199_999])
def test_a_flipped_bit_is_never_returned(tmp_path: Path, direct: bool, at: int) -> None:
    data = random.Random(2).randbytes(200_000)
    store = open_store(tmp_path, direct=direct)
    one(store, 1, data)
    into = bytearray(CHUNK)
    store.read(NAMES[0], 0, memoryview(into))
    flip(tmp_path / "blocks" / "256K", at)
    for offset, n_bytes in [(0, CHUNK), (at, 1), (at // 4096 * 4096, 10), (max(0, at - 9), 20)]:
        with pytest.raises(Error) as caught:
            store.read(NAMES[0], offset, memoryview(into)[:n_bytes])
        assert caught.value.code == Code.CORRUPT
        assert store.read_cached(NAMES[0], offset, memoryview(into)[:n_bytes]) is None
    other = 70_000 if at < 65536 or at > 131_072 else 0
    assert store.read(NAMES[0], other, memoryview(into)[:50])[0] == 50
    assert into[:50] == data[other : other + 50]
    for payload, offset in ((b"patch", max(0, at - 2)), (b"p" * 70_000, 100)):  # patch, copy
        with pytest.raises(Error) as caught:
            one(store, 2, payload, offset)
        assert caught.value.code == Code.CORRUPT
    one(store, 2, data)  # the whole chunk again repairs it
    assert content(store, NAMES[0]) == data
    store.close()


def test_a_missing_or_short_block_file_does_not_open(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    one(store, 1, b"x" * 100_000)
    store.close()
    path = tmp_path / "blocks" / "128K"
    os.truncate(path, 0)
    with pytest.raises(Error) as caught:
        open_store(tmp_path)
    assert caught.value.code == Code.CORRUPT
    path.unlink()
    with pytest.raises(Error) as caught:
        open_store(tmp_path)
    assert caught.value.code == Code.CORRUPT


@pytest.mark.parametrize("direct", [False, True])
def test_a_failing_disk_is_an_error_of_the_update_alone(tmp_path: Path, direct: bool) -> None:
    store = open_store(tmp_path, direct=direct)
    one(store, 1, bytes(CHUNK))
    path = tmp_path / "blocks" / "256K"
    mine = [int(fd.name) for fd in Path("/proc/self/fd").iterdir() if _leads_to(fd, path)]
    assert len(mine) == 2 + direct
    for flags, failing in ((os.O_RDONLY, "write"), (os.O_WRONLY, "read")):
        broken = os.open(path, flags)  # the system call itself fails
        kept = [os.dup(fd) for fd in mine]
        for fd in mine:
            os.dup2(broken, fd)
        if failing == "write":
            other = write(NAMES[1], 1, b"small")
            first, second = store.prepare([write(NAMES[0], 2, bytes(CHUNK)), other])
            assert isinstance(first, Error) and first.code == Code.IO
            assert not isinstance(second, Exception)
        else:
            with pytest.raises(Error) as caught:
                content(store, NAMES[0])
            assert caught.value.code == Code.IO
        for fd, old in zip(mine, kept, strict=True):
            os.dup2(old, fd)
            os.close(old)
        os.close(broken)
    assert content(store, NAMES[0]) == bytes(CHUNK)
    store.close()


def _leads_to(fd: Path, path: Path) -> bool:
    try:
        return fd.readlink() == path
    except FileNotFoundError:  # the listing's own
        return False


def test_another_format_and_another_process_are_refused_by_name(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(Error) as caught:
        open_store(tmp_path)
    assert caught.value.code == Code.BUSY
    store.close()
    database = Rdict(str(tmp_path / "records"), Options(raw_mode=True))
    database[b"format"] = b"hillfire chunk store 999"
    database.close()
    with pytest.raises(Error, match="999") as caught:
        open_store(tmp_path)
    assert caught.value.code == Code.WRONG_PEER_VERSION


@contextlib.contextmanager
def small_disk(directory: Path, n_bytes: int) -> Iterator[Path]:
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(directory)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk_refuses_writes_and_lets_delete(tmp_path: Path) -> None:
    data = random.Random(3).randbytes(CHUNK)

    def put(index: int, kind: Kind = Kind.WRITE, version: int = 1) -> Exception | None:
        payload = data if kind == Kind.WRITE else b""
        name = chunk_id(InodeId(8), index)
        each = write(name, version, payload)._replace(kind=kind)
        (answer,) = store.prepare([each])
        if isinstance(answer, Exception):
            return answer
        store.commit([(name, Version(version), 1)])
        return None

    with small_disk(tmp_path / "disk", 192 * MIB) as disk:
        store = open_store(disk / "store", reserve_bytes=48 * MIB)
        try:
            stored = 0
            while (error := put(stored)) is None:
                stored += 1
            assert isinstance(error, Error) and error.code == Code.NO_SPACE
            assert stored > 100
            (disk / "filler").write_bytes(bytes(28 * MIB))  # someone else takes of the reserve
            error = put(stored)
            assert isinstance(error, Error) and error.code == Code.NO_SPACE
            for index in range(0, stored, 2):
                assert put(index, Kind.REMOVE, 2) is None
            (disk / "filler").unlink()
            again = stored // 2 - 24  # the log's spare segment takes some, too
            for index in range(stored, stored + again):
                assert put(index) is None
            for index in range(stored + again):
                removed = index < stored and index % 2 == 0
                expected = b"" if removed else data
                assert content(store, chunk_id(InodeId(8), index)) == expected
        finally:
            store.close()


def test_cuts_and_removals_go_on_when_somebody_else_takes_the_last_byte(tmp_path: Path) -> None:
    """The database is stuck then, for RocksDB never writes again; it comes back with the room."""
    data = random.Random(4).randbytes(CHUNK)
    names = [chunk_id(InodeId(8), index) for index in range(8)]

    def fill(fd: int) -> None:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, bytes(size))

    with small_disk(tmp_path / "disk", 128 * MIB) as disk:
        store = open_store(disk / "store")
        for name in names:
            assert not isinstance(store.prepare([write(name, 1, data)])[0], Exception)
            store.commit([(name, Version(1), 1)])
        fd = os.open(disk / "filler", os.O_CREAT | os.O_RDWR)
        stuck = 0
        for turn in range(12):
            fill(fd)
            for name in names:
                each = write(name, turn + 2, b"")._replace(
                    kind=Kind.TRUNCATE, length=240_000 - turn * 1000
                )
                (answer,) = store.prepare([each])
                assert not isinstance(answer, Exception), answer
                store.commit([(name, each.version, 1)])
            try:
                store.maintain()
            except Error as exc:
                assert exc.code == Code.NO_SPACE
                stuck += 1
            assert content(store, names[1]) == data[: 240_000 - turn * 1000]
        assert stuck
        for name in names[:4]:
            store.prepare([write(name, 20, b"")._replace(kind=Kind.REMOVE)])
            store.commit([(name, Version(20), 1)])
        os.close(fd)
        (disk / "filler").unlink()
        store.maintain()
        for name in names[:4]:
            assert not isinstance(store.prepare([write(name, 21, data)])[0], Exception)
            store.commit([(name, Version(21), 1)])
        store.close()
        store = open_store(disk / "store")
        assert [content(store, name) for name in names[3:5]] == [data, data[:229_000]]
        store.close()
