"""The native extension's checksums and their twins (budget: 5 s)."""

import errno
import importlib
import os
import random
import subprocess
import sys
from array import array
from pathlib import Path
from types import ModuleType

import pytest

from hillfire import native
from hillfire.native import pure

LENGTHS = [*range(700), 1359, 4079, 4080, 4081, 4095, 4096, 4097, 65535, 65536, 65537, 300_000]


def fast() -> ModuleType:
    if not native.FAST:
        pytest.skip("the extension is not built, or HILLFIRE_PURE is set")
    return importlib.import_module("hillfire.native._fast")


@pytest.mark.parametrize("name", ["crc32c", "crc32c_in_streams"])
def test_sums_of_any_length_and_place_are_the_librarys(name: str) -> None:
    function, chance = getattr(fast(), name), random.Random(1)
    data = memoryview(chance.randbytes(300_100))
    for length in LENGTHS:
        at, value = chance.randrange(100), chance.getrandbits(32)
        part = data[at : at + length]
        assert function(part, value) == pure.crc32c(part, value), length


def test_the_standards_check_value() -> None:
    # RFC 3720, appendix B.4
    for function in (native.crc32c, pure.crc32c):
        assert function(b"123456789") == 0xE3069283
        assert function(bytes(range(32))) == 0x46DD794E
        assert function(b"\xff" * 4096) == function(b"\xff" * 96, function(b"\xff" * 4000))


@pytest.mark.parametrize("unit", [1, 7, 4096, 65536, 1 << 20])
@pytest.mark.parametrize("length", [0, 1, 4095, 65537, 200_000])
def test_sums_of_units(unit: int, length: int) -> None:
    data = random.Random(length).randbytes(length)
    found = fast().sums(data, unit)
    assert found == pure.sums(data, unit)
    assert len(found) == 4 * -(-length // unit)


@pytest.mark.parametrize("length", [0, 1, 4096, 65535, 65536, 65537, 69_632, 131_072, 200_000])
def test_sums_of_a_chunk(length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert fast().chunk_sums(data) == pure.chunk_sums(data)


def test_a_unit_has_bytes() -> None:
    for module in (fast(), pure):
        with pytest.raises(ValueError, match="at least one byte"):
            module.sums(b"abc", 0)


def test_the_environment_chooses_the_twins() -> None:
    code = "from hillfire import native; print(native.FAST, native.crc32c(b'123456789'))"
    environment = {**os.environ, "HILLFIRE_PURE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["False", str(0xE3069283)]


def test_scatter_writes_every_piece_to_its_place(tmp_path: Path) -> None:
    chance = random.Random(3)
    pieces = [(at, chance.randbytes(chance.randrange(5000))) for at in range(0, 900_000, 5000)]
    chance.shuffle(pieces)
    with open(tmp_path / "file", "wb+") as file:
        fast().scatter(file.fileno(), pieces)
        for at, data in pieces:
            assert os.pread(file.fileno(), len(data), at) == data
        for bad in ([(1, b"x"), 2], [(1,)], [(-1, b"x")], [(1, 2)], [(0, b"")] * 5000):
            with pytest.raises((TypeError, ValueError)):
                fast().scatter(file.fileno(), bad)
    with open(tmp_path / "file", "rb") as file, pytest.raises(OSError) as failure:
        fast().scatter(file.fileno(), pieces)
    assert failure.value.errno == errno.EBADF


def test_a_replaced_page_makes_the_sums_of_its_chunk() -> None:
    chance = random.Random(4)
    for length in (4096, 20_480, 65_536, 300_000 // 4096 * 4096, 1 << 20):
        data = bytearray(chance.randbytes(length))
        grains = array("I", pure.sums(data, 65536))
        pages = array("I", pure.sums(data, 4096))
        for page in {0, len(pages) // 2, len(pages) - 1}:
            fresh = chance.randbytes(4096)
            data[page * 4096 : (page + 1) * 4096] = fresh
            fast().replace_page(grains, pages, page, pure.crc32c(fresh))
        assert grains.tobytes() == pure.sums(data, 65536), length
        assert pages.tobytes() == pure.sums(data, 4096), length
    for page in (len(pages), 1 << 31):
        with pytest.raises(ValueError, match="no such page"):
            fast().replace_page(grains, pages, page, 0)
