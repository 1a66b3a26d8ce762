"""Into the background: a new session that outlives the shell, and tells its starter how it went.

Nothing forks: a fresh process of the same program is started, so that no thread, lock or socket
of the starter is half-inherited. It reports on a pipe, a JSON line for each step, the last one
with ``ready``.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hillfire.errors import Code, Error


def run_in_background(
    arguments: Sequence[str],
    log: Path,
    timeout_s: float,
    on_step: Callable[[dict[str, Any]], None] = lambda step: None,
) -> dict[str, Any]:
    """Start ``python -m hillfire.cli ARGUMENTS`` in a session of its own; return once it is ready.

    ``on_step`` is given what it says on the way; what it said last is returned.

    Raises:
        Error: what it said was wrong, UNAVAILABLE if it ended or TIMED_OUT if it said nothing.
    """
    read_fd, write_fd = os.pipe()
    with open(read_fd, "rb", buffering=0) as pipe:
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as stderr:
                process = subprocess.Popen(
                    [sys.executable, "-m", "hillfire.cli", *arguments, "--ready-fd", str(write_fd)],
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    pass_fds=[write_fd],
                    start_new_session=True,
                    cwd="/",
                )
        except OSError as error:
            raise Error(
                Code.CONFIGURATION, f"cannot write the log {log}: {error.strerror}"
            ) from error
        finally:
            os.close(write_fd)
        for said in steps(pipe.fileno(), timeout_s):
            if said.get("ready"):
                process.returncode = 0  # it goes on without us: not to be waited for
                return said
            if "code" in said:
                process.wait()
                raise Error(Code(said["code"]), str(said["message"]))
            on_step(said)
    with contextlib.suppress(subprocess.TimeoutExpired):
        status = process.wait(1.0)
        raise Error(
            Code.UNAVAILABLE, f"it ended with status {status} before it was ready; its log: {log}"
        )
    process.terminate()
    raise Error(Code.TIMED_OUT, f"it was not ready within {timeout_s:g} s; its log: {log}")


def steps(fd: int, timeout_s: float) -> Iterator[dict[str, Any]]:
    """Yield what a background process says on its pipe, until its end or the time is up."""
    deadline = time.monotonic() + timeout_s
    buffered = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            read = os.read(fd, 65536)
            if not read:
                return
            *lines, buffered = (buffered + read).split(b"\n")
            yield from map(json.loads, lines)
