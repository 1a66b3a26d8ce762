"""Disk probes: what it takes to call a disk bad, and good again; a hang is noticed in time."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from hillfire.storage.health import FAILURES, SUCCESSES, Disk, Health
from hillfire.storage.probe import Probe, write_and_read


def test_one_failure_is_forgiven_and_two_in_a_row_are_not() -> None:
    health = Health()
    assert not health.failed("EIO")
    assert not health.succeeded()
    assert not health.failed("EIO")
    assert health.state is Disk.WORKS
    assert [health.failed("EIO") for _ in range(FAILURES)] == [True, False]
    assert (health.state, health.reason) == (Disk.FAILS, "EIO")


def test_it_takes_several_good_probes_in_a_row_to_trust_a_disk_again() -> None:
    health = Health()
    health.overdue(10)
    assert [health.succeeded() for _ in range(SUCCESSES - 1)] == [False] * (SUCCESSES - 1)
    assert not health.failed("again")
    assert health.state is Disk.FAILS
    assert [health.succeeded() for _ in range(SUCCESSES)] == [False] * (SUCCESSES - 1) + [True]
    assert (health.state, health.reason) == (Disk.WORKS, "")


def test_a_hang_counts_at_once() -> None:
    health = Health()
    assert health.overdue(10)
    assert health.state is Disk.HANGS
    assert not health.overdue(20)
    assert "20 s" in health.reason


def watch(
    tmp_path: Path, attempt: Callable[[Path], None], wanted: Sequence[Disk]
) -> tuple[list[Disk], Probe]:
    """Probe until the states were seen in that order; returns every change."""
    seen: list[Disk] = []

    async def main() -> Probe:
        enough = asyncio.Event()

        def changed(probe: Probe) -> None:
            if not seen or seen[-1] is not probe.health.state:
                seen.append(probe.health.state)
            if len(seen) == len(wanted):
                enough.set()

        probe = Probe(tmp_path, 0.02, 0.1, changed, attempt=attempt)
        probe.start()
        await asyncio.wait_for(enough.wait(), 10)
        await probe.stop()
        return probe

    return seen, asyncio.run(main())


def test_a_disk_that_fails_and_works_again_is_told_of(tmp_path: Path) -> None:
    count = 0

    def attempt(directory: Path) -> None:
        nonlocal count
        count += 1
        if 3 <= count <= 6:
            raise OSError(errno.EROFS, "Read-only file system")

    wanted = [Disk.WORKS, Disk.FAILS, Disk.WORKS]
    assert watch(tmp_path, attempt, wanted)[0] == wanted


def test_a_probe_that_hangs_is_told_of_while_it_hangs(tmp_path: Path) -> None:
    release = threading.Event()
    threads = 0

    def attempt(directory: Path) -> None:
        nonlocal threads
        threads += 1
        if threads == 2:
            release.wait(10)

    seen, _ = watch(tmp_path, attempt, [Disk.WORKS, Disk.HANGS])
    assert seen == [Disk.WORKS, Disk.HANGS]
    assert threads == 2  # no thread is started beside one that hangs
    release.set()


def test_a_full_disk_is_no_failing_one(tmp_path: Path) -> None:
    def attempt(directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert watch(tmp_path, attempt, [Disk.WORKS])[1].health.failures == 0


def test_the_probe_itself_reads_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_and_read(tmp_path)
    write_and_read(tmp_path)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: len(data))
    with pytest.raises(OSError, match="not what is read"):
        write_and_read(tmp_path)
