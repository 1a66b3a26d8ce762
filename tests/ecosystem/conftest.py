"""One cluster for the whole suite: three storage nodes, three replicas."""

from collections.abc import Iterator

import pytest

from tests.cluster import LocalCluster, cluster


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster; its address is the default one of this process and its children."""
    directory = tmp_path_factory.mktemp("ecosystem")
    with cluster(directory) as local, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HILLFIRE_ADDRESS", local.address)
        yield local
