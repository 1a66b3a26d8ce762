"""What a user without root is told before a mount fails: as that user, in a forked child."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hillfire.errors import Error
from hillfire.local import mounts
from hillfire.local.directory import ClusterDirectory

NOBODY = 65534

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else"),
    # Python 3.12 and later warn if other tests' threads live; the child runs a check and ends.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def as_nobody(check: Callable[[], object]) -> str:
    """Run a check as a user who owns nothing; return its error's text, "" if there is none."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        text = "the child failed"
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                check()
                text = ""
            except Error as error:
                text = str(error.strerror)
        finally:
            os.write(write, text.encode())
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as said:
        return said.read()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that anybody reaches, which pytest's are not."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


def test_a_user_mounts_on_a_directory_of_theirs(place: Path) -> None:
    here = place / "here"
    here.mkdir()

    def check() -> None:
        mounts.check_mountpoint(here)

    assert "belongs to somebody else" in as_nobody(check)
    check()  # root may
    here.chmod(0o1777)
    assert "belongs to somebody else" in as_nobody(check), "like /tmp: sticky"
    here.chmod(0o777)
    assert as_nobody(check) == ""
    os.chown(here, NOBODY, NOBODY)
    here.chmod(0o700)
    assert as_nobody(check) == ""


def test_letting_others_in_needs_a_line_of_roots(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = place / "fuse.conf"
    monkeypatch.setattr(mounts, "FUSE_CONF", conf)
    for text in (None, "", "#user_allow_other\n", "mount_max = 1000\n"):
        if text is not None:
            conf.write_text(text)
            conf.chmod(0o644)
        said = as_nobody(mounts.check_allow_other)
        assert f"`echo user_allow_other | sudo tee -a {conf}`" in said
        mounts.check_allow_other()  # root needs no such line
    conf.write_text("# who\n user_allow_other\n")
    assert as_nobody(mounts.check_allow_other) == ""


def test_a_device_that_may_not_be_opened(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = place / "fuse"
    device.touch(mode=0o600)
    monkeypatch.setattr(mounts, "FUSE_DEVICE", device)
    assert "may not be opened by this user: `sudo chmod 666" in as_nobody(mounts.check_fuse)
    device.chmod(0o666)
    monkeypatch.setenv("PATH", str(place))
    assert "there is no fusermount3, which users need" in as_nobody(mounts.check_fuse)


def test_a_clusters_directory_of_somebody_else(place: Path) -> None:
    (place / "theirs").mkdir(mode=0o755)

    def start() -> None:
        with ClusterDirectory(place / "theirs" / "cluster").lock():
            pass

    said = as_nobody(start)
    assert "cannot be used (Permission denied): name a directory of yours" in said
