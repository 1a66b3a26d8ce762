"""The clients that adapters share: one a process for each cluster and set of options.

A client is for any number of threads and goes on in forked children, but costs a session and
staging memory; so file systems that ask for the same one get the same one, which is closed when
the last of them is gone.
"""

import os
import threading
import weakref
from typing import Any

from hillfire.client.filesystem import FileSystem, connect

_clients: "weakref.WeakValueDictionary[object, FileSystem]" = weakref.WeakValueDictionary()
_lock = threading.Lock()


def shared_client(address: str, **options: Any) -> FileSystem:
    """Return this process's client of the cluster at ``address``; ``options`` as of ``connect``.

    Raises:
        Error: UNAVAILABLE if no manager answers.
    """
    key = (address, tuple(sorted(options.items())))
    with _lock:
        client = _clients.get(key)
        if client is None:
            client = _clients[key] = connect(address, **options)
            # At exit the files that are still open come first: their finalisers flush them.
            weakref.finalize(client, client._shell.close).atexit = False
        return client


def _in_child() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_in_child)
