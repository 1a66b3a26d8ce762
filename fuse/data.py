"""Operations on open files: open, create, read, write, flush, fsync, release.

Close-to-open: ``open`` asks for fresh attributes and ``flush`` (which is close) returns when the
bytes are stored and the metadata service knows the length. A write session is recorded there
from open until the first close after which nothing was written, so that the length of a file
whose writer died is repaired.
"""

import asyncio
import os
from typing import NamedTuple

from hillfire.client import reading
from hillfire.client.hedged import Moved
from hillfire.errors import Code, Error
from hillfire.fuse.attributes import Attributes, Caller
from hillfire.fuse.handles import EVERYTHING, FileHandle, Node
from hillfire.fuse.names import Names
from hillfire.fuse.shared import READ_WAIT_S
from hillfire.fuse.writeback import DirtyFile, Overlaid
from hillfire.proto import meta_pb2 as pb
from hillfire.proto.wire.base import Part
from hillfire.region import Region

_STILL_IN_FLIGHT = frozenset({Code.BUSY, Code.TIMED_OUT})

CAPABILITY = b"security.capability"
"""Asked for by the kernel before each write; a file that was just created has none."""


class Opened(NamedTuple):
    """What the kernel learns of an open file."""

    number: int
    keep_cache: bool
    """the page cache holds what the file holds"""
    refresh: bool
    """the attributes that the kernel remembers are old"""


class Data(Names):
    """Open files."""

    async def open(self, inode: int, flags: int, caller: Caller) -> Opened:
        """Open a file with fresh attributes."""
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        truncate = bool(flags & os.O_TRUNC)
        before = self.nodes.find(inode)
        if before is not None and before.file is not None:
            if truncate:
                await self.behind.truncate(before.file, 0)
            # The metadata service cuts only the length that it knows of; and what it answers
            # to an open comes on top of what was written here.
            await self.settle(before)
        asked = self.nodes.tick()
        if writable or truncate:
            request = pb.OpenRequest(
                caller=self.who(caller), inode=inode, write=writable, truncate=truncate
            )
            reply = await (self.mutate if truncate else self.client.meta)("Open", request)
        else:
            reply = await self.client.meta("Stat", pb.StatRequest(inode=inode))
        told = before.attributes()[6:] if before is not None else None
        node = self.nodes.learn(reply, asked, mutation=truncate)
        if truncate:
            node.unsynced = EVERYTHING
        number = self._opened(node, writable, caller)
        identity = node.identity()
        keep = node.cached_as == identity
        node.cached_as = identity
        return Opened(number, keep, truncate or told != node.attributes()[6:])

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Opened, Attributes]:
        """Create a regular file and open it, in one trip."""
        asked = self.nodes.tick()
        request = pb.CreateRequest(
            caller=self.who(caller), place=self.place(parent, name), mode=mode & 0o7777,
            exclusive=bool(flags & os.O_EXCL),
        )  # fmt: skip
        inode = await self.change(parent, "Create", request)
        self.nodes.touched(parent, inode.ctime_ns)
        if inode.length and flags & os.O_TRUNC:  # another mount made it since the kernel looked
            asked = self.nodes.tick()
            cut = pb.TruncateRequest(caller=self.who(caller), inode=inode.id, length=0)
            inode = await self.mutate("Truncate", cut)
        node = self.nodes.named(self.nodes.learn(inode, asked, mutation=True), parent, name)
        if inode.length == 0:
            node.unsynced = None
        node.absent[CAPABILITY] = node.fresh_until
        number = self._opened(node, True, caller)
        return Opened(number, False, False), node.attributes()

    def _opened(self, node: Node, session: bool, caller: Caller) -> int:
        node.opens += 1
        self.client.hold.add(node.inode.id)
        if session and node.file is None:
            node.file = DirtyFile(node.inode, self.behind.piece_bytes)
        return self.handles.add_file(FileHandle(node, caller.uid, session))

    async def read(self, number: int, offset: int, size: int) -> memoryview | bytes:
        """Return up to ``size`` bytes.

        A memoryview is valid until the caller next awaits: its memory has been given back.
        """
        node = self.handles.file(number).node
        size = min(size, node.length - offset)
        if size <= 0:
            return b""
        slots, file = self.read_slots, node.file
        slot = slots.try_acquire(size) or await slots.acquire_async(size, READ_WAIT_S)
        slot = slot._replace(length=size)
        try:
            if file is None or not file.dirty:
                return await self._stored(node, offset, slot)
            over = Overlaid(self.behind, file, offset, size)
            try:
                if over.complete:
                    into = slot.region.view[slot.offset : slot.offset + size]
                else:
                    into = await self._stored(node, offset, slot)
                over.apply(into)
            finally:
                over.close()
            return into
        finally:
            slots.release(slot)

    async def _stored(self, node: Node, offset: int, slot: Part) -> memoryview:
        """Read stored bytes; past the stored length there are zeros until it is settled."""
        core, length = self.client.core, slot.length
        extent = core.extent(node.inode)
        if node.length > extent.length:
            extent = extent._replace(length=node.length)
        moved: list[Moved] = []
        try:
            (result,) = await self.client.run(
                reading.read_batch(core, [(extent, offset, slot)], patient=False, moved=moved)
            )
        except BaseException:
            reading.unstage_all(core, slot, moved)
            raise
        if moved:  # a hedge won: something may still land in the slot
            whole = reading.gathered(core, slot, moved)
            into = memoryview(bytearray(whole.region.view[whole.offset : whole.offset + length]))
            core.unstage(whole)
        else:
            into = slot.region.view[slot.offset : slot.offset + length]
        if not isinstance(result, Error):
            if result < length:
                into[result:] = bytes(length - result)
            return into
        if result.code not in _STILL_IN_FLIGHT:
            raise result
        # A server stopped while it filled the slot: read again into memory of its own.
        memory = memoryview(bytearray(length))  # outlives the region, which takes its view along
        own = Part(Region.wrap(memory), 0, length)
        (result,) = await self.client.run(reading.read_batch(core, [(extent, offset, own)]))
        if isinstance(result, Error):
            raise result
        return memory

    async def write(self, number: int, offset: int, data: bytes) -> int:
        """Take a write; it is stored later."""
        handle = self.handles.file(number)
        node = handle.node
        file = node.file
        if file is None:
            raise Error(Code.INVALID, "a write to a file that is open for reading")
        if node.inode.mode & 0o6000:
            await self.drop_set_id(node, handle.uid)
        if not handle.session:
            await self._reopen(handle)
        end, span = offset + len(data), node.unsynced
        if span is None:
            node.unsynced = (offset, end)
        else:  # a new tuple also where nothing grows: an fsync under way must notice
            node.unsynced = (min(span[0], offset), max(span[1], end))
        await self.behind.write(file, offset, data)
        node.cached_as = None
        return len(data)

    async def _reopen(self, handle: FileHandle) -> None:
        """Record a write session anew: the descriptor's duplicate was closed, this one writes."""
        handle.session = True
        asked = self.nodes.tick()
        request = pb.OpenRequest(
            caller=pb.Caller(checked=True), inode=handle.node.inode.id, write=True
        )
        self.nodes.learn(await self.client.meta("Open", request), asked)

    async def flush(self, number: int) -> None:
        """Close: store what was written and settle it, so that whoever opens next sees it."""
        handle = self.handles.file(number)
        node = handle.node
        file = node.file
        if file is None:
            return
        stored = file.length, file.mtime_ns
        if file.dirty or file.error is not None:
            await self.behind.flush(file)
        if file.unsettled:
            session, handle.session = handle.session, False
            try:
                await self.settle(node, close=session, stored=stored)
            except Error:
                handle.session = session
                raise

    async def fsync(self, number: int, data_only: bool = False) -> None:
        """Make a file's bytes and its inode durable on all replicas.

        What this mount knows to be durable already costs no trip. ``data_only``: times of
        change need not be.
        """
        node = self.handles.file(number).node
        file, stored = node.file, None
        if file is not None:
            stored = file.length, file.mtime_ns
            await self.behind.flush(file)
        span, length = node.unsynced, node.length
        tasks = []
        if span is not None and min(span[1], length) > span[0]:
            tasks.append(self.client.sync(node.inode, span[0], min(span[1], length)))
        news = file is not None and file.unsettled
        longer = file is not None and file.length > node.inode.length
        if not self.durable or longer or (news and not data_only):
            tasks.append(self.settle(node, sync=True, stored=stored))
        await asyncio.gather(*tasks)
        if node.unsynced is span:  # else it was written to meanwhile
            node.unsynced = None

    async def release(self, number: int) -> None:
        """Forget an open file; nobody waits for what that costs."""
        handle = self.handles.files.pop(number, None)
        if handle is None:
            return
        node = handle.node
        node.opens -= 1
        if node.file is not None and (node.file.dirty or node.file.unsettled):
            self.in_background(self._late_close(node, handle))
        elif handle.session:
            self.close_later(node.inode.id)
        if node.opens == 0:
            self._closed(node)
        await self.room_in_background()

    async def _late_close(self, node: Node, handle: FileHandle) -> None:
        """Pages of a writable mapping come after close: store and settle them all the same."""
        if node.file is not None:
            await self.behind.flush(node.file)
        session, handle.session = handle.session, False
        await self.settle(node, close=session)
        if node.opens == 0:
            self._closed(node)

    def _closed(self, node: Node) -> None:
        """Nobody here has it open any more."""
        self.client.hold.discard(node.inode.id)
        if node.held:
            node.held = False
            self.in_background(self.settle(node, close=True))
        if node.file is not None and not node.file.dirty and not node.file.unsettled:
            node.file = None
        self.nodes.drop_if_unused(node)
