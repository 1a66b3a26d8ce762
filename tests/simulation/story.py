"""Story: what happened in a world, told so that a person can follow it, and its digest."""

from hashlib import blake2b

from tests.simulation.scheduler import NS_PER_S, Scheduler


class Story:
    """Lines of (virtual time, who, what). Telling costs nothing while it is off."""

    def __init__(self, scheduler: Scheduler, on: bool = False, verbose: bool = False) -> None:
        self.on = on
        self.verbose = on and verbose
        self.lines: list[tuple[int, str, str]] = []
        self._scheduler = scheduler
        self._digest = blake2b(digest_size=16)

    def tell(self, who: str, what: str) -> None:
        """Add a line."""
        if not self.on:
            return
        line = self._scheduler.now_ns, who, what
        self.lines.append(line)
        self._digest.update(repr(line).encode())

    def digest(self) -> str:
        """Return a digest of all lines so far: equal for equal worlds."""
        return self._digest.hexdigest()

    def text(self, last: int | None = None) -> str:
        """Return the story, or its last lines."""
        lines = self.lines if last is None else self.lines[-last:]
        return "\n".join(f"{ns / NS_PER_S:11.6f}  {who:<10} {what}" for ns, who, what in lines)
