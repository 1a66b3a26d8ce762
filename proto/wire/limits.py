"""What one client may use of a server of the wire."""

from dataclasses import dataclass

from hillfire.proto.wire.base import MAX_REGION_BYTES


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may use of a server."""

    requests: int = 256
    """in flight on a connection"""
    in_flight_bytes: int = 128 * 1024 * 1024
    """of bodies and data of the requests in flight on a connection"""
    unsent_bytes: int = 8 * 1024 * 1024
    """of answers that a client has not taken yet: until it has, no more requests are read; two of
    the largest reads, so that one is made while the other leaves"""
    regions: int = 512
    """registered on a connection"""
    region_bytes: int = MAX_REGION_BYTES
    total_bytes: int = 1024 * 1024 * 1024
    """of all connections' requests in flight; beyond it each connection may have one"""
    connections: int = 4096
    """of the whole server"""
    hello_s: float = 10.0
    """until a new connection has said hello"""
