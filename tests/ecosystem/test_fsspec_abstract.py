"""fsspec's own suite for file systems, over a real cluster. Budget: 60 s."""

import itertools
import posixpath
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

from hillfire.client.adapters.fsspec import HillfireFileSystem
from tests.cluster import LocalCluster

_numbers = itertools.count()


class Hillfire(AbstractFixtures):  # type: ignore[misc]
    """A directory of its own for each test."""

    @pytest.fixture
    def fs(self, running: LocalCluster) -> HillfireFileSystem:
        fs = fsspec.filesystem("hillfire")
        assert isinstance(fs, HillfireFileSystem)
        return fs

    @pytest.fixture
    def fs_path(self, fs: HillfireFileSystem) -> Iterator[str]:
        path = f"/abstract-{next(_numbers)}"
        fs.mkdir(path)
        yield path
        fs.rm(path, recursive=True)

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return posixpath.join

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return True


class TestCopy(Hillfire, AbstractCopyTests):  # type: ignore[misc]
    pass


class TestGet(Hillfire, AbstractGetTests):  # type: ignore[misc]
    pass


class TestPut(Hillfire, AbstractPutTests):  # type: ignore[misc]
    pass


class TestOpen(Hillfire, AbstractOpenTests):  # type: ignore[misc]
    pass


class TestPipe(Hillfire, AbstractPipeTests):  # type: ignore[misc]
    pass


def test_the_suite_is_collected(request: pytest.FixtureRequest) -> None:
    """It comes from another package: an empty one would pass as well."""
    names: list[Any] = [item.name for item in request.session.items]
    assert len(names) > 100 or "-k" in request.config.invocation_params.args
