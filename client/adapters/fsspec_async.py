"""The coroutines of the fsspec file system: hillfire's asyncio face under fsspec's names.

    fs = fsspec.filesystem("hillfire", asynchronous=True)
    data = await fs._cat_file("/data/part-0")
    await fs.aclose()                       # or leave it to the end of the process

Each event loop gets a client of its own, when it first needs one; a forked child forgets those of
its parent. What moves local files runs in a thread on the synchronous face.
"""

import asyncio
import os
import stat
import weakref
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from fsspec.asyn import get_loop

from hillfire.client import namespace
from hillfire.client.adapters import fetching, listing, moving
from hillfire.client.adapters.fsspec_base import Base
from hillfire.client.adapters.results import MISSING, Info, good, omit, sort_out, spread
from hillfire.client.adapters.urls import parent_of
from hillfire.client.aio_file import AsyncFile
from hillfire.client.aio_filesystem import AsyncFileSystem, connect
from hillfire.errors import Code, Error

T = TypeVar("T")


class Coroutines(Base):
    """What ``asynchronous=True`` is for."""

    _clients: "weakref.WeakKeyDictionary[Any, asyncio.Future[AsyncFileSystem]] | None" = None
    _clients_pid = 0

    @property
    def loop(self) -> Any:
        """Fsspec's own event loop, for callers that run coroutines on it."""
        return get_loop()

    async def async_client(self) -> AsyncFileSystem:
        """Return hillfire's own asyncio file system on the running loop.

        Raises:
            Error: UNAVAILABLE if no manager answers.
        """
        if self._clients is None or self._clients_pid != os.getpid():
            self._clients, self._clients_pid = weakref.WeakKeyDictionary(), os.getpid()
        loop = asyncio.get_running_loop()
        attempt = self._clients.get(loop)
        if attempt is None or (attempt.done() and (attempt.cancelled() or attempt.exception())):
            attempt = self._clients[loop] = asyncio.ensure_future(
                connect(self.address, **self._options)
            )
        return await asyncio.shield(attempt)

    async def aclose(self) -> None:
        """Close the running loop's client."""
        if self._clients is None or self._clients_pid != os.getpid():
            return
        attempt = self._clients.pop(asyncio.get_running_loop(), None)
        if attempt is not None:
            await (await attempt).close()

    async def _do(self, make: Any, *arguments: Any) -> Any:
        """Run an operation of the core, made of the running loop's core and ``arguments``.

        What was begun is finished when its caller is cancelled: files are closed, not left open.
        """
        client = await self.async_client()
        return await asyncio.shield(client._run(make(client._core, *arguments)))

    # --- what is there

    async def _info(self, path: Any, **kwargs: Any) -> Info:
        found: Info = await self._do(listing.info, self._strip_protocol(path))
        return found

    async def _ls(
        self, path: Any, detail: bool = True, links: bool = True, **kwargs: Any
    ) -> list[Any]:
        found: list[Any] = await self._do(listing.ls, self._strip_protocol(path), detail, links)
        return found

    async def _walk(
        self,
        path: Any,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        kwargs.setdefault("links", False)
        kwargs.pop("prefix", None)
        handler = omit if on_error == "omit" else on_error
        async for found in super()._walk(path, maxdepth, topdown, on_error=handler, **kwargs):
            yield found

    async def _exists(self, path: Any, **kwargs: Any) -> bool:
        return bool(await self._do(namespace.exists, self._strip_protocol(path)))

    async def _status(self, path: Any) -> int:
        """Return the mode of what a path leads to, 0 if nothing."""
        try:
            found = await self._do(namespace.stat, self._strip_protocol(path))
        except Error as error:
            if error.code in MISSING:
                return 0
            raise
        return int(found.st_mode)

    async def _isdir(self, path: Any) -> bool:
        return stat.S_ISDIR(await self._status(path))

    async def _isfile(self, path: Any) -> bool:
        return stat.S_ISREG(await self._status(path))

    async def _sizes(self, paths: Any, batch_size: int | None = None) -> list[int]:
        names = [self._strip_protocol(path) for path in paths]
        found: list[int] = await self._do(listing.sizes, names)
        return found

    # --- names

    async def _mkdir(self, path: Any, create_parents: bool = True, **kwargs: Any) -> None:
        make = namespace.makedirs if create_parents else namespace.mkdir
        await self._do(make, self._strip_protocol(path))

    async def _makedirs(self, path: Any, exist_ok: bool = False) -> None:
        await self._do(namespace.makedirs, self._strip_protocol(path), 0o777, exist_ok)

    async def _rmdir(self, path: Any) -> None:
        await self._do(namespace.remove, self._strip_protocol(path), True)

    async def _rm_file(self, path: Any, **kwargs: Any) -> None:
        await self._do(namespace.remove, self._strip_protocol(path))

    async def _rm(
        self,
        path: Any,
        recursive: bool = False,
        batch_size: int | None = None,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        if maxdepth is not None:
            await asyncio.to_thread(self.rm, path, recursive, maxdepth)
            return
        for each in path if isinstance(path, (list, tuple, set)) else [path]:
            for name in await self._expand_path(self._strip_protocol(each)):
                await self._do(moving.remove_tree if recursive else namespace.remove, name)

    async def _mv_file(self, path1: Any, path2: Any) -> None:
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        await self._do(namespace.lookup, source, False)  # it is this one that is missing, if it is
        await self._with_parents_async(target, namespace.rename, source, target)

    async def _cp_file(self, path1: Any, path2: Any, **kwargs: Any) -> None:
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if (await self._info(source))["type"] == "directory":
            await self._makedirs(target, exist_ok=True)
        else:
            await self._with_parents_async(target, moving.copy_file, source, target)

    async def _touch(self, path: Any, truncate: bool = True, **kwargs: Any) -> None:
        await asyncio.to_thread(self.touch, path, truncate)

    # --- files

    async def open_async(self, path: Any, mode: str = "rb", **kwargs: Any) -> AsyncFile:
        """Open a file of bytes: ``await file.read()`` and so on."""
        if "b" not in mode or kwargs.get("compression"):
            raise ValueError("coroutines read and write bytes: decode them yourself")
        client = await self.async_client()
        path = self._strip_protocol(path)
        try:
            return await client.open(path, mode)
        except Error as error:
            if mode[:1] == "r" or not self.auto_mkdir or error.code is not Code.NOT_FOUND:
                raise
        await client.makedirs(parent_of(path), exist_ok=True)
        return await client.open(path, mode)

    async def _cat_file(
        self, path: Any, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        found: bytes = await self._do(fetching.read_file, self._strip_protocol(path), start, end)
        return found

    async def _cat_ranges(
        self,
        paths: list[Any],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        names, starts, ends = spread(self._strip_protocol(paths), starts, ends)
        found = await self._do(fetching.read_ranges, names, starts, ends)
        return [each if on_error == "return" else good(each) for each in found]

    async def _cat(
        self,
        path: Any,
        recursive: bool = False,
        on_error: str = "raise",
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        paths = await self._expand_path(path, recursive=recursive)
        if recursive:
            paths = [each for each in paths if not await self._isdir(each)]
        if paths == [self._strip_protocol(path)] and not isinstance(path, list):
            return await self._cat_file(paths[0], **kwargs)
        found = await self._cat_ranges(paths, kwargs.get("start"), kwargs.get("end"))
        return sort_out(paths, found, on_error)

    async def _pipe_file(
        self, path: Any, value: Any, mode: str = "overwrite", **kwargs: Any
    ) -> None:
        path = self._strip_protocol(path)
        await self._with_parents_async(path, moving.write_file, path, value, mode == "create")

    async def _get_file(self, rpath: Any, lpath: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self.get_file, rpath, lpath, **kwargs)

    async def _put_file(
        self, lpath: Any, rpath: Any, mode: str = "overwrite", **kwargs: Any
    ) -> None:
        await asyncio.to_thread(self.put_file, lpath, rpath, mode=mode, **kwargs)

    async def _with_parents_async(self, path: str, make: Any, *arguments: Any) -> None:
        """Create something at ``path``; once more when the directories above it were missing."""
        try:
            await self._do(make, *arguments)
            return
        except Error as error:
            if not self.auto_mkdir or error.code is not Code.NOT_FOUND:
                raise
        await self._makedirs(parent_of(path), exist_ok=True)
        await self._do(make, *arguments)
