"""Keeps one service up: starts it again when it ends, unless it was told to leave it down."""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hillfire.errors import Code, Error
from hillfire.local.process import Child, spawn

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
QUICK_S = 10.0
"""A process that lived longer than this did start: its next end is not a failure to start."""
QUICK_ENDS_ALLOWED = 10
START_TIMEOUT_S = float(os.environ.get("HILLFIRE_START_TIMEOUT_S", "60"))
"""Of a process, and of a cluster's chains; an emulated processor needs more."""
STOP_TIMEOUT_S = 15.0


class Keeper:
    """One service, its present process if it has one, and what is wanted of it."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log_path: Path,
        on_end: Callable[["Keeper"], Awaitable[None]],
        *,
        may_leave: bool = False,
    ) -> None:
        """Take what to run; ``on_end`` is awaited after each end, before the next start.

        ``may_leave``: an end with status 0 is somebody's wish (a mount taken off by hand).
        """
        self.name = name
        self.log_path = log_path
        self.child: Child | None = None
        self.restarts = 0
        self.failure: str | None = None
        self._arguments = list(arguments)
        self._on_end = on_end
        self._may_leave = may_leave
        self._wanted = False
        self._unwanted = asyncio.Event()
        self._lock = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process, if one runs."""
        return self.child.pid if self.child is not None and self.child.running else None

    @property
    def state(self) -> str:
        """Return "running", "starting", "stopped" (told so) or "failed" (given up)."""
        if self.pid is not None:
            return "running"
        if self.failure is not None:
            return "failed"
        return "starting" if self._wanted else "stopped"

    async def start(self) -> dict[str, Any]:
        """Start it and keep it up from now on. Returns what it said when it was ready.

        Raises:
            Error: UNAVAILABLE if it runs already; why it could not start.
        """
        async with self._lock:
            if self._wanted and self._watch is not None and not self._watch.done():
                raise Error(Code.EXISTS, f"{self.name} is running already (pid {self.pid})")
            self.failure = None
            self.child, said = await self._spawn()
            self._wanted = True
            self._unwanted.clear()
            self._watch = asyncio.create_task(self._keep(), name=f"keep {self.name}")
            return said

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End it and leave it down: SIGTERM first, SIGKILL after ``timeout_s`` (at once if 0)."""
        self._wanted = False
        self._unwanted.set()
        async with self._lock:
            if self.child is not None and self.child.running:
                if timeout_s and not await self._stop_by_itself(timeout_s):
                    log.warning("event=killed service=%s reason=stop_deadline", self.name)
                self.child.signal(signal.SIGKILL)
            if self._watch is not None:
                await self._watch

    async def _stop_by_itself(self, timeout_s: float) -> bool:
        assert self.child is not None
        self.child.signal(signal.SIGTERM)
        self.child.signal(signal.SIGCONT)  # one that was paused could not end
        return await self.child.wait(timeout_s)

    async def _spawn(self) -> tuple[Child, dict[str, Any]]:
        child, said = await spawn(self.name, self._arguments, self.log_path, START_TIMEOUT_S)
        log.info("event=started service=%s pid=%d", self.name, child.pid)
        return child, said

    async def _keep(self) -> None:
        """Wait for the end and start again, with growing pauses, until that is not wanted."""
        quick_ends = 0
        while True:
            child = self.child
            assert child is not None
            if child.running:
                if not self._wanted:  # told so while this one was starting
                    await child.stop(STOP_TIMEOUT_S)
                status = await child.ended
                log.log(
                    logging.WARNING if self._wanted else logging.INFO,
                    "event=ended service=%s pid=%d status=%d wanted=%s",
                    self.name,
                    child.pid,
                    status,
                    str(self._wanted).lower(),
                )
                if status == 0 and self._may_leave:
                    self._wanted = False
                await self._on_end(self)
                lived_s = asyncio.get_running_loop().time() - child.started
                quick_ends = quick_ends + 1 if lived_s < QUICK_S else 0
            if not self._wanted:
                return
            if quick_ends > QUICK_ENDS_ALLOWED:
                self.failure = f"ended {quick_ends} times within {QUICK_S:g} s of its start"
                log.error("event=given_up service=%s reason=%r", self.name, self.failure)
                return
            pause_s = min(FIRST_PAUSE_S * 2**quick_ends, LONGEST_PAUSE_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._unwanted.wait(), pause_s)
                return
            try:
                self.child, _ = await self._spawn()
                self.restarts += 1
            except Error as error:
                quick_ends += 1
                log.error("event=start_failed service=%s error=%r", self.name, str(error))
