"""RDMA devices of this host, and memory that they know; with ``rdma_link.py`` all that is verbs.

pyverbs comes with rdma-core; where it, or a device, is missing there is simply no RDMA here. A
device is opened once a process. Memory is registered once and stays so: a region until it ends,
buffers of the pool for as long as the process lives, since registering pins every page and costs
more than the transfer of a few of them.

Which device leads to a peer follows from the address of our end of a tcp connection to it: over
RoCE v2 that address is a GID of the device. ``HILLFIRE_RDMA`` (``off``, or
``device[:port[:GID index]]``) says otherwise, as does a storage node's configuration; InfiniBand
needs it, because its GIDs are no IP addresses.
"""

import atexit
import ctypes
import ipaddress
import logging
import mmap
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hillfire.errors import Code, Error
from hillfire.proto.wire import forks
from hillfire.proto.wire.tcp import POOL_BYTES
from hillfire.region import Region

try:
    from pyverbs.device import Context, get_device_list
    from pyverbs.fork import fork_init, is_fork_initialized
    from pyverbs.mr import MR
    from pyverbs.pd import PD
    from pyverbs.pyverbs_error import PyverbsError

    try:
        import pyverbs.libibverbs_enums as enums  # from rdma-core 57 on
    except ImportError:
        import pyverbs.enums as enums
except ImportError:
    enums = None

__all__ = [
    "ENVIRONMENT",
    "Buffer",
    "Device",
    "Keys",
    "Place",
    "available",
    "close_descriptor",
    "discover_descriptor",
    "enums",
    "find",
    "has",
    "immortal",
    "prefer",
]

log = logging.getLogger(__name__)

ENVIRONMENT = "HILLFIRE_RDMA"
MAX_GIDS = 256
"""Of a device that are looked at."""
_SMALLEST = 12  # as a power of two: a page
_LINK_LOCAL = b"\xfe\x80"
_MAPPED = bytes(10) + b"\xff\xff"  # an IPv4 address as an IPv6 one


class Place(NamedTuple):
    """One address of one port of one device."""

    device: str
    port: int
    gid_index: int
    gid: bytes


class Keys(NamedTuple):
    """Registered memory."""

    address: int
    local: int
    """key for our own use of it"""
    remote: int
    """key by which a peer may read and write it"""


def address_of(view: memoryview) -> int:
    """Return where a buffer lies."""
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0]) if len(view) else 0


def immortal(thing: object) -> None:
    """Keep an object of verbs from ever being finalised: it belongs to the parent of this fork.

    Its finaliser would end the parent's, over descriptors that both share.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


class Device:
    """An open device, at one of its addresses."""

    def __init__(self, place: Place) -> None:
        """Open it.

        Raises:
            Error: NOT_SUPPORTED if it cannot be used.
        """
        self.place = place
        self._generation = forks.generation
        self._lock = threading.Lock()
        self._regions: dict[int, tuple[Any, Keys]] = {}
        self._gone: list[int] = []
        self._free: dict[int, list[Buffer]] = {}
        self._kept_bytes = 0
        try:
            if not is_fork_initialized():
                fork_init()  # an old kernel, which would copy registered pages away from us
            self.context = Context(name=place.device)
            self.domain = PD(self.context)
            attributes = self.context.query_device()
            port = self.context.query_port(place.port)
        except PyverbsError as exc:
            raise Error(Code.NOT_SUPPORTED, f"RDMA device {place.device}: {exc}") from exc
        self.reads = max(1, min(attributes.max_qp_rd_atom, attributes.max_qp_init_rd_atom, 16))
        self.max_requests = int(attributes.max_qp_wr)
        self.mtu = int(port.active_mtu)
        self.lid = int(port.lid)

    def __repr__(self) -> str:
        """Tell device and address."""
        return f"<Device {self.place.device}:{self.place.port} gid {self.place.gid.hex()}>"

    def keys(self, region: Region) -> Keys:
        """Return a region's keys, registering it at its first use.

        Raises:
            Error: NO_SPACE if the memory may not be pinned.
        """
        known = self._regions.get(region.id)
        if known is not None:
            return known[1]
        with self._lock:
            self._forget()
            known = self._regions.get(region.id)
            if known is None:
                access = enums.IBV_ACCESS_REMOTE_READ
                if not region.view.readonly:
                    access |= enums.IBV_ACCESS_LOCAL_WRITE | enums.IBV_ACCESS_REMOTE_WRITE
                known = self._register(region.view, access)
                self._regions[region.id] = known
                region.on_close(self._ended)
        return known[1]

    def knows(self, region: Region) -> bool:
        """Tell whether a region is registered."""
        return region.id in self._regions

    def _ended(self, region: int) -> None:
        """Take note that a region has ended; any thread, or the garbage collection, may say so."""
        if self._generation != forks.generation:
            return  # the registration is the parent's
        self._gone.append(region)
        if self._lock.acquire(blocking=False):
            try:
                self._forget()
            finally:
                self._lock.release()

    def _forget(self) -> None:
        """End the registrations of regions that have ended; the caller holds the lock."""
        while self._gone:
            known = self._regions.pop(self._gone.pop(), None)
            if known is not None:
                known[0].close()

    def _register(self, view: memoryview, access: int) -> tuple[Any, Keys]:
        address = address_of(view)
        try:
            memory = MR(self.domain, len(view), access, address=address)
        except PyverbsError as exc:
            text = (
                f"{len(view)} bytes cannot be registered with {self.place.device}: {exc}; "
                "raise the limit of locked memory (ulimit -l, LimitMEMLOCK=)"
            )
            raise Error(Code.NO_SPACE, text) from exc
        return memory, Keys(address, int(memory.lkey), int(memory.rkey))

    def buffer(self, n_bytes: int) -> "Buffer":
        """Return registered memory of at least ``n_bytes``, with anything in it, only for us.

        Raises:
            Error: NO_SPACE.
        """
        power = max(_SMALLEST, (n_bytes - 1).bit_length())
        with self._lock:
            free = self._free.get(power)
            if free:
                self._kept_bytes -= 1 << power
                return free.pop()
            self._forget()
        view = memoryview(mmap.mmap(-1, 1 << power))  # shared: a fork does not copy it
        memory, keys = self._register(view, enums.IBV_ACCESS_LOCAL_WRITE)
        return Buffer(view, keys, memory)

    def give(self, buffer: "Buffer") -> None:
        """Take a buffer back; no operation may use it any more."""
        size = len(buffer.view)
        with self._lock:
            if self._kept_bytes + size <= POOL_BYTES:
                self._kept_bytes += size
                self._free.setdefault(size.bit_length() - 1, []).append(buffer)
                return
        buffer.memory.close()

    def abandon(self) -> None:
        """Leave everything to the parent of this fork."""
        immortal(self.context)
        immortal(self.domain)
        for memory, _ in self._regions.values():
            immortal(memory)
        for buffers in self._free.values():
            for buffer in buffers:
                immortal(buffer.memory)


class Buffer(NamedTuple):
    """Memory from a device's pool."""

    view: memoryview
    keys: Keys
    memory: Any
    """keeps the registration"""


def places() -> list[Place]:
    """Return every address of every port of every device of this host."""
    if enums is None:
        return []
    found = []
    try:
        for each in get_device_list():
            name = each.name.decode()
            context = Context(name=name)
            for entry in context.query_gid_table(MAX_GIDS):
                if entry.gid_type in _TYPES:
                    gid = bytes.fromhex(entry.gid_str().replace(":", ""))
                    found.append(Place(name, int(entry.port_num), int(entry.gid_index), gid))
            context.close()
    except (PyverbsError, OSError) as exc:
        log.info("no RDMA devices cause=%s", exc)
    return found


_TYPES = (0, 2)
"""InfiniBand and RoCE v2; RoCE v1 does not cross routers, and is of the past."""

_devices: dict[Place, Device] = {}
_lock = threading.Lock()


def _forked() -> None:
    """Begin anew in a child: what is open belongs to the parent."""
    global _lock
    _lock = threading.Lock()
    for device in _devices.values():
        device.abandon()
    _devices.clear()


def _exiting() -> None:
    """Leave what is open to the kernel: finalisers would run in any order."""
    for device in _devices.values():
        device.abandon()


os.register_at_fork(after_in_child=_forked)
atexit.register(_exiting)


def find(address: str, wanted: str = "") -> Device:
    """Return the open device for a connection whose end here is the IP address ``address``.

    ``wanted``: ``device[:port[:GID index]]``; else the environment says, or ``prefer`` did.

    Raises:
        Error: NOT_SUPPORTED if there is none.
    """
    wanted = wanted or os.environ.get(ENVIRONMENT, "") or _preferred
    if wanted == "off":
        raise Error(Code.NOT_SUPPORTED, f"RDMA is off here ({ENVIRONMENT})")
    with _lock:
        for place in _known():
            if _fits(place, address, wanted):
                device = _devices.get(place) or Device(place)
                _devices[place] = device
                return device
    text = f"no RDMA device {wanted!r}" if wanted else f"no RDMA device has the address {address}"
    raise Error(Code.NOT_SUPPORTED, text)


_preferred = ""


def prefer(wanted: str) -> None:
    """Have this process's own connections go over a device, unless the environment names one."""
    global _preferred
    _preferred = wanted


def has(address: str, wanted: str = "") -> bool:
    """Tell whether ``find`` would find a device."""
    with _lock:
        return any(_fits(place, address, wanted) for place in _known())


_seen: list[Place] = []


def _known() -> list[Place]:
    """Return the addresses of this host's devices, looked up once: they hardly change."""
    if not _seen:
        _seen.extend(places())
    return _seen


def available() -> bool:
    """Tell whether there is any device; ``HILLFIRE_RDMA=off`` says no."""
    if enums is None or os.environ.get(ENVIRONMENT) == "off":
        return False
    with _lock:
        return bool(_known())


def _fits(place: Place, address: str, wanted: str) -> bool:
    if wanted:
        name, _, rest = wanted.partition(":")
        port, _, index = rest.partition(":")
        if place.device != name or (port and place.port != int(port)):
            return False
        if index:
            return place.gid_index == int(index)
        return place.gid[:2] != _LINK_LOCAL  # where there is a better one
    return place.gid == packed(address)


def packed(address: str) -> bytes:
    """Return an IP address as a GID."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return _MAPPED + found.packed
    return found.packed


def discover_descriptor(make: Callable[[], Any]) -> tuple[Any, int]:
    """Call ``make``, which opens one event descriptor of verbs, and return that as well.

    pyverbs hides a completion channel's descriptor. Only this module's lock keeps others of ours
    from opening one at the same time; another library's would be noticed.

    Raises:
        Error: INTERNAL if it cannot be told which one it is.
    """
    with _lock:
        before = _event_descriptors()
        made = make()
        opened = _event_descriptors() - before
    if len(opened) != 1:
        raise Error(Code.INTERNAL, f"{len(opened)} event descriptors were opened, expected one")
    return made, opened.pop()


def close_descriptor(channel: Any) -> None:
    """Close what ``discover_descriptor`` made, while nobody looks for a new one."""
    with _lock:
        channel.close()


def _event_descriptors() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if "infinibandevent" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(int(name))
        except OSError:
            continue  # closed meanwhile
    return found
