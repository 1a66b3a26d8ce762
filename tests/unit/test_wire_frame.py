"""Frames and their parser: what is encoded comes back, whatever the stream is cut into.

Budget: 20 s.
"""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hillfire.errors import Code, Error
from hillfire.proto.wire import frame as frames
from hillfire.proto.wire.base import MAX_BODY_BYTES, MAX_DATA_BYTES, MAX_PARTS, WIRE_VERSION
from hillfire.proto.wire.frame import FILLED, HEADER, MAGIC, Frame, Kind, Role
from hillfire.proto.wire.parser import Parser

FEW = settings(max_examples=60, deadline=None)


class Sink:
    """A parser that keeps data in memory of its own."""

    def __init__(self) -> None:
        self.data: list[bytearray] = []
        self.parser = Parser(self.place)

    def place(self, frame: Frame) -> list[memoryview]:
        self.data.append(bytearray(frame.data_bytes))
        view = memoryview(self.data[-1])
        half = len(view) // 2
        return [view[:half], view[half:]]

    def feed(self, stream: bytes, cuts: list[int]) -> list[Frame]:
        """Feed a stream in pieces of the given sizes, then the rest; return the frames."""
        found = []
        position = 0
        sizes = iter(cuts)
        while position < len(stream):
            size = next(sizes, len(stream))
            for view in self.parser.wanted():
                piece = stream[position : position + min(size, len(view))]
                view[: len(piece)] = piece
                self.parser.received(len(piece))
                position += len(piece)
                break
            while (frame := self.parser.next()) is not None:
                found.append(frame)
        return found


def response(body: bytes, data: bytes) -> bytes:
    table = FILLED.pack(len(data)) if data else b""
    head = frames.encode(
        Kind.RESPONSE,
        7,
        99,
        table=table,
        body=body,
        destinations=len(table) // 4,
        data_bytes=len(data),
    )
    return head + data


def refused(stream: bytes) -> Code:
    with pytest.raises(Error) as caught:
        Sink().feed(stream, [])
    return caught.value.code


@FEW
@given(
    st.lists(st.tuples(st.binary(max_size=200), st.binary(max_size=3000)), max_size=8),
    st.lists(st.integers(1, 500), max_size=60),
)
def test_frames_survive_any_cutting(messages: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    sink = Sink()
    found = sink.feed(b"".join(response(*message) for message in messages), cuts)
    assert [bytes(frame.body) for frame in found] == [body for body, _ in messages]
    assert sink.data == [data for _, data in messages if data]
    assert all((f.kind, f.method, f.request) == (Kind.RESPONSE, 7, 99) for f in found)


def test_every_truncation_waits() -> None:
    stream = response(b"body", b"data" * 10)
    for length in range(len(stream)):
        sink = Sink()
        assert sink.feed(stream[:length], []) == []
        assert len(sink.feed(stream[length:], [])) == 1
        assert sink.data == [b"data" * 10]


def test_head_longer_than_the_staging_buffer() -> None:
    body = bytes(range(256)) * 1024
    stream = response(b"first", b"x") + response(body, b"y" * 100_000) + response(b"last", b"")
    found = Sink().feed(stream, [10, 50_000, 3])
    assert [bytes(frame.body) for frame in found] == [b"first", body, b"last"]


@FEW
@given(st.binary(min_size=1, max_size=300))
def test_random_bytes_are_refused_or_wait(noise: bytes) -> None:
    try:
        assert Sink().feed(noise, []) == []
    except Error as exc:
        assert exc.code in (Code.PROTOCOL, Code.WRONG_PEER_VERSION, Code.TOO_LARGE)


@FEW
@given(
    st.integers(0, 255),
    st.tuples(*[st.integers(0, 2**32 - 1)] * 4),
)
def test_any_lengths_are_within_limits_or_refused(
    kind: int, lengths: tuple[int, int, int, int]
) -> None:
    body, sources, destinations, data = lengths
    header = HEADER.pack(MAGIC, WIRE_VERSION, kind, 1, 1, 1, body, sources, destinations, data)
    parser = Sink().parser
    parser.wanted()[0][: len(header)] = header
    parser.received(len(header))
    try:
        parser.next()
    except Error as exc:
        assert exc.code in (Code.PROTOCOL, Code.TOO_LARGE)
    else:
        assert body <= MAX_BODY_BYTES
        assert sources + destinations <= MAX_PARTS
        assert data <= MAX_DATA_BYTES


@pytest.mark.parametrize(
    ("body", "sources", "destinations", "data"),
    [
        (MAX_BODY_BYTES + 1, 0, 0, 0),
        (2**32 - 1, 0, 0, 0),
        (0, MAX_PARTS, 1, 0),
        (0, 2**32 - 1, 2**32 - 1, 0),
        (0, 1, 0, MAX_DATA_BYTES + 1),
    ],
)
def test_beyond_each_limit(body: int, sources: int, destinations: int, data: int) -> None:
    header = HEADER.pack(
        MAGIC, WIRE_VERSION, Kind.REQUEST, 1, 1, 1, body, sources, destinations, data
    )
    assert refused(header) is Code.TOO_LARGE


def test_other_version_is_named_before_the_header_is_whole() -> None:
    other = MAGIC + (WIRE_VERSION + 1).to_bytes(2, "little")
    assert refused(other) is Code.WRONG_PEER_VERSION
    assert refused(b"GET / HTTP/1.1\r\n") is Code.PROTOCOL


def test_hello() -> None:
    (frame,) = Sink().feed(frames.hello(Role.CLIENT, 4711), [])
    assert frames.check_hello(frame, Role.CLIENT) == 4711
    with pytest.raises(Error, match="role"):
        frames.check_hello(frame, Role.SERVER)
    (frame,) = Sink().feed(response(b"x" * frames.HELLO.size, b""), [])
    with pytest.raises(Error, match="hello"):
        frames.check_hello(frame, Role.SERVER)


def test_control_frames_carry_no_data() -> None:
    assert refused(frames.encode(Kind.HELLO, data_bytes=1)) is Code.PROTOCOL
    assert refused(frames.encode(Kind.REGISTER, sources=1)) is Code.PROTOCOL
    assert refused(frames.encode(6)) is Code.PROTOCOL
    assert refused(frames.encode(0)) is Code.PROTOCOL


def test_timeouts_fit() -> None:
    assert frames.milliseconds(0.0) == 1
    assert frames.milliseconds(1.5) == 1500
    assert frames.milliseconds(1e12) == frames.MAX_TIMEOUT_MS


@FEW
@given(
    st.integers(0, 2**16 - 1),
    st.integers(1, 2**64 - 1),
    st.floats(0, 1e8),
    st.binary(max_size=50),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(0, 2**26),
)
def test_the_short_ways_to_a_frame_make_the_same(
    number: int, ticket: int, seconds: float, body: bytes, sources: int, more: int, data: int
) -> None:
    table = bytes(20) * (sources + more)
    assert frames.request(number, ticket, seconds, body, table, sources, more, data) == (
        frames.encode(
            Kind.REQUEST,
            number,
            ticket,
            timeout_ms=frames.milliseconds(seconds),
            table=table,
            body=body,
            sources=sources,
            destinations=more,
            data_bytes=data,
        )
    )
    filled = list(range(more))
    table, took_us = frames.pack_filled(filled), int(seconds * 1000)
    assert frames.pack_filled(memoryview(array("I", filled))) == table
    assert frames.response(number, ticket, took_us, body, table, data) == frames.encode(
        Kind.RESPONSE,
        number,
        ticket,
        timeout_ms=min(took_us, frames.MAX_TIMEOUT_MS),
        table=table,
        body=body,
        destinations=more,
        data_bytes=data,
    )
    with pytest.raises(ValueError, match="memoryview of Q"):
        frames.pack_filled(memoryview(array("Q", filled)))
