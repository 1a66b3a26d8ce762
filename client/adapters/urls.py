"""``hillfire://`` addresses: which cluster, and which path in it.

hillfire:///data/part-0                 the default cluster (``hillfire.connect()``)
hillfire://data/part-0                  the same file: a first word that is no host:port is a name
hillfire://10.0.0.11:9700/data/part-0   the cluster whose manager is there
hillfire://10.0.0.11:9700,10.0.0.12:9700/data/part-0    several managers
"""

import posixpath

PROTOCOL = "hillfire"


def split_url(url: str) -> tuple[str, str]:
    """Return (address or "", path from "/" without a slash at its end) of a URL or a path."""
    address, rest = "", url
    for mark in (f"{PROTOCOL}://", f"{PROTOCOL}::"):
        if url.startswith(mark):
            rest = url[len(mark) :]
            first, _, after = rest.partition("/")
            if first and all(map(_is_manager, first.split(","))):
                address, rest = first, after
            break
    return address, clean_path(rest)


def clean_path(path: str) -> str:
    """Return a path from the root, without a slash at its end nor empty parts."""
    if "//" not in path and path[:1] == "/" and (path[-1:] != "/" or path == "/"):
        return path
    return "/" + "/".join(part for part in path.split("/") if part)


def parent_of(path: str) -> str:
    """Return the directory that a clean path is in; the root is its own."""
    return posixpath.dirname(path) or "/"


def _is_manager(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit()
