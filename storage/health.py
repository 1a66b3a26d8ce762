"""Health: what a disk's probes say of it. Pure: events in, a change of mind out, no clock.

A disk that fails one small write may only have been busy, and one that works again once may fail
the next moment; so it takes more than one probe to change one's mind, either way.

Source: 3FS, disk health: a write probe each 3 s; design.md 6: a failing disk takes its own targets
offline, not the node.
"""

from enum import Enum

FAILURES = 2
"""So many failed probes in a row, and the disk fails."""
SUCCESSES = 3
"""So many good ones in a row, and it works again."""


class Disk(Enum):
    """What is thought of a disk."""

    WORKS = "works"
    FAILS = "fails"
    """its probes end with an error"""
    HANGS = "hangs"
    """a probe did not end in time"""


class Health:
    """One disk's health."""

    def __init__(self) -> None:
        """Believe that it works until a probe says otherwise."""
        self.state = Disk.WORKS
        self.reason = ""
        """why it does not work"""
        self.failures = 0
        """probes that failed or hung, in all"""
        self._in_a_row = 0
        self._good = 0

    def succeeded(self) -> bool:
        """Take a good probe in; tell whether it changed what is thought of the disk."""
        self._in_a_row = 0
        if self.state is Disk.WORKS:
            return False
        self._good += 1
        if self._good < SUCCESSES:
            return False
        self.state, self.reason = Disk.WORKS, ""
        return True

    def failed(self, reason: str) -> bool:
        """Take a probe in that ended with an error; tell whether it changed the mind."""
        self.failures += 1
        self._good = 0
        self._in_a_row += 1
        if self.state is Disk.WORKS and self._in_a_row < FAILURES:
            return False
        before, self.state, self.reason = self.state, Disk.FAILS, reason
        return before is Disk.WORKS

    def overdue(self, seconds: float) -> bool:
        """Take note that a probe has not ended in time; tell whether it changed the mind."""
        self._good = self._in_a_row = 0
        before, self.state = self.state, Disk.HANGS
        self.reason = f"a small write has not ended for {seconds:.0f} s"
        self.failures += before is not Disk.HANGS
        return before is Disk.WORKS
