"""Who leads: one manager of those that were started over one directory, by an epoch and a lease.

Every leader has an epoch, a subdirectory of the manager's, with a database of its own, a file
whose lock it holds while it lives and a counter that it raises eight times a lease:

    epoch-00000007/held       locked by the process that leads
                   beat       the counter
                   database/  this epoch's state, complete once ``ready`` is there
                   ready

Who wants to lead waits until the newest epoch's lock is free (its process is gone), or until its
counter has stood still for a lease on the waiter's own clock (its process is paused, or hangs).
Then it *claims* the next epoch: a prepared directory is renamed to that name, which one of several
can do. Only after that it copies the newest complete database. A leader looks for a newer claim
after each record it has made durable and before anybody is told of it. So whatever an earlier
leader has published was durable before the claim, and is in the copy; and what it stores after the
claim, however long it was paused in between, it never publishes.

A leader's own lease ends half a lease after it *began* to raise the counter last: past that it
answers nobody until it has raised it again and seen no newer claim.

Alternatives rejected: a lock alone (a paused leader keeps it for ever); opening the paused leader's
database for writing (RocksDB rightly refuses); killing the paused process (it may be on another
host, and what it does before it dies is unknown).

Source: design.md section 7 ("leader by a lease in the engine"); Gray & Cheriton, "Leases" (SOSP
1989); Burrows, "The Chubby lock service" (OSDI 2006), sequencers.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from struct import Struct

from hillfire.clock import boot_ns
from hillfire.durable import sync_directory
from hillfire.errors import Code, Error

BEATS_A_LEASE = 8
KEPT_EPOCHS = 2
"""Complete databases kept: the leader's, and the one that it copied."""

_PREFIX = "epoch-"
_BEAT = Struct(">Q")


class Epoch:
    """A claimed epoch: this process leads by it until a newer one is claimed."""

    number: int
    path: Path
    led_until_ns: int
    """on this host's clock: past this, nobody may be answered"""

    def __init__(
        self, directory: Path, number: int, held_fd: int, lease_ns: int, clock: Callable[[], int]
    ) -> None:
        """Take what ``Candidate.claim`` made."""
        self.number = number
        self.path = directory / _name(number)
        self._directory = directory
        self._held_fd = held_fd
        self._lease_ns = lease_ns
        self._clock = clock
        self._beats = 0
        self.led_until_ns = 0

    def __repr__(self) -> str:
        """Tell the number."""
        return f"<Epoch {self.number} in {self._directory}>"

    def renew(self) -> int:
        """Raise the counter; return until when this process leads.

        Raises:
            Error: NOT_LEADER when a newer epoch was claimed; IO.
        """
        began_ns = self._clock()
        self._beats += 1
        try:
            # Not truncated first: eight bytes that are there can be replaced on a full disk too.
            fd = os.open(self.path / "beat", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(fd, _BEAT.pack(self._beats), 0)
            finally:
                os.close(fd)
        except OSError as error:
            self.check()
            raise Error(Code.IO, f"cannot write in {self.path}: {error}") from error
        self.check()
        self.led_until_ns = began_ns + self._lease_ns // 2
        return self.led_until_ns

    def check(self) -> None:
        """Make sure that no newer epoch was claimed before this moment.

        Raises:
            Error: NOT_LEADER; IO.
        """
        newest = max(_epochs(self._directory), default=0)
        if newest != self.number:
            text = f"another manager leads, by epoch {newest}; this one's was {self.number}"
            raise Error(Code.NOT_LEADER, text)

    def source(self) -> Path | None:
        """Return the newest complete database of an earlier epoch."""
        for number in sorted(_epochs(self._directory), reverse=True):
            path = self._directory / _name(number)
            if number < self.number and (path / "ready").exists():
                return path / "database"
        return None

    def ready(self) -> None:
        """Note that this epoch's database is complete and durable."""
        _durable_file(self.path / "ready", b"")

    def clean(self) -> None:
        """Remove what no later leader will ask for: all but this database and the one before."""
        kept = 0
        for number in sorted(_epochs(self._directory), reverse=True):
            path = self._directory / _name(number)
            if number <= self.number and kept >= KEPT_EPOCHS:
                shutil.rmtree(path, ignore_errors=True)
            kept += (path / "ready").exists()

    def close(self) -> None:
        """Let others lead. Idempotent."""
        if self._held_fd >= 0:
            os.close(self._held_fd)
            self._held_fd = -1


class Candidate:
    """One that would lead: it watches the newest epoch, and claims the next when that one ends."""

    def __init__(self, directory: Path, lease_ns: int, clock: Callable[[], int] = boot_ns) -> None:
        """``directory`` exists; ``clock`` counts nanoseconds, sleep included."""
        self._directory = directory
        self._lease_ns = lease_ns
        self._clock = clock
        self._seen: tuple[int, bytes] = (0, b"")
        self._seen_ns = clock()
        self.leader = 0
        """the epoch that leads as far as known"""

    def try_claim(self) -> Epoch | None:
        """Claim the next epoch if the newest one's leader is gone or silent; else return None.

        Raises:
            Error: IO.
        """
        self.leader = newest = max(_epochs(self._directory), default=0)
        if newest and not self._is_over(newest):
            return None
        return self._claim(newest + 1)

    def _is_over(self, number: int) -> bool:
        """Whether an epoch's leader is gone, or was silent for a lease since it was first seen."""
        path = self._directory / _name(number)
        if not _is_held(path / "held"):
            return True
        try:
            beat = (path / "beat").read_bytes()
        except OSError:
            beat = b""
        now_ns = self._clock()
        if (number, beat) != self._seen:
            self._seen, self._seen_ns = (number, beat), now_ns
        return now_ns - self._seen_ns >= self._lease_ns

    def _claim(self, number: int) -> Epoch | None:
        """Make the directory of an epoch appear, locked already; None if another was first."""
        prepared = self._directory / f"claim-{os.getpid()}-{id(self):x}"
        held_fd = -1
        try:
            shutil.rmtree(prepared, ignore_errors=True)
            prepared.mkdir()
            held_fd = os.open(prepared / "held", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(held_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            epoch = Epoch(self._directory, number, held_fd, self._lease_ns, self._clock)
            try:
                os.rename(prepared, epoch.path)  # refused if it is there: never empty
            except OSError:
                if not epoch.path.exists():
                    raise
                os.close(held_fd)
                return None
            sync_directory(self._directory)
        except OSError as error:
            if held_fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(held_fd)
            text = f"cannot use {self._directory} for the manager: {error}"
            raise Error(Code.IO, text) from error
        finally:
            shutil.rmtree(prepared, ignore_errors=True)
        try:
            epoch.renew()
        except Error as error:
            epoch.close()
            if error.code is Code.NOT_LEADER:
                return None
            raise
        return epoch


def _durable_file(path: Path, content: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
    except OSError as error:
        raise Error(Code.IO, f"cannot write {path}: {error}") from error


def _name(number: int) -> str:
    return f"{_PREFIX}{number:08d}"


def _epochs(directory: Path) -> list[int]:
    """List the epochs that were claimed.

    Raises:
        Error: IO.
    """
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise Error(Code.IO, f"cannot read {directory}: {error}") from error
    numbers = (name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))
    return [int(number) for number in numbers if number.isdigit()]


def _is_held(path: Path) -> bool:
    """Whether a living process holds an epoch's lock."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
