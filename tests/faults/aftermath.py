"""What must hold when a run is over: equal replicas, explained histories, nothing left behind."""

import contextlib
import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hillfire.cluster import Routing
from hillfire.storage.store.engine import open_store
from hillfire.types import ChunkId
from tests.faults.cluster import Cluster
from tests.history import Operation, dump, judge

KEPT = Path(tempfile.gettempdir()) / "hillfire-histories"
"""Where histories are kept that were judged bad."""


def compare_replicas(cluster: Cluster, routing: Routing) -> int:
    """Open the stopped nodes' stores: each chunk is the same on all of its chain, byte for byte.

    The stores verify every byte as it is read. Returns how many chunks were compared.
    """
    count = 0
    for chain in routing.chains.values():
        records = {
            target: _records(cluster.store_of(str(routing.targets[target].node), target))
            for target, _ in chain.targets
        }
        first, *others = records.values()
        for other in others:
            different = {
                chunk.hex(): (first.get(chunk), other.get(chunk))
                for chunk in first.keys() | other.keys()
                if first.get(chunk) != other.get(chunk)
            }
            assert not different, f"replicas of {chain} differ: {different}"
        count += len(first)
    return count


def _records(path: Path) -> dict[ChunkId, tuple[object, ...]]:
    store = open_store(path)
    try:
        assert not list(store.pending()), f"{path}: pending after everything had ended"
        found: dict[ChunkId, tuple[object, ...]] = {}
        for chunk, meta in store.scan():
            into = bytearray(meta.length)
            filled, _, _ = store.read(chunk, 0, memoryview(into))
            assert filled == meta.length, (path, chunk, meta)
            digest = hashlib.blake2b(into, digest_size=16).hexdigest()
            if meta.version:
                found[chunk] = (meta.version, meta.length, meta.epoch, meta.removed, digest)
        return found
    finally:
        store.close()


def judged(operations: list[Operation], name: str) -> None:
    """Assert that every chunk's history is linearizable; keep what is not."""
    began = time.monotonic()
    verdict = judge(operations)
    print(f"  judged in {time.monotonic() - began:.1f} s: {str(verdict).splitlines()[0]}")
    if not verdict.ok:
        KEPT.mkdir(exist_ok=True)
        path = KEPT / f"{name}-{os.getpid()}.jsonl.gz"
        dump(path, operations)
        raise AssertionError(f"{verdict}\nkept: python -m tests.history {path}")


@contextmanager
def nothing_left(directory: Path) -> Iterator[None]:
    """Assert that no process, mount, namespace or link is left of what runs inside."""
    before = _links()
    yield
    left = [line for line in _processes() if str(directory) in line]
    assert not left, f"processes: {left}"
    assert str(directory) not in Path("/proc/self/mounts").read_text()
    assert not _links() - before, f"links: {_links() - before}"
    names = Path("/run/netns")
    assert not (names.exists() and any(names.glob("hf*")))


def _links() -> set[str]:
    return {name for _, name in socket.if_nameindex() if name == f"hf{os.getpid()}"}


def _processes() -> list[str]:
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = each.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if each.parent.name != str(os.getpid()):
                found.append(f"{each.parent.name} {words}")
    return found
