"""A run: cluster, clients, faults, and what must hold of it afterwards."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hillfire
from hillfire.local import daemon, mounts
from tests.faults.aftermath import compare_replicas, judged, nothing_left
from tests.faults.cluster import Cluster, cluster
from tests.faults.load import clients
from tests.faults.recording import Job, Outcome
from tests.faults.schedule import Fault, World
from tests.history import Kind, Operation, Recorder, decode

CHUNK_BYTES = 256 * 1024
CHUNKS = 6
IO_TIMEOUT_S = 40.0
"""The deadline of every operation: no fault may keep a client longer."""
LEAST_OPERATIONS = 20
"""Of a client; one that did less tested nothing."""
MOUNT_TIMEOUT_S = 30.0
SMALL_DISK_BYTES = 400 << 20
FAULTS_A_FILE = 2
"""Then the clients go on with another file: histories of a chunk stay short."""


def jobs(directory: Path, address: str, mount: str, seed: int, rate: float) -> list[Job]:
    """Return the clients: with batches, with single calls, that cut, through the mount."""
    styles = ["batch", "batch", "reader", "single", "cut", "cut", *(["mount"] if mount else [])]
    return [
        Job(
            name=f"{style}-{number}",
            number=number,
            style=style,
            address=address,
            seed=seed * 100 + number,
            file="/f0",
            chunks=CHUNKS,
            chunk_bytes=CHUNK_BYTES,
            history=str(directory / f"history-{number}.jsonl"),
            rate=rate * (2 if style == "batch" else 1),
            io_timeout_s=IO_TIMEOUT_S,
            mount=mount,
        )
        for number, style in enumerate(styles, 1)
    ]


@contextmanager
def mounted(directory: Path, address: str) -> Iterator[str]:
    """Mount the cluster; yields the path, empty where there is no FUSE."""
    try:
        mounts.check_fuse()
    except hillfire.Error:
        yield ""
        return
    where, log = directory / "mnt", directory / "mount.log"
    where.mkdir()
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-m", "hillfire.cli", "mount", str(where), "--foreground"]
    command += ["--address", address, "--transport", "tcp", "--ready-fd", str(write_fd)]
    command += ["--parent", str(os.getpid())]
    with open(log, "ab") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            pass_fds=[write_fd],
            process_group=0,
        )
    os.close(write_fd)
    try:
        with open(read_fd, "rb", buffering=0):
            ready = any(said.get("ready") for said in daemon.steps(read_fd, MOUNT_TIMEOUT_S))
        assert ready, log.read_text()[-3000:]
        yield str(where)
    finally:
        try:
            if mounts.is_mounted(where):
                mounts.unmount(where, lazy=process.poll() is not None)
            process.terminate()
            process.wait(MOUNT_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
            if mounts.is_mounted(where):
                mounts.unmount(where, lazy=True)


def prepare(address: str, path: str) -> None:
    """Make a file of full length, of which nothing is written."""
    with hillfire.connect(address, transport="tcp", io_timeout_s=IO_TIMEOUT_S) as fs:
        fs.open(path, "wb").close()
        fs.truncate(path, CHUNKS * CHUNK_BYTES)


def read_all(address: str, paths: Sequence[str]) -> list[Operation]:
    """Read every chunk of files at the end, as one more client."""
    recorder = Recorder(time.monotonic_ns)
    with hillfire.connect(address, transport="tcp", io_timeout_s=IO_TIMEOUT_S) as fs:
        for path in paths:
            if not fs.exists(path):
                continue
            with fs.open(path, "rb") as file:
                for chunk in range(CHUNKS):
                    operation = recorder.invoke(
                        "last", f"{path}/{chunk}", Kind.READ, length=CHUNK_BYTES
                    )
                    data = file.read_at(chunk * CHUNK_BYTES, CHUNK_BYTES)
                    recorder.returned(operation, content=decode(data, 0))
    return recorder.operations


def run(
    directory: Path,
    seed: int,
    choose: Callable[[random.Random, bool], Iterator[Fault]],
    *,
    name: str,
    nodes: int = 3,
    targets_per_node: int = 2,
    rate: float = 40.0,
) -> World:
    """Run clients against a cluster under the faults that ``choose`` yields, and judge it all.

    ``choose`` is given the source of chance and whether the network can be cut here.
    """
    source = random.Random(seed)
    print(f"\n{name}, seed {seed}:")
    with nothing_left(directory):
        small = [(str(101), SMALL_DISK_BYTES)]
        with cluster(
            directory,
            nodes=nodes,
            targets_per_node=targets_per_node,
            small_disks=small,
            options={"meta": f"chunk_bytes = {CHUNK_BYTES}"},
        ) as made:
            return _under_load(made, directory, seed, source, choose, rate, name)


def _under_load(
    made: Cluster,
    directory: Path,
    seed: int,
    source: random.Random,
    choose: Callable[[random.Random, bool], Iterator[Fault]],
    rate: float,
    name: str,
) -> World:
    paths = ["/f0"]
    prepare(made.address, paths[0])
    with mounted(directory, made.address) as mount:
        with clients(jobs(directory, made.address, mount, seed, rate)) as load:
            world = World(made, load, source)
            world.small = ["101"] if made.net is not None else []
            with world.prober(made.address, CHUNK_BYTES):
                _carry_out(world, choose(source, made.net is not None), paths)
            load.end()
            outcomes, operations = load.outcomes(), load.operations()
        operations += read_all(made.address, [*paths, *(f"{path}-cut" for path in paths)])
    routing = made.wait_serving(30.0)
    made.stop()
    compared = compare_replicas(made, routing)
    _tell(world, outcomes, operations, compared)
    judged(operations, f"{name}-{seed}")
    idle = [outcome.name for outcome in outcomes if outcome.operations < LEAST_OPERATIONS]
    assert not idle, f"clients that hardly did anything: {idle}"
    errors = [error for outcome in outcomes for error in outcome.errors]
    assert not errors, f"{len(errors)} errors: " + "\n".join(errors[:10])
    return world


def _carry_out(world: World, faults: Iterator[Fault], paths: list[str]) -> None:
    """Let faults happen one after another; each finds another file being written."""
    for number, fault in enumerate(faults, 1):
        began = time.monotonic()
        fault(world)
        world.done.append((fault.__name__, began, time.monotonic()))
        print(f"  {fault.__name__:<30} {time.monotonic() - began:5.1f} s", flush=True)
        if number % FAULTS_A_FILE == 0:
            paths.append(f"/f{len(paths)}")
            prepare(world.cluster.address, paths[-1])
            world.load.tell(file=paths[-1])


def _tell(
    world: World, outcomes: list[Outcome], operations: list[Operation], compared: int
) -> None:
    unknown = sum(each.unknown for each in operations)
    longest = max(outcome.longest_s for outcome in outcomes)
    full = sum(outcome.full for outcome in outcomes)
    print(
        f"  {len(world.done)} faults, {len(operations)} operations ({unknown} of unknown outcome, "
        f"{full} told that there is no space), the longest took {longest:.1f} s; "
        f"{compared} chunks alike on all replicas"
    )
    for each in sorted(operations, key=lambda each: each.invoked - (each.returned or 0))[:3]:
        if each.returned is not None:
            took = (each.returned - each.invoked) / 1e9
            print(f"    {took:.1f} s: {each.client} {each.key} {each.describe()}")
    worst = sorted(_waits(world, operations).items(), key=lambda pair: -pair[1])[:6]
    print("  longest waits: " + ", ".join(f"{name} {took:.1f} s" for name, took in worst))
    for what, seconds in sorted(world.figures.items()):
        shown = ", ".join(f"{each:.2f}" for each in seconds)
        print(f"  {what}: {shown} s")


def _waits(world: World, operations: list[Operation]) -> dict[str, float]:
    """Return by fault how long the longest operation took that it met, in seconds."""
    waits: dict[str, float] = {}
    for name, began, ended in world.done:
        for each in operations:
            if each.returned is None or each.invoked > ended * 1e9 or each.returned < began * 1e9:
                continue
            waits[name] = max(waits.get(name, 0.0), (each.returned - each.invoked) / 1e9)
    return waits
