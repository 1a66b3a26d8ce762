"""Regions: bounds, quarantine, and that nothing of them stays. Budget: 1 s."""

import fcntl
import os

import pytest

from hillfire.errors import Code, Error
from hillfire.region import SEALS, Region
from hillfire.types import ByteRange


def code_of(region: Region, offset: int, length: int, landing: bool = True) -> Code:
    try:
        region.check(offset, length, landing)
    except Error as exc:
        return exc.code
    return Code.OK


def test_memory_is_sealed_allocated_and_of_the_length_asked_for() -> None:
    region = Region.allocate(5000)
    assert fcntl.fcntl(region.fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    status = os.fstat(region.fd)
    assert status.st_size == len(region.view) == 5000
    assert status.st_blocks * 512 >= 5000
    region.view[:3] = b"abc"
    assert os.pread(region.fd, 3, 0) == b"abc"


def test_foreign_memory_stays_where_it_is() -> None:
    buffer = bytearray(100)
    region = Region.wrap(memoryview(buffer)[10:])
    region.view[:2] = b"xy"
    assert buffer[10:12] == b"xy"
    assert region.fd == -1


@pytest.mark.parametrize("length", [0, -1])
def test_no_region_without_memory(length: int) -> None:
    with pytest.raises(Error) as caught:
        Region.allocate(length)
    assert caught.value.code is Code.INVALID
    with pytest.raises(Error):
        Region.wrap("text")
    with pytest.raises(Error):
        Region.wrap(memoryview(bytearray(10))[::2])


def test_bounds() -> None:
    region = Region.wrap(bytearray(10))
    assert code_of(region, 0, 10) is code_of(region, 10, 0) is Code.OK
    for offset, length in ((-1, 1), (0, -1), (0, 11), (11, 0), (5, 6)):
        assert code_of(region, offset, length) is Code.INVALID


def test_quarantine() -> None:
    region = Region.wrap(bytearray(100))
    landing = region.quarantine(ByteRange(10, 10))
    again = region.quarantine(ByteRange(10, 10))
    reading = region.quarantine(ByteRange(50, 10), landing=False)
    assert code_of(region, 0, 10) is code_of(region, 20, 30) is Code.OK
    assert code_of(region, 19, 1) is code_of(region, 0, 11) is Code.BUSY
    assert code_of(region, 15, 1, landing=False) is Code.BUSY
    assert code_of(region, 55, 1) is Code.BUSY
    assert code_of(region, 55, 1, landing=False) is Code.OK
    region.release(landing)
    region.release(landing)
    assert code_of(region, 15, 1) is Code.BUSY  # two operations: both must have ended
    region.release(again)
    region.release(reading)
    assert code_of(region, 0, 100) is Code.OK


def test_a_quarantine_is_asked_before_anyone_is_refused() -> None:
    region = Region.wrap(bytearray(100))
    asked = []

    def ended() -> None:
        asked.append(1)
        if len(asked) == 2:
            region.release(held)

    held = region.quarantine(ByteRange(0, 10), ended=ended)
    assert code_of(region, 20, 10) is Code.OK
    assert not asked
    assert code_of(region, 0, 1) is Code.BUSY
    assert code_of(region, 0, 1) is Code.OK


def test_the_end_is_told_once_and_the_descriptor_closed() -> None:
    told: list[int] = []
    region = Region.allocate(4096)
    number, fd = region.id, region.fd
    region.on_close(told.append)
    part = region.view[:10]
    region.close()
    region.close()
    del region
    assert told == [number]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    part[:] = b"still there"[:10]

    region = Region.allocate(4096)
    number, fd = region.id, region.fd
    region.on_close(told.append)
    del region
    assert told[1:] == [number]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
