"""Files in the name space: create, open, settle, truncate, append, sessions, retries."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from hillfire.errors import Code, Error
from hillfire.meta import keys
from hillfire.meta.engine.retry import transact
from hillfire.meta.intents import chains_between
from hillfire.proto import meta_pb2 as pb
from tests.unit.meta_world import ALICE, BOB, CHAINS, CHUNK, ROOT, World, fails, place, world

KINDS = ["memory", "rocksdb"]


def client(number: int, request: int = 0) -> pb.Caller:
    return pb.Caller(uid=0, client=number, request=request)


def sessions(w: World, inode: int) -> dict[int, keys.WriteSession]:
    pairs = transact(w.engine, lambda txn: txn.snapshot_range(*keys.session_range(inode)))
    return {keys.split_session_key(k)[1]: keys.read_session(v) for k, v in pairs}


def test_a_new_file() -> None:
    with world() as w:
        w.make(b"d", mode=0o777)
        w.pass_time(5)
        inode = w.create(b"d/f", 0o6751, pb.Caller(uid=7, gid=8, client=9))
        assert (inode.type, inode.mode, inode.uid, inode.gid) == (pb.REGULAR, 0o6751, 7, 8)
        assert (inode.links, inode.length, inode.epoch) == (1, 0, 0)
        assert inode.atime_ns == inode.mtime_ns == inode.ctime_ns == w.now_ns
        parent = w.look(b"d")
        assert parent.mtime_ns == parent.ctime_ns == w.now_ns
        assert parent.links == 2
        assert inode == w.stat(inode.id) == w.look(b"d/f")
        assert sessions(w, inode.id) == {9: (1, False)}


def test_small_files_use_all_chains() -> None:
    with world() as w:
        layouts = [w.create(b"%d" % n).layout for n in range(24)]
        assert all(layout.chunk_bytes == CHUNK for layout in layouts)
        assert all(sorted(layout.chains) == list(CHAINS) for layout in layouts)
        firsts = [layout.chains[0] for layout in layouts]
        assert all(firsts.count(chain) == 2 for chain in CHAINS)


def test_the_stripe_is_bounded_and_no_chains_is_no_file() -> None:
    with world() as w:
        w.host.set_chains(range(1, 41))
        assert len(w.create(b"f").layout.chains) == 16
        w.host.set_chains([])
        with fails(Code.UNAVAILABLE):
            w.create(b"g")
        assert w.names() == [b"f"]


def test_create_without_exclusive_answers_what_is_there() -> None:
    with world() as w:
        made = w.create(b"f", 0o644, client(5))
        request = pb.CreateRequest(caller=client(5), place=place(b"f"), mode=0o600)
        assert w.call("Create", request) == made
        assert sessions(w, made.id) == {5: (2, False)}
        request.caller.CopyFrom(BOB)
        with fails(Code.ACCESS):
            w.call("Create", request)
        request.exclusive = True
        with fails(Code.EXISTS):
            w.call("Create", request)


def test_open_checks_and_counts() -> None:
    with world() as w:
        w.set(1, mode=0o777)
        file = w.create(b"f", 0o640, pb.Caller(uid=1000, gid=1000))
        directory = w.make(b"d")
        link = w.make(b"l", pb.SYMLINK, symlink=b"f")
        assert w.open(file.id, client(3), write=True) == file
        w.open(file.id, client(3), write=True)
        w.open(file.id, client(4))
        assert sessions(w, file.id) == {3: (2, False)}
        with fails(Code.ACCESS):
            w.open(file.id, BOB)
        w.open(file.id, pb.Caller(uid=1001, gid=1000))
        with fails(Code.ACCESS):
            w.open(file.id, pb.Caller(uid=1001, gid=1000), write=True)
        w.open(file.id, pb.Caller(uid=1001, gid=1001, checked=True), write=True)
        with fails(Code.IS_DIRECTORY):
            w.open(directory.id, write=True)
        w.open(directory.id)
        with fails(Code.LOOP):
            w.open(link.id)
        with fails(Code.STALE):
            w.open(999)


def test_settle_only_grows_and_ignores_older_epochs() -> None:
    with world() as w:
        file = w.create(b"f", 0o644, client(3))
        w.pass_time(1)
        after = w.settle(file.id, client(3), length=100, epoch=0, mtime_ns=77)
        assert (after.length, after.mtime_ns, after.ctime_ns) == (100, 77, w.now_ns)
        assert w.settle(file.id, client(3), length=50).length == 100
        assert w.truncate(file.id, 10).epoch == 1
        assert w.settle(file.id, client(3), length=100, epoch=0).length == 10
        assert w.settle(file.id, client(3), length=100, epoch=1).length == 100
        assert w.settle(file.id, client(3), close=True) == w.stat(file.id)
        assert sessions(w, file.id) == {}
        w.settle(file.id, client(3), close=True)
        with fails(Code.TOO_LARGE):
            w.settle(file.id, length=(CHUNK << 32) + 1, epoch=1)
        with fails(Code.STALE):
            w.settle(999)
        with fails(Code.INVALID):
            w.settle(1, length=1)
        assert w.settle(1, sync=True) == w.stat(1), "a directory's fsync"


def test_a_writer_that_a_truncate_overtook_gets_the_length_of_its_chunks() -> None:
    with world() as w:
        file = w.create(b"f", 0o644, client(3))
        assert w.settle(file.id, client(3), length=100).length == 100
        assert w.truncate(file.id, 0, client(4)).epoch == 1
        w.storage.lengths = {file.id: 300}
        assert w.settle(file.id, client(3), length=50).length == 50, "not beyond what it wrote"
        assert w.settle(file.id, client(3), length=400, sync=True, close=True).length == 300
        assert w.stat(file.id).length == 300
        w.storage.failure = Error(Code.UNAVAILABLE, "no head")
        with fails(Code.UNAVAILABLE):
            w.settle(file.id, client(3), length=400)
        w.storage.failure = None

        async def cut_again() -> None:
            if w.stat(file.id).epoch == 1:
                await w.start("Truncate", pb.TruncateRequest(caller=client(4), inode=file.id))
                w.storage.lengths = {file.id: 7}

        w.storage.lengths = {file.id: 350}
        w.storage.meanwhile = cut_again
        assert w.settle(file.id, client(3), length=400).length == 7


@pytest.mark.parametrize("kind", KINDS)
def test_settle_with_sync_waits_for_the_disk(kind: str) -> None:
    with world(kind) as w:
        file = w.create(b"f")
        assert w.settle(file.id, length=5, sync=True).length == 5


def test_growing_is_metadata_only() -> None:
    with world() as w:
        file = w.create(b"f")
        w.pass_time(1)
        grown = w.truncate(file.id, 10 * CHUNK)
        assert (grown.length, grown.epoch, grown.mtime_ns) == (10 * CHUNK, 0, w.now_ns)
        assert w.storage.asked == []
        with fails(Code.TOO_LARGE):
            w.truncate(file.id, (CHUNK << 32) + 1)


def test_cutting_reaches_the_chains_that_hold_what_goes() -> None:
    with world() as w:
        file = w.create(b"f")
        w.settle(file.id, length=5 * CHUNK + 1)
        cut = w.truncate(file.id, 3 * CHUNK + 5)
        assert (cut.length, cut.epoch) == (3 * CHUNK + 5, 1)
        ((what, intent),) = w.storage.asked
        assert (what, intent.inode, intent.epoch) == ("truncate", file.id, 1)
        assert (intent.length, intent.chunk_bytes) == (3 * CHUNK + 5, CHUNK)
        assert intent.chains == tuple(file.layout.chains[3:6])
        assert w.count(keys.INTENTS) == 0
        w.truncate(file.id, 0)
        assert w.storage.asked[-1][1].chains == tuple(file.layout.chains[:4])
        assert w.storage.asked[-1][1].sequence > intent.sequence


def test_while_others_write_a_cut_reaches_every_chain() -> None:
    """They may have written beyond the length that is known."""
    with world() as w:
        file = w.create(b"f", 0o644, client(1))
        w.truncate(file.id, 0, client(1))
        assert w.storage.asked == []
        w.truncate(file.id, 0, client(2))
        assert set(w.storage.asked[0][1].chains) == set(CHAINS)


def test_chains_between() -> None:
    inode = pb.Inode(layout=pb.FileLayout(chunk_bytes=10, chains=[1, 2, 3]))
    assert chains_between(inode, 0, 0) == ()
    assert chains_between(inode, 0, 1) == (1,)
    assert chains_between(inode, 9, 11) == (1, 2)
    assert chains_between(inode, 10, 20) == (2,)
    assert chains_between(inode, 25, 1000) == (3, 1, 2)


def test_a_cut_that_storage_does_not_finish_is_finished_later() -> None:
    with world() as w:
        file = w.create(b"f")
        w.settle(file.id, length=CHUNK)
        w.storage.failure = Error(Code.UNAVAILABLE, "nobody serves")
        with fails(Code.UNAVAILABLE):
            w.truncate(file.id, 0, client(7, 1))
        assert w.count(keys.INTENTS) == 1
        w.storage.failure = None
        w.restart()
        w.collect()
        assert w.count(keys.INTENTS) == 0
        first, again = w.storage.asked
        assert first == again, "the same tag: nothing happens twice"
        assert w.truncate(file.id, 0, client(7, 1)).epoch == 1, "and the retry is answered"
        assert len(w.storage.asked) == 2


def test_a_retried_cut_waits_for_storage() -> None:
    with world() as w:
        file = w.create(b"f")
        w.settle(file.id, length=CHUNK)
        w.storage.failure = Error(Code.UNAVAILABLE)
        for _ in range(2):
            with fails(Code.UNAVAILABLE):
                w.truncate(file.id, 0, client(7, 1))
        w.storage.failure = None
        assert w.truncate(file.id, 0, client(7, 1)).epoch == 1
        assert len(w.storage.asked) == 3
        assert w.count(keys.INTENTS) == 0


def test_cuts_of_one_file_reach_storage_one_after_another() -> None:
    with world() as w:
        file = w.create(b"f")
        w.settle(file.id, length=3 * CHUNK)

        async def main() -> None:
            w.storage.gate = asyncio.Event()
            calls = []
            for length in (2 * CHUNK, CHUNK):
                request = pb.TruncateRequest(caller=ROOT, inode=file.id, length=length)
                calls.append(asyncio.ensure_future(w.start("Truncate", request)))
            await w.storage.arrived.wait()
            await asyncio.sleep(0)
            assert len(w.storage.asked) == 1
            w.storage.gate.set()
            answers = await asyncio.gather(*calls)
            assert [a.epoch for a in answers] == [1, 2]

        asyncio.run(main())
        assert [intent.epoch for _, intent in w.storage.asked] == [1, 2]
        w.storage.gate = None


def test_open_with_truncate_counts_its_session_once() -> None:
    with world() as w:
        file = w.create(b"f")
        w.settle(file.id, length=CHUNK)
        w.storage.failure = Error(Code.UNAVAILABLE)
        caller = client(7, 1)
        with fails(Code.UNAVAILABLE):
            w.open(file.id, caller, write=True, truncate=True)
        w.storage.failure = None
        opened = w.open(file.id, caller, write=True, truncate=True)
        assert (opened.length, opened.epoch) == (0, 1)
        assert sessions(w, file.id) == {7: (1, False)}


TRUNCATE_ERRORS = {
    "directory": (pb.DIRECTORY, ROOT, Code.IS_DIRECTORY),
    "fifo": (pb.FIFO, ROOT, Code.INVALID),
    "not mine": (pb.REGULAR, BOB, Code.ACCESS),
}


@pytest.mark.parametrize("name", TRUNCATE_ERRORS)
def test_truncate_errors(name: str) -> None:
    kind, caller, code = TRUNCATE_ERRORS[name]
    with world() as w:
        inode = w.make(b"x", kind, 0o600)
        with fails(code):
            w.truncate(inode.id, 0, caller)


def test_appends_get_ranges_of_their_own() -> None:
    with world() as w:
        file = w.create(b"f")
        w.settle(file.id, length=7)
        offsets = []
        for length in (10, 0, 5):
            request = pb.ReserveAppendRequest(caller=ROOT, inode=file.id, length=length)
            reply = w.call("ReserveAppend", request)
            offsets.append(reply.offset)
        assert offsets == [7, 17, 17]
        assert w.stat(file.id).length == reply.inode.length == 22
        with fails(Code.TOO_LARGE):
            request = pb.ReserveAppendRequest(caller=ROOT, inode=file.id, length=CHUNK << 32)
            w.call("ReserveAppend", request)
        with fails(Code.INVALID):
            w.call("ReserveAppend", pb.ReserveAppendRequest(caller=ROOT, inode=1, length=1))


def test_writing_drops_set_ids_unless_root_writes() -> None:
    with world() as w:
        file = w.create(b"f", 0o6777)
        w.settle(file.id, length=1, mtime_ns=1)
        assert w.stat(file.id).mode == 0o6777
        w.settle(file.id, ALICE, length=2)
        assert w.stat(file.id).mode == 0o0777


RETRIED: dict[str, Any] = {
    "Create": lambda w: pb.CreateRequest(place=place(b"new"), exclusive=True),
    "MakeNode": lambda w: pb.MakeNodeRequest(place=place(b"new"), type=pb.DIRECTORY),
    "Link": lambda w: pb.LinkRequest(inode=w.look(b"f").id, place=place(b"new")),
    "Unlink": lambda w: pb.UnlinkRequest(place=place(b"f")),
    "Rename": lambda w: pb.RenameRequest(**cast(Any, {"from": place(b"f"), "to": place(b"new")})),
    "ReserveAppend": lambda w: pb.ReserveAppendRequest(inode=w.look(b"f").id, length=3),
    "Open": lambda w: pb.OpenRequest(inode=w.look(b"f").id, write=True),
    "SetAttribute": lambda w: pb.AttributeRequest(
        inode=w.look(b"f").id, name=b"user.a", create=True
    ),
    "RemoveAttribute": lambda w: pb.AttributeRequest(inode=w.look(b"f").id, name=b"user.x"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RETRIED)
def test_a_retry_changes_nothing(name: str, kind: str) -> None:
    with world(kind) as w:
        file = w.create(b"f")
        w.call("SetAttribute", pb.AttributeRequest(inode=file.id, name=b"user.x", value=b"1"))
        request = RETRIED[name](w)
        request.caller.CopyFrom(client(11, 22))
        first = w.call(name, request)
        before = transact(w.engine, lambda txn: txn.snapshot_range(b"", b"\xff"))
        w.pass_time(1)
        w.restart()
        assert w.call(name, request) == first
        assert transact(w.engine, lambda txn: txn.snapshot_range(b"", b"\xff")) == before
        request.caller.client = 12
        if name not in ("ReserveAppend", "Open"):
            with pytest.raises(Error):
                w.call(name, request)


def test_kept_answers_are_forgotten_after_their_time() -> None:
    with world() as w:
        for number in range(1, 6):
            w.create(b"a%d" % number, 0o644, client(11, number))
            w.create(b"b%d" % number, 0o644, client(2**64 - 1, number))
        w.now_ns += 170 * 10**9
        w.create(b"c", 0o644, client(11, 6))
        w.collect()
        assert w.count(keys.REPLIES) == 11
        w.now_ns += 15 * 10**9
        w.collect()
        assert w.count(keys.REPLIES) == 1
        w.create(b"d", 0o644, client(11, 7))
        w.create(b"e", 0o644, client(11, 2**64 - 1))
        for _ in range(2):
            w.now_ns += 200 * 10**9
            w.collect()
            assert w.count(keys.REPLIES) == 0


def test_without_a_lease_nothing_is_answered() -> None:
    with world() as w:
        w.lease = False
        calls: list[Callable[[], Any]] = [
            lambda: w.stat(1),
            lambda: w.create(b"f"),
            lambda: w.session(5),
            lambda: w.truncate(1, 0),
            lambda: w.call("StatFileSystem", pb.StatRequest()),
        ]
        for call in calls:
            with fails(Code.LEASE_EXPIRED):
                call()
        w.lease = True
        assert w.names() == []


def test_inode_numbers_are_not_used_twice() -> None:
    with world() as w:
        first = w.create(b"a").id
        w.unlink(b"a")
        second = w.create(b"b").id
        w.restart()
        third = w.create(b"c").id
        assert first < second < third
        assert third - second > 1000, "the rest of a block is given up"
