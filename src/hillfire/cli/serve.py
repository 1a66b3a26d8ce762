"""``hillfire serve``: one service as this process, from its configuration file."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
from pathlib import Path
from typing import Protocol

from hillfire import config, eventloop, observe
from hillfire.errors import Code, Error
from hillfire.local.process import die_with_parent, say_failed, say_ready
from hillfire.proto import process

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 12.0
YOUNG_OBJECTS = 50_000
"""Made between two collections of the youngest. A batch of updates makes some thousands that
reference counts free; to look for cycles among them every 700 objects took 15 % of its time."""


class Server(Protocol):
    """What every service is to this module."""

    async def start(self) -> None:
        """Serve."""

    async def stop(self) -> None:
        """Serve no more."""


def run_serve(kind: str, path: Path, *, ready_fd: int | None, parent: int | None) -> None:
    """Run one service until SIGTERM or SIGINT."""
    if parent is not None:
        die_with_parent(parent)
    try:
        server, name, level = _make(kind, path)
        observe.setup(name, level)
        observe.name_process(name)
        eventloop.run(_serve(server, ready_fd))
    except Error as error:
        say_failed(ready_fd, error)
        raise
    except Exception as error:
        log.exception("event=crashed")
        say_failed(ready_fd, Error(Code.INTERNAL, f"{type(error).__name__}: {error}"))
        raise


def _make(kind: str, path: Path) -> tuple[Server, str, str]:
    """Return the service, its name and its log level."""
    settings = config.load(kind, path)
    match settings:
        case config.ManagerConfig():
            from hillfire.meta.manager.server import ManagerServer

            return ManagerServer(settings), "manager", settings.log_level
        case config.MetaConfig():
            from hillfire.meta.server import MetaServer

            return MetaServer(settings), "meta", settings.log_level
        case config.StorageConfig():
            from hillfire.storage.server import StorageServer

            return StorageServer(settings), f"storage-{settings.node}", settings.log_level
        case config.MountConfig():
            raise Error(Code.CONFIGURATION, "a mount is no service: `hillfire mount`")


async def _serve(server: Server, ready_fd: int | None) -> None:
    process.watch()
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    starting = asyncio.create_task(server.start())
    ending = {asyncio.create_task(asked.wait())}
    await asyncio.wait({starting, *ending}, return_when=asyncio.FIRST_COMPLETED)
    expelled: asyncio.Event | None = getattr(server, "failed", None)
    if starting.done():
        await starting
        gc.collect()
        gc.freeze()  # what is alive now stays: collections need not walk it
        gc.set_threshold(YOUNG_OBJECTS)
        say_ready(ready_fd)
        log.info("event=serving pid=%d", os.getpid())
        if expelled is not None:
            ending.add(asyncio.create_task(expelled.wait()))
        await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
        for task in ending:
            task.cancel()
    else:
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
    try:
        await asyncio.wait_for(server.stop(), STOP_TIMEOUT_S)
    except TimeoutError:
        log.error("event=stop_timed_out after_s=%g", STOP_TIMEOUT_S)
        os._exit(1)
    log.info("event=stopped")
    if expelled is not None and expelled.is_set():
        raise Error(
            Code.STALE, "the cluster takes this process no more (see its log): start it again"
        )
