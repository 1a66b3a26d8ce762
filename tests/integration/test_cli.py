"""The command line against real processes. Budget: 60 s."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hillfire import connect
from hillfire.errors import Error
from hillfire.local import mounts
from tests.cluster import LocalCluster, cluster


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with cluster(tmp_path_factory.mktemp("cli")) as local:
        yield local


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave alone what the user of this machine started last."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def hillfire(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "hillfire.cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def refused(*arguments: str, **environment: str) -> str:
    """Run a command that must fail with one clear line, and return that."""
    done = hillfire(*arguments, **environment)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("hillfire: ")
    return done.stderr


def test_status_shows_nodes_chains_and_space(running: LocalCluster) -> None:
    done = running.command("status", "--dir", str(running.directory.path), "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["healthy"]
    assert [node["name"] for node in status["nodes"]] == [
        "meta",
        "storage-101",
        "storage-102",
        "storage-103",
    ]
    for node in status["nodes"]:
        assert node["state"] == "alive"
        assert Path(f"/proc/{node['pid']}").exists()
    assert len(status["chains"]) == 2
    for chain in status["chains"]:
        assert sorted(target["node"] for target in chain["targets"]) == [101, 102, 103]
        assert {target["state"] for target in chain["targets"]} == {"serving"}
    assert status["space"]["capacity_bytes"] > 0
    with connect(running.address, transport="shm") as fs:
        fs.write_bytes("/status-shows-who-is-connected", b"by what")
        status = json.loads(
            running.command("status", "--dir", str(running.directory.path), "--json").stdout
        )
        clients = [node["connections"]["clients"] for node in status["nodes"]]
        assert sum(counts.get("shm", 0) for counts in clients[1:]) > 0
    table = running.command("status", "--dir", str(running.directory.path)).stdout
    assert "storage nodes reach each other by shm" in table
    assert "storage-103" in table
    assert "healthy" in table


def test_the_cluster_started_last_is_found_without_an_option(running: LocalCluster) -> None:
    done = running.command("status", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["address"] == running.address
    assert json.loads(done.stdout)["manager"]["pid"] == running.pid("manager")
    listed = running.command("node", "list")
    assert f"{running.directory.path}/logs/meta.log" in listed.stdout


def test_names_of_nodes_are_completed(running: LocalCluster) -> None:
    wanted = {
        "_HILLFIRE_COMPLETE": "complete_bash",
        "COMP_WORDS": "hillfire node kill st",
        "COMP_CWORD": "3",
        "HILLFIRE_DIR": str(running.directory.path),
    }
    command = Path(sys.executable).with_name("hillfire")
    environment = {**os.environ, **wanted}
    done = subprocess.run([command], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["storage-101", "storage-102", "storage-103"], done


def test_a_node_is_killed_seen_dead_and_comes_back(running: LocalCluster) -> None:
    where = ["--dir", str(running.directory.path)]
    before = running.pid("storage-102")
    assert running.command("node", "kill", "storage-102", *where).returncode == 0
    assert not Path(f"/proc/{before}").exists()
    running.wait_serving(replicas=2, timeout_s=10)
    done = running.command("status", *where, "--json")
    assert done.returncode == 2
    status = json.loads(done.stdout)
    assert not status["healthy"]
    assert "storage-102 is dead" in status["problems"]
    again = running.command("node", "start", "storage-102", *where)
    assert again.returncode == 0, again.stderr
    assert running.command("status", *where, "--wait", "60").returncode == 0
    assert running.pid("storage-102") != before


@pytest.mark.parametrize("name", ["manager", "meta", "storage-101"])
def test_what_crashes_is_started_again(running: LocalCluster, name: str) -> None:
    before = next(each for each in running.services() if each["name"] == name)
    os.kill(before["pid"], signal.SIGKILL)
    wait_until_restarted(running, name, before["restarts"] + 1)
    assert running.pid(name) != before["pid"]
    running.wait_serving()


def test_a_second_up_is_refused(running: LocalCluster) -> None:
    message = refused("up", "--dir", str(running.directory.path), "--detach")
    assert "running already" in message
    assert "hillfire down" in message


def test_errors_of_a_running_cluster(running: LocalCluster) -> None:
    where = ["--dir", str(running.directory.path)]
    assert "there are manager, meta, storage-101" in refused("node", "stop", "storage-9", *where)
    assert "running already" in refused("node", "start", "meta", *where)


@pytest.mark.skipif(not mounts.FUSE_DEVICE.exists(), reason="no /dev/fuse here")
def test_a_mount_that_crashes_comes_back_and_one_taken_off_stays_off(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    options = ("--mount", str(mount))
    with cluster(tmp_path, nodes=1, replicas=1, targets_per_node=1, options=options) as local:
        (mount / "file").write_text("kept")
        os.sync()
        local.crash("mount")
        wait_until_restarted(local, "mount", restarts=1)
        assert (mount / "file").read_text() == "kept"
        assert local.command("umount", str(mount)).returncode == 0
        for _ in range(100):
            state = next(s for s in local.services() if s["name"] == "mount")["state"]
            if state == "stopped":
                break
            time.sleep(0.02)
        assert state == "stopped"
        assert not mounts.is_mounted(mount)
        local.start("mount")
        assert (mount / "file").read_text() == "kept"


def wait_until_restarted(local: LocalCluster, name: str, restarts: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        service = next(each for each in local.services() if each["name"] == name)
        if service["restarts"] >= restarts and service["state"] == "running":
            return
        assert time.monotonic() < deadline, service
        time.sleep(0.02)


def test_up_down_up_in_the_background(tmp_path: Path) -> None:
    where = ["--dir", str(tmp_path / "c")]
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    small = ["--nodes", "1", "--replicas", "1", "--targets-per-node", "1", "--port", "0"]
    try:
        done = hillfire("up", *where, *small, "--detach", **state)
        assert done.returncode == 0, done.stderr + (tmp_path / "c/supervisor.log").read_text()
        first = json.loads(hillfire("status", *where, "--json").stdout)
        assert "hillfire down" in done.stdout
        assert hillfire("down", *where).returncode == 0
        for node in first["nodes"]:
            assert not Path(f"/proc/{node['pid']}").exists()
        assert "not running" in refused("status", *where)
        assert "not running" in refused("down", *where)
        assert "--replicas 1, not 3" in refused("up", *where, "--replicas", "3", "--detach")
        assert hillfire("up", *where, "--detach", **state).returncode == 0
        second = json.loads(hillfire("status", *where, "--json").stdout)
        assert (second["address"], second["cluster"]) == (first["address"], first["cluster"])
    finally:
        hillfire("down", *where)


def test_services_end_with_their_supervisor_and_come_up_again(tmp_path: Path) -> None:
    with cluster(tmp_path, nodes=1, replicas=1, targets_per_node=1) as local:
        ends = [os.pidfd_open(local.pid(name)) for name in ("manager", "meta", "storage-101")]
        local.kill_supervisor()
        for end in ends:  # a pidfd is readable once its process has ended
            assert select.select([end], [], [], 20)[0]
            os.close(end)
        local.up()
        local.wait_serving()


def test_a_taken_port_is_named_with_its_process(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        message = refused("up", "--dir", str(tmp_path / "c"), "--port", str(port))
    assert f"port {port} is taken" in message
    assert f"pid {os.getpid()}" in message


def test_too_few_nodes(tmp_path: Path) -> None:
    message = refused("up", "--dir", str(tmp_path / "c"), "--nodes", "2", "--detach")
    assert "too few nodes: 3 replicas" in message
    assert "--nodes 3" in message
    assert not (tmp_path / "c/cluster.json").exists()


def test_a_directory_with_something_else_in_it(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    assert "is not empty (thesis.tex) and holds no cluster" in refused("up", "--dir", str(tmp_path))


def test_no_cluster_there(tmp_path: Path) -> None:
    for command in ("down", "status"):
        message = refused(command, "--dir", str(tmp_path))
        assert "holds no cluster: start one with `hillfire up" in message
    assert "which cluster?" in refused("status", XDG_STATE_HOME=str(tmp_path))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert f"no cluster manager answers at {address}" in refused("status", "--address", address)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a tmpfs")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(small)], check=True)
    try:
        assert "is full" in refused("up", "--dir", str(small / "c"), "--detach")
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_directory_of_another_cluster(tmp_path: Path, running: LocalCluster) -> None:
    """A storage node's data put into another cluster is refused by name, not used."""
    config = tmp_path / "storage.toml"
    config.write_text(
        f'node = 109\ndirectory = "{tmp_path}/storage-109"\nmanager = "{running.address}"\n'
    )
    (tmp_path / "storage-109").mkdir()
    (tmp_path / "storage-109/cluster").write_text("another-cluster\n")
    message = refused("serve", "storage", "--config", str(config))
    assert "another-cluster" in message
    assert running.routing().cluster in message


def test_mount_directories_that_will_not_do(tmp_path: Path) -> None:
    address = ["--address", "127.0.0.1:1"]
    if not mounts.FUSE_DEVICE.exists():
        assert "/dev/fuse" in refused("mount", str(tmp_path), *address)
        pytest.skip("no /dev/fuse here")
    message = refused("mount", str(tmp_path / "absent"), *address)
    assert f"{tmp_path / 'absent'} is missing: `mkdir -p" in message
    (tmp_path / "file").write_text("")
    assert "is no directory" in refused("mount", str(tmp_path / "file"), *address)
    assert "not empty" in refused("mount", str(tmp_path), *address)
    assert "nothing is mounted on" in refused("umount", str(tmp_path))


def test_no_fuse_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "FUSE_DEVICE", tmp_path / "fuse")
    with pytest.raises(Error, match="modprobe fuse"):
        mounts.check_fuse()


@pytest.mark.parametrize("kind", ["manager", "meta", "storage", "mount"])
def test_config_prints_what_serve_reads(kind: str, tmp_path: Path) -> None:
    from hillfire.config import load

    done = hillfire("config", kind)
    assert done.returncode == 0
    (tmp_path / "it.toml").write_text(done.stdout)
    load(kind, tmp_path / "it.toml")


def test_a_wrong_configuration_is_one_line(tmp_path: Path) -> None:
    config = tmp_path / "manager.toml"
    config.write_text('directry = "/tmp/x"\n')
    message = refused("serve", "manager", "--config", str(config))
    assert str(config) in message
    assert "did you mean 'directory'?" in message


def test_help_version_and_completion() -> None:
    for command in ("up", "down", "status", "mount", "umount", "serve", "config", "node"):
        done = hillfire(command, "--help")
        assert done.returncode == 0
        assert "hillfire " + command in done.stdout
    assert hillfire("--version").stdout.startswith("hillfire 0.")
    script = hillfire("--show-completion", "bash").stdout
    assert "complete" in script or "_HILLFIRE" in script


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    done = hillfire("down", "--dir", str(tmp_path), HILLFIRE_DEBUG="1")
    assert "Traceback" in done.stderr
