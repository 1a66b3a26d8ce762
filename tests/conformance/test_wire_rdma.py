"""The wire over RDMA, in short: a virtual machine boots (its kernel is kept) and runs one program.

Budget: 30 s, of which the boot takes 4. The whole suite over RDMA: deploy/test rdma. What follows
holds on hosts without a device.
"""

import asyncio
import sys

import pytest

from hillfire.cluster import Endpoint
from hillfire.errors import Code, Error
from hillfire.proto.wire.address import host_id, split_address
from hillfire.proto.wire.base import WIRE_VERSION, Answer
from hillfire.proto.wire.pick import choices, connect_async, open_door
from hillfire.proto.wire.rdma import Door
from hillfire.proto.wire.rdma_offer import HEADER, Offer, body_bytes, decode, encode_offer
from hillfire.proto.wire.server import WireServer
from tests.rdma.machine import missing, run


@pytest.mark.timeout(240)
def test_rdma_in_short() -> None:
    if reason := missing():
        pytest.skip(reason)
    program = f"PYTHONPATH=. {sys.executable} tests/rdma/guest/short.py"
    environment = "WIRE_TEST_RDMA=10.1.0.2 WIRE_TEST_TIMEOUT_S=60"
    environment += " WIRE_TEST_RDMA_DEVICE=rxb:1:1 HILLFIRE_RDMA=rxa:1:1"
    ended = run(f"{environment} {program}", memory_mib=768, timeout_s=200)
    assert ended.status == 0, ended.output[-4000:]
    assert "rdma is well" in ended.output


def knock(message: bytes) -> bytes:
    """Return what a door answers on a host that has no device."""

    async def main() -> bytes:
        server = WireServer(lambda _: Answer(), tcp=None, shm=None, rdma=("127.0.0.1:0", Door()))
        await server.start()
        host, port = split_address(server.rdma_address)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(message)
        answer = await reader.read()
        writer.close()
        await server.stop()
        return answer

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", Code.PROTOCOL),
        (HEADER.pack(b"hlfr", WIRE_VERSION + 1, 1, 0), Code.WRONG_PEER_VERSION),
        (HEADER.pack(b"hlfr", WIRE_VERSION, 1, 4) + b"abcd", Code.PROTOCOL),
        (encode_offer(Offer(1, 2, 0, 5, 16, 64, 8192, bytes(16))), Code.NOT_SUPPORTED),
    ],
    ids=["http", "version", "short", "no device"],
)
def test_a_door_says_why_it_stays_closed(message: bytes, code: Code) -> None:
    answer = knock(message)
    header, body = answer[: HEADER.size], answer[HEADER.size :]
    assert body_bytes(header) == len(body)
    with pytest.raises(Error) as caught:
        decode(header, body)
    assert caught.value.code is code


def test_a_door_that_leads_nowhere_leaves_tcp() -> None:
    """A client with no device of its own does not even try; one that insists is told."""

    async def main() -> None:
        server = WireServer(
            lambda _: Answer(), tcp="127.0.0.1:0", shm=None, rdma=("127.0.0.1:0", Door())
        )
        await server.start()
        endpoint = Endpoint("", server.tcp_address, "", "another", server.rdma_address)
        connection = await connect_async(endpoint, 10)
        assert connection.kind == "tcp"
        connection.close()
        with pytest.raises(Error) as caught:
            await connect_async(endpoint, 10, transport="rdma")
        assert caught.value.code is Code.NOT_SUPPORTED
        await server.stop()

    asyncio.run(main())


def test_a_device_that_is_not_there_is_a_wrong_configuration() -> None:
    assert open_door("auto", "", "127.0.0.1:0", 0) is None
    assert open_door("off", "", "127.0.0.1:0", 0) is None
    for wanted in ("nosuch", "a:b", "a:1:2:3"):
        with pytest.raises(Error) as caught:
            open_door(wanted, "", "127.0.0.1:0", 0)
        assert caught.value.code is Code.CONFIGURATION
        assert wanted in (caught.value.strerror or "")


def test_what_a_process_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Endpoint("", "h:1", "/sock", host_id(), "h:2")
    monkeypatch.setenv("HILLFIRE_TRANSPORTS", "rdma, tcp")
    assert "shm" not in choices(here, None)
    assert choices(here, "shm") == ["shm"]
    assert choices(here, "rdma") == ["rdma"]
    monkeypatch.setenv("HILLFIRE_TRANSPORTS", "shm,telegraph")
    with pytest.raises(Error, match="telegraph"):
        choices(here, None)
