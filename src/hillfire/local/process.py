"""One child process: started with a pipe on which it says that it is ready, watched until it ends.

The pipe carries one line of JSON: ``{"ready": true, ...}``, or the error that stopped the child.
Its end is watched through a pidfd, so that the supervisor knows within the millisecond and can
attest it to the manager; nothing polls.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hillfire.errors import Code, Error

_PR_SET_PDEATHSIG = 1
LOG_BYTES_KEPT = 32 << 20
"""A log longer than this is set aside (one generation) when its process starts."""


def die_with_parent(parent: int) -> None:
    """End this process, by SIGTERM, when its parent ends; at once if that happened already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def say_ready(ready_fd: int | None, **more: object) -> None:
    """Tell whoever started this process that it serves."""
    _say(ready_fd, {"ready": True, "pid": os.getpid(), **more})


def say_failed(ready_fd: int | None, error: Error) -> None:
    """Tell whoever started this process why it does not serve."""
    _say(ready_fd, {"ready": False, "code": int(error.code), "message": error.strerror})


_said: set[int] = set()
"""Pipes that were spoken on and closed: their numbers may be some other file's by now."""


def _say(ready_fd: int | None, what: dict[str, object]) -> None:
    if ready_fd is not None and ready_fd not in _said:
        _said.add(ready_fd)
        with contextlib.suppress(OSError):
            os.write(ready_fd, json.dumps(what).encode() + b"\n")
            os.close(ready_fd)


class Child:
    """A running child. Made by :func:`spawn`; ``ended`` is its exit status once it has ended."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        """Watch a process that was just started. Must be called in the loop's thread."""
        self.name = name
        self.pid = process.pid
        self.started = time.monotonic()
        self.log = log
        self._process = process
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._on_end)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.ended.set_result(self._process.wait())

    def __repr__(self) -> str:
        """Tell the state too."""
        state = f"ended with {self.ended.result()}" if self.ended.done() else "running"
        return f"<Child {self.name} pid {self.pid} {state}>"

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self.ended.done()

    def signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self.running:
            signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for its end; return whether it came in time."""
        await asyncio.wait([self.ended], timeout=timeout_s)
        return self.ended.done()

    async def stop(self, timeout_s: float) -> bool:
        """End it: SIGTERM, and SIGKILL after ``timeout_s``. Return whether it went by itself."""
        self.signal(signal.SIGTERM)
        if await self.wait(timeout_s):
            return True
        self.signal(signal.SIGKILL)
        await self.ended
        return False

    def last_words(self, lines: int = 5) -> str:
        """Return the end of its log, for an error's message."""
        with contextlib.suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
            text = file.read().decode(errors="replace")
            return "\n".join(text.splitlines()[-lines:])
        return ""


async def spawn(
    name: str, arguments: Sequence[str], log: Path, timeout_s: float
) -> tuple[Child, dict[str, Any]]:
    """Start ``python -m hillfire.cli ARGUMENTS`` and wait until it says that it is ready.

    Returns the child and what it said.

    Raises:
        Error: what the child said was wrong, UNAVAILABLE if it ended or said nothing in time.
    """
    read_fd, write_fd = os.pipe()
    try:
        child = _start(name, arguments, log, write_fd)
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    try:
        line = await asyncio.wait_for(_read_line(read_fd), timeout_s)
    except TimeoutError:
        await child.stop(0)
        message = f"{name} was not ready within {timeout_s:g} s; its log: {log}"
        raise Error(Code.UNAVAILABLE, message) from None
    except BaseException:
        await asyncio.shield(child.stop(0))
        raise
    said: dict[str, Any] = json.loads(line) if line else {}
    if said.get("ready"):
        return child, said
    if not await child.wait(5.0):
        await child.stop(0)
    if "code" in said:
        raise Error(Code(said["code"]), f"{name}: {said['message']}")
    raise Error(
        Code.UNAVAILABLE,
        f"{name} ended with status {child.ended.result()} before it was ready; the end of {log}:\n"
        f"{child.last_words()}",
    )


def _start(name: str, arguments: Sequence[str], log: Path, ready_fd: int) -> Child:
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES_KEPT:
            os.replace(log, log.with_suffix(".log.1"))
    command = [sys.executable, "-m", "hillfire.cli", *arguments]
    command += ["--ready-fd", str(ready_fd), "--parent", str(os.getpid())]
    with open(log, "ab") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            pass_fds=[ready_fd],
            process_group=0,  # Ctrl-C is the supervisor's: it stops the children in order
        )
    return Child(name, process, log)


async def _read_line(fd: int) -> bytes:
    """Read up to the end of the first line or of the pipe; closes ``fd``."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
    )
    try:
        return await reader.readline()
    finally:
        transport.close()
