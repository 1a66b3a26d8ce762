import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from hillfire.config import ManagerConfig, MetaConfig, StorageConfig, load
from hillfire.errors import Code, Error
from hillfire.local import mounts, ports
from hillfire.local.control import ControlServer, ask
from hillfire.local.directory import ClusterDirectory, Shape


def test_a_directory_remembers_its_shape_and_writes_configs_once(tmp_path: Path) -> None:
    directory = ClusterDirectory(tmp_path / "c")
    shape = directory.create({"nodes": 3, "replicas": 2}, 0)
    assert (shape.nodes, shape.replicas, shape.targets_per_node) == (3, 2, 4)
    assert directory.create({}) == directory.create({"replicas": 2}) == shape
    directory.write_configs(shape)
    manager = load("manager", directory.service_config("manager"))
    assert isinstance(manager, ManagerConfig)
    assert manager.listen == shape.address
    meta = load("meta", directory.service_config("meta"))
    assert isinstance(meta, MetaConfig)
    assert meta.manager == shape.address
    seen = {manager.listen, manager.grpc_listen, meta.listen, meta.grpc_listen}
    for node in shape.storage_nodes:
        storage = load("storage", directory.service_config(f"storage-{node}"))
        assert isinstance(storage, StorageConfig)
        assert storage.node == node
        seen |= {storage.listen, storage.grpc_listen}
    assert len(seen) == 10
    changed = directory.service_config("storage-101")
    changed.write_text(changed.read_text() + "io_threads = 9\n")
    directory.write_configs(shape)
    assert "io_threads = 9" in changed.read_text()


@pytest.mark.parametrize("asked", [{"nodes": 4}, {"replicas": 2}, {"targets_per_node": 1}])
def test_another_shape_is_refused(asked: dict[str, int], tmp_path: Path) -> None:
    directory = ClusterDirectory(tmp_path)
    directory.create({}, 0)
    with pytest.raises(Error, match="was made with --") as caught:
        directory.create(asked)
    assert caught.value.code is Code.CONFIGURATION


def test_an_impossible_shape_leaves_nothing_behind(tmp_path: Path) -> None:
    directory = ClusterDirectory(tmp_path / "c")
    for asked in ({"nodes": 2}, {"nodes": 0, "replicas": 0}, {"targets_per_node": 0}):
        with pytest.raises(Error):
            directory.create(asked, 0)
    assert not (tmp_path / "c").exists()


def test_a_directory_of_a_later_format_or_damaged_is_refused(tmp_path: Path) -> None:
    directory = ClusterDirectory(tmp_path)
    (tmp_path / "cluster.json").write_text('{"format": 99}')
    with pytest.raises(Error, match="is of format 99"):
        directory.shape()
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(Error, match="cannot be understood"):
        directory.shape()


def test_one_holder_of_the_lock_at_a_time(tmp_path: Path) -> None:
    with (
        ClusterDirectory(tmp_path).lock(),
        pytest.raises(Error, match="running already"),
        ClusterDirectory(tmp_path).lock(),
    ):
        pass
    with ClusterDirectory(tmp_path).lock():
        pass


def test_services_have_ports_of_their_own() -> None:
    services = Shape(nodes=5, port=100).services
    assert [service.port for service in services] == list(range(100, 114, 2))
    assert [service.name for service in services][:3] == ["manager", "meta", "storage-101"]


def test_a_wanted_port_that_is_taken_is_named_and_others_are_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        with pytest.raises(Error, match=f"port {taken} is taken by process .* \\(pid "):
            ports.choose(1, taken)
        first = ports.choose(10, 0)
        assert taken not in range(first, first + 10)


def serve_and_ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Run a control server that echoes, and ask it from a thread as another process would."""
    answers: list[dict[str, Any] | Error] = []

    async def handler(asked: dict[str, Any]) -> dict[str, Any]:
        if asked.get("fail"):
            raise Error(Code.NOT_FOUND, "no such thing")
        return {"echo": asked}

    def asker() -> None:
        try:
            answers.append(ask(path, request, 5))
        except Error as error:
            answers.append(error)

    async def main() -> None:
        server = ControlServer(path, handler)
        await server.start()
        thread = threading.Thread(target=asker)
        thread.start()
        await asyncio.to_thread(thread.join)
        await server.stop()

    asyncio.run(main())
    if isinstance(answers[0], Error):
        raise answers[0]
    return answers[0]


def test_the_control_socket_answers_however_long_its_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    assert serve_and_ask(deep / "control.sock", {"x": 1}) == {"echo": {"x": 1}}
    with pytest.raises(Error, match="no such thing") as caught:
        serve_and_ask(deep / "control.sock", {"fail": True})
    assert caught.value.code is Code.NOT_FOUND


def test_asking_where_nobody_listens_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(Error, match="holds no cluster"):
        ask(tmp_path / "control.sock", {}, 1)
    (tmp_path / "cluster.json").write_text("{}")
    with pytest.raises(Error, match="is not running: start it with"):
        ask(tmp_path / "control.sock", {}, 1)


def test_mount_table() -> None:
    assert mounts.mounted_type(Path("/proc")) == "proc proc"
    assert not mounts.is_mounted(Path("/proc/self"))
    assert not mounts.is_ours(Path("/proc"))
