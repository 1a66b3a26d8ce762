"""The keeper: a thread that does a store's put-off work, so that no request waits for it."""

import threading
from collections.abc import Callable

IDLE_S = 2.0
"""A store to which nothing happened for so long is brought up to date too."""


class Keeper:
    """One store's keeper."""

    def __init__(self, upkeep: Callable[[], object], progress: Callable[[], int]) -> None:
        """``upkeep`` does what there is to do; ``progress`` grows with what happens."""
        self._upkeep = upkeep
        self._progress = progress
        self._awake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="store-keeper", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is work."""
        self._awake.set()

    def _run(self) -> None:
        seen = self._progress()
        while True:
            woken = self._awake.wait(IDLE_S)
            self._awake.clear()
            if self._ended:
                return
            now = self._progress()
            if woken or now == seen:
                self._upkeep()
            seen = now

    def close(self) -> None:
        """Stop, after what it is at."""
        self._ended = True
        self._awake.set()
        self._thread.join()
