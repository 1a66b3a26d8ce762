"""A storage node as a process: ``storage_child.py NODE DIRECTORY MANAGER [TOML]``.

Prints its address. TOML: further keys of its configuration. At SIGUSR1 its stores forget the chunk
that the file DIRECTORY/forget names, until it is written again; if it says "defect", the first
target's lifecycle meets one, if "defect at routing", when it is to act on the next routing.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from hillfire import config
from hillfire.storage.server import StorageServer
from hillfire.storage.shell import TargetShell
from hillfire.storage.store.base import Update
from hillfire.types import ChunkId, Version


def forget(server: StorageServer) -> None:
    wanted = (server.config.directory / "forget").read_text()
    if wanted.startswith("defect"):
        target: Any = next(iter(server.targets.values()))
        handle = partial(target.handle, cast(Any, "no event at all"))
        if wanted == "defect":
            handle()
        else:
            target.routing_changed = handle
        return
    chunk = ChunkId(bytes.fromhex(wanted))
    for target in server.targets.values():
        if target.shell is not None and target.shell.store.get(chunk) is not None:
            hide(target.shell, chunk)


def hide(shell: TargetShell, chunk: ChunkId) -> None:
    """Make a store say that a chunk was never there."""
    store: Any = shell.store
    real = {name: getattr(store, name) for name in ("get", "scan", "read", "read_cached")}
    prepare = store.prepare

    def get(name: ChunkId) -> Any:
        return None if name == chunk else real["get"](name)

    def scan(after: ChunkId | None = None, limit: int = 4096) -> Any:
        return [each for each in real["scan"](after, limit) if each[0] != chunk]

    def read(name: ChunkId, offset: int, into: memoryview) -> Any:
        return (0, 0, Version(0)) if name == chunk else real["read"](name, offset, into)

    def read_cached(name: ChunkId, offset: int, into: memoryview) -> Any:
        return (0, 0, Version(0)) if name == chunk else real["read_cached"](name, offset, into)

    def prepare_and_show(updates: Sequence[Update]) -> Any:
        if any(update.chunk == chunk for update in updates):
            for name in (*real, "prepare", "direct"):
                delattr(store, name)
            shell.replica._lookup = store.get
        return prepare(updates)

    store.direct = lambda: None
    store.get, store.scan, store.read, store.read_cached = get, scan, read, read_cached
    store.prepare = prepare_and_show
    shell.replica._lookup = get


async def main() -> None:
    node, directory, manager, *more = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format=f"{node} %(asctime)s %(message)s")
    text = f'node = {node}\ndirectory = "{directory}"\nmanager = "{manager}"\n'
    if "pool_bytes" not in "".join(more):
        text += 'pool_bytes = "32 MiB"\n'
    settings = config.parse("storage", text + "\n".join(more))
    server = StorageServer(cast(config.StorageConfig, settings))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGUSR1, forget, server)
    await server.start()
    print(server.tcp_address, flush=True)
    await ended.wait()
    await server.stop()


asyncio.run(main())
