"""The Meta service: each rpc is one operation in one transaction, answered once.

A mutation's answer is kept beside what it changed, in the same transaction, under (client,
request): a retry gets the first answer and changes nothing. An operation that needs no storage is
a plain function, which the dispatcher answers without a task.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from hillfire.cluster import Routing
from hillfire.errors import Code, Error
from hillfire.meta import replies
from hillfire.meta.clients import Clients
from hillfire.meta.engine.base import Engine, Transaction
from hillfire.meta.engine.retry import transact
from hillfire.meta.host import Host
from hillfire.meta.intents import Intent, newest_epoch, under_way
from hillfire.meta.ops.attributes import (
    get_attribute,
    list_attributes,
    remove_attribute,
    set_attribute,
)
from hillfire.meta.ops.create import create
from hillfire.meta.ops.link import link
from hillfire.meta.ops.lookup import lookup
from hillfire.meta.ops.make_node import make_node
from hillfire.meta.ops.open import open_inode
from hillfire.meta.ops.read_directory import read_directory
from hillfire.meta.ops.rename import rename
from hillfire.meta.ops.reserve_append import reserve_append
from hillfire.meta.ops.session import session
from hillfire.meta.ops.set_attributes import set_attributes
from hillfire.meta.ops.settle import settle
from hillfire.meta.ops.stat import stat
from hillfire.meta.ops.stat_file_system import stat_file_system
from hillfire.meta.ops.truncate import truncate
from hillfire.meta.ops.unlink import unlink
from hillfire.meta.truncates import Truncates
from hillfire.proto.cluster_pb2 import Empty
from hillfire.proto.meta_pb2 import (
    Caller,
    FileSystemStatus,
    Inode,
    RenameReply,
    ReserveAppendReply,
    SessionReply,
    SessionRequest,
    SettleRequest,
    UnlinkReply,
)
from hillfire.proto.service import CallContext

ANSWER_MARGIN_S = 0.2
"""Left of the caller's time for the answer's way back."""

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)
R = TypeVar("R")
Operation = Callable[[Transaction, Q, Host], R]
Call = Callable[[Q, CallContext], A]


class MetaService:
    """The implementation that the dispatcher calls. One event loop."""

    def __init__(
        self,
        engine: Engine,
        host: Host,
        clients: Clients,
        truncates: Truncates,
        *,
        lease_valid: Callable[[], bool],
        routing: Callable[[], Routing],
    ) -> None:
        """``lease_valid``: whether this process may act now; ``routing``: the newest."""
        self._engine = engine
        self._host = host
        self._clients = clients
        self._truncates = truncates
        self._lease_valid = lease_valid
        self._routing = routing
        self.lookup = self._reading(lookup)
        self.stat = self._reading(stat)
        self.read_directory = self._reading(read_directory)
        self.get_attribute = self._reading(get_attribute)
        self.list_attributes = self._reading(list_attributes)
        self.create = self._writing(create, Inode)
        self.make_node = self._writing(make_node, Inode)
        self.link = self._writing(link, Inode)
        self.unlink = self._writing(unlink, UnlinkReply)
        self.rename = self._writing(rename, RenameReply)
        self.set_attributes = self._writing(set_attributes, Inode)
        self.reserve_append = self._in_turn(self._writing(reserve_append, ReserveAppendReply))
        self.set_attribute = self._writing(set_attribute, Empty)
        self.remove_attribute = self._writing(remove_attribute, Empty)
        self.open = self._cutting(open_inode)
        self.truncate = self._cutting(truncate)
        self._settle = self._writing(settle, Inode)

    def settle(self, request: SettleRequest, context: CallContext) -> Inode | Awaitable[Inode]:
        """Settle, and with ``sync`` answer once the disk has it.

        A writer that a truncate overtook is answered once its file's length has been measured.
        """
        inode = self._settle(request, context)
        overtaken = request.HasField("length") and request.epoch < newest_epoch(inode)
        if overtaken and request.length > inode.length:
            return self._measured(request, inode, context.timeout_s - ANSWER_MARGIN_S)
        return self._synced(inode) if request.sync else inode

    async def _measured(self, request: SettleRequest, inode: Inode, timeout_s: float) -> Inode:
        now_ns = self._host.now_ns()
        inode = await self._truncates.measure(inode, request.length, now_ns, timeout_s)
        return await self._synced(inode) if request.sync else inode

    async def _synced(self, inode: Inode) -> Inode:
        await self._engine.sync()
        return inode

    def stat_file_system(self, request: Empty, context: CallContext) -> FileSystemStatus:
        """Tell the space by the newest routing."""
        self._require_lease()
        return stat_file_system(self._routing(), self._host.inodes)

    def session(self, request: SessionRequest, context: CallContext) -> SessionReply:
        """Take a client's heartbeat.

        Raises:
            Error: INVALID without a client, LEASE_EXPIRED.
        """
        self._require_lease()
        if not request.client:
            raise Error(Code.INVALID, "a session belongs to a client")
        reply = transact(self._engine, lambda txn: session(txn, request))
        if request.end:
            self._clients.end(request.client)
        else:
            self._clients.beat(request.client, request.seen)
        reply.lease_ms = self._clients.lease_ms
        return reply

    def _require_lease(self) -> None:
        if not self._lease_valid():
            text = "the metadata service lost touch with the manager"
            raise Error(Code.LEASE_EXPIRED, text)

    def _reading(self, operation: Operation[Q, A]) -> Call[Q, A]:
        """Bind an operation that writes nothing."""
        engine, host, lease_valid = self._engine, self._host, self._lease_valid

        def call(request: Q, context: CallContext) -> A:
            if not lease_valid():
                self._require_lease()
            txn = engine.transaction()
            try:
                return operation(txn, request, host)
            finally:
                txn.close()

        return call

    def _writing(self, operation: Operation[Q, A], kind: type[A]) -> Call[Q, A]:
        """Bind an operation that is done once for each (client, request)."""
        engine, host = self._engine, self._host

        def call(request: Q, context: CallContext) -> A:
            caller = self._admit(request)

            def body(txn: Transaction) -> A:
                reply = replies.kept(txn, caller, kind)
                if reply is None:
                    reply = operation(txn, request, host)
                    replies.keep(txn, caller, reply, host.now_ns())
                return reply

            return transact(engine, body)

        return call

    def _cutting(
        self, operation: Operation[Q, tuple[Inode, Intent | None]]
    ) -> Callable[[Q, CallContext], Inode | Awaitable[Inode]]:
        """Bind an operation that may cut chunks; storage has done it before the answer.

        A retry finds the answer kept, and waits for what is left to do. One file's cuts are made
        one after another, and nobody opens it meanwhile: the length that he would see is that of
        a truncate which has not happened everywhere.
        """

        def first(txn: Transaction, request: Q, host: Host) -> Inode:
            return operation(txn, request, host)[0]

        writing = self._writing(first, Inode)

        def call(request: Q, context: CallContext) -> Inode | Awaitable[Inode]:
            timeout_s = context.timeout_s - ANSWER_MARGIN_S
            inode = writing(request, context)
            return self._truncates.finish(inode, timeout_s) if under_way(inode) else inode

        return self._in_turn(call)

    def _in_turn(
        self, call: Callable[[Q, CallContext], A | Awaitable[A]]
    ) -> Callable[[Q, CallContext], A | Awaitable[A]]:
        """Let a call wait while its file is being cut."""

        async def later(request: Q, context: CallContext) -> A:
            inode: int = request.inode  # type: ignore[attr-defined]  # these requests have one
            await self._truncates.in_turn(inode, context.timeout_s - ANSWER_MARGIN_S)
            answer = call(request, context)
            return await answer if inspect.isawaitable(answer) else answer

        def now(request: Q, context: CallContext) -> A | Awaitable[A]:
            inode: int = request.inode  # type: ignore[attr-defined]
            if self._lease_valid() and self._truncates.under_way(inode) is not None:
                return later(request, context)
            return call(request, context)

        return now

    def _admit(self, request: Message) -> Caller:
        """Check the lease, and count the client as alive."""
        if not self._lease_valid():
            self._require_lease()
        caller: Caller = request.caller  # type: ignore[attr-defined]  # every mutation has one
        if caller.client:
            self._clients.touch(caller.client)
        return caller
