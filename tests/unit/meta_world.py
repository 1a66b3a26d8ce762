"""A metadata service without a process: its dispatcher over an engine, a clock that a test sets."""

import asyncio
import errno
import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import pytest

from hillfire.cluster import Routing
from hillfire.errors import Code, Error
from hillfire.meta import keys
from hillfire.meta.check import check
from hillfire.meta.clients import Clients
from hillfire.meta.collector import Collector
from hillfire.meta.engine.base import Engine
from hillfire.meta.engine.memory import MemoryEngine
from hillfire.meta.engine.retry import transact
from hillfire.meta.engine.rocksdb import RocksEngine
from hillfire.meta.host import Host
from hillfire.meta.intents import Intent
from hillfire.meta.server import prepare
from hillfire.meta.service import MetaService
from hillfire.meta.storage_client import StorageClient
from hillfire.meta.truncates import Truncates
from hillfire.proto import meta_pb2 as pb
from hillfire.proto.service import Dispatcher, encode, method
from hillfire.proto.wire.base import Incoming

KIB = 1024
CHUNK = 64 * KIB
CHAINS = tuple(range(1, 13))
SECOND_NS = 10**9
ROOT = pb.Caller(uid=0, gid=0)
ALICE = pb.Caller(uid=1000, gid=1000, groups=[1000, 5000])
BOB = pb.Caller(uid=1001, gid=1001)

T = TypeVar("T")


class RecordedStorage(StorageClient):
    """Storage as the service asks for it: what was asked, and what chunks there would be."""

    def __init__(self) -> None:
        super().__init__(lambda: Routing("", 0), 1)
        self.asked: list[tuple[str, Intent]] = []
        self.lengths: dict[int, int] = {}
        self.failure: Error | None = None
        self.gate: asyncio.Event | None = None
        self.arrived = asyncio.Event()
        self.meanwhile: Callable[[], Coroutine[Any, Any, Any]] | None = None
        """what happens while storage looks for the last byte"""

    async def truncate(self, intent: Intent, timeout_s: float) -> None:
        await self._answer("truncate", intent)

    async def remove(self, intent: Intent, timeout_s: float) -> None:
        await self._answer("remove", intent)

    async def last_byte(self, inode: int, chunk_bytes: int, chains: Any, timeout_s: float) -> int:
        if self.failure is not None:
            raise self.failure
        length = self.lengths.get(inode, 0)
        if self.meanwhile is not None:
            await self.meanwhile()
        return length

    async def _answer(self, what: str, intent: Intent) -> None:
        self.asked.append((what, intent))
        self.arrived.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure


class World:
    """The service, and short words for calling it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.now_ns = 1_000 * SECOND_NS
        self.boot_ns = 0
        self.lease = True
        self.storage = RecordedStorage()
        transact(engine, prepare)
        self.restart()

    def restart(self) -> None:
        """Begin again on the same engine, as after a crash."""
        self.host = Host(self.engine, chunk_bytes=CHUNK, stripe=16, clock_ns=lambda: self.now_ns)
        self.host.set_chains(CHAINS)
        self.clients = Clients(10_000, lambda: self.boot_ns)
        self.truncates = Truncates(self.engine, self.storage)
        service = MetaService(
            self.engine,
            self.host,
            self.clients,
            self.truncates,
            lease_valid=lambda: self.lease,
            routing=lambda: Routing("", 0),
        )
        self.dispatcher = Dispatcher()
        self.dispatcher.add("Meta", service)
        self.collector = Collector(
            self.engine, self.host, self.clients, self.truncates, self.storage, lambda: self.lease
        )

    def start(self, name: str, request: Any, timeout_s: float = 5.0) -> Any:
        """Call, and return the message or what is to be awaited for it."""
        called = method("Meta", name)
        sent = encode(called, request)
        incoming = Incoming(sent.method, memoryview(sent.body), (), (), timeout_s, "test")
        answer = self.dispatcher.handle(incoming)

        def read(answer: Any) -> Any:
            return called.reply_type.FromString(answer.body)

        async def wait() -> Any:
            return read(await cast(Coroutine[Any, Any, Any], answer))

        return wait() if inspect.isawaitable(answer) else read(answer)

    def call(self, name: str, request: Any) -> Any:
        answer = self.start(name, request)
        return (
            asyncio.run(cast(Coroutine[Any, Any, Any], answer))
            if inspect.isawaitable(answer)
            else answer
        )

    # short words: paths are walked from the root

    def create(self, path: bytes, mode: int = 0o644, caller: pb.Caller = ROOT) -> pb.Inode:
        request = pb.CreateRequest(caller=caller, place=place(path), mode=mode, exclusive=True)
        return cast(pb.Inode, self.call("Create", request))

    def make(
        self, path: bytes, kind: Any = pb.DIRECTORY, mode: int = 0o755, caller: pb.Caller = ROOT,
        symlink: bytes = b"", device: int = 0,
    ) -> pb.Inode:  # fmt: skip
        request = pb.MakeNodeRequest(
            caller=caller, place=place(path), type=kind, mode=mode, symlink=symlink, device=device
        )
        return cast(pb.Inode, self.call("MakeNode", request))

    def look(self, path: bytes, follow: bool = False, caller: pb.Caller = ROOT) -> pb.Inode:
        request = pb.LookupRequest(caller=caller, place=place(path), follow=follow)
        return cast(pb.Inode, self.call("Lookup", request))

    def stat(self, inode: int) -> pb.Inode:
        return cast(pb.Inode, self.call("Stat", pb.StatRequest(inode=inode)))

    def link(self, inode: int, path: bytes, caller: pb.Caller = ROOT) -> pb.Inode:
        request = pb.LinkRequest(caller=caller, inode=inode, place=place(path))
        return cast(pb.Inode, self.call("Link", request))

    def unlink(
        self, path: bytes, caller: pb.Caller = ROOT, directory: bool = False, hold: bool = False
    ) -> pb.UnlinkReply:
        request = pb.UnlinkRequest(caller=caller, place=place(path), directory=directory, hold=hold)
        return cast(pb.UnlinkReply, self.call("Unlink", request))

    def rmdir(self, path: bytes, caller: pb.Caller = ROOT) -> pb.UnlinkReply:
        return self.unlink(path, caller, directory=True)

    def rename(
        self, old: bytes, new: bytes, caller: pb.Caller = ROOT, **flags: bool
    ) -> pb.RenameReply:
        request = pb.RenameRequest(caller=caller, to=place(new), **flags)
        getattr(request, "from").CopyFrom(place(old))
        return cast(pb.RenameReply, self.call("Rename", request))

    def set(self, inode: int, caller: pb.Caller = ROOT, **fields: int) -> pb.Inode:
        request = pb.SetAttributesRequest(caller=caller, inode=inode, **fields)
        return cast(pb.Inode, self.call("SetAttributes", request))

    def open(self, inode: int, caller: pb.Caller = ROOT, **flags: bool) -> pb.Inode:
        request = pb.OpenRequest(caller=caller, inode=inode, **flags)
        return cast(pb.Inode, self.call("Open", request))

    def settle(self, inode: int, caller: pb.Caller = ROOT, **fields: int) -> pb.Inode:
        request = pb.SettleRequest(caller=caller, inode=inode, **cast(Any, fields))
        return cast(pb.Inode, self.call("Settle", request))

    def truncate(self, inode: int, length: int, caller: pb.Caller = ROOT) -> pb.Inode:
        request = pb.TruncateRequest(caller=caller, inode=inode, length=length)
        return cast(pb.Inode, self.call("Truncate", request))

    def names(self, inode: int = 1, caller: pb.Caller = ROOT, **fields: Any) -> list[bytes]:
        request = pb.ReadDirectoryRequest(caller=caller, inode=inode, **fields)
        return [entry.name for entry in self.call("ReadDirectory", request).entries]

    def session(self, client: int, seen: int = 0, **fields: Any) -> pb.SessionReply:
        request = pb.SessionRequest(client=client, seen=seen, **fields)
        return cast(pb.SessionReply, self.call("Session", request))

    def collect(self) -> None:
        """One pass of the collector."""
        asyncio.run(self.collector.once())

    def pass_time(self, seconds: float) -> None:
        self.boot_ns += int(seconds * SECOND_NS)
        self.now_ns += int(seconds * SECOND_NS)

    def count(self, table: keys.Range) -> int:
        return len(transact(self.engine, lambda txn: txn.snapshot_range(*table)))

    def check(self) -> None:
        assert transact(self.engine, check) == []


def place(path: bytes) -> pb.Place:
    return pb.Place(parent=1, path=path)


@contextmanager
def fails(code: Code | int) -> Iterator[None]:
    """Expect an error by its code, or by its errno."""
    with pytest.raises(Error) as caught:
        yield
    if isinstance(code, Code):
        assert caught.value.code is code
    else:
        assert caught.value.errno == code, errno.errorcode[caught.value.errno or 0]


@contextmanager
def world(kind: str = "memory") -> Iterator[World]:
    """A new world; what a test leaves is whole."""
    if kind == "memory":
        made = World(MemoryEngine())
        yield made
        made.check()
        return
    with TemporaryDirectory() as directory:
        engine = RocksEngine(Path(directory))
        try:
            made = World(engine)
            yield made
            made.check()
        finally:
            engine.close()
