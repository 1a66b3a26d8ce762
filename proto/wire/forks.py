"""Whether this process is a fork of the one that made a connection.

A forked child shares its parent's sockets: a byte that it received would be missing there, and
shutting a socket down would end the parent's connection. So connections remember the generation
that they were made in, and refuse to work in a later one.
"""

import os

generation = 0
"""Grows by one with each fork that led to this process."""


def _forked() -> None:
    global generation
    generation += 1


os.register_at_fork(after_in_child=_forked)
