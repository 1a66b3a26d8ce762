"""The name space as fsspec has it: listings, attributes, removal, renaming."""

import datetime
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from glob import has_magic
from hashlib import sha256
from typing import Any

from fsspec.utils import stringify_path

from hillfire.client.adapters import listing, moving
from hillfire.client.adapters.fsspec_base import Base
from hillfire.client.adapters.results import (
    MISSING,
    Info,
    moment,
    omit,
)
from hillfire.client.adapters.urls import parent_of
from hillfire.errors import Code, Error


class Names(Base):
    """Operations on names."""

    # --- what is there

    def info(self, path: Any, **kwargs: Any) -> Info:
        """Return a path's type, size and attributes; a symbolic link is followed if it leads on."""
        return self._run(listing.info(self._core, self._strip_protocol(path)))

    def ls(self, path: Any, detail: bool = True, links: bool = True, **kwargs: Any) -> list[Any]:
        """Return the infos (or names) in a directory, or a file's own, in a list.

        ``links``: symbolic links to directories are told as directories; else as links.
        """
        return self._run(listing.ls(self._core, self._strip_protocol(path), detail, links))

    def walk(
        self,
        path: Any,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",
        **kwargs: Any,
    ) -> Iterator[Any]:
        """Yield (directory, its directories, its files); links to directories are not followed.

        ``on_error="omit"`` passes over what is gone or forbidden; an outage is raised all the same.
        """
        kwargs.setdefault("links", False)
        handler = omit if on_error == "omit" else on_error
        yield from super().walk(path, maxdepth, topdown, handler, **kwargs)

    def du(
        self,
        path: Any,
        total: bool = True,
        maxdepth: int | None = None,
        withdirs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Return the bytes of the files below a path, or a dictionary of each."""
        found = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
        sizes = {name: info["size"] for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    def exists(self, path: Any, **kwargs: Any) -> bool:
        """Tell whether a path leads anywhere. An outage is an error, not False."""
        return self.client.exists(self._strip_protocol(path))

    def lexists(self, path: Any, **kwargs: Any) -> bool:
        """Tell whether a path is there, if only as a link that leads nowhere."""
        return self._found(path, follow=False) is not None

    def isdir(self, path: Any) -> bool:
        """Tell whether a path leads to a directory."""
        found = self._found(path)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def isfile(self, path: Any) -> bool:
        """Tell whether a path leads to a regular file."""
        found = self._found(path)
        return found is not None and stat.S_ISREG(found.st_mode)

    def islink(self, path: Any) -> bool:
        """Tell whether a path is a symbolic link."""
        found = self._found(path, follow=False)
        return found is not None and stat.S_ISLNK(found.st_mode)

    def _found(self, path: Any, follow: bool = True) -> os.stat_result | None:
        try:
            return self.client.stat(self._strip_protocol(path), follow_symlinks=follow)
        except Error as error:
            if error.code in MISSING:
                return None
            raise

    def size(self, path: Any) -> int:
        """Return a file's length in bytes."""
        return self.client.stat(self._strip_protocol(path)).st_size

    def sizes(self, paths: Sequence[Any]) -> list[int]:
        """Return the lengths of many files."""
        return self._run(listing.sizes(self._core, [self._strip_protocol(each) for each in paths]))

    def created(self, path: Any) -> datetime.datetime:
        """Return when a path's attributes changed last: creation is not recorded."""
        return moment(self.client.stat(self._strip_protocol(path)).st_ctime)

    def modified(self, path: Any) -> datetime.datetime:
        """Return when a file's bytes changed last."""
        return moment(self.client.stat(self._strip_protocol(path)).st_mtime)

    def ukey(self, path: Any) -> str:
        """Return a hash that changes when the file does."""
        found = self.client.stat(self._strip_protocol(path))
        return sha256(f"{found.st_ino} {found.st_size} {found.st_mtime_ns}".encode()).hexdigest()

    def checksum(self, path: Any) -> int:
        """Return ``ukey`` as a number."""
        return int(self.ukey(path), 16)

    # --- names

    def mkdir(self, path: Any, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a directory.

        Raises:
            Error: EXISTS if there is anything already.
        """
        path = self._strip_protocol(path)
        if create_parents:
            self.client.makedirs(path)
        else:
            self.client.mkdir(path, **kwargs)

    def makedirs(self, path: Any, exist_ok: bool = False) -> None:
        """Make a directory and those above it."""
        path = self._strip_protocol(path)
        if path != "/" or not exist_ok:
            self.client.makedirs(path, exist_ok=exist_ok)

    def rmdir(self, path: Any) -> None:
        """Remove an empty directory."""
        self.client.rmdir(self._strip_protocol(path))

    def rm_file(self, path: Any) -> None:
        """Remove a file."""
        self.client.unlink(self._strip_protocol(path))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, and directories with all that is in them if ``recursive``.

        Links are removed, never followed.

        Raises:
            Error: NOT_FOUND; IS_DIRECTORY unless ``recursive``.
        """
        if maxdepth is not None:
            for name in reversed(self.expand_path(path, recursive=recursive, maxdepth=maxdepth)):
                self.rmdir(name) if self.isdir(name) else self.rm_file(name)
            return
        names: list[str] = []
        for each in path if isinstance(path, (list, tuple, set)) else [path]:
            name = self._strip_protocol(each)
            names += self.expand_path(name) if has_magic(name) else [name]
        if recursive:
            for name in names:
                self._run(moving.remove_tree(self._core, name))
        else:
            self._run(moving.unlink_all(self._core, names))

    def mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = True,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Rename, in one step: a file or a whole directory, over a file that is in the way.

        Into ``path2`` if that is a directory or ends with a slash. Globs and lists are renamed one
        by one.
        """
        source = self._strip_protocol(list(path1) if isinstance(path1, tuple) else path1)
        several = isinstance(source, list) or has_magic(source)
        sources = self.expand_path(source) if several else [source]
        if isinstance(path2, (list, tuple)):
            targets = [self._strip_protocol(each) for each in path2]
        else:
            text = stringify_path(path2)
            into = several or text.endswith("/") or self.isdir(text)
            top = self._strip_protocol(text)
            targets = [
                posixpath.join(top, posixpath.basename(source)) if into else top
                for source in sources
            ]
        rename = self.client.rename
        for source, target in zip(sources, targets, strict=True):
            if source != target:
                self.client.lstat(source)  # it is this one that is missing, if it is
                self._with_parents(target, partial(rename, source, target))

    def cp_file(self, path1: Any, path2: Any, **kwargs: Any) -> None:
        """Copy a file, or make a directory of the same name."""
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if stat.S_ISDIR(self.client.stat(source).st_mode):
            self.makedirs(target, exist_ok=True)
            return
        self._with_parents(target, lambda: self._run(moving.copy_file(self._core, source, target)))

    def touch(self, path: Any, truncate: bool = True, **kwargs: Any) -> None:
        """Make an empty file, or cut one to nothing; without ``truncate``, only set its times."""
        path = self._strip_protocol(path)
        mode = "wb" if truncate else "ab"
        self._with_parents(path, lambda: self.client.open(path, mode).close())
        self.client.utime(path)

    def link(self, src: Any, dst: Any, **kwargs: Any) -> None:
        """Give a file another name."""
        self.client.link(self._strip_protocol(src), self._strip_protocol(dst))

    def symlink(self, src: Any, dst: Any, **kwargs: Any) -> None:
        """Make a symbolic link at ``dst`` that points to ``src``, which may be relative to it."""
        goal = stringify_path(src)
        goal = self._strip_protocol(goal) if "://" in goal else goal
        self.client.symlink(goal, self._strip_protocol(dst))

    def chmod(self, path: Any, mode: int) -> None:
        """Change permission bits."""
        self.client.chmod(self._strip_protocol(path), mode)

    def _with_parents(self, path: str, create: Callable[[], Any]) -> Any:
        """Create something at ``path``; once more when the directories above it were missing."""
        try:
            return create()
        except Error as error:
            if not self.auto_mkdir or error.code is not Code.NOT_FOUND:
                raise
        self.client.makedirs(parent_of(path), exist_ok=True)  # others may make it just now
        return create()
