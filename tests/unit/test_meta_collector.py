"""What goes and what stays: orphans, holds, dead clients, restarts."""

import asyncio

from hillfire.errors import Code, Error
from hillfire.meta import keys
from hillfire.proto import meta_pb2 as pb
from tests.unit.meta_world import CHUNK, World, fails, world


def client(number: int) -> pb.Caller:
    return pb.Caller(uid=0, client=number)


def settled_file(w: World, path: bytes, length: int = CHUNK + 1) -> pb.Inode:
    inode = w.create(path)
    return w.settle(inode.id, length=length)


def past_grace(w: World) -> None:
    w.pass_time(11)


def gone(w: World, inode: int) -> bool:
    try:
        w.stat(inode)
    except Error as error:
        assert error.code is Code.STALE
        return True
    return False


def test_an_orphan_goes_with_its_chunks() -> None:
    with world() as w:
        past_grace(w)
        inode = settled_file(w, b"f")
        w.call("SetAttribute", pb.AttributeRequest(inode=inode.id, name=b"user.x", value=b"1"))
        reply = w.unlink(b"f")
        assert (reply.inode.id, reply.inode.links) == (inode.id, 0)
        assert w.stat(inode.id).links == 0
        w.collect()
        assert gone(w, inode.id)
        ((what, order),) = w.storage.asked
        assert (what, order.inode, order.length) == ("remove", inode.id, 0)
        assert order.chains == tuple(inode.layout.chains[:2])
        assert w.count(keys.ORPHANS) == w.count(keys.ATTRIBUTES) == 0


def test_an_empty_file_needs_no_storage() -> None:
    with world() as w:
        past_grace(w)
        inode = w.create(b"f")
        w.unlink(b"f")
        w.collect()
        assert gone(w, inode.id)
        assert w.storage.asked == []


def test_an_orphan_that_storage_keeps_is_tried_again() -> None:
    with world() as w:
        past_grace(w)
        inode = settled_file(w, b"f")
        w.unlink(b"f")
        w.storage.failure = Error(Code.UNAVAILABLE)
        with fails(Code.UNAVAILABLE):
            w.collect()
        assert not gone(w, inode.id)
        w.storage.failure = None
        w.collect()
        assert gone(w, inode.id)


def test_one_chain_that_is_away_holds_up_only_its_own() -> None:
    with world() as w:
        past_grace(w)
        stuck = [settled_file(w, b"stuck%d" % number) for number in range(100)]
        for number in range(100):
            w.unlink(b"stuck%d" % number)
        free = w.create(b"free")
        w.unlink(b"free")
        w.storage.failure = Error(Code.UNAVAILABLE)
        with fails(Code.UNAVAILABLE):
            w.collect()
        assert gone(w, free.id)
        assert not any(gone(w, inode.id) for inode in stuck)
        w.storage.failure = None
        w.collect()
        assert all(gone(w, inode.id) for inode in stuck)


def test_a_hold_keeps_it_until_the_last_close() -> None:
    with world() as w:
        w.session(5)
        inode = settled_file(w, b"f")
        w.open(inode.id, client(5), write=True)
        reply = w.unlink(b"f", client(5), hold=True)
        assert reply.inode.links == 0
        for _ in range(4):
            w.pass_time(5)
            w.session(5, seen=100)
        w.settle(inode.id, client(5), length=3 * CHUNK, close=True)
        w.collect()
        assert not gone(w, inode.id), "the handle for writing is closed, another one is not"
        w.settle(inode.id, client(5), close=True)
        w.collect()
        assert gone(w, inode.id)
        assert w.storage.asked[-1][1].chains == tuple(inode.layout.chains[:3])


def test_every_live_client_is_asked_first() -> None:
    with world() as w:
        past_grace(w)
        reader, other = w.session(1).seen, w.session(2).seen
        assert reader == other >= 1
        inode = settled_file(w, b"f")
        w.unlink(b"f")
        w.collect()
        told = w.session(1, seen=reader)
        assert list(told.orphans) == [inode.id]
        assert told.seen > reader
        w.collect()
        assert not gone(w, inode.id), "neither has answered"
        again = w.session(2, seen=other)
        assert again == told
        w.session(1, seen=told.seen, held=[inode.id])
        w.collect()
        assert not gone(w, inode.id), "the second has not answered"
        assert list(w.session(2, seen=told.seen).orphans) == []
        w.collect()
        assert not gone(w, inode.id), "the first holds it"
        w.session(1, seen=told.seen)
        w.collect()
        assert not gone(w, inode.id), "until it closes"
        w.settle(inode.id, client(1), close=True)
        w.collect()
        assert gone(w, inode.id)


def test_a_new_client_is_not_told_of_the_past() -> None:
    with world() as w:
        settled_file(w, b"f")
        w.unlink(b"f")
        reply = w.session(1)
        assert list(reply.orphans) == []
        assert list(w.session(1, seen=reply.seen).orphans) == []
        with fails(Code.INVALID):
            w.session(0)


def test_a_dead_client_holds_nothing_up() -> None:
    with world() as w:
        past_grace(w)
        w.session(1)
        inode = settled_file(w, b"f")
        w.unlink(b"f", client(1), hold=True)
        w.collect()
        assert not gone(w, inode.id)
        w.pass_time(11)
        w.collect()
        assert gone(w, inode.id)


def test_a_dead_writer_leaves_the_length_of_its_chunks() -> None:
    with world() as w:
        past_grace(w)
        inode = w.create(b"f", 0o644, client(1))
        kept = w.create(b"g", 0o644, client(2))
        w.storage.lengths = {inode.id: 5 * CHUNK + 9, kept.id: CHUNK}
        w.pass_time(6)
        w.session(2)
        w.pass_time(6)
        w.collect()
        assert w.stat(inode.id).length == 5 * CHUNK + 9
        assert w.stat(kept.id).length == 0, "its writer lives"
        assert w.count(keys.SESSIONS) == 1


def test_a_repair_does_not_undo_a_truncate() -> None:
    with world() as w:
        past_grace(w)
        inode = w.create(b"f", 0o644, client(1))
        w.storage.lengths = {inode.id: 9}
        w.settle(inode.id, length=9)
        request = pb.TruncateRequest(inode=inode.id, length=3)
        w.storage.meanwhile = lambda: w.start("Truncate", request)
        w.pass_time(11)
        w.collect()
        assert w.stat(inode.id).length == 3


def test_a_repair_waits_for_storage_and_never_shortens() -> None:
    with world() as w:
        past_grace(w)
        inode = w.create(b"f", 0o644, client(1))
        w.storage.lengths = {inode.id: 9}
        w.storage.failure = Error(Code.UNAVAILABLE)
        w.pass_time(11)
        with fails(Code.UNAVAILABLE):
            w.collect()
        assert w.count(keys.SESSIONS) == 1, "tried again while storage is away"
        w.storage.failure = None
        w.settle(inode.id, length=20)
        w.collect()
        assert w.stat(inode.id).length == 20
        assert w.count(keys.SESSIONS) == 0


def test_a_client_that_says_goodbye_is_closed_at_once() -> None:
    with world() as w:
        w.session(1)
        inode = w.create(b"f", 0o644, client(1))
        w.storage.lengths = {inode.id: 4}
        w.session(1, seen=1, end=True)
        w.collect()
        assert w.count(keys.SESSIONS) == 0
        assert w.stat(inode.id).length == 4


def test_after_a_restart_everybody_has_a_lease_of_grace() -> None:
    with world() as w:
        first = w.session(1).seen
        held = settled_file(w, b"held")
        free = settled_file(w, b"free")
        mine = w.create(b"mine", 0o644, client(1))
        dead = w.create(b"dead", 0o644, client(2))
        w.unlink(b"held")
        w.unlink(b"free")
        w.storage.lengths = {dead.id: 7, mine.id: 7}
        w.restart()
        w.pass_time(5)
        w.collect()
        assert not gone(w, held.id)
        told = w.session(1, seen=first)
        assert sorted(told.orphans) == sorted([held.id, free.id])
        w.session(1, seen=told.seen, held=[held.id])
        w.pass_time(6)
        w.collect()
        assert gone(w, free.id)
        assert not gone(w, held.id)
        assert w.stat(dead.id).length == 7
        assert w.stat(mine.id).length == 0
        assert w.count(keys.SESSIONS) == 2


def test_renaming_over_a_file_makes_it_an_orphan() -> None:
    with world() as w:
        past_grace(w)
        w.session(4)
        old, new = settled_file(w, b"old"), settled_file(w, b"new")
        reply = w.rename(b"old", b"new", client(4), hold=True)
        assert (reply.inode.id, reply.replaced.id, reply.replaced.links) == (old.id, new.id, 0)
        w.session(4, seen=100)
        w.collect()
        assert not gone(w, new.id)
        w.settle(new.id, client(4), close=True)
        w.collect()
        assert gone(w, new.id)
        assert w.look(b"new").id == old.id


def test_many_orphans_go_in_batches() -> None:
    with world() as w:
        past_grace(w)
        for number in range(200):
            w.create(b"%d" % number)
            w.unlink(b"%d" % number)
        assert w.host.inodes == 200
        w.collect()
        assert w.count(keys.ORPHANS) == w.host.inodes == 0


def test_inodes_are_counted_through_restarts() -> None:
    with world() as w:
        w.make(b"d")
        w.make(b"d/e")
        w.create(b"d/f")
        w.rmdir(b"d/e")
        assert w.host.inodes == 2
        w.restart()
        asyncio.run(w.collector._count())
        assert w.host.inodes == 3, "counted anew, the root too"
