"""How other processes ask a cluster's supervisor: one JSON line each way on a UNIX socket.

The socket lies in the cluster's directory and is reached through /proc/self/fd, since a path may
be longer than what fits a socket address.
"""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hillfire.errors import Code, Error

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
_REQUEST_TIMEOUT_S = 5.0
_LINE_BYTES = 1 << 20


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Name a socket in a directory by the directory's descriptor: never too long to bind."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


class ControlServer:
    """Answers requests with ``handler`` until it is stopped."""

    def __init__(self, path: Path, handler: Handler) -> None:
        """Take the socket's path, where an older one is replaced: the caller holds the lock."""
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        with _short(self._path) as name:
            listener.bind(name)
        self._path.chmod(0o600)
        self._server = await asyncio.start_unix_server(
            self._serve, sock=listener, limit=_LINE_BYTES
        )

    async def stop(self) -> None:
        """Listen no more; what is being answered still is."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _REQUEST_TIMEOUT_S)
            try:
                answer = await self._handler(json.loads(line))
            except Error as error:
                answer = {"code": int(error.code), "message": error.strerror}
            writer.write(json.dumps(answer).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), _REQUEST_TIMEOUT_S)
        except (OSError, ValueError, TimeoutError):
            pass  # the asker is gone, or spoke nonsense: nothing to tell it
        finally:
            writer.close()


def ask(path: Path, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Ask the supervisor of the cluster in ``path``'s directory.

    Raises:
        Error: UNAVAILABLE if none runs, TIMED_OUT, or what the supervisor answered.
    """
    asker = socket.socket(socket.AF_UNIX)
    asker.settimeout(timeout_s)
    with asker:
        try:
            with _short(path) as name:
                asker.connect(name)
            asker.sendall(json.dumps(request).encode() + b"\n")
            with asker.makefile("rb") as replies:
                line = replies.readline(_LINE_BYTES)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise not_running(path.parent) from None
        except TimeoutError:
            raise Error(
                Code.TIMED_OUT,
                f"the supervisor of {path.parent} did not answer within {timeout_s:g} s",
            ) from None
        except OSError as error:
            raise Error(Code.CONNECTION, f"{path}: {error.strerror}") from error
    answer: dict[str, Any] = {}
    with suppress(ValueError):
        answer = json.loads(line)
    if not answer:
        raise Error(Code.CONNECTION, f"the supervisor of {path.parent} went away while asked")
    if "code" in answer:
        raise Error(Code(answer["code"]), str(answer["message"]))
    return answer


def not_running(directory: Path) -> Error:
    """Make the error that says that a cluster is not up, and how to start it."""
    if not (directory / "cluster.json").exists():
        return Error(
            Code.NOT_FOUND,
            f"{directory} holds no cluster: start one with `hillfire up --dir {directory}`",
        )
    return Error(
        Code.UNAVAILABLE,
        f"the cluster in {directory} is not running: start it with `hillfire up --dir {directory}`",
    )
