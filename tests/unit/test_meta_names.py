"""Names in the name space: what the comparison with a real directory does not reach."""

from typing import Any

import pytest

from hillfire.cluster import (
    Chain,
    Endpoint,
    LocalState,
    Node,
    NodeKind,
    PublicState,
    Routing,
    Target,
)
from hillfire.errors import Code
from hillfire.meta import keys, tree
from hillfire.meta.check import check
from hillfire.meta.engine.retry import transact
from hillfire.meta.ops.stat_file_system import stat_file_system
from hillfire.proto import meta_pb2 as pb
from hillfire.types import ChainId, NodeId, TargetId
from tests.unit.meta_world import ALICE, BOB, ROOT, World, fails, place, world

KINDS = ["memory", "rocksdb"]


def test_the_root() -> None:
    with world() as w:
        root = w.stat(1)
        assert (root.type, root.mode, root.links, root.parent) == (pb.DIRECTORY, 0o755, 2, 1)
        for path in (b"", b"/", b".", b"..", b"//", b"../..", b"/.."):
            assert w.look(path).id == 1, path
        with fails(Code.BUSY):
            w.rmdir(b"/")
        with fails(Code.BUSY):
            w.rename(b"/", b"x")
        with fails(Code.EXISTS):
            w.make(b"/")


def test_places_begin_at_any_directory() -> None:
    with world() as w:
        d = w.make(b"d")
        f = w.create(b"d/f")
        w.make(b"d/l", pb.SYMLINK, symlink=b"/d/f")

        def look(parent: int, path: bytes, follow: bool = False) -> int:
            at = pb.Place(parent=parent, path=path)
            found = w.call("Lookup", pb.LookupRequest(caller=ROOT, place=at, follow=follow))
            return int(found.id)

        assert look(d.id, b"f") == f.id
        assert look(d.id, b"../d/./f") == f.id
        assert look(d.id, b"/d/f") == f.id
        assert look(d.id, b"l", True) == f.id
        assert look(d.id, b"") == d.id
        with fails(Code.NOT_DIRECTORY):
            look(f.id, b"x")
        with fails(Code.NOT_FOUND):
            look(999, b"x")
        with fails(Code.INVALID):
            look(d.id, b"a\0b")


def test_forty_links_are_followed_and_no_more() -> None:
    with world() as w:
        end = w.create(b"0")
        for number in range(1, 42):
            w.make(b"%d" % number, pb.SYMLINK, symlink=b"%d" % (number - 1))
        assert w.look(b"40", follow=True).id == end.id
        with fails(Code.LOOP):
            w.look(b"41", follow=True)
        assert w.look(b"41").type == pb.SYMLINK


@pytest.mark.parametrize("kind", KINDS)
def test_directories_are_read_in_pages_of_byte_order(kind: str) -> None:
    with world(kind) as w:
        d = w.make(b"d")
        names = [b"\x01", b"a", b"a\xff", b"aa", b"b", b"\xff" * 255, "ä".encode()]
        for name in names:
            w.create(b"d/" + name)
        w.create(b"e")
        assert w.names(d.id) == sorted(names)
        found: list[bytes] = []
        for pages in range(10):  # noqa: B007
            request = pb.ReadDirectoryRequest(
                caller=ROOT, inode=d.id, limit=3, attributes=True, after=found[-1] if found else b""
            )
            reply = w.call("ReadDirectory", request)
            assert [inode.id for inode in reply.inodes] == [e.inode for e in reply.entries]
            assert all(w.stat(inode.id) == inode for inode in reply.inodes)
            found += [entry.name for entry in reply.entries]
            if reply.end:
                break
        assert pages == 2
        assert found == sorted(names)
        assert w.names(d.id, limit=7) == sorted(names)
        assert w.call("ReadDirectory", pb.ReadDirectoryRequest(inode=d.id, limit=7)).end
        w.set(d.id, mode=0o711)
        with fails(Code.ACCESS):
            w.names(d.id, BOB)
        with fails(Code.NOT_DIRECTORY):
            w.names(w.look(b"e").id)
        with fails(Code.STALE):
            w.names(999)


def test_pages_are_bounded() -> None:
    with world() as w:
        for number in range(2100):
            w.make(b"%04d" % number, pb.FIFO)
        assert len(w.names()) == 1024
        assert len(w.names(limit=10**6)) == 2048


def test_times_say_what_happened() -> None:
    with world() as w:
        d, e = w.make(b"d"), w.make(b"e")
        f = w.create(b"d/f")

        def ticks(action: Any) -> tuple[Any, ...]:
            """Which of (d, e, f) had their (mtime, ctime) set by an action."""
            w.pass_time(1)
            action()
            times = [w.stat(inode) for inode in (d.id, e.id, f.id)]
            return tuple((i.mtime_ns == w.now_ns, i.ctime_ns == w.now_ns) for i in times)

        no, both, ctime = (False, False), (True, True), (False, True)
        assert ticks(lambda: w.link(f.id, b"e/g")) == (no, both, ctime)
        assert ticks(lambda: w.rename(b"d/f", b"e/f")) == (both, both, ctime)
        assert ticks(lambda: w.rename(b"e/f", b"e/g")) == (no, no, no), "two names of one inode"
        assert ticks(lambda: w.unlink(b"e/g")) == (no, both, ctime)
        assert ticks(lambda: w.set(f.id, mode=0o600)) == (no, no, ctime)
        assert ticks(lambda: w.set(f.id, mtime_ns=5, atime_ns=-6)) == (no, no, ctime)
        assert (w.stat(f.id).mtime_ns, w.stat(f.id).atime_ns) == (5, -6)
        assert ticks(lambda: w.make(b"d/x")) == (both, no, no)
        assert ticks(lambda: w.rename(b"d/x", b"e/f", exchange=True)) == (both, both, ctime)
        assert w.look(b"d/x").id == f.id
        assert (w.stat(d.id).links, w.stat(e.id).links) == (2, 3)


def test_times_are_set_by_owners() -> None:
    with world() as w:
        f = w.create(b"f", 0o666)
        with fails(Code.NOT_PERMITTED):
            w.set(f.id, ALICE, mtime_ns=1)
        with fails(Code.NOT_PERMITTED):
            w.set(f.id, ALICE, mode=0o777, mtime_ns=1)
        assert w.stat(f.id) == f
        w.set(f.id, pb.Caller(uid=5, checked=True), mtime_ns=1)
        with fails(Code.STALE):
            w.set(999, mode=0)
        link = w.make(b"l", pb.SYMLINK, symlink=b"f")
        with fails(Code.NOT_SUPPORTED):
            w.set(link.id, mode=0o700)


def test_a_checked_caller_is_not_checked_again() -> None:
    with world() as w:
        checked = pb.Caller(uid=1000, gid=1000, checked=True)
        w.make(b"d", mode=0)
        f = w.create(b"d/f", 0, checked)
        assert (f.uid, f.gid) == (1000, 1000)
        w.set(f.id, checked, uid=0, gid=0)
        w.open(f.id, checked, write=True)
        w.make(b"d/dev", pb.CHARACTER, 0o600, checked, device=259)
        assert w.look(b"d/dev").device == 259
        with fails(Code.ACCESS):
            w.look(b"d/f", caller=ALICE)
        w.unlink(b"d/f", checked)


def test_set_gid_directories_hand_down_their_group() -> None:
    with world() as w:
        d = w.make(b"d", mode=0o2777)
        w.set(d.id, gid=5000)
        w.set(d.id, mode=0o2777)
        assert w.create(b"d/f", 0o644, BOB).gid == 5000
        sub = w.make(b"d/s", mode=0o700, caller=BOB)
        assert (sub.gid, sub.mode) == (5000, 0o2700)
        assert w.create(b"d/x", 0o2775, BOB).mode == 0o775
        assert w.create(b"d/y", 0o2775, ALICE).mode == 0o2775
        assert w.create(b"d/z", 0o2775, ROOT).mode == 0o2775


def test_links_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_LINKS", 3)
    with world() as w:
        w.make(b"a")
        w.make(b"a/b")
        f = w.create(b"f")
        w.link(f.id, b"g")
        w.link(f.id, b"h")
        for action in (
            lambda: w.link(f.id, b"i"),
            lambda: w.make(b"a/c"),
            lambda: (w.make(b"a/b/d"), w.rename(b"a/b/d", b"a/d")),
        ):
            with fails(Code.TOO_MANY_LINKS):
                action()


LINK_ERRORS: dict[str, tuple[Any, Code]] = {
    "a directory": (lambda w: w.link(w.make(b"x").id, b"new"), Code.NOT_PERMITTED),
    "a taken name": (lambda w: w.link(w.create(b"x").id, b"d"), Code.EXISTS),
    "a gone inode": (lambda w: w.link(999, b"new"), Code.STALE),
    "an orphan": (
        lambda w: w.link((w.create(b"x"), w.unlink(b"x"))[0].id, b"new"),
        Code.NOT_FOUND,
    ),
    "no directory there": (lambda w: w.link(w.create(b"x").id, b"none/new"), Code.NOT_FOUND),
    "dots": (lambda w: w.link(w.create(b"x").id, b"d/.."), Code.EXISTS),
}


@pytest.mark.parametrize("name", LINK_ERRORS)
def test_link_errors(name: str) -> None:
    action, code = LINK_ERRORS[name]
    with world() as w:
        w.make(b"d")
        with fails(code):
            action(w)


NODE_ERRORS: dict[str, tuple[dict[str, Any], Code]] = {
    "no type": ({"type": 0}, Code.INVALID),
    "an unknown type": ({"type": 99}, Code.INVALID),
    "an empty link": ({"type": pb.SYMLINK}, Code.NOT_FOUND),
    "a long link": ({"type": pb.SYMLINK, "symlink": b"x" * 4096}, Code.NAME_TOO_LONG),
    "a NUL in a link": ({"type": pb.SYMLINK, "symlink": b"a\0b"}, Code.INVALID),
    "a device": ({"type": pb.BLOCK, "caller": ALICE}, Code.NOT_PERMITTED),
}


@pytest.mark.parametrize("name", NODE_ERRORS)
def test_make_node_errors(name: str) -> None:
    fields, code = NODE_ERRORS[name]
    with world() as w:
        w.set(1, mode=0o777)
        with fails(code):
            w.call("MakeNode", pb.MakeNodeRequest(place=place(b"x"), **fields))
        assert w.names() == []


def attribute(w: World, call: str, inode: int, name: bytes = b"", **fields: Any) -> Any:
    return w.call(call, pb.AttributeRequest(inode=inode, name=name, **fields))


@pytest.mark.parametrize("kind", KINDS)
def test_extended_attributes(kind: str) -> None:
    with world(kind) as w:
        f, g = w.create(b"f"), w.create(b"g")
        attribute(w, "SetAttribute", f.id, b"user.b", value=b"1")
        attribute(w, "SetAttribute", f.id, b"user.a", value=b"x" * 65536)
        attribute(w, "SetAttribute", g.id, b"user.c", value=b"")
        assert attribute(w, "GetAttribute", f.id, b"user.b").value == b"1"
        assert len(attribute(w, "GetAttribute", f.id, b"user.a").value) == 65536
        assert attribute(w, "GetAttribute", g.id, b"user.c").value == b""
        assert list(attribute(w, "ListAttributes", f.id).names) == [b"user.a", b"user.b"]
        attribute(w, "SetAttribute", f.id, b"user.b", value=b"2", replace=True)
        assert attribute(w, "GetAttribute", f.id, b"user.b").value == b"2"
        attribute(w, "RemoveAttribute", f.id, b"user.b")
        assert list(attribute(w, "ListAttributes", f.id).names) == [b"user.a"]


ATTRIBUTE_ERRORS: dict[str, tuple[str, dict[str, Any], Code]] = {
    "get none": ("GetAttribute", {"name": b"user.n"}, Code.NO_ATTRIBUTE),
    "remove none": ("RemoveAttribute", {"name": b"user.n"}, Code.NO_ATTRIBUTE),
    "replace none": ("SetAttribute", {"name": b"user.n", "replace": True}, Code.NO_ATTRIBUTE),
    "create again": ("SetAttribute", {"name": b"user.a", "create": True}, Code.EXISTS),
    "long value": ("SetAttribute", {"name": b"user.a", "value": b"x" * 65537}, Code.TOO_LARGE),
    "long name": ("SetAttribute", {"name": b"user." + b"x" * 251}, Code.RANGE),
    "no name": ("SetAttribute", {"name": b""}, Code.RANGE),
    "only a prefix": ("SetAttribute", {"name": b"user."}, Code.INVALID),
    "acl": ("SetAttribute", {"name": b"system.posix_acl_access"}, Code.NOT_SUPPORTED),
    "unknown": ("GetAttribute", {"name": b"foo.bar"}, Code.NOT_SUPPORTED),
    "both flags": (
        "SetAttribute",
        {"name": b"user.a", "create": True, "replace": True},
        Code.INVALID,
    ),
    "not mine": ("SetAttribute", {"name": b"user.a", "caller": BOB}, Code.ACCESS),
    "not readable": ("GetAttribute", {"name": b"user.a", "caller": BOB}, Code.ACCESS),
    "trusted to set": ("SetAttribute", {"name": b"trusted.a", "caller": BOB}, Code.NOT_PERMITTED),
    "trusted to get": ("GetAttribute", {"name": b"trusted.a", "caller": BOB}, Code.NO_ATTRIBUTE),
}


@pytest.mark.parametrize("name", ATTRIBUTE_ERRORS)
def test_attribute_errors(name: str) -> None:
    call, fields, code = ATTRIBUTE_ERRORS[name]
    with world() as w:
        f = w.create(b"f", 0o600)
        attribute(w, "SetAttribute", f.id, b"user.a", value=b"1")
        attribute(w, "SetAttribute", f.id, b"trusted.a", value=b"1")
        with fails(code):
            w.call(call, pb.AttributeRequest(inode=f.id, **fields))
        names = w.call("ListAttributes", pb.AttributeRequest(inode=f.id, caller=BOB)).names
        assert list(names) == [b"user.a"]


def test_attribute_names_are_bounded_together() -> None:
    with world() as w:
        f = w.create(b"f")
        for number in range(256):
            attribute(w, "SetAttribute", f.id, b"user.%0250d" % number)
        with fails(Code.NO_SPACE):
            attribute(w, "SetAttribute", f.id, b"user.more")


def test_only_files_and_directories_have_user_attributes() -> None:
    with world() as w:
        fifo = w.make(b"p", pb.FIFO)
        with fails(Code.NOT_PERMITTED):
            attribute(w, "SetAttribute", fifo.id, b"user.a")
        with fails(Code.NO_ATTRIBUTE):
            attribute(w, "GetAttribute", fifo.id, b"user.a")
        w.unlink(b"p")


DAMAGE: dict[str, Any] = {
    "1": lambda txn: txn.clear(keys.inode_key(3)),
    "2": lambda txn: txn.set(keys.dentry_key(2, b"up"), keys.entry_value(2, pb.DIRECTORY)),
    "3": lambda txn: txn.clear(keys.dentry_key(2, b"f")),
    "4": lambda txn: txn.clear(keys.orphan_key(2)),
    "5": lambda txn: keys.put_inode(txn, pb.Inode(id=2, type=pb.DIRECTORY, links=3, parent=4)),
    "6": lambda txn: txn.set(keys.attribute_key(77, b"user.x"), b""),
    "7": lambda txn: txn.clear(keys.NEXT_INODE),
    "8": lambda txn: keys.put_inode(
        txn, pb.Inode(id=3, type=pb.REGULAR, links=1, epoch=1, cut_epoch=2)
    ),
}


@pytest.mark.parametrize("invariant", DAMAGE)
def test_the_check_sees_damage(invariant: str) -> None:
    with world() as w:
        w.make(b"d")  # 2
        w.create(b"d/f")  # 3
        w.make(b"d/e")  # 4
        w.create(b"g")  # 5
        w.unlink(b"g")
        w.check()
        undo = transact(w.engine, lambda txn: txn.snapshot_range(b"", b"\xff"))
        transact(w.engine, DAMAGE[invariant])
        found = transact(w.engine, check)
        assert any(line.startswith(invariant) for line in found), found
        transact(w.engine, lambda txn: txn.clear_range(b"", b"\xff"))
        transact(w.engine, lambda txn: txn._writes.update(undo))


def test_space_counts_replicas_and_shared_disks_once() -> None:
    serving = PublicState.SERVING

    def routing(
        capacity: list[int], used: list[int], hosts: list[str], devices: tuple[int, ...] = (5, 5, 5)
    ) -> Routing:
        """Three nodes with four targets each, four chains over all of them."""
        nodes = {
            NodeId(n): Node(NodeId(n), NodeKind.STORAGE, Endpoint("", "", "", hosts[n]), 1, True)
            for n in range(3)
        }
        targets = {
            TargetId(4 * n + c): Target(
                TargetId(4 * n + c), NodeId(n), ChainId(c), 0, serving, LocalState.UP_TO_DATE,
                used[n] + c, capacity[n], devices[n],
            )
            for n in range(3)
            for c in range(4)
        }  # fmt: skip
        chains = {
            ChainId(c): Chain(
                ChainId(c), 1, tuple((TargetId(4 * n + c), serving) for n in range(3))
            )
            for c in range(4)
        }
        return Routing("", 1, None, nodes, targets, chains)

    one = stat_file_system(routing([12000] * 3, [1200] * 3, ["h"] * 3), 7)
    assert (one.capacity_bytes, one.used_bytes // 10, one.inodes) == (4000, 40, 7)
    three = stat_file_system(routing([12000] * 3, [1200] * 3, ["a", "b", "c"]), 0)
    assert (three.capacity_bytes, three.used_bytes // 10) == (12000, 120)
    for devices in ((5, 6, 7), (0, 0, 0)):  # 0: not told, then each node has a disk of its own
        disks = stat_file_system(routing([12000] * 3, [1200, 2400, 3600], ["h"] * 3, devices), 0)
        assert (disks.capacity_bytes, disks.used_bytes // 100) == (12000, 36)
    least = stat_file_system(routing([12000, 8000, 4000], [1200] * 3, ["h"] * 3, (5, 6, 7)), 0)
    assert least.capacity_bytes == 4000
    assert stat_file_system(Routing("", 0), 3).capacity_bytes == 0
