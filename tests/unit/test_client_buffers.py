"""The staging pool. Budget: 5 s."""

import asyncio
import random
import threading

import pytest

from hillfire.client.buffers import Buffers
from hillfire.errors import Code, Error
from hillfire.proto.wire.base import Part
from hillfire.region import Quarantine
from hillfire.types import ByteRange


def test_parts_never_overlap_and_all_room_comes_back() -> None:
    pool, chance = Buffers(1 << 20), random.Random(3)
    out: list[Part] = []
    for _ in range(3000):
        if out and chance.random() < 0.5:
            pool.release(out.pop(chance.randrange(len(out))))
        else:
            part = pool.try_acquire(chance.choice([1, 4096, 5000, 65536, 200_000]))
            if part is not None:
                for other in out:
                    assert (
                        part.offset + part.length <= other.offset
                        or other.offset + other.length <= part.offset
                    )
                out.append(part)
    for part in out:
        pool.release(part)
    whole = pool.try_acquire(1 << 20)
    assert whole is not None and pool.try_acquire(1) is None
    pool.release(whole)


def test_quarantined_parts_are_kept_back() -> None:
    pool = Buffers(8192)
    first, second = pool.acquire(4096, 1), pool.acquire(4096, 1)
    held = pool.region.quarantine(ByteRange(first.offset, 10))
    pool.release(first)
    assert pool.try_acquire(4096) is None
    with pytest.raises(Error) as caught:
        pool.acquire(4096, 0.05)
    assert caught.value.code is Code.TIMED_OUT
    pool.region.release(held)
    assert pool.acquire(4096, 1).offset == first.offset
    pool.release(second)


@pytest.mark.parametrize("seed", range(4))
def test_what_lands_late_lands_in_nothing_that_is_used_again(seed: int) -> None:
    """Operations time out, their memory is given back, and what they bring lands at any time."""
    chance, pool = random.Random(seed), Buffers(64 * 1024)
    used: list[tuple[Part, bytes]] = []
    late: list[tuple[Part, Quarantine]] = []
    view = pool.region.view
    for step in range(400):
        what = chance.randrange(4)
        if what == 0 and late:
            part, held = late.pop(chance.randrange(len(late)))
            view[part.offset : part.offset + part.length] = bytes(part.length)
            pool.region.release(held)
        elif what == 1 and used:
            part, _ = used.pop(chance.randrange(len(used)))
            late.append((part, pool.region.quarantine(ByteRange(part.offset, part.length))))
            pool.release(part)
        elif (found := pool.try_acquire(chance.randrange(1, 20_000))) is not None:
            content = bytes((1 + step % 255,)) * found.length
            view[found.offset : found.offset + found.length] = content
            used.append((found, content))
        for part, content in used:
            assert view[part.offset : part.offset + part.length] == content, step


def test_waiters_are_woken() -> None:
    pool = Buffers(4096)
    part = pool.acquire(4096, 1)
    timer = threading.Timer(0.05, pool.release, [part])
    timer.start()
    again = pool.acquire(4096, 5)
    timer.join()
    assert again == part

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.05, pool.release, again)
        assert await pool.acquire_async(4096, 5) == part

    asyncio.run(main())


def test_what_never_fits_is_said_at_once() -> None:
    pool = Buffers(12288)
    assert pool.acquire(12288, 0).length == 12288
    for length, code in [(12289, Code.TOO_LARGE), (0, Code.INVALID)]:
        with pytest.raises(Error) as caught:
            pool.try_acquire(length)
        assert caught.value.code is code
