"""``hillfire://`` for fsspec: what pandas, PyArrow, DuckDB, torch, zarr and dask open paths with.

    fsspec.open("hillfire:///data/part-0").open()          the default cluster
    fsspec.filesystem("hillfire", address="10.0.0.11:9700")

Nothing is cached but connections: what another host wrote and closed is seen at once, as on a
local disk. Operations run on the caller's thread over blocking sockets, so that forked workers
(PyTorch's data loaders) go on with the file system they inherited; ``asynchronous=True`` gives the
coroutines (``_cat_file`` and so on), which run on the caller's event loop (``fsspec_async.py``).
"""

import os
from functools import partial
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.utils import isfilelike

from hillfire.client.adapters import fetching, local, moving
from hillfire.client.adapters.file import HillfireFile
from hillfire.client.adapters.fsspec_async import Coroutines
from hillfire.client.adapters.fsspec_names import Names
from hillfire.client.adapters.results import good, sort_out, spread


class HillfireFileSystem(Names, Coroutines):
    """A hillfire cluster as an fsspec file system. Paths begin at its root."""

    def _open(
        self, path: str, mode: str = "rb", autocommit: bool = True, **hints: Any
    ) -> HillfireFile:
        """Open a file of bytes. Hints of block size and caching are not needed."""
        return self._create(path, mode, autocommit)

    def _create(self, path: str, mode: str, autocommit: bool = True) -> HillfireFile:
        if mode[:1] == "r":
            return HillfireFile.opened(self, path, mode)
        opened = partial(HillfireFile.opened, self, path, mode, autocommit)
        file: HillfireFile = self._with_parents(path, opened)
        return file

    def cat_file(
        self, path: Any, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        """Return a file's bytes, or a slice of them."""
        path = self._strip_protocol(path)
        return self._run(fetching.read_file(self._core, path, start, end))

    def cat_ranges(
        self,
        paths: list[Any],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Return a slice of each path's bytes, or its error: one batch of reads for all of them.

        ``max_gap`` is not needed: a range more in a batch costs less than the bytes between two.
        """
        names, starts, ends = spread(self._strip_protocol(paths), starts, ends)
        found = self._run(fetching.read_ranges(self._core, names, starts, ends))
        return found if on_error == "return" else [good(each) for each in found]

    def cat(
        self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any
    ) -> Any:
        """Return the bytes of one file, or a dictionary of those of several."""
        paths = self.expand_path(path, recursive=recursive)
        if recursive:
            paths = [each for each in paths if not self.isdir(each)]
        if (
            len(paths) == 1
            and not isinstance(path, list)
            and paths[0] == self._strip_protocol(path)
        ):
            return self.cat_file(paths[0], **kwargs)
        found = self.cat_ranges(paths, kwargs.get("start"), kwargs.get("end"))
        return sort_out(paths, found, on_error)

    def pipe_file(self, path: Any, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a whole file; with mode "create" only a new one."""
        path = self._strip_protocol(path)
        new = mode == "create"
        self._with_parents(path, lambda: self._run(moving.write_file(self._core, path, value, new)))

    def get_file(
        self,
        rpath: Any,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
        **kwargs: Any,
    ) -> None:
        """Copy a file to the local disk, or into an open file; of a directory, only make it."""
        rpath = self._strip_protocol(rpath)
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        if outfile is None and self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        with self.client.open(rpath, "rb") as file:
            callback.set_size(file.stream.length)
            if outfile is not None:
                local.read_out(self.client, file, outfile.write, callback.relative_update)
                return
            os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
            with open(lpath, "wb", buffering=0) as target:
                local.read_out(self.client, file, target.write, callback.relative_update)

    def put_file(
        self,
        lpath: Any,
        rpath: Any,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **kwargs: Any,
    ) -> None:
        """Copy a file from the local disk; of a directory, only make it."""
        rpath = self._strip_protocol(rpath)
        if os.path.isdir(lpath):
            self.makedirs(rpath, exist_ok=True)
            return
        with open(lpath, "rb", buffering=0) as source:
            size = os.fstat(source.fileno()).st_size
            callback.set_size(size)
            with self._create(rpath, "xb" if mode == "create" else "wb") as file:
                local.write_in(self.client, source.readinto, file, size, callback.relative_update)
