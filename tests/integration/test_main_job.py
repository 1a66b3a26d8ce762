"""The main job on real input, through a real mount of real processes. Budget: 270 s.

One cluster for all: what each test stored stays, and the last one stops everything, starts it
again and compares all of it.
"""

import filecmp
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from hillfire.errors import Error
from hillfire.local import mounts
from tests.cluster import LocalCluster, cluster
from tests.integration.load import RECORD, Load

MIB = 1 << 20
GIB_FILE = 1024 * MIB
SYNCED_TRANSACTIONS = 100
RATE = 50 * MIB
LONGEST_WAIT_S = 10.0
"""A killed node's chains go on within 3 s; the rest is for a machine that does other things."""

try:
    mounts.check_fuse()
    _NO_MOUNT = ""
except Error as error:
    _NO_MOUNT = str(error)

pytestmark = [pytest.mark.skipif(bool(_NO_MOUNT), reason=_NO_MOUNT), pytest.mark.timeout(280)]


class Job:
    """The cluster, where it is mounted, and what must still be there at the end."""

    def __init__(self, local: LocalCluster, mount: Path) -> None:
        self.cluster = local
        self.mount = mount
        self.sums: dict[Path, str] = {}

    def remember(self, directory: Path) -> None:
        """Take the sums of all files below ``directory`` for the last test."""
        self.sums.update(sums(directory))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    base = tmp_path_factory.mktemp("job")
    mount = base / "mount"
    mount.mkdir()
    options = ("--mount", str(mount))
    with cluster(base, targets_per_node=4, options=options) as local:
        yield Job(local, mount)


def forget(directory: Path) -> None:
    """Drop what the kernel remembers, so that what is read comes from the cluster."""
    for path in files(directory):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    if os.geteuid() == 0:
        try:
            Path("/proc/sys/vm/drop_caches").write_text("3\n")
        except OSError:
            return


def files(directory: Path) -> Iterator[Path]:
    for where, _, names in os.walk(directory):
        for name in names:
            path = Path(where, name)
            if path.is_file() and not path.is_symlink():
                yield path


def sums(directory: Path) -> dict[Path, str]:
    return sums_of(files(directory))


def sums_of(paths: Iterable[Path]) -> dict[Path, str]:
    found = {}
    for path in paths:
        with open(path, "rb") as file:
            found[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def blocks(count: int) -> Iterator[bytes]:
    """Yield MiBs of which no two are alike."""
    noise = random.Random(1).randbytes(MIB)
    for i in range(count):
        yield i.to_bytes(8, "little") + noise[8:]


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def test_the_standard_library_and_a_gigabyte(job: Job) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    unwanted = shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__")
    shutil.copytree(library, job.mount / "library", symlinks=True, ignore=unwanted)
    start = time.monotonic()
    with open(job.mount / "gigabyte", "wb", buffering=0) as file:
        for block in blocks(GIB_FILE // MIB):
            assert file.write(block) == MIB
        os.fsync(file.fileno())
    wrote_s = time.monotonic() - start
    forget(job.mount)
    count = 0
    for copy in files(job.mount / "library"):
        original = library / copy.relative_to(job.mount / "library")
        assert filecmp.cmp(original, copy, shallow=False), copy
        assert copy.stat().st_mtime_ns == original.stat().st_mtime_ns
        assert copy.stat().st_mode == original.stat().st_mode
        count += 1
    assert count > 500
    start = time.monotonic()
    with open(job.mount / "gigabyte", "rb", buffering=0) as file:
        for i, block in enumerate(blocks(GIB_FILE // MIB)):
            assert file.read(MIB) == block, f"MiB {i}"
        assert file.read(1) == b""
    read_s = time.monotonic() - start
    print(f"\n{count} files; 1 GiB: {1024 / wrote_s:.0f} MiB/s in, {1024 / read_s:.0f} MiB/s out")
    job.remember(job.mount)


def test_git(job: Job) -> None:
    environment = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    repository = job.mount / "repository"
    repository.mkdir()
    library = Path(sysconfig.get_paths()["stdlib"])
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("json", "asyncio", "email", "http"):
        shutil.copytree(library / name, repository / name, ignore=unwanted)

    def git(*arguments: str, cwd: Path = repository) -> str:
        return run("git", *arguments, cwd=cwd, **environment)

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (repository / "json/decoder.py").write_text("# changed\n")
    git("commit", "-q", "-a", "-m", "second")
    git("mv", "email", "post")
    git("commit", "-q", "-m", "third")
    git("gc", "-q")
    forget(repository)
    git("fsck", "--full", "--strict")
    assert git("status", "--porcelain") == ""
    git("clone", "-q", str(repository), str(job.mount / "clone"), cwd=job.mount)
    clone = job.mount / "clone"
    assert git("log", "--format=%s", cwd=clone).split() == ["third", "second", "first"]
    git("fsck", "--full", cwd=clone)
    assert git("rev-parse", "HEAD^{tree}", cwd=clone) == git("rev-parse", "HEAD^{tree}")
    job.remember(clone)


def test_sqlite_ten_thousand_transactions(job: Job) -> None:
    """The first ones with SQLite's own defaults, synced four times each; then by its log (WAL)."""
    path = job.mount / "numbers.sqlite"
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, square INTEGER, text TEXT)")
        database.execute("CREATE INDEX by_square ON numbers (square)")
        for n in range(10_000):
            if n == SYNCED_TRANSACTIONS:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT INTO numbers VALUES (?, ?, ?)", (n, n * n, "x" * (n % 100)))
            database.execute("COMMIT")
    finally:
        database.close()
    forget(job.mount)
    database = sqlite3.connect(path)
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*), sum(square) FROM numbers").fetchone() == (
            10_000,
            sum(n * n for n in range(10_000)),
        )
    finally:
        database.close()
    job.sums.update(sums_of([path]))


def test_a_c_program_is_built_with_make(job: Job) -> None:
    where = job.mount / "program"
    where.mkdir()
    names = [f"part{i}" for i in range(12)]
    (where / "parts.h").write_text("".join(f"int {name}(int);\n" for name in names))
    for i, name in enumerate(names):
        source = f'#include "parts.h"\nint {name}(int x) {{ return x + {i}; }}\n'
        (where / f"{name}.c").write_text(source)
    calls = "".join(f"  x = {name}(x);\n" for name in names)
    (where / "main.c").write_text(
        f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{\n  int x = 0;\n{calls}'
        '  printf("%d\\n", x);\n  return 0;\n}\n'
    )
    objects = " ".join(f"{name}.o" for name in ["main", *names])
    (where / "Makefile").write_text(
        f"program: {objects}\n\tcc -o $@ $^\n%.o: %.c parts.h\n\tcc -O1 -c -o $@ $<\n"
    )
    assert run("make", "-j2", cwd=where).count("cc -O1") == len(names) + 1
    assert run("./program", cwd=where).strip() == str(sum(range(12)))
    assert "up to date" in run("make", cwd=where)
    (where / "part3.c").write_text('#include "parts.h"\nint part3(int x) { return x + 100; }\n')
    assert run("make", cwd=where).count("cc -O1") == 1
    assert run("./program", cwd=where).strip() == str(sum(range(12)) - 3 + 100)
    job.remember(where)


def described(root: Path) -> dict[str, tuple[object, ...]]:
    """Return everything that tar keeps of each entry below ``root``."""
    found: dict[str, tuple[object, ...]] = {}
    for where, directories, names in os.walk(root):
        for name in [*directories, *names]:
            path = Path(where, name)
            status = path.lstat()
            link = os.readlink(path) if path.is_symlink() else ""
            content = b"" if link or path.is_dir() else path.read_bytes()
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if key.startswith("user.")
            }
            found[str(path.relative_to(root))] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_nlink if not path.is_dir() else 0,
                status.st_mtime_ns if not link else 0,
                link,
                hashlib.sha256(content).hexdigest(),
                attributes,
            )
    return found


def test_tar_in_and_out_with_attributes(job: Job, tmp_path: Path) -> None:
    origin = job.mount / "origin"
    (origin / "deep/er").mkdir(parents=True)
    source = random.Random(3)
    for i in range(200):
        path = origin / ("deep/er" if i % 3 else "deep") / f"file-{i}-ä"
        path.write_bytes(source.randbytes(source.randrange(40_000)))
        path.chmod(source.choice([0o600, 0o644, 0o755, 0o4755, 0o444]))
        at = source.randrange(10**18)
        os.utime(path, ns=(at, at))
        if i % 5 == 0:
            os.setxattr(path, "user.number", str(i).encode())
        if i % 7 == 0:
            (origin / f"link-{i}").symlink_to(path.relative_to(origin))
        if i % 11 == 0:
            os.link(path, origin / f"hard-{i}")
        if i % 13 == 0 and os.geteuid() == 0:
            os.chown(path, 1000 + i, 100)
    (origin / "empty").touch()
    os.utime(origin / "deep/er", ns=(10**18, 10**18 + 1))
    wanted = described(origin)
    archive = tmp_path / "out.tar"
    kept = ("--xattrs", "--format=posix")
    run("tar", *kept, "-cf", str(archive), "-C", str(origin), ".", cwd=tmp_path)
    again = job.mount / "again"
    again.mkdir()
    run("tar", *kept, "-xpf", str(archive), "-C", str(again), cwd=tmp_path)
    forget(job.mount)
    assert described(again) == wanted
    job.remember(again)


def test_each_storage_node_is_killed_while_records_are_written_and_read(job: Job) -> None:
    where = job.mount / "records"
    where.mkdir()
    with Load(where) as load:
        for name in job.cluster.storage_names:
            job.cluster.wait_serving()
            load.wait_for_rate(RATE, timeout_s=30)
            before = load.written.longest_s, load.read.longest_s
            load.written.longest_s = load.read.longest_s = 0.0
            pid = job.cluster.pid(name)
            load.wait_until_both_are_on_their_way(timeout_s=5)
            os.kill(pid, signal.SIGKILL)
            rates = load.written.rate() / RECORD, load.read.rate() / RECORD
            load.wait_for_more(64 * RECORD, timeout_s=30)
            assert min(rates) >= RATE / RECORD * 0.9, f"too little was on its way: {rates} MiB/s"
            print(
                f"\n{name} killed at {rates[0]:.0f} MiB/s written, {rates[1]:.0f} read, "
                f"a call of each on its way: the longest write took {load.written.longest_s:.2f} "
                f"s, read {load.read.longest_s:.2f} s "
                f"(before: {before[0]:.2f}, {before[1]:.2f})"
            )
            assert max(load.written.longest_s, load.read.longest_s) < LONGEST_WAIT_S
        job.cluster.wait_serving()
        load.wait_for_more(32 * RECORD, timeout_s=30)
    assert not load.errors
    forget(where)
    assert load.check_all() > 0
    job.remember(where)


@pytest.mark.parametrize("name", ["meta", "manager"])
def test_a_killed_service_is_started_again_and_nobody_sees_an_error(job: Job, name: str) -> None:
    where = job.mount / f"during-{name}"
    where.mkdir()
    made: list[Path] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def make_files() -> None:
        try:
            while not stop.is_set():
                path = where / f"{len(made)}"
                path.write_text(str(path))
                path.rename(path.with_suffix(".made"))
                assert path.with_suffix(".made").read_text() == str(path)
                made.append(path.with_suffix(".made"))
        except BaseException as error:
            errors.append(error)

    def wait_for_more(count: int) -> None:
        deadline = time.monotonic() + 40
        goal = len(made) + count
        while len(made) < goal:
            assert not errors, errors
            assert time.monotonic() < deadline, "no more files are made"
            time.sleep(0.01)

    maker = threading.Thread(target=make_files)
    maker.start()
    try:
        for _ in range(3):
            wait_for_more(20)
            os.kill(job.cluster.pid(name), signal.SIGKILL)
            wait_for_more(20)
            job.cluster.wait_serving()
    finally:
        stop.set()
        maker.join()
    assert not errors, errors
    forget(where)
    assert sorted(where.iterdir()) == sorted(made)
    for path in made:
        assert path.read_text() == str(path.with_suffix(""))
    job.remember(where)


def test_all_is_there_after_a_stop_and_a_start(job: Job) -> None:
    for path in sorted(job.sums):
        assert path.exists(), path
    job.cluster.stop()
    assert not mounts.is_mounted(job.mount)
    assert list(job.mount.iterdir()) == []
    job.cluster.up()
    forget(job.mount)
    found = sums(job.mount)
    different = [path for path, digest in job.sums.items() if found.get(path) != digest]
    assert not different
    assert len(job.sums) > 1000
