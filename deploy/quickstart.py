"""What ``deploy/quickstart`` does once a cluster is mounted: store, kill, verify, repair.

The files are what a training job leaves: shards of tensors in the safetensors format with an
index, small files beside them, a link to the newest step, and a manifest of SHA-256 sums that
``sha256sum -c`` understands.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from hillfire.errors import Error
from hillfire.local.directory import ClusterDirectory, last_directory

MIB = 1 << 20
BLOCK = 4 * MIB
VICTIM = "storage-102"
SMALL_FILES = 200
PYTHON = 'import hillfire; print(hillfire.connect().listdir("/checkpoints/latest"))'

console = Console(highlight=False)


def main() -> None:
    """Run the steps; ends with status 1 if anything read differs from what was written."""
    options = _options()
    mount: Path = options.mount
    if not mount.is_mount():
        sys.exit(f"{mount} is not mounted: hillfire down --dir {options.dir}, then this again")
    node = Node(options.hillfire, options.dir)
    node.make_sure_all_serve()
    step = mount / "checkpoints" / "step-1000"
    shutil.rmtree(step, ignore_errors=True)
    step.mkdir(parents=True)

    console.print("[bold]3. Store a checkpoint, and kill a storage node meanwhile[/bold]")
    store(step, max(4, options.mib), node)

    console.print("[bold]4. Read everything back and verify[/bold]")
    verify(step)

    console.print(f"[bold]5. Start {VICTIM} again[/bold]")
    start = time.monotonic()
    node.run("node", "start", VICTIM, "--dir", str(options.dir))
    node.make_sure_all_serve()
    _done(f"{VICTIM} is back and up to date: every chunk has its three copies again", start)
    verify(step)

    console.print("[bold]6. The cluster[/bold]")
    sys.stdout.flush()
    node.run("status", "--dir", str(options.dir), show=True)
    next_steps(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="the cluster's directory")
    parser.add_argument("--mount", type=Path, required=True, help="where it is mounted")
    parser.add_argument("--mib", type=int, default=512, help="size of the checkpoint")
    parser.add_argument("--hillfire", default="hillfire", help="the command line")
    return parser.parse_args()


class Node:
    """The command line, as a user would type it."""

    def __init__(self, command: str, directory: Path) -> None:
        """Take the command and the cluster's directory."""
        self._command = command
        self._directory = directory

    def run(self, *arguments: str, show: bool = False) -> None:
        """Run ``hillfire ARGUMENTS``; a failure ends this program with its message."""
        done = subprocess.run([self._command, *arguments], stdout=None if show else subprocess.PIPE)
        if done.returncode:
            sys.exit(f"`hillfire {' '.join(arguments)}` failed")

    def kill(self) -> None:
        """Kill the victim with SIGKILL and leave it down."""
        self.run("node", "kill", VICTIM, "--dir", str(self._directory))

    def make_sure_all_serve(self) -> None:
        """Start the victim if an earlier run left it down; wait for all replicas."""
        where = ["--dir", str(self._directory)]
        subprocess.run([self._command, "node", "start", VICTIM, *where], capture_output=True)
        self.run("status", *where, "--wait", "120")


def store(step: Path, mib: int, node: Node) -> None:
    """Write the checkpoint; when two fifths of it are written, the victim is killed."""
    shard_mib = min(128, max(1, mib // 4))
    shards = max(1, mib // shard_mib)
    total = shards * shard_mib * MIB
    manifest: dict[str, str] = {}
    index: dict[str, str] = {}
    start = time.monotonic()
    slowest_s = 0.0
    killer = threading.Thread(target=node.kill)
    written = 0
    with _bar("writing", total) as advance:
        for number in range(shards):
            name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
            digest = hashlib.sha256()
            with open(step / name, "wb", buffering=0) as file:
                for piece in shard(number, shard_mib * MIB, index, name):
                    digest.update(piece)
                    began = time.monotonic()
                    _write_all(file.fileno(), piece)
                    slowest_s = max(slowest_s, time.monotonic() - began)
                    written += len(piece)
                    advance(len(piece))
                    if written > total * 2 // 5 and killer.ident is None:
                        killer.start()
                os.fsync(file.fileno())
            manifest[name] = digest.hexdigest()
    elapsed_s = time.monotonic() - start
    if killer.ident is None:
        killer.start()
    killer.join()
    for name, content in small_files(index):
        (step / name).parent.mkdir(exist_ok=True)
        (step / name).write_bytes(content)
        manifest[name] = hashlib.sha256(content).hexdigest()
    rows = "".join(f"{digest}  {name}\n" for name, digest in manifest.items())
    (step / "SHA256SUMS").write_text(rows)
    latest = step.parent / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(step.name)
    _done(
        f"{total // MIB} MiB in {shards} shards, three copies of each chunk: "
        f"{total / MIB / elapsed_s:.0f} MiB/s; {len(manifest) - shards} small files",
        start,
    )
    console.print(
        f"[green]✓[/green] {VICTIM} was killed (SIGKILL) while that went on: no error, the "
        f"longest write took {slowest_s:.2f} s",
        soft_wrap=True,
    )


def shard(number: int, n_bytes: int, index: dict[str, str], name: str) -> Iterator[bytes]:
    """Yield a file in the safetensors format, piece by piece, and note its tensors in ``index``."""
    layers = 4
    each = n_bytes // layers
    header = {}
    for layer in range(layers):
        tensor = f"layers.{number * layers + layer}.weight"
        offsets = [layer * each, (layer + 1) * each]
        header[tensor] = {"dtype": "BF16", "shape": [each // 2], "data_offsets": offsets}
        index[tensor] = name
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = random.Random(number).randbytes(BLOCK)
    yield struct.pack("<Q", len(text)) + text
    for at in range(0, layers * each, BLOCK):
        mark = struct.pack("<QQ", number, at)  # no two blocks are alike
        yield (mark + noise[len(mark) :])[: layers * each - at]


def small_files(index: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Yield what lies beside the shards."""
    weights = {"metadata": {}, "weight_map": index}
    yield "model.safetensors.index.json", json.dumps(weights, indent=1).encode()
    yield "config.json", json.dumps({"architectures": ["Hillfire"], "hidden_size": 4096}).encode()
    source = random.Random(0)
    for rank in range(SMALL_FILES):
        yield f"rng/rank-{rank:03}.bin", source.randbytes(source.randrange(1, 20_000))


def verify(step: Path) -> None:
    """Read every file of the manifest from the cluster, not from a cache, and compare."""
    start = time.monotonic()
    rows = [row.split("  ", 1) for row in (step / "SHA256SUMS").read_text().splitlines()]
    forget(step / name for _, name in rows)
    total = sum((step / name).stat().st_size for _, name in rows)
    wrong = []
    with _bar("reading", total) as advance:
        for wanted, name in rows:
            digest = hashlib.sha256()
            with open(step / name, "rb", buffering=0) as file:
                while piece := file.read(BLOCK):
                    digest.update(piece)
                    advance(len(piece))
            if digest.hexdigest() != wanted:
                wrong.append(name)
    if wrong:
        sys.exit(f"read back differently from what was written: {', '.join(wrong)}")
    speed = total / MIB / (time.monotonic() - start)
    _done(
        f"{len(rows)} files, {total // MIB} MiB: every SHA-256 is right ({speed:.0f} MiB/s)", start
    )


def forget(paths: Iterator[Path]) -> None:
    """Drop what the kernel remembers of files, so that they are read from the cluster."""
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # a container may not; they were forgotten one by one
            Path("/proc/sys/vm/drop_caches").write_text("3\n")


def next_steps(options: argparse.Namespace) -> None:
    """Say how to go on and how to stop."""
    mount, directory = options.mount, options.dir
    rows = [
        ("first", f"source {Path(options.hillfire).parent}/activate{_which(directory)}"),
        ("your files", f"ls {mount}/checkpoints/latest/"),
        ("check them", f"(cd {mount}/checkpoints/latest && sha256sum --quiet -c SHA256SUMS)"),
        ("from Python", f"python -c '{PYTHON}'"),
        ("watch", "hillfire status --watch"),
        ("another crash", "hillfire node crash storage-101"),
        ("examples", "python examples/data_loader.py   (and the others there)"),
        ("stop", "hillfire down"),
        ("start again", f"hillfire up --dir {directory} --mount {mount} --detach"),
        ("remove it all", f"hillfire down; rm -r {directory} && rmdir {mount}"),
    ]
    console.print("[bold]It is yours now[/bold]")
    for what, command in rows:
        console.print(f"  {what:<14}{command}", soft_wrap=True)


def _which(directory: Path) -> str:
    """Return what makes the commands find the cluster if it is not the one started last."""
    with contextlib.suppress(Error):
        if last_directory() == directory.absolute():
            return ""
    address = ClusterDirectory(directory).shape().address
    return f"; export HILLFIRE_DIR={directory} HILLFIRE_ADDRESS={address}"


def _write_all(fd: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(fd, view) :]


def _done(text: str, start: float) -> None:
    console.print(
        f"[green]✓[/green] {text} [dim]{time.monotonic() - start:.1f} s[/dim]", soft_wrap=True
    )


class _bar:
    """A progress bar that is gone when it is done; used as ``with _bar(...) as advance``."""

    def __init__(self, text: str, total: int) -> None:
        columns = (TextColumn("  {task.description}"), BarColumn(), DownloadColumn())
        self._progress = Progress(
            *columns,
            TransferSpeedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(text, total=total)

    def __enter__(self) -> "_bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, n_bytes: int) -> None:
        self._progress.advance(self._task, n_bytes)


if __name__ == "__main__":
    main()
