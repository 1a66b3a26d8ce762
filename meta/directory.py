"""A service's directory: one process at a time, one cluster for good."""

import fcntl
import os
from pathlib import Path

from hillfire.errors import Code, Error


class Directory:
    """The directory, locked as long as this object is open."""

    def __init__(
        self, path: Path, service: str = "metadata service", *, shared: bool = False
    ) -> None:
        """Make it if it is missing, and take the lock; ``service`` is for messages.

        ``shared``: others of its kind may use it too, but nobody who wants it for himself.

        Raises:
            Error: BUSY when another process has it, IO.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Error(Code.IO, f"cannot use {path} for the {service}: {error}") from error
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            text = f"another {service} runs in {path}: stop it first, or use another directory"
            raise Error(Code.BUSY, text) from error

    @property
    def cluster(self) -> str:
        """The cluster that it belongs to; empty if to none yet."""
        try:
            return (self.path / "cluster").read_text().strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise Error(Code.IO, f"cannot read {self.path / 'cluster'}: {error}") from error

    def join(self, cluster: str) -> None:
        """Belong to ``cluster`` from now on.

        Raises:
            Error: WRONG_CLUSTER if it belongs to another, IO.
        """
        if self.cluster not in ("", cluster):
            raise Error(
                Code.WRONG_CLUSTER,
                f"{self.path} belongs to cluster {self.cluster}, the manager serves {cluster}: "
                "give it its own cluster's manager, or a new directory",
            )
        if self.cluster:
            return
        partial = self.path / "cluster.partial"
        try:
            with partial.open("w") as file:
                file.write(cluster + "\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path / "cluster")
        except OSError as error:
            raise Error(Code.IO, f"cannot write in {self.path}: {error}") from error

    def close(self) -> None:
        """Let go of the lock. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
