"""Regions as arrays, and where arrays lie. Budget: 5 s."""

import gc
import sys
import weakref
from typing import Any

import numpy as np
import pytest

from hillfire.arrays import rows_of
from hillfire.client.memory import place, register
from hillfire.errors import Code, Error
from hillfire.region import Region


def test_a_region_is_an_array_over_its_own_memory() -> None:
    region = Region.allocate(8192)
    words = region.numpy("<u2", (4, -1), offset=4096)
    assert words.shape == (4, 512)
    words[:] = np.arange(4)[:, None]
    assert bytes(region.view[4096 + 1024 : 4096 + 1026]) == b"\x01\x00"
    assert region.numpy().shape == (8192,) and len(region) == 8192
    assert np.shares_memory(np.from_dlpack(region), words)
    assert np.shares_memory(np.asarray(region), words)
    assert region.numpy("u1", ()).shape == () and region.numpy("f8", 3).shape == (3,)
    if sys.version_info >= (3, 12):
        assert memoryview(region).nbytes == 8192


@pytest.mark.parametrize(
    ("dtype", "shape", "offset"),
    [("u1", 8193, 0), ("u4", 2048, 4), ("u1", None, -1), ("u1", (-2, 3), 0), ("u1", 1, 8192)],
)
def test_an_array_lies_within_its_region(dtype: str, shape: Any, offset: int) -> None:
    with pytest.raises(Error) as caught:
        Region.allocate(8192).numpy(dtype, shape, offset)
    assert caught.value.code is Code.INVALID


def test_the_memory_outlives_the_region_with_its_arrays() -> None:
    region = Region.allocate(4096)
    array = region.numpy()[1:]
    array[:] = 7
    gone = weakref.ref(region)
    del region
    gc.collect()
    kept = gone()
    assert kept is not None, "an array keeps its region: it can still be read into"
    kept.close()
    del kept
    gc.collect()
    assert array.sum() == 7 * 4095
    del array
    gc.collect()
    assert gone() is None


def test_arrays_are_known_by_their_place() -> None:
    region = register(1 << 16)
    array = region.numpy("u1", (16, 4096))
    for target, count, places in (
        (array, 16, [4096 * i for i in range(16)]),
        (array[2:5], 3, [8192, 12288, 16384]),
        (array[::4], 4, [0, 16384, 32768, 49152]),
        (array[:, 100:300], 16, [4096 * i + 100 for i in range(16)]),
        (array[7], None, [28672]),
        (array, None, [0]),
        (region.view[10:20], None, [10]),
        (array[3].reshape(8, 512), 8, [12288 + 512 * i for i in range(8)]),
    ):
        found, where, lengths = place(target, count, None, None)
        assert found is region and where.tolist() == places
        assert (lengths * len(lengths)).tolist()[0] == np.asarray(target).nbytes
    short = place(array, 16, 100, None)[2]
    assert short.tolist() == [100] * 16
    assert place(region, 3, [10, 20, 30], None)[1].tolist() == [0, 10, 30]
    for bad in (
        (array, 15, None, None),
        (array[:, ::2], 16, None, None),
        (array[::-1], 16, None, None),
        (array[:, :10], None, None, None),
        (array, 16, 5000, None),
        (array, 16, None, 0),
        (region, 3, None, None),
        (region, 3, [1, 2], None),
        (np.lib.stride_tricks.as_strided(array, (4, 100), (50, 1)), 4, None, None),
        ("text", None, None, None),
    ):
        with pytest.raises(Error) as caught:
            place(*bad)
        assert caught.value.code is Code.INVALID, bad


def test_other_memory_is_foreign_and_a_dead_region_forgotten() -> None:
    region = register(4096)
    array = region.numpy()
    other = np.zeros(100, "u1")
    assert place(other, None, None, None)[0].fd < 0
    buffer = bytearray(50)
    found = place(buffer, None, None, None)[0]
    assert found.size == 50 and rows_of(buffer).address == found.address
    assert place(array, None, None, None)[0] is region
    region.close()
    found = place(array, None, None, None)[0]
    assert found.fd < 0, "nothing is read into a region that has ended; its memory is a buffer"
    registered = register(other)
    assert place(other[10:20], None, None, None)[0] is registered


def test_the_names_that_users_annotate_with_are_there() -> None:
    import hillfire

    for name in hillfire.__all__:
        assert getattr(hillfire, name).__name__ == name
    with pytest.raises(AttributeError):
        hillfire.nothing  # noqa: B018
