"""Infos of paths and of directories as operations, for both faces."""

from collections.abc import Sequence
from typing import Any

from hillfire.client import namespace
from hillfire.client.actions import Operation
from hillfire.client.adapters.moving import gather
from hillfire.client.adapters.results import MISSING, Info, dangling, good, info_of, link_info
from hillfire.client.attributes import stat_result
from hillfire.client.core import Core
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2


def info(core: Core, path: str) -> Operation[Info]:
    """Return a path's info; a symbolic link is followed if it leads anywhere.

    Raises:
        Error: NOT_FOUND and the like.
    """
    inode = yield from namespace.lookup(core, path, False)
    found = stat_result(inode)
    if inode.type != meta_pb2.SYMLINK:
        return info_of(path, found)
    try:
        there = info_of(path, (yield from namespace.stat(core, path)), link=True)
    except Error as error:
        if error.code not in MISSING:
            raise
        there = dangling(path, found)
    return {**there, "destination": inode.symlink.decode("utf-8", "surrogateescape")}


def ls(core: Core, path: str, detail: bool, links: bool) -> Operation[list[Any]]:
    """Return the infos (or names) in a directory, or a file's own, in a list.

    ``links``: symbolic links to directories are told as directories; else as links.

    Raises:
        Error: NOT_FOUND and the like.
    """
    try:
        entries = yield from namespace.scandir(core, path)
    except Error as error:
        if error.code is not Code.NOT_DIRECTORY:
            raise
        return [(yield from info(core, path))] if detail else [path]
    if not detail:
        return [entry.path for entry in entries]
    infos = [info_of(entry.path, entry.stat()) for entry in entries]
    followed = [number for number, entry in enumerate(entries) if entry.is_symlink()]
    stats = [namespace.stat(core, entries[number].path) for number in followed]
    for number, target in zip(followed, (yield from gather(stats)), strict=True):
        infos[number] = link_info(entries[number], target, links)
    return infos


def sizes(core: Core, paths: Sequence[str]) -> Operation[list[int]]:
    """Return the lengths of many files.

    Raises:
        Error: of the first that is not there.
    """
    stats = yield from gather([namespace.stat(core, path) for path in paths])
    return [good(each).st_size for each in stats]
