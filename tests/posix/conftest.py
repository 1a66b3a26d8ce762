"""One cluster and one mount for all of these tests, as real processes."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import LocalCluster, cluster


@pytest.fixture(scope="session")
def live() -> Iterator[LocalCluster]:
    """A cluster of three nodes, in a directory that any user may enter."""
    home = Path(tempfile.mkdtemp(prefix="hillfire-posix-"))
    home.chmod(0o755)
    try:
        with cluster(home) as local:
            yield local
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def root(live: LocalCluster) -> Path:
    """The mount."""
    options = ("--allow-other",) if os.geteuid() == 0 else ()
    mount = live.mount(live.directory.path.parent / "mnt", *options)
    mount.chmod(0o755)
    return mount


@pytest.fixture
def here(root: Path, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own on the mount."""
    own: Path = root / request.node.name.replace("/", "_")[:100]
    own.mkdir()
    return own
