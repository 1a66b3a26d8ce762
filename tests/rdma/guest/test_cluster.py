"""A cluster of three nodes whose data goes over RDMA only: client, replication, mount, a death.

The nodes' doors are at one device, everybody's connections leave by the other, so all data
crosses the cable between them, where it is counted. Leases and time-outs are long: the processor
is emulated.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hillfire
import tests.cluster
from hillfire.local.directory import ClusterDirectory
from tests.cluster import LocalCluster, cluster

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    home = tmp_path_factory.mktemp("rdma")
    directory = ClusterDirectory(home / "cluster")
    directory.write_configs(directory.create({"nodes": 3, "replicas": 3, "targets_per_node": 1}, 0))
    change(directory.service_config("manager"), "lease_ms", "20000")
    change(directory.service_config("manager"), "heartbeat_interval_ms", "2000")
    for node in directory.shape().storage_nodes:
        change(directory.service_config(f"storage-{node}"), "rdma", '"rxb:1:1"')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HILLFIRE_TRANSPORTS", "rdma,tcp")
        patch.setenv("HILLFIRE_RDMA", "rxa:1:1")
        patch.setenv("HILLFIRE_START_TIMEOUT_S", "400")
        patch.setattr(tests.cluster, "START_TIMEOUT_S", 450.0)
        patch.setattr(tests.cluster, "CALL_TIMEOUT_S", 60.0)
        with cluster(home, targets_per_node=1) as local:
            local.wait_serving(timeout_s=300)
            yield local


def change(configuration: Path, key: str, value: str) -> None:
    """Set a key of a service's configuration."""
    text = configuration.read_text()
    found = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    assert found != text
    configuration.write_text(found)


def sent(link: str) -> int:
    return int(Path(f"/sys/class/net/{link}/statistics/tx_bytes").read_text())


def test_data_goes_over_rdma(live: LocalCluster) -> None:
    nodes = [node for node in live.routing().nodes.values() if node.endpoint.rdma]
    assert len(nodes) == 3
    before = sent("va"), sent("vb")
    with hillfire.connect(live.address) as fs:
        data = os.urandom(4 * MIB) * 2
        fs.write_bytes("/data", data)
        assert fs.read_bytes("/data") == data
        assert sent("va") - before[0] > 3 * 8 * MIB  # pulled by the head, and by two successors
        assert sent("vb") - before[1] > 8 * MIB  # pushed by who was read from


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
        live.wait_serving(timeout_s=300)
        assert fs.read_bytes("/new") == new
        fs.write_bytes("/old", new)
        assert fs.read_bytes("/old") == new
