"""The client's state and its calls: routing, metadata, storage coordination. No I/O happens here.

Operations are generators over ``actions.py``; this module holds what they share. Chunk I/O is in
``reading.py`` and ``writing.py``, sessions in ``session.py``. One core serves any number of
threads: what they share is replaced, never edited, or changes by single atomic operations.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Protocol, cast

from google.protobuf.message import Message

from hillfire.client.actions import Call, Exchange, Operation, Outcome, Pause
from hillfire.client.bulk import Table
from hillfire.client.channels import Channels
from hillfire.client.hedge import Hedging
from hillfire.client.load import Loads
from hillfire.client.plan import Extent
from hillfire.client.retry import History, after_call, speaks_of_node
from hillfire.client.routing import RoutingCache
from hillfire.client.window import Window
from hillfire.cluster import Endpoint
from hillfire.errors import Code, Error
from hillfire.layout import Layout
from hillfire.proto import convert, manager_pb2, meta_pb2, service
from hillfire.proto.wire.base import Part, Reply
from hillfire.region import Region
from hillfire.types import ChainId

CALL_TIMEOUT_S = 5.0
"""Of one try of a call; the operation's deadline spans all tries."""
MANAGER_TIMEOUT_S = 1.0
"""Of one try where there are several managers: one that leads no more may be paused."""
ROUTING_WAIT_MS = 500
MAX_LAYOUTS = 1 << 16
"""Layouts kept by inode id; ids are never reused, so a layout never grows old."""

MUTATIONS = frozenset(
    {
        "SetAttributes",
        "Create",
        "Open",
        "Settle",
        "MakeNode",
        "Link",
        "Unlink",
        "Rename",
        "Truncate",
        "ReserveAppend",
        "SetAttribute",
        "RemoveAttribute",
    }
)
"""Metadata calls that carry an idempotency key."""


class Identity:
    """Who asks: filled into requests that do not say."""

    __slots__ = ("gid", "groups", "uid", "umask")

    def __init__(self, uid: int, gid: int, groups: Sequence[int], umask: int = 0o022) -> None:
        """Of the process, usually."""
        self.umask = umask
        self.uid = uid
        self.gid = gid
        self.groups = tuple(groups)


class Pool(Protocol):
    """Staging memory (``buffers.Buffers``)."""

    def try_acquire(self, length: int) -> Part | None:
        """Return a part, None if there is no room now."""

    def release(self, part: Part) -> None:
        """Take a part back."""


class Core:
    """Everything that a client knows."""

    def __init__(
        self,
        manager: Endpoint,
        client: int,
        *,
        clock: Callable[[], float],
        wall_ns: Callable[[], int],
        host: str = "",
        identity: Identity | None = None,
        io_timeout_s: float = 60.0,
    ) -> None:
        """Begin without routing, as ``client``, a random 64-bit number.

        ``clock`` counts seconds and never goes back; ``wall_ns`` tells the time of day.
        """
        self.clock = clock
        self.wall_ns = wall_ns
        self.io_timeout_s = io_timeout_s
        self.identity = identity or Identity(0, 0, ())
        self.routes = RoutingCache(manager, host)
        self.hold: set[int] = set()
        """inodes that the mount has open"""
        self.handles: dict[int, int] = {}
        """inodes that file objects have open, by a number of the file object's"""
        self.turn = count(client & 0xFF)
        self.pool: Pool | None = None
        """staging memory, as the shell provides it"""
        self.nameless: set[int] = set()
        """inodes that this client keeps open without a name: their last close must be told"""
        self._layouts: dict[int, Layout] = {}
        self._table = Table({})
        self.renew(client)

    def renew(self, client: int) -> None:
        """Become another client: after a fork."""
        self.client = client
        self.channels = Channels(client)
        self.loads = Loads()
        self.hedging = Hedging(self.loads)
        self.window = Window(self.loads)
        self._requests = count(1)
        self.hold = set()
        self.handles = {}
        self._leased_until = 0.0
        self._lapsed = False
        self.confirmed: set[int] = set()
        """inodes that were found to be there still after this client's session had lapsed"""

    def renewed(self, sent: float, lease_s: float) -> None:
        """Note that a heartbeat sent at ``sent`` was answered: the session runs from then on."""
        if 0 < self._leased_until < sent:  # it may have run out meanwhile: a pause, a partition
            self._lapsed = True
            self.confirmed.clear()
        self._leased_until = sent + lease_s

    @property
    def leased(self) -> bool:
        """Whether the metadata service is sure to count this client as alive, if it ever did."""
        return not 0 < self._leased_until < self.clock()

    def doubts(self, inode: int) -> bool:
        """Tell whether a file that is open here may have been removed behind this client's back."""
        return not self.leased or (self._lapsed and inode not in self.confirmed)

    def held(self) -> set[int]:
        """Return every inode that this client has open."""
        return self.hold | set(self.handles.copy().values())

    def caller(self) -> meta_pb2.Caller:
        """Return who asks by default."""
        who = self.identity
        return meta_pb2.Caller(uid=who.uid, gid=who.gid, groups=who.groups, client=self.client)

    def extent(self, inode: meta_pb2.Inode) -> Extent:
        """Return what chunk I/O must know of an inode."""
        number = inode.id
        layout = self._layouts.get(number)
        if layout is None:
            if not inode.layout.chains:
                raise Error(Code.INVALID, f"inode {number} is not a regular file")
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            raw = inode.layout
            chains = tuple(ChainId(chain) for chain in raw.chains)
            layout = self._layouts[number] = Layout(raw.chunk_bytes, chains)
        cutting = inode.cut_epoch > inode.epoch
        return Extent(number, inode.length, inode.epoch, layout, cutting)

    def stage(self, length: int) -> Part:
        """Return memory to move bytes through: of the pool, else of our own for one memcpy more.

        Nobody waits here: file objects keep their buffers while others want one.
        """
        part = self.pool.try_acquire(length) if self.pool is not None else None
        return part or Part(Region.wrap(bytearray(length)), 0, length)

    def unstage(self, part: Part) -> None:
        """Give back what ``stage`` returned."""
        if self.pool is not None:
            self.pool.release(part)

    def deadline(self, within_s: float | None = None) -> float:
        """Return when an operation that begins now gives up: ``within_s``, or as configured."""
        return self.clock() + (self.io_timeout_s if within_s is None else within_s)

    # --- routing

    def table(self) -> Table:
        """Return the routing as large batches use it."""
        table = self._table
        if table.lines is not self.routes.lines:
            table = self._table = Table(self.routes.lines)
        return table

    def refresh(self, used: int, wait_ms: int = ROUTING_WAIT_MS) -> Operation[bool]:
        """Ask for routing newer than version ``used``; tell whether there is one now.

        A manager that does not answer is no error here: chains go on without it.
        """
        if self.routes.version > used:
            return True
        request = manager_pb2.GetRoutingRequest(known_version=used, wait_ms=wait_ms)
        method = service.method("Manager", "GetRouting")
        patience_s = CALL_TIMEOUT_S if self.routes.managers == 1 else MANAGER_TIMEOUT_S
        timeout_s = wait_ms / 1000 + patience_s
        call = Call(self.routes.manager(), service.encode(method, request), timeout_s)
        (outcome,) = yield Exchange([call])
        if outcome.error is not None:
            return False
        reply = _decode(method, outcome)
        return self.routes.take(convert.routing_from_message(cast(Any, reply)))

    def first_routing(self) -> Operation[None]:
        """Fetch the first routing.

        Raises:
            Error: UNAVAILABLE when the manager cannot be reached by the deadline.
        """
        deadline, history = self.clock() + min(10.0, self.io_timeout_s), History()
        while self.routes.routing is None:
            if (yield from self.refresh(0, 0)) or self.routes.routing is not None:
                return
            verdict = after_call(history, Code.UNAVAILABLE, "", self.clock(), deadline)
            if not verdict.again:
                where = self.routes.manager().tcp
                text = f"no manager answers at {where}; is the cluster up (`hillfire up`)?"
                raise Error(Code.UNAVAILABLE, text)
            yield Pause(verdict.delay_s)

    # --- calls

    def meta(self, name: str, request: Message, deadline: float | None = None) -> Operation[Any]:
        """Call the metadata service; the same request number goes with every retry.

        Raises:
            Error: the service's, or the last one when the deadline has passed.
        """
        if name in MUTATIONS:
            self._sign(cast(Any, request).caller)
        elif "caller" in request.DESCRIPTOR.fields_by_name and not request.HasField("caller"):
            cast(Any, request).caller.CopyFrom(self.caller())
        method = service.method("Meta", name)
        encoded = service.encode(method, request)
        history: History | None = None
        while True:
            used = self.routes.version
            try:
                endpoint = self.routes.meta().endpoint
                (outcome,) = yield Exchange([Call(endpoint, encoded, CALL_TIMEOUT_S)])
                error = outcome.error
            except Error as exc:
                error = exc
            if error is None:
                return _decode(method, outcome)
            if history is None:
                history = History()
                deadline = deadline if deadline is not None else self.deadline()
            verdict = after_call(history, error.code, str(error), self.clock(), cast(Any, deadline))
            if not verdict.again:
                raise error
            if verdict.refresh:
                yield from self.refresh(used, 0)
            yield Pause(verdict.delay_s)

    def _sign(self, caller: meta_pb2.Caller) -> None:
        """Fill in who asks, and the idempotency key."""
        if not caller.ByteSize():
            caller.CopyFrom(self.caller())
        if not caller.client:
            caller.client = self.client
        if not caller.request:
            caller.request = next(self._requests)

    def note_failure(self, node: int, code: Code) -> None:
        """Mistrust a node whose connection failed."""
        if speaks_of_node(code):
            self.routes.suspect(node, self.clock())


def _decode(method: Any, outcome: Outcome) -> Any:
    return service.decode(method, Reply(outcome.body))
