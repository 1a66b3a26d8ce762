"""Bytes that rot on a disk, records that are lost: never shown to anybody, found, and repaired.

Time budget: 40 s.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import hillfire
from hillfire.errors import Code
from hillfire.types import chunk_id
from tests.cluster import cluster
from tests.integration.chain import NODES, Client, Cluster
from tests.integration.damage import flip, scrub_states, scrubbed, status, until

MIB = 1 << 20
QUIET = "scrub_days = 0"
"""No scrubber but the one that is asked for: a test must know who found what."""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, storage=QUIET) as running:
        running.wait()
        yield running


@pytest.mark.parametrize("place", [0, 1, 2], ids=["head", "middle", "tail"])
def test_a_flipped_bit_is_never_returned_and_the_copy_repaired(chain: Cluster, place: int) -> None:
    client = Client(chain)
    chunk, data = chunk_id(7, 0), os.urandom(300_000)  # type: ignore[arg-type]
    client.write([(chunk, 0, data)])
    target = client.chain().serving[place]
    node = client.routing.node_of(target)
    flip(chain.directory / str(node.id) / "targets", data, 150_000)
    result, found = client.read_at(target, chunk, MIB)
    assert (result.code, found) == (Code.CORRUPT, b"")
    others = [t for t in client.chain().serving if t != target]
    assert all(client.read_at(t, chunk, MIB)[1] == data for t in others)

    def repaired() -> bool:
        result, found = client.read_at(target, chunk, MIB)
        assert result.code in (0, Code.CORRUPT, Code.NOT_COMMITTED)
        assert found in (b"", data)
        return found == data

    until(repaired, lambda: (chain.directory / "log").read_text()[-3000:])
    (state,) = scrub_states(node)
    assert (state.damaged, state.repaired, state.lost) == (1, 1, 0), state
    assert "event=chunk_repaired" in (chain.directory / "log").read_text()
    assert "event=target_stopped" not in (chain.directory / "log").read_text()
    client.close()


def test_the_scrubber_finds_and_repairs_what_nobody_reads(chain: Cluster) -> None:
    client = Client(chain)
    data = {index: os.urandom(200_000) for index in range(12)}
    for index, each in data.items():
        client.write([(chunk_id(7, index), 0, each)])  # type: ignore[arg-type]
    rotten = {3: NODES[0], 5: NODES[1], 8: NODES[2], 9: NODES[1]}
    for index, number in rotten.items():
        flip(chain.directory / str(number) / "targets", data[index], 199_000)
    for number in NODES:
        node = chain.routing().nodes[number]  # type: ignore[index]
        scrubbed(node)
        mine = [index for index, where in rotten.items() if where == number]

        def all_done(node: object = node, count: int = len(mine)) -> bool:
            (state,) = scrub_states(node)  # type: ignore[arg-type]
            assert state.damaged <= count
            return state.repaired == count

        until(all_done, lambda: (chain.directory / "log").read_text()[-3000:])
        (state,) = scrub_states(node)
        assert state.bytes_total == 12 * 200_000
        assert state.bytes_done == (12 - len(mine)) * 200_000  # what was sound
        assert state.chunks_done == 12
    for index, each in data.items():
        for target in client.chain().serving:
            assert client.read_at(target, chunk_id(7, index), MIB)[1] == each  # type: ignore[arg-type]
    client.close()


def test_a_chunk_that_one_replica_lost_is_brought_back(chain: Cluster) -> None:
    """Absent means zeros only where the replicas agree."""
    client = Client(chain)
    data = os.urandom(100_000)
    for index in range(5):
        client.write([(chunk_id(7, index), 0, data)])  # type: ignore[arg-type]
    gone = chunk_id(7, 2)  # type: ignore[arg-type]
    for target in client.chain().serving[::2]:  # the head, then the tail
        node = client.routing.node_of(target)
        (chain.directory / str(node.id) / "forget").write_text(gone.hex())
        chain.kill(int(node.id), number=signal.SIGUSR1)
        until(lambda t=target: client.read_at(t, gone, MIB)[1] == b"")  # type: ignore[misc]
        scrubbed(node)
        until(lambda t=target: client.read_at(t, gone, MIB)[1] == data)  # type: ignore[misc]
        (state,) = scrub_states(node)
        assert (state.behind, state.repaired, state.damaged) == (1, 1, 0)
        assert gone.hex() in state.findings[0]
    client.close()


def test_a_read_through_the_client_never_shows_rot_and_scrub_tells_of_it(tmp_path: Path) -> None:
    with cluster(tmp_path, targets_per_node=1) as local:
        data = os.urandom(3 * MIB)
        with hillfire.connect(local.address) as files:
            files.write_bytes("/rotten", data)
            for index, name in enumerate(local.storage_names):
                flip(local.directory.path / name / "targets", data[MIB * index :], 5000)
            for _ in range(10):  # any replica is read first
                assert files.read_bytes("/rotten") == data
        done = local.command("scrub", "--json", "--address", local.address)
        assert done.returncode == 0, done.stderr

        def sound() -> bool:
            shown = local.command("scrub", "--show", "--json", "--address", local.address)
            states = status(shown.stdout)["targets"]
            return [s["repaired"] for s in states] == [1, 1, 1]

        until(sound, lambda: local.command("scrub", "--show", "--address", local.address).stdout)
        told = local.command("status", "--address", local.address)
        assert told.returncode == 0
        assert "1 damaged, 1 repaired" in told.stdout
        plain = local.command("scrub", "--show", "--address", local.address)
        assert "found by" in plain.stdout and "is repaired" in plain.stdout


def test_a_scrub_of_a_chain_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with cluster(tmp_path, nodes=1, replicas=1, targets_per_node=1) as local:
        refused = local.command("scrub", "--chain", "99", "--address", local.address)
        assert refused.returncode == 1
        assert "no chain 99" in refused.stderr
