"""What all operations of one mount share: the client, the inode table, write-behind, memory.

Each group of operations (names, directories, data, extended attributes) is a class over this
one; ``operations.Operations`` puts them together. No binding is known here.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from google.protobuf.message import Message

from hillfire.client.aio import Client
from hillfire.client.buffers import Buffers
from hillfire.config import MountConfig
from hillfire.errors import Code, Error
from hillfire.fuse.attributes import Caller
from hillfire.fuse.handles import Handles, Node, Nodes
from hillfire.fuse.writeback import DirtyFile, WriteBehind
from hillfire.proto import meta_pb2 as pb
from hillfire.proto.wire.base import Part

log = logging.getLogger(__name__)

MIB = 1024 * 1024
PIECE_BYTES = MIB
"""Of write-behind; a chunk may be larger, then it is written in several steps."""
READ_BYTES = 32 * MIB
"""The kernel asks for at most 1 MiB at a time, and has 12 requests of read-ahead outstanding."""
MIN_WRITE_BYTES = 4 * MIB
READ_WAIT_S = 60.0
MAX_BACKGROUND = 256
"""Trips to the metadata service that nobody waits for."""
NAME_MAX_BYTES = 255
MAX_LATE = 4096
"""Write sessions of closed files that the metadata service has not been told of yet."""
LATE_BATCH = 256
"""Of them told at a time."""


class Shared:
    """The state of one mount."""

    def __init__(self, client: Client, config: MountConfig) -> None:
        """Allocate the mount's memory.

        Raises:
            Error: NO_SPACE if it is not there.
        """
        self.client = client
        self.config = config
        self.nodes = Nodes(config.attribute_timeout_s)
        self.handles = Handles()
        self.read_slots = Buffers(READ_BYTES)
        wanted = config.write_behind_bytes
        slots = Buffers(max(MIN_WRITE_BYTES, wanted // PIECE_BYTES * PIECE_BYTES))
        through = wanted < PIECE_BYTES
        self.behind = WriteBehind(self._store, slots, PIECE_BYTES, through=through)
        client.on_orphans = self._orphaned
        self.changes = 0
        """of metadata by this mount, so far"""
        self._durable = 0
        """how many of them the metadata service has on disk"""
        self._late: dict[int, int] = {}
        self._background: set[asyncio.Task[None]] = set()

    @staticmethod
    def who(caller: Caller) -> pb.Caller:
        """Return a caller whose permissions the kernel has checked (default_permissions)."""
        return pb.Caller(uid=caller.uid, gid=caller.gid, checked=True)

    def place(self, parent: int, name: bytes) -> pb.Place:
        """Return where a name is.

        Raises:
            Error: NAME_TOO_LONG.
        """
        if len(name) > NAME_MAX_BYTES:
            raise Error(Code.NAME_TOO_LONG, f"a name of {len(name)} bytes; {NAME_MAX_BYTES} fit")
        return pb.Place(parent=parent, path=name)

    async def fetch(self, inode: int) -> Node:
        """Ask the metadata service for an inode.

        Raises:
            Error: NOT_FOUND once it is gone.
        """
        asked = self.nodes.tick()
        return self.nodes.learn(await self.client.meta("Stat", pb.StatRequest(inode=inode)), asked)

    async def settle(
        self,
        node: Node,
        *,
        sync: bool = False,
        close: bool = False,
        anyway: bool = False,
        stored: tuple[int, int] | None = None,
    ) -> None:
        """Tell the metadata service the length and time of change of what was written here.

        ``sync`` makes it durable; ``close`` ends one write session. ``anyway``: also when there
        is nothing to tell. ``stored``: how far to tell it, if writes may have come meanwhile that
        are not stored: whoever read them there would find zeros, and be told of no change later.
        """
        file = node.file
        news = file is not None and file.unsettled
        if not (news or sync or close or anyway):
            return
        request = pb.SettleRequest(
            caller=pb.Caller(checked=True), inode=node.inode.id, epoch=node.inode.epoch,
            sync=sync, close=close,
        )  # fmt: skip
        length = mtime_ns = 0
        if file is not None and file.unsettled:
            length, mtime_ns = stored or (file.length, file.mtime_ns)
            request.length, request.mtime_ns, request.epoch = length, mtime_ns, file.epoch
        asked = self.nodes.tick()
        before = self.changes
        inode = await self.client.meta("Settle", request)
        if sync:
            self._durable = max(self._durable, before)
        elif news:
            self.changes += 1
        if file is not None and (file.length, file.mtime_ns) == (length, mtime_ns):
            file.unsettled = False
        self.nodes.learn(inode, asked, mutation=True)

    @property
    def durable(self) -> bool:
        """Whether every change of metadata by this mount is on the metadata service's disk."""
        return self._durable == self.changes

    async def mutate(self, name: str, request: Message) -> Any:
        """Change metadata, counted, so that a later fsync knows whether it has work.

        Raises:
            Error: the metadata service's.
        """
        try:
            return await self.client.meta(name, request)
        finally:
            self.changes += 1

    async def change(self, parent: int, name: str, request: Message, other: int = 0) -> Any:
        """Change names in a directory; if that fails, what is known of it is not trusted.

        Raises:
            Error: the metadata service's.
        """
        try:
            return await self.mutate(name, request)
        except BaseException:
            self.nodes.stale(parent)
            if other:
                self.nodes.stale(other)
            raise

    def close_later(self, inode: int) -> None:
        """End a write session in which nothing was written since it was settled: no hurry."""
        self._late[inode] = self._late.get(inode, 0) + 1
        if len(self._late) > MAX_LATE:
            self.close_now(next(iter(self._late)))

    def close_now(self, inode: int) -> None:
        """End such write sessions of one inode, if it has any: its last name went."""
        for _ in range(self._late.pop(inode, 0)):
            request = pb.SettleRequest(caller=pb.Caller(checked=True), inode=inode, close=True)
            self.in_background(self._call("Settle", request))

    def close_some(self, limit: int = LATE_BATCH) -> None:
        """End some of them; called by a timer."""
        for inode in list(self._late)[:limit]:
            if len(self._background) < MAX_BACKGROUND:
                self.close_now(inode)

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
        """Do something that nobody waits for; an error is logged."""
        task = asyncio.create_task(self._quietly(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def room_in_background(self) -> None:
        """Wait while too much is done in the background."""
        while len(self._background) >= MAX_BACKGROUND:
            await asyncio.wait(self._background, return_when=asyncio.FIRST_COMPLETED)

    def _orphaned(self, inodes: list[int]) -> None:
        """Other mounts removed the last name of what is open here; it stays until closed."""
        for inode in inodes:
            node = self.nodes.find(inode)
            if node is not None and node.opens:
                node.held = True
            else:
                request = pb.SettleRequest(caller=pb.Caller(checked=True), inode=inode, close=True)
                self.in_background(self._call("Settle", request))

    async def _call(self, name: str, request: Message) -> None:
        await self.client.meta(name, request)

    async def finish(self) -> None:
        """Settle everything that is stored, as the mount ends.

        A file of which bytes are lost keeps the length that its chunks have.
        """
        for handle in list(self.handles.files.values()):
            file = handle.node.file
            if file is not None and (file.dirty or file.inode.id in self.behind.lost):
                continue
            session, handle.session = handle.session, False
            await self._quietly(self.settle(handle.node, close=session))
        while self._late or self._background:
            self.close_some()
            await asyncio.wait(self._background, return_when=asyncio.FIRST_COMPLETED)

    @staticmethod
    async def _quietly(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Error as exc:
            if exc.code not in (Code.NOT_FOUND, Code.STALE):  # else it is gone: all the better
                log.warning("background error=%s", exc)

    async def _store(self, file: DirtyFile, spans: list[tuple[int, Part]]) -> None:
        """Send spans of a file (write-behind's way out)."""
        if len(spans) == 1:
            await self.client.write(file.inode, *spans[0])
            return
        entries = [(file.inode, offset, part) for offset, part in spans]
        for result in await self.client.write_batch(entries):
            if isinstance(result, Error):
                raise result
