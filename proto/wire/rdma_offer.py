"""What the two ends of an RDMA connection tell each other before there is one: the rendezvous.

Pure. Over a tcp connection of its own the client sends an *offer*, the server answers with its
own or with a *refusal*; the tcp connection then stays open as the sign of life. The first six
bytes are those of every frame (magic, version), so that a peer of another version is refused by
name.

    header (12 bytes: magic, version, kind, length of the body) | body
"""

from struct import Struct
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import WIRE_VERSION
from hillfire.proto.wire.frame import MAGIC

HEADER = Struct("<4sHBxI")
_OFFER = Struct("<IIHBBHIxx16s")
_REFUSAL = Struct("<H")
_KIND_OFFER = 1
_KIND_REFUSAL = 2
MAX_BODY_BYTES = 4096
MAX_RECEIVES = 4096
MAX_MESSAGE_BYTES = 1024 * 1024
PSN_BITS = 24


class Offer(NamedTuple):
    """One end of a reliable connection."""

    queue_pair: int
    packet_number: int
    """the first that it sends, 24 bits"""
    lid: int
    """its InfiniBand address; 0 over Ethernet"""
    mtu: int
    """of its port, as verbs count (5 is 4096 bytes)"""
    reads: int
    """RDMA READs that it answers at the same time"""
    receives: int
    """messages that it has room for: the credit that its peer begins with"""
    message_bytes: int
    """the longest of them"""
    gid: bytes
    """its address, 16 bytes"""


def encode_offer(offer: Offer) -> bytes:
    """Return an offer as it travels."""
    return HEADER.pack(MAGIC, WIRE_VERSION, _KIND_OFFER, _OFFER.size) + _OFFER.pack(*offer)


def encode_refusal(error: Error) -> bytes:
    """Return why there will be no connection, as it travels."""
    text = (error.strerror or "").encode("utf-8", "replace")[: MAX_BODY_BYTES - _REFUSAL.size]
    body = _REFUSAL.pack(error.code) + text
    return HEADER.pack(MAGIC, WIRE_VERSION, _KIND_REFUSAL, len(body)) + body


def body_bytes(header: bytes) -> int:
    """Return how many bytes follow a header.

    Raises:
        Error: PROTOCOL, WRONG_PEER_VERSION.
    """
    magic, version, kind, length = HEADER.unpack(header)
    if magic != MAGIC:
        raise Error(Code.PROTOCOL, "the peer does not speak hillfire's wire protocol")
    if version != WIRE_VERSION:
        text = f"the peer speaks wire version {version}, this process {WIRE_VERSION}: update one"
        raise Error(Code.WRONG_PEER_VERSION, text)
    if kind not in (_KIND_OFFER, _KIND_REFUSAL) or length > MAX_BODY_BYTES:
        raise Error(Code.PROTOCOL, f"a rendezvous message of kind {kind}, {length} bytes")
    return int(length)


def decode(header: bytes, body: bytes) -> Offer:
    """Return what the peer offers.

    Raises:
        Error: why it refuses; PROTOCOL for an offer that cannot be.
    """
    if HEADER.unpack(header)[2] == _KIND_REFUSAL:
        if len(body) < _REFUSAL.size:
            raise Error(Code.PROTOCOL, "a refusal without a reason")
        number = _REFUSAL.unpack_from(body)[0]
        text = body[_REFUSAL.size :].decode("utf-8", "replace")
        code = Code(number) if number in set(Code) and number else Code.INTERNAL
        raise Error(code, text)
    if len(body) != _OFFER.size:
        raise Error(Code.PROTOCOL, f"an offer of {len(body)} bytes")
    offer = Offer(*_OFFER.unpack(body))
    sound = (
        0 < offer.queue_pair < 1 << 24
        and offer.packet_number < 1 << PSN_BITS
        and 1 <= offer.mtu <= 5
        and offer.reads >= 1
        and 8 <= offer.receives <= MAX_RECEIVES
        and 64 <= offer.message_bytes <= MAX_MESSAGE_BYTES
    )
    if not sound:
        raise Error(Code.PROTOCOL, f"an offer that cannot be: {offer}")
    return offer
