"""Answers in fsspec's shapes: infos, lists by path, errors that are raised or passed over."""

import datetime
import os
import stat
from collections.abc import Sequence
from typing import Any

from hillfire.client.attributes import Entry
from hillfire.errors import Code, Error

Info = dict[str, Any]

MISSING = frozenset({Code.NOT_FOUND, Code.NOT_DIRECTORY, Code.LOOP})
"""There is nothing at a path; any other error leaves that open."""
OMITTED = MISSING | {Code.ACCESS}
"""What a walk passes over. An outage is no empty directory: that is raised."""
KEPT = ("mode", "uid", "gid", "mtime", "ino", "nlink")


def info_of(path: str, found: os.stat_result, link: bool = False) -> Info:
    """Return the info of a path from its attributes; ``link``: they were reached through one."""
    kind = stat.S_IFMT(found.st_mode)
    info: Info = {
        "name": path,
        "size": found.st_size if kind != stat.S_IFDIR else 0,
        "type": {stat.S_IFREG: "file", stat.S_IFDIR: "directory"}.get(kind, "other"),
        "created": found.st_ctime,
        "islink": link,
    }
    for name in KEPT:
        info[name] = getattr(found, f"st_{name}")
    return info


def dangling(path: str, found: os.stat_result) -> Info:
    """Return the info of a symbolic link that is not followed, or leads nowhere."""
    return {**info_of(path, found, link=True), "type": "link", "size": 0}


def link_info(entry: Entry, target: os.stat_result | Error, links: bool) -> Info:
    """Return the info of a directory's entry that is a symbolic link, from where it leads.

    Raises:
        Error: if that is not known.
    """
    if isinstance(target, Error):
        if target.code not in MISSING:
            raise target
        return dangling(entry.path, entry.stat())
    if stat.S_ISDIR(target.st_mode) and not links:
        return dangling(entry.path, entry.stat())
    return info_of(entry.path, target, link=True)


def good(result: Any) -> Any:
    """Return a result, or raise the error that it is."""
    if isinstance(result, BaseException):
        raise result
    return result


def omit(error: BaseException) -> None:
    """Pass over what is gone or forbidden, raise the rest."""
    if isinstance(error, Error) and error.code not in OMITTED:
        raise error


def spread(paths: Any, starts: Any, ends: Any) -> tuple[list[str], list[Any], list[Any]]:
    """Return three lists of one length: a single bound holds for every path."""
    if not isinstance(paths, list):
        raise TypeError("paths must be a list")
    first, last = (
        [each] * len(paths) if each is None or isinstance(each, int) else list(each)
        for each in (starts, ends)
    )
    if not len(paths) == len(first) == len(last):
        raise ValueError("paths, starts and ends differ in length")
    return paths, first, last


def sort_out(paths: Sequence[str], found: Sequence[Any], on_error: str) -> dict[str, Any]:
    """Return what was found by path; errors are raised, left out or returned."""
    pairs = zip(paths, found, strict=True)
    if on_error == "raise":
        return {path: good(each) for path, each in pairs}
    return {
        path: each
        for path, each in pairs
        if on_error == "return" or not isinstance(each, BaseException)
    }


def moment(seconds: float) -> datetime.datetime:
    """Return a time of day with its zone."""
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
