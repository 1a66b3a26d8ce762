"""How many bytes this process copied in user space to move data, counted once a request.

What the kernel copies (page cache, sockets) is not in it, nor what a file object's buffer costs.
Over shm a read into hillfire's own memory costs none: the server reads straight to its place. A
write costs one at every node that has a successor, which keeps the bytes in memory of its own
while it forwards them; an update through the log one more, for the page that is kept until the
next checkpoint.
"""

from hillfire import metrics

_NAME = "hillfire_copied_bytes_total"
_TEXT = "Bytes copied in user space to move data."

CLIENT = metrics.counter(_NAME, _TEXT, where="client")
"""Buffers that no server can map, through staging memory (shm)."""
MEMORY = metrics.counter(_NAME, _TEXT, where="memory")
"""Payloads of writes into a storage node's own memory, from where they are forwarded."""
SCRATCH = metrics.counter(_NAME, _TEXT, where="scratch")
"""Small reads of pages that are in the log alone, or whose checksums are not known yet."""
LOG = metrics.counter(_NAME, _TEXT, where="log")
"""Pages of small updates, kept in memory until a checkpoint."""
