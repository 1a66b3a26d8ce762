"""Every program in examples/ runs, against a real cluster. Budget: 40 s."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hillfire.errors import Error
from hillfire.local import mounts
from tests.cluster import LocalCluster, cluster

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ARGUMENTS = {
    "checkpoint": ["--mib", "16"],
    "data_loader": ["--batches", "10"],
    "batch_io": [],
    "open_by_url": ["--shards", "4"],
    "async_io": [],
    "watch_a_node_die": ["--seconds", "1.5"],
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with cluster(tmp_path_factory.mktemp("examples")) as local:
        yield local


def run(local: LocalCluster, name: str, *arguments: str) -> str:
    """Run an example as a user would and return what it printed."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        env=local.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    return done.stdout


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"watch_a_node_die"}))
def test_an_example_runs(running: LocalCluster, name: str) -> None:
    assert run(running, name, *ARGUMENTS[name], "--address", running.address)
    assert run(running, name, *ARGUMENTS[name])  # the cluster started last


def test_a_checkpoint_goes_through_a_mount(running: LocalCluster, tmp_path: Path) -> None:
    try:
        mounts.check_fuse()
    except Error as error:
        pytest.skip(str(error))
    mount = running.mount(tmp_path / "mount")
    try:
        assert "equal" in run(running, "checkpoint", "--mib", "16", "--mount", str(mount))
    finally:
        running.unmount(mount)


def test_a_node_dies_while_an_example_writes(running: LocalCluster) -> None:
    said = run(running, "watch_a_node_die", *ARGUMENTS["watch_a_node_die"])
    after = int(said.split(" of them after the kill")[0].rsplit(" ", 1)[1])
    assert after > 0
    assert "healthy" in said
