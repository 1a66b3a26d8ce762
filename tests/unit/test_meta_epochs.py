"""A truncate's epoch is published when the chains have acknowledged the cut, not before."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from hillfire.errors import Code, Error
from hillfire.meta import keys
from hillfire.proto import meta_pb2 as pb
from tests.unit.meta_world import CHUNK, ROOT, World, fails, world


def client(number: int, request: int = 0) -> pb.Caller:
    return pb.Caller(client=number, request=request)


def cut_meanwhile(
    w: World, file: int, meanwhile: Callable[[], Coroutine[Any, Any, None]]
) -> pb.Inode:
    """Cut a file to nothing, and do something while storage is at it."""

    async def main() -> pb.Inode:
        w.storage.gate = asyncio.Event()
        w.storage.arrived = asyncio.Event()
        request = pb.TruncateRequest(caller=client(1), inode=file)
        cut = asyncio.ensure_future(w.start("Truncate", request))
        await w.storage.arrived.wait()
        await meanwhile()
        w.storage.gate.set()
        inode: pb.Inode = await cut
        return inode

    try:
        return asyncio.run(main())
    finally:
        w.storage.gate = None


def test_the_new_epoch_is_not_seen_before_the_chains_have_acknowledged() -> None:
    with world() as w:
        file = w.create(b"f", 0o644, client(3))
        w.settle(file.id, client(3), length=3 * CHUNK)
        seen: list[pb.Inode] = []

        async def look() -> None:
            seen.append(w.stat(file.id))

        answer = cut_meanwhile(w, file.id, look)
        assert (seen[0].epoch, seen[0].cut_epoch) == (0, 1)
        assert (answer.length, answer.epoch, answer.cut_epoch) == (0, 1, 1)
        assert w.stat(file.id) == answer
        assert w.storage.asked[0][1].epoch == 1


def test_a_length_from_before_the_cut_is_not_believed_while_it_is_under_way() -> None:
    with world() as w:
        file = w.create(b"f", 0o644, client(3))
        w.settle(file.id, client(3), length=3 * CHUNK)
        w.storage.lengths = {file.id: 0}
        settled: list[asyncio.Future[pb.Inode]] = []

        async def settle() -> None:
            request = pb.SettleRequest(caller=client(3), inode=file.id, length=2 * CHUNK)
            settled.append(asyncio.ensure_future(w.start("Settle", request)))
            await asyncio.sleep(0)
            assert w.stat(file.id).length == 0
            w.storage.lengths = {file.id: 7}

        async def main() -> None:
            w.storage.gate = asyncio.Event()
            request = pb.TruncateRequest(caller=client(1), inode=file.id)
            cut = asyncio.ensure_future(w.start("Truncate", request))
            await w.storage.arrived.wait()
            await settle()
            w.storage.gate.set()
            await cut
            assert (await settled[0]).length == 7, "what the chunks have afterwards"

        asyncio.run(main())


def test_appends_opens_and_other_cuts_wait_for_their_turn() -> None:
    with world() as w:
        file = w.create(b"f")
        w.settle(file.id, length=3 * CHUNK)
        waiting: list[asyncio.Future[Any]] = []

        async def others() -> None:
            for name, request in (
                ("ReserveAppend", pb.ReserveAppendRequest(caller=ROOT, inode=file.id, length=5)),
                ("Open", pb.OpenRequest(caller=ROOT, inode=file.id, write=True)),
                ("Truncate", pb.TruncateRequest(caller=ROOT, inode=file.id, length=CHUNK)),
            ):
                waiting.append(asyncio.ensure_future(w.start(name, request)))
            await asyncio.sleep(0.01)
            assert not any(each.done() for each in waiting)
            assert w.stat(file.id).length == 0, "nobody shows bytes that are to be cut"

        async def main() -> None:
            w.storage.gate = asyncio.Event()
            request = pb.TruncateRequest(caller=client(1), inode=file.id)
            cut = asyncio.ensure_future(w.start("Truncate", request))
            await w.storage.arrived.wait()
            await others()
            w.storage.gate.set()
            await cut
            append, opened, grown = await asyncio.gather(*waiting)
            assert append.offset == 0 and append.inode.epoch == 1
            assert opened.epoch == 1
            assert grown.length == CHUNK

        asyncio.run(main())
        w.storage.gate = None


def test_a_restart_in_the_middle_makes_the_cut_again_and_then_publishes_it() -> None:
    with world() as w:
        file = w.create(b"f")
        w.settle(file.id, length=CHUNK)
        w.storage.failure = Error(Code.UNAVAILABLE, "nobody serves")
        with fails(Code.UNAVAILABLE):
            w.truncate(file.id, 0, client(7, 1))
        w.restart()
        assert (w.stat(file.id).epoch, w.stat(file.id).cut_epoch) == (0, 1)
        w.storage.failure = None
        w.collect()
        assert (w.stat(file.id).epoch, w.count(keys.INTENTS)) == (1, 0)
        assert w.truncate(file.id, 0, client(7, 1)).epoch == 1, "the kept answer, as it is by now"


def test_removal_is_ordered_beyond_a_cut_that_never_ended() -> None:
    with world() as w:
        file = w.create(b"f")
        w.settle(file.id, length=CHUNK)
        w.storage.failure = Error(Code.UNAVAILABLE, "nobody serves")
        with fails(Code.UNAVAILABLE):
            w.truncate(file.id, 0, client(7, 1))
        w.unlink(b"f")
        w.pass_time(11)
        w.storage.failure = None
        w.truncates.left = False
        w.collect()
        what, order = w.storage.asked[-1]
        assert (what, order.epoch) == ("remove", 2)
        assert w.count(keys.INTENTS) == 0
