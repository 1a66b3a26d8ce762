"""RDMA's pure parts: rendezvous, credit and order of messages, room at the reader, operations."""

import random
from collections import deque
from collections.abc import Callable

import pytest

from hillfire.errors import Code, Error
from hillfire.proto.wire import rdma_offer
from hillfire.proto.wire.base import WIRE_VERSION
from hillfire.proto.wire.rdma_flow import GRANT, HEADER, READY, RESERVE, Flow, Kind
from hillfire.proto.wire.rdma_offer import Offer, body_bytes, decode, encode_offer, encode_refusal
from hillfire.proto.wire.rdma_runs import MAX_RUN_BYTES, Remote, Run, runs
from hillfire.proto.wire.rdma_window import MAX_WOKEN, Waiter, Window

Action = Callable[[], bool]
OFFER = Offer(17, 0xABCDEF, 0, 5, 16, 64, 8192, bytes(range(16)))


def received(message: bytes) -> Offer:
    header, body = message[: rdma_offer.HEADER.size], message[rdma_offer.HEADER.size :]
    assert body_bytes(header) == len(body)
    return decode(header, body)


def test_offers_and_refusals_travel() -> None:
    assert received(encode_offer(OFFER)) == OFFER
    with pytest.raises(Error) as caught:
        received(encode_refusal(Error(Code.NOT_SUPPORTED, "no device here: ä" * 1000)))
    assert caught.value.code is Code.NOT_SUPPORTED
    assert (caught.value.strerror or "").startswith("no device here: ä")


@pytest.mark.parametrize(
    "change",
    [
        {"queue_pair": 0},
        {"queue_pair": 1 << 24},
        {"packet_number": 1 << 24},
        {"mtu": 0},
        {"mtu": 6},
        {"reads": 0},
        {"receives": 7},
        {"receives": 5000},
        {"message_bytes": 10},
        {"message_bytes": 1 << 30},
    ],
    ids=str,
)
def test_an_offer_that_cannot_be_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(Error) as caught:
        received(encode_offer(OFFER._replace(**change)))  # type: ignore[arg-type]
    assert caught.value.code is Code.PROTOCOL


def test_what_is_no_rendezvous_is_refused_by_name() -> None:
    header = rdma_offer.HEADER
    for bad, code in (
        (header.pack(b"GET ", 1, 1, 0), Code.PROTOCOL),
        (header.pack(b"hlfr", WIRE_VERSION + 1, 1, 0), Code.WRONG_PEER_VERSION),
        (header.pack(b"hlfr", WIRE_VERSION, 9, 0), Code.PROTOCOL),
        (header.pack(b"hlfr", WIRE_VERSION, 1, 1 << 20), Code.PROTOCOL),
    ):
        with pytest.raises(Error) as caught:
            body_bytes(bad)
        assert caught.value.code is code
    for body in (b"", b"\0"):
        with pytest.raises(Error) as caught:
            decode(header.pack(b"hlfr", WIRE_VERSION, 2, len(body)), body)
        assert caught.value.code is Code.PROTOCOL


class End:
    """One end of a connection without a device: receives posted, messages on their way."""

    def __init__(self, receives: int, peer_receives: int) -> None:
        self.flow: Flow[str] = Flow(receives, peer_receives, 256)
        self.posted = receives
        self.wire: deque[bytes] = deque()  # to the peer
        self.unread: deque[bytes] = deque()
        self.out: list[bytes | str] = []  # what was queued
        self.got = bytearray()
        self.transferred: list[tuple[str, int]] = []  # and after how many bytes of ours
        self.sent_bytes = 0
        self.said: list[tuple[int, bytes]] = []

    def push(self, peer: "End") -> bool:
        """Send one message, or hand over a transfer."""
        if (transfer := self.flow.transfer) is not None:
            self.flow.transferred()
            self.transferred.append((transfer, self.sent_bytes))
            return True
        if not self.flow.sendable:
            return False
        slot = memoryview(bytearray(256))
        length = self.flow.fill(slot)
        if slot[0] == Kind.DATA:
            self.sent_bytes += length - HEADER.size
        self.wire.append(bytes(slot[:length]))
        assert len(self.wire) <= peer.posted, "no receive is posted: the queue pair would fail"
        return True

    def take(self, peer: "End") -> bool:
        """Take one message that the peer sent."""
        if not peer.wire:
            return False
        message = peer.wire.popleft()
        self.posted -= 1
        kind, payload = self.flow.arrived(memoryview(message))
        if kind == Kind.DATA:
            self.unread.append(bytes(payload))
            return True
        if kind != Kind.CREDIT:
            self.said.append((kind, bytes(payload)))
        self.post()
        return True

    def post(self) -> None:
        self.posted += 1
        self.flow.received_again()

    def read(self) -> bool:
        if not self.unread:
            return False
        self.got += self.unread.popleft()
        self.post()
        return True


@pytest.mark.parametrize("seed", range(30))
def test_credit_never_runs_over_and_never_runs_out(seed: int) -> None:
    rng = random.Random(seed)
    sizes = rng.choice([8, 9, 16, 64]), rng.choice([8, 10, 64])
    ends = End(*sizes), End(*reversed(sizes))
    sent = [bytearray(), bytearray()]
    marks: list[list[tuple[str, int]]] = [[], []]
    said: list[list[tuple[int, bytes]]] = [[], []]
    for step in range(3000):
        k = rng.randrange(2)
        end, peer = ends[k], ends[1 - k]
        do = rng.random()
        if do < 0.1 and step < 2000:
            data = rng.randbytes(rng.choice([1, 40, 251, 252, 253, 3000]))
            end.flow.queue(data)
            sent[k] += data
        elif do < 0.13 and step < 2000:
            end.flow.queue_transfer(f"w{step}")
            marks[k].append((f"w{step}", len(sent[k])))
        elif do < 0.16 and step < 2000:
            record = (Kind.GRANT, GRANT.pack(step)) if k else (Kind.READY, READY.pack(step, 7))
            end.flow.queue_urgent(*record)
            said[k].append(record)
        else:
            rng.choice(_actions(end, peer))()
    moving = True
    while moving:  # in any order, until nothing moves: then all must have arrived
        actions = [f for e, p in (ends, ends[::-1]) for f in _actions(e, p)]
        rng.shuffle(actions)
        moving = any([action() for action in actions])
    for k in range(2):
        assert ends[1 - k].got == sent[k]
        assert ends[k].transferred == marks[k]
        assert ends[1 - k].said == said[k]
        assert ends[k].flow.waiting_bytes == 0


def _actions(end: End, peer: End) -> list[Action]:
    return [lambda: end.push(peer), lambda: end.take(peer), end.read]


def test_a_connection_that_ends_gives_up_every_transfer() -> None:
    flow: Flow[str] = Flow(16, 16, 256)
    for k in range(3):
        flow.queue(b"x" * 1000)
        flow.queue_transfer(f"w{k}")
    assert flow.drop() == ["w0", "w1", "w2"]
    assert flow.transfer is None
    assert not flow.sendable
    assert flow.waiting_bytes == 0


def test_data_leaves_credit_for_grants() -> None:
    """A server that reads no more still hears what it waits for."""
    client, server = End(64, 16), End(16, 64)
    client.flow.queue(bytes(100_000))
    while client.push(server):
        server.take(client)  # and reads nothing
    assert client.flow.credits == RESERVE
    client.flow.queue_urgent(Kind.GRANT, GRANT.pack(5))
    assert client.push(server)
    server.take(client)
    assert server.said == [(Kind.GRANT, GRANT.pack(5))]


def test_a_peer_that_breaks_the_rules_of_messages() -> None:
    for message in (
        b"",
        b"\1\0",
        HEADER.pack(9, 0),
        HEADER.pack(Kind.DATA, 0),
        HEADER.pack(Kind.CREDIT, 1) + b"x",
        HEADER.pack(Kind.CREDIT, 1),  # more credit than there are receives
        HEADER.pack(Kind.GRANT, 0) + bytes(4),
        HEADER.pack(Kind.READY, 0) + bytes(8),
    ):
        with pytest.raises(Error) as caught:
            Flow[str](16, 16, 256).arrived(memoryview(message))
        assert caught.value.code is Code.PROTOCOL


def test_window() -> None:
    window = Window(100)
    woken: list[str] = []
    assert window.take(60)
    assert window.take(40)
    assert not window.take(1)
    large, small = (Waiter(90, lambda: woken.append("l")), Waiter(10, lambda: woken.append("s")))
    window.wait(large)
    window.wait(small)
    assert window.give(40) == []  # the first in line does not fit yet, and nobody passes it
    assert not window.take(5)
    assert window.give(60) == [large, small]
    assert window.retry(large)
    assert window.retry(small)
    assert not window.waiting
    assert window.taken == 100
    assert window.give(100) == []
    assert window.take(1000)  # more than the limit, alone
    assert not window.take(1)
    late = Waiter(5, lambda: None)
    window.wait(late)
    window.force(late)
    window.force(late)
    assert window.taken == 1005
    assert not window.leave(late)


def test_window_wakes_some_at_a_time() -> None:
    window = Window(100)
    window.take(100)
    waiters = [Waiter(1, lambda: None) for _ in range(20)]
    for waiter in waiters:
        window.wait(waiter)
    assert window.give(100) == waiters[:MAX_WOKEN]
    window.leave(waiters[0])  # gone: the next that gives wakes others
    assert window.retry(waiters[1])
    assert window.give(1)[0] is waiters[2]


def test_runs_join_neighbours_and_nothing_else() -> None:
    parts = [Remote(7, 1000, 100), Remote(7, 1100, 50), Remote(7, 1150, 50), Remote(8, 1200, 50)]
    lengths = [part.length for part in parts]
    assert runs(0, parts, lengths) == [Run(0, 1000, 7, 200), Run(200, 1200, 8, 50)]
    # A part that was not filled whole leaves a hole in both memories.
    assert runs(0, parts, [100, 20, 50, 0]) == [Run(0, 1000, 7, 120), Run(150, 1150, 7, 50)]
    assert runs(0, parts, [0, 0, 0, 0]) == []
    # Neighbours there, but not here, and the other way round.
    apart = [Remote(7, 1000, 100), Remote(7, 2000, 100)]
    assert runs(5, apart, [100, 100]) == [Run(5, 1000, 7, 100), Run(105, 2000, 7, 100)]
    whole = 2 * MAX_RUN_BYTES + 1
    pieces = runs(0, [Remote(1, 0, whole)], [whole])
    assert [piece.length for piece in pieces] == [MAX_RUN_BYTES, MAX_RUN_BYTES, 1]
    assert [piece.local for piece in pieces] == [piece.remote for piece in pieces]


def test_runs_move_every_byte_where_it_belongs() -> None:
    rng = random.Random(1)
    for _ in range(200):
        parts, filled, at = [], [], 0
        for _ in range(rng.randrange(1, 12)):
            length = rng.choice([0, 1, 7, 64])
            at += rng.choice([0, 0, 5])
            parts.append(Remote(rng.choice([1, 2]), at, length))
            filled.append(rng.choice([length, length, rng.randint(0, length)]))
            at += length
        here = rng.randbytes(sum(part.length for part in parts))
        there = {1: bytearray(at), 2: bytearray(at)}
        for run in runs(0, parts, filled):
            data = here[run.local : run.local + run.length]
            there[run.key][run.remote : run.remote + run.length] = data
        expected = {1: bytearray(at), 2: bytearray(at)}
        start = 0
        for part, count in zip(parts, filled, strict=True):
            expected[part.key][part.address : part.address + count] = here[start : start + count]
            start += part.length
        assert there == expected
