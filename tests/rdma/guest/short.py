"""The short form: both faces over two devices, a wrong key, a server's death. A plain program,
since half of what the emulated processor does in a test is to import pytest.
"""

import os
import time
from collections.abc import Sequence

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import PART, Part, Request
from hillfire.proto.wire.calls_rdma import RdmaCalls
from hillfire.region import Region
from tests.conformance.wire_child import ECHO, FILL, HOLD, JOIN
from tests.conformance.wire_faces import FACES, Face, Server

MIB = 1024 * 1024


def moves(face: Face) -> None:
    """Bytes go both ways, large bodies too, and land where they belong only."""
    region = Region.allocate(4 * MIB)
    body = os.urandom(4096) * 50
    assert face.request(Request(ECHO, body)).body == body
    parts = [Part(region, 8192, 4096), Part(region, 12288, 100), Part(region, 0, 10)]
    face.request(Request(FILL, b"a", (), parts))
    assert region.view[8192:12388] == b"a" * 4196
    assert region.view[:10] == b"a" * 10
    assert not any(region.view[10:8192])
    assert not any(region.view[12388:])
    region.view[:MIB] = os.urandom(MIB)
    small = Region.wrap(b"foreign")
    reply = face.request(Request(JOIN, b"", [Part(region, 1, MIB - 1), Part(small, 0, 7)]))
    assert reply.body == bytes(region.view[1:MIB]) + b"foreign"


def refuses(face: Face) -> None:
    """A wrong key ends the connection and changes nothing."""
    packed = RdmaCalls.pack

    def wrong(self: RdmaCalls, request: Request, parts: Sequence[Part], out: object) -> object:
        table, data, loan = packed(self, request, parts, out)  # type: ignore[arg-type]
        key, address, length = PART.unpack(table)
        return PART.pack(key ^ 0xFF, address, length), data, loan

    RdmaCalls.pack = wrong  # type: ignore[assignment, method-assign]
    region = Region.allocate(MIB)
    try:
        face.request(Request(FILL, b"x", (), [Part(region, 0, 4096)]))
        raise AssertionError("a wrong key was taken")
    except Error as exc:
        assert exc.code is Code.CONNECTION, exc
    RdmaCalls.pack = packed  # type: ignore[method-assign]
    assert not any(region.view[:4096])


def main() -> None:
    """Run all and say how long it took."""
    begun = time.monotonic()
    server = Server()
    try:
        for kind in FACES:
            face = FACES[kind](server.endpoint, "rdma")
            moves(face)
            refuses(face)
            face.end()
        face = FACES["async"](server.endpoint, "rdma")
        region = Region.allocate(MIB)
        sent = face.send([Request(HOLD, b"", (), [Part(region, 0, MIB)])])
        server.kill()
        (reply,) = face.gather(sent)
        assert isinstance(reply, Error)
        assert reply.code is Code.CONNECTION
        assert not region.quarantined
        face.end()
    finally:
        server.end()
    print(f"rdma is well ({time.monotonic() - begun:.1f} s)")


if __name__ == "__main__":
    main()
