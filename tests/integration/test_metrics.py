"""``hillfire metrics``, ``bench io`` and ``profile`` over a real cluster. Budget: 20 s."""

import json
import os
import subprocess
import sys
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hillfire as hf
from hillfire import metrics
from hillfire.cli.gather import Gatherer, own
from hillfire.region import Region
from tests.cluster import LocalCluster, cluster


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with cluster(tmp_path_factory.mktemp("metrics"), nodes=2, replicas=2) as local:
        yield local


def ask(running: LocalCluster, *arguments: str) -> Any:
    done = running.command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_process_tells_what_it_did(running: LocalCluster) -> None:
    payload = os.urandom(300_000)
    with hf.connect(running.address) as fs:
        fs.write_bytes("/seen", payload)
        assert fs.read_bytes("/seen") == payload
    told = ask(running, "metrics", "--address", running.address)
    processes = {each["name"]: each for each in told["processes"]}
    assert set(processes) == {"manager", "meta", *running.storage_names}
    assert told["missing"] == {}
    for name, process in processes.items():
        assert process["pid"] == running.pid(name)
        found = {metric["name"]: metric for metric in process["metrics"]}
        assert 0 < found["process_cpu_seconds_total"]["value"] < 60
        assert found["process_resident_memory_bytes"]["value"] > 1 << 20
        assert found["hillfire_loop_lag_seconds"]["count"] > 0
    stages = {(each["operation"], each["stage"]): each for each in told["stages"]}
    for operation, stage in [
        ("read", "server"), ("read", "disk"), ("write", "server"), ("write", "disk"),
        ("write", "forward"), ("forward", "server"), ("call", "server"),
    ]:  # fmt: skip
        each = stages[operation, stage]
        assert each["count"] > 0
        assert 0 < each["p50_s"] <= each["p99_s"] <= each["max_s"] < 60
    calls = {each["method"]: each for each in told["calls"]}
    assert calls["Meta/Create"]["count"] == 1
    assert calls["Manager/Heartbeat"]["count"] > 0
    assert stages["read", "disk"]["sum_s"] <= stages["read", "server"]["sum_s"]


def test_a_client_tells_its_own_stages(running: LocalCluster) -> None:
    before = metrics.REGISTRY.collect()
    with hf.connect(running.address) as fs:
        fs.write_bytes("/own", bytes(100_000))
        assert len(fs.read_bytes("/own")) == 100_000
    done = metrics.since(metrics.REGISTRY.collect(), before)
    for operation in ("read", "write"):
        whole = metrics.together(
            done, "hillfire_stage_seconds", stage="client", operation=operation
        )
        wire = metrics.together(done, "hillfire_stage_seconds", stage="wire", operation=operation)
        assert whole.observed > 0
        assert 0 < wire.total_ns < whole.total_ns
        assert metrics.total(done, "hillfire_bytes_total", operation=operation) == 100_000


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse here")
def test_a_mount_tells_of_its_process(running: LocalCluster, tmp_path: Path) -> None:
    mount = running.mount(tmp_path / "files")
    try:
        (mount / "f").write_bytes(b"x" * 5000)
        told = ask(running, "metrics", "--address", running.address, str(mount))
        (process,) = (p for p in told["processes"] if p["name"] == f"mount {mount}")
        assert process["pid"] == running.mount_pid(mount)
        assert os.listxattr(mount) == []
        with pytest.raises(OSError, match="No data"):
            os.getxattr(mount / "f", "user.hillfire.metrics")
    finally:
        running.unmount(mount)
    missing = running.command("metrics", "--address", running.address, str(tmp_path), "--json")
    assert missing.returncode == 2
    assert "no mount" in json.loads(missing.stdout)["missing"][f"mount {tmp_path}"]


def test_an_interval_holds_only_what_was_done_in_it(running: LocalCluster) -> None:
    told = ask(running, "metrics", "--address", running.address, "--over", "0.3")
    assert 0.3 <= told["over_s"] < 5
    busy = [e for e in told["stages"] if e["operation"] in ("read", "write")]
    assert busy == []


def test_prometheus_scrapes_one_endpoint(running: LocalCluster) -> None:
    command = [sys.executable, "-m", "hillfire.cli", "metrics", "--address", running.address]
    serving = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert serving.stdout is not None
        url = serving.stdout.readline().split()[-1]
        with urllib.request.urlopen(url, timeout=20) as answer:
            text = answer.read().decode()
    finally:
        serving.terminate()
        serving.communicate()
    for name in ("manager", "meta", *running.storage_names):
        assert f'hillfire_up{{process="{name}"}} 1.0' in text
    assert 'hillfire_stage_seconds_bucket{le="' in text


def test_bench_io_takes_figures_and_limits_and_leaves_nothing(running: LocalCluster) -> None:
    words = ("read-4kx16-q3", "read-4k", "write-64kx2-foreign-fsync")
    told = ask(
        running, "bench", "io", "--address", running.address, *words,
        "--seconds", "0.2", "--size", "2 MiB", "--transport", "tcp",
    )  # fmt: skip
    assert (told["storage_nodes"], told["replicas"]) == (2, 2)
    assert [row["workload"] for row in told["rows"]] == list(words)
    for row in told["rows"]:
        assert row["calls"] > 0
        assert row["bytes_per_s"] == pytest.approx(row["items_per_s"] * row["block_bytes"])
        assert 0 < row["call"]["p50_s"] <= row["call"]["p99_s"] <= row["call"]["max_s"]
        cpu = row["cpu"]
        assert sum(cpu["by_process_us"].values()) == pytest.approx(cpu["us_per_item"])
        assert set(cpu["by_process_us"]) == {"client", "manager", "meta", *running.storage_names}
        assert 0 < row["limits"][0]["reached"] < 100
        assert {each["stage"] for each in row["stages"]} >= {"client", "wire", "server", "disk"}
    assert [len(row["limits"]) for row in told["rows"]] == [2, 2, 1]
    with hf.connect(running.address) as fs:
        assert not [name for name in fs.listdir("/") if "bench" in name]


def test_several_clients_at_once(running: LocalCluster) -> None:
    told = ask(
        running, "bench", "io", "--address", running.address, "read-4kx16", "--clients", "2",
        "--seconds", "0.2", "--size", "1 MiB", "--no-limits",
    )  # fmt: skip
    (row,) = told["rows"]
    assert row["calls"] > 0
    stages = {each["stage"]: each["count"] for each in row["stages"]}
    assert stages["client"] == row["calls"]  # of both


def test_a_flame_graph_by_one_command(running: LocalCluster, tmp_path: Path) -> None:
    output = tmp_path / "flame.svg"
    done = running.command(
        "profile", "--dir", str(running.directory.path), "--seconds", "0.5", "--idle",
        "-o", str(output), "--json",
    )  # fmt: skip
    if "may not look" in done.stderr:
        pytest.skip("this user may not ptrace")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told["processes"]) == {"manager", "meta", *running.storage_names}
    assert told["hottest"]
    frames = [g.get("data-n") for g in ET.parse(output).iter("{http://www.w3.org/2000/svg}g")]
    assert {"manager", *running.storage_names} <= set(frames)


def test_errors_teach(running: LocalCluster, tmp_path: Path) -> None:
    directory = str(running.directory.path)
    for arguments, words in [
        (("profile", "storage-9", "--dir", directory), "there are manager"),
        (("bench", "io", "read-4kk", "--address", running.address), "read-4kx256"),
        (("bench", "io", "--compare", __file__), "holds no figures"),
        (("bench", "io", "--size", "4 K", "--address", running.address), "less than one block"),
        (("metrics", "--address", running.address, "--listen", "nonsense"), "cannot listen"),
    ]:
        done = running.command(*arguments)
        assert done.returncode == 1, arguments
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1


def copied(running: LocalCluster) -> dict[str, float]:
    """Return how many bytes were copied in user space so far, by where, in all processes."""
    with Gatherer(running.address) as gatherer:
        looks = [*gatherer.look().found.values(), own()]
    found: dict[str, float] = {}
    for look in looks:
        for sample in look.samples:
            if sample.name == "hillfire_copied_bytes_total":
                where = dict(sample.labels)["where"]
                found[where] = found.get(where, 0) + sample.value
    return found


def test_over_shm_a_write_is_copied_once_a_node_that_forwards_and_a_read_never(
    running: LocalCluster,
) -> None:
    mib, small = 1 << 20, 4096
    region = Region.allocate(8 * mib)
    region.view[:] = os.urandom(mib) * 8
    whole = [(at * mib, at * mib, mib) for at in range(8)]
    pages = [(at * mib + small, at * mib, small) for at in range(8)]
    with hf.connect(running.address, transport="shm") as fs:
        fs.write_bytes("/copied", b"")
        with fs.open("/copied", "r+b") as file:

            def steps(what: Any, ranges: list[tuple[int, int, int]]) -> dict[str, float]:
                before = copied(running)
                lengths = [length for _, _, length in ranges]
                assert what([(file, *each) for each in ranges], region) == lengths
                after = copied(running)
                return {k: after[k] - before.get(k, 0) for k in after if after[k] != before.get(k)}

            # Two replicas: the head copies, the tail stores from the head's memory.
            assert steps(fs.write_batch, whole) == {"memory": 8 * mib}
            assert steps(fs.read_batch, whole) == {}
            # A page that the log has stays in memory at both until the next checkpoint.
            assert steps(fs.write_batch, pages) == {"memory": 8 * small, "log": 2 * 8 * small}
