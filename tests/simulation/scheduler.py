"""Scheduler: virtual time, one heap of things to come. A seed and a plan replay exactly."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from random import Random

NS_PER_S = 1_000_000_000

Action = Callable[[], None]


class Scheduler:
    """What happens next, and when. Nothing in a world takes time from anywhere else."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_ns = 0
        self.random = Random(f"{seed}/world")
        self._heap: list[tuple[int, int, Action]] = []
        self._count = count()

    @property
    def now_s(self) -> float:
        return self.now_ns / NS_PER_S

    def stream(self, name: str) -> Random:
        """Return random numbers of their own, which no other part of the world disturbs."""
        return Random(f"{self.seed}/{name}")

    def later(self, delay_s: float, action: Action) -> None:
        """Have ``action`` called after ``delay_s`` of true time."""
        moment = self.now_ns + int(delay_s * NS_PER_S)
        heappush(self._heap, (moment, next(self._count), action))

    def run(self, duration_s: float, enough: Callable[[], bool] | None = None) -> bool:
        """Let ``duration_s`` pass, or less if it is ``enough``; tell whether it was."""
        until_ns = self.now_ns + int(duration_s * NS_PER_S)
        heap = self._heap
        while heap and heap[0][0] <= until_ns:
            self.now_ns, _, action = heappop(heap)
            action()
            if enough is not None and enough():
                return True
        self.now_ns = until_ns
        return enough is not None and enough()
