"""Disks, NICs and links in virtual time: what a request to a storage node costs, and who waits.

- A disk is a line: a latency of flash, then bytes at its rate.
- A storage node answers a request once all its pieces are read, through one of its NIC's ports.
- A port sends segments in the order in which they came. A client's link takes them at its own
  rate; what it has not taken yet lies in its switch. The network loses nothing (RoCE with
  priority flow control): when a client's share of the switch's memory is full, the port whose
  next segment is for it **stands still, and all behind that segment with it**. That is what
  incast costs the others.
"""

import heapq
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

KIB, MIB = 1 << 10, 1 << 20
GBIT = 1e9 / 8


class Hardware(NamedTuple):
    """Rates in bytes a second, times in seconds."""

    ports: int = 2
    port_rate: float = 200 * GBIT
    client_rate: float = 200 * GBIT
    payload: float = 4096 / (4096 + 82)
    """of what a link carries: RoCE's headers in packets of 4 KiB"""
    disk_rate: float = 6.0e9
    disk_latency_s: float = 90e-6
    disk_spread: float = 0.4
    """of the latency: sigma of its logarithm"""
    node_s: float = 15e-6
    """a node's work on a request before it reads"""
    way_s: float = 4e-6
    """one way through the network"""
    segment_bytes: int = 256 * KIB
    """what a port sends in one go"""
    switch_bytes: int = 2 * MIB
    """of a switch's memory for one client's link"""


class Clock:
    """Events in the order of their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (time, self._count, call, args))

    def run(self, end: float) -> None:
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= end:
            self.now, _, call, args = pop(heap)
            call(*args)
        self.now = end


class Link:
    """A client's way in: what was sent to it and has not arrived lies in its switch."""

    __slots__ = ("free_at", "hardware", "rate")

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.rate = hardware.client_rate * hardware.payload
        self.free_at = 0.0

    def room_at(self, now: float, n_bytes: int) -> float:
        """Return when the switch has room for so much more: ``now``, or later."""
        full_s = (self.hardware.switch_bytes - n_bytes) / self.rate
        return max(now, self.free_at - full_s)

    def take(self, now: float, n_bytes: int) -> float:
        """Return when so many bytes that are sent now have arrived."""
        self.free_at = max(now, self.free_at) + n_bytes / self.rate
        return self.free_at


class Port:
    """One port of a storage node's NIC."""

    __slots__ = ("_busy", "_clock", "_hardware", "_line", "blocked_s", "sent", "speed")

    def __init__(self, clock: Clock, hardware: Hardware) -> None:
        self._clock = clock
        self._hardware = hardware
        self._line: deque[tuple[int, Link, Callable[[], None] | None]] = deque()
        self._busy = False
        self.speed = hardware.port_rate * hardware.payload
        self.sent = 0
        self.blocked_s = 0.0

    def send(self, n_bytes: int, link: Link, arrived: Callable[[], None]) -> None:
        step = self._hardware.segment_bytes
        while n_bytes > step:
            self._line.append((step, link, None))
            n_bytes -= step
        self._line.append((n_bytes, link, arrived))
        if not self._busy:
            self._busy = True
            self._next()

    def _next(self) -> None:
        if not self._line:
            self._busy = False
            return
        n_bytes, link, arrived = self._line[0]
        clock = self._clock
        now = clock.now
        room_at = link.room_at(now, n_bytes)
        if room_at > now:
            self.blocked_s += room_at - now
            clock.at(room_at, self._next)
            return
        self._line.popleft()
        there = link.take(now, n_bytes) + self._hardware.way_s
        if arrived is not None:
            clock.at(there, arrived)
        self.sent += n_bytes
        clock.at(now + n_bytes / self.speed, self._next)


class StorageNode:
    """A node with its disks and ports."""

    def __init__(self, clock: Clock, hardware: Hardware, disks: int, seed: int) -> None:
        self.ports = [Port(clock, hardware) for _ in range(hardware.ports)]
        self._clock = clock
        self._hardware = hardware
        self._free = [0.0] * disks
        self._chance = Random(seed)
        self.slowness = 1.0

    def slow_down(self, times: float) -> None:
        """Have all of it take so many times as long."""
        self.slowness = times
        for port in self.ports:
            port.speed /= times

    def read(self, pieces: list[tuple[int, int]], ready: Callable[[], None]) -> None:
        """Read (disk, bytes) pieces; ``ready`` once all are in memory."""
        hardware, free, now = self._hardware, self._free, self._clock.now
        last = now
        for disk, n_bytes in pieces:
            begin = max(now + hardware.node_s, free[disk])
            free[disk] = begin + n_bytes / hardware.disk_rate * self.slowness
            flash = self._chance.lognormvariate(0.0, hardware.disk_spread)
            last = max(last, free[disk] + flash * hardware.disk_latency_s * self.slowness)
        self._clock.at(last, ready)
