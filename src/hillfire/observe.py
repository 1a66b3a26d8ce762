"""Logging of a process: key=value lines on standard error, set up once by whoever starts it.

Modules log through the standard library (``logging.getLogger(__name__)``) as
``log.info("chain_changed chain=%d version=%d", ...)``; what is added here is the time, the level
and which process of the cluster speaks, so that the logs of all can be merged and sorted.
"""

import contextlib
import json
import logging
import os
import time
from typing import TextIO

from hillfire.errors import Code, Error

LEVELS = ("debug", "info", "warning", "error")


class KeyValueFormatter(logging.Formatter):
    """One line a record, whatever the message holds: a log is read by line."""

    def __init__(self, process: str) -> None:
        """Name the process that every line is of."""
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        message = record.getMessage()
        if "\n" in message:
            message = "message=" + json.dumps(message)
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = (
            f"time={seconds}.{int(record.msecs):03d}Z level={record.levelname.lower()} "
            f"process={self._process} logger={record.name} {message}"
        )
        if record.exc_info:
            line += " exception=" + json.dumps(self.formatException(record.exc_info))
        return line


def setup(process: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Send this process's log to ``stream`` (standard error), each line naming ``process``.

    ``HILLFIRE_LOG`` in the environment goes before ``level``.

    Raises:
        Error: CONFIGURATION if the level is none.
    """
    chosen = os.environ.get("HILLFIRE_LOG", level).lower()
    if chosen not in LEVELS:
        raise Error(Code.CONFIGURATION, f"HILLFIRE_LOG = {chosen!r} is none of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(KeyValueFormatter(process))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(chosen.upper())
    if chosen == "debug":  # asyncio's own chatter says nothing about the cluster
        logging.getLogger("asyncio").setLevel(logging.INFO)
    logging.captureWarnings(True)


def name_process(process: str) -> None:
    """Show ``process`` in ``ps`` and ``top``, cut to the 15 bytes that the kernel keeps."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(f"hf-{process}"[:15])
