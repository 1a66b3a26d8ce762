"""A cluster of three nodes whose data goes over RDMA only: client, replication, mount, a death.

The nodes use one device, client and mount the other. Nothing else could carry data: shared memory
is not allowed, and tcp is counted.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import hillfire
from tests.cluster import LocalCluster, cluster

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HILLFIRE_TRANSPORTS", "rdma,tcp")
        patch.setenv("HILLFIRE_RDMA", "rxb:1:1")
        with cluster(tmp_path_factory.mktemp("rdma"), targets_per_node=1) as local:
            patch.setenv("HILLFIRE_RDMA", "rxa:1:1")
            local.environment["HILLFIRE_RDMA"] = "rxa:1:1"
            local.wait_serving(timeout_s=120)
            yield local


def sent(link: str) -> int:
    return int(Path(f"/sys/class/net/{link}/statistics/tx_bytes").read_text())


def pairs() -> list[tuple[str, int, int, int]]:
    """Return device, own and remote number, and pid of every connected queue pair."""
    command = ["rdma", "resource", "show", "qp"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pattern = r"link (\w+)/1 lqpn (\d+) rqpn (\d+) type RC state RTS.* pid (\d+)"
    return [(m[1], int(m[2]), int(m[3]), int(m[4])) for m in re.finditer(pattern, told)]


def test_data_goes_over_rdma(live: LocalCluster) -> None:
    nodes = [node for node in live.routing().nodes.values() if node.endpoint.rdma]
    assert len(nodes) == 3
    before = sent("va"), sent("vb")
    with hillfire.connect(live.address) as fs:
        data = os.urandom(4 * MIB) * 2
        fs.write_bytes("/data", data)
        assert fs.read_bytes("/data") == data
        assert sent("va") - before[0] > 8 * MIB  # pulled by the heads
        assert sent("vb") - before[1] > 8 * MIB  # pushed by who was read from
        storage = {live.pid(name) for name in live.storage_names}
        found = pairs()
        ours = {(own, peer): pid for _, own, peer, pid in found}
        links = {(pid, ours.get((peer, own))) for _, own, peer, pid in found}
        assert any(one == os.getpid() and other in storage for one, other in links)
        assert any(one in storage and other in storage and one != other for one, other in links)


def test_mount(live: LocalCluster, tmp_path: Path) -> None:
    mount = live.mount(tmp_path / "mnt")
    data = os.urandom(3 * MIB + 123)
    before = sent("va")
    (mount / "file").write_bytes(data)
    assert (mount / "file").read_bytes() == data
    assert sent("va") - before > 3 * MIB
    with hillfire.connect(live.address) as fs:
        assert fs.read_bytes("/file") == data
    live.unmount(mount)


def test_a_node_dies_and_comes_back(live: LocalCluster) -> None:
    with hillfire.connect(live.address) as fs:
        old = os.urandom(2 * MIB)
        fs.write_bytes("/old", old)
        live.kill(live.storage_names[1])
        new = os.urandom(2 * MIB)
        fs.write_bytes("/new", new)
        assert fs.read_bytes("/old") == old
        live.start(live.storage_names[1])
        live.wait_serving(timeout_s=120)
        assert fs.read_bytes("/new") == new
        fs.write_bytes("/old", new)
        assert fs.read_bytes("/old") == new
