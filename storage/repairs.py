"""Repairs: damaged chunks of one target are made good from another replica, as soon as known.

A read or the scrubber names a chunk; the replica fetches it from another serving target under the
chunk's lock (``RepairArrived``). Here each chunk is asked for once at a time, again when the chain
changed meanwhile, and what came of it is counted and told.
"""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field

from hillfire.errors import Code, Error
from hillfire.storage.craq import events
from hillfire.storage.shell import TargetShell
from hillfire.types import ChunkId

log = logging.getLogger(__name__)

MAX_AT_WORK = 1024
"""Chunks of one target under repair; what is found beyond is found again by the next read."""
AT_ONCE = 4
"""Of them are fetched at a time: a rotten disk must not take the network from everybody."""
ATTEMPTS = 10
RETRY_S = 0.1
FINDINGS = 32
"""Lines kept for whoever asks."""
_LATER = (Code.WRONG_CHAIN_VERSION, Code.NOT_SERVING, Code.CONNECTION, Code.OVERLOADED)
"""Answers that another attempt may change."""


@dataclass(slots=True)
class Counters:
    """What was found wrong with a target's chunks since the process was started."""

    damaged: int = 0
    behind: int = 0
    odd: int = 0
    repaired: int = 0
    lost: int = 0
    findings: deque[str] = field(default_factory=lambda: deque(maxlen=FINDINGS))

    def note(self, text: str) -> None:
        """Keep a line, with the time of day."""
        self.findings.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")


class Repairs:
    """The repairs of one life of a target."""

    def __init__(self, shell: TargetShell, counters: Counters) -> None:
        """Begin with none at work."""
        self._shell = shell
        self._counters = counters
        self._at_work: dict[ChunkId, asyncio.Task[Code]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)

    def schedule(
        self, chunk: ChunkId, why: str, *, damaged: bool = True
    ) -> "asyncio.Task[Code] | None":
        """Repair a chunk, unless that is being done; None if too many are.

        ``damaged``: its bytes failed their checksums; else it is missing here, or old.
        """
        found = self._at_work.get(chunk)
        if found is not None:
            return found
        if len(self._at_work) >= MAX_AT_WORK:
            return None
        task = asyncio.create_task(self._repair(chunk, why, damaged))
        self._at_work[chunk] = task
        task.add_done_callback(lambda task: self._ended(chunk, task))
        return task

    def _ended(self, chunk: ChunkId, task: "asyncio.Task[Code]") -> None:
        self._at_work.pop(chunk, None)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("event=defect target=%d", self._shell.target, exc_info=failure)
            self._shell.fail(Error(Code.INTERNAL, f"a repair failed: {failure!r}"))

    async def end(self) -> None:
        """Leave what is not done to the target's next life."""
        tasks = list(self._at_work.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _repair(self, chunk: ChunkId, why: str, damaged: bool) -> Code:
        shell = self._shell
        if damaged and await self._sound(chunk):
            return Code.OK  # repaired or overwritten since that read began
        self._counters.damaged += damaged
        self._counters.behind += not damaged
        log.error("event=chunk_damaged target=%d chunk=%s cause=%r",
                  shell.target, chunk.hex(), why)  # fmt: skip
        code = Code.NOT_SERVING
        for attempt in range(ATTEMPTS):
            if shell.replica.stopped is not None:
                break
            async with self._places:
                code = await self._ask(chunk)
            if code not in _LATER:
                break
            await asyncio.sleep(RETRY_S * (attempt + 1))
        name = f"chunk {chunk.hex()} of target {shell.target}"
        if code is Code.OK:
            self._counters.repaired += 1
            self._counters.note(f"{name} is repaired ({why})")
            log.warning("event=chunk_repaired target=%d chunk=%s", shell.target, chunk.hex())
        elif code is Code.CORRUPT:
            self._counters.lost += 1
            self._counters.note(f"{name} is lost: no replica has a good copy")
            log.critical("event=chunk_lost target=%d chunk=%s remedy=%r", shell.target, chunk.hex(),
                         "no replica has a good copy; restore its file")  # fmt: skip
        else:
            self._counters.note(f"{name} is not yet repaired: {code.name} ({why})")
            log.error("event=chunk_not_repaired target=%d chunk=%s code=%s",
                      shell.target, chunk.hex(), code.name)  # fmt: skip
        return code

    async def _sound(self, chunk: ChunkId) -> bool:
        """Tell whether a chunk's bytes are good after all."""
        shell = self._shell
        try:
            await shell.threads.call(lambda: shell.store.verify(chunk))
        except Error as exc:
            return exc.code is not Code.CORRUPT
        return True

    async def _ask(self, chunk: ChunkId) -> Code:
        """Have the replica repair a chunk under its lock."""
        shell = self._shell
        number, _, future = shell.requests.open(1)
        shell.handle(events.RepairArrived(number, shell.replica.version, [chunk]))
        try:
            return Code((await future)[0].code)
        except Error as exc:
            return exc.code
