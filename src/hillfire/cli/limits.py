"""The machine's own limits, taken beside what ``hillfire bench io`` measures, in the same run.

For a read: one process that ``preadv``s the same blocks of a local file from the page cache into
memory and takes their CRC32C. For a write: one that ``pwrite``s them as often as there are
replicas. Over tcp a read has a second limit: what one process ``sendfile``s over loopback and
another receives into place.
"""

import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crc32c import crc32c

from hillfire.cli.load import Taken, offsets, run_for, warm
from hillfire.cli.workload import Workload
from hillfire.config import MIB

MAX_FILE_BYTES = 256 * MIB
CONNECT_TIMEOUT_S = 20.0
_SENDER = """
import os, socket, sys
port, fd, block = map(int, sys.argv[1:])
try:
    with socket.create_connection(("127.0.0.1", port)) as out:
        while True:
            done = 0
            while done < block:
                done += os.sendfile(out.fileno(), fd, done, block - done)
except ConnectionError:
    pass  # nobody takes more
"""


class Limits:
    """A local file in the page cache, and what can be done with it."""

    def __init__(self, directory: Path | None, size: int, replicas: int) -> None:
        """Make the file in ``directory``, else where temporary files are made."""
        self.replicas = replicas
        self._size = min(size, MAX_FILE_BYTES)
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  closed by close()
        piece = random.Random(2).randbytes(MIB)
        for _ in range(0, self._size, MIB):
            self._file.write(piece)
        self._file.flush()
        self._fd = self._file.fileno()

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def take(self, workload: Workload, seconds: float) -> Taken:
        """Run the limit of a workload."""
        block, batch, fd = workload.block, workload.batch, self._fd
        view = memoryview(bytearray(workload.call_bytes))
        parts = [view[i * block : (i + 1) * block] for i in range(batch)]
        places = offsets(workload, self._size, 0)
        copies = range(self.replicas)

        def read() -> None:
            for part, place in zip(parts, next(places).tolist(), strict=True):
                os.preadv(fd, [part], place)
                crc32c(part)

        def write() -> None:
            for part, place in zip(parts, next(places).tolist(), strict=True):
                for _ in copies:
                    os.pwrite(fd, part, place)
            if workload.fsync:
                os.fdatasync(fd)

        call = write if workload.write else read
        warm(call, seconds)
        return run_for(seconds, call)

    def take_tcp(self, workload: Workload, seconds: float) -> Taken:
        """Run the limit of a read over loopback: a ``sendfile`` -> ``recv_into`` pair."""
        view = memoryview(bytearray(workload.call_bytes))
        with _sender(self._fd, min(workload.block, self._size)) as sock:

            def receive() -> None:
                got = 0
                while got < len(view):
                    got += sock.recv_into(view[got:])

            warm(receive, seconds)
            return run_for(seconds, receive)._replace(cpu_ns=0)  # half of it is the sender's


@contextlib.contextmanager
def _sender(fd: int, block: int) -> Iterator[socket.socket]:
    """Start a process that sends blocks of a file over loopback until nobody takes them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(CONNECT_TIMEOUT_S)
        port = listener.getsockname()[1]
        command = [sys.executable, "-c", _SENDER, str(port), str(fd), str(block)]
        process = subprocess.Popen(command, pass_fds=[fd])
        try:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(CONNECT_TIMEOUT_S)
                yield sock
        finally:
            process.kill()
            process.wait()
