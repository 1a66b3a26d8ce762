"""Syncing: one resync under way: the production ``recovery.Sync``, its effects carried out.

What ``storage/resync.py`` does with calls and tasks. Pages are short here, so that a few chunks
make several.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hillfire.cluster import Chain
from hillfire.errors import Error
from hillfire.storage import recovery
from hillfire.storage.craq import events
from hillfire.types import ChunkId, TargetId

if TYPE_CHECKING:
    from tests.simulation.home import Home

CALL_TIMEOUT_S = 5.0
RETRY_MIN_S = 0.02
RETRY_MAX_S = 1.0
PAGE = 3
"""Records of a page, and tags told at once: few, so that there are several."""


class Syncing:
    """A predecessor's work for one successor under one chain version."""

    def __init__(self, home: "Home", chain: Chain, successor: TargetId) -> None:
        self.home = home
        self.chain = chain
        self.ended = False
        self.machine = recovery.Sync(chain.version, on_rule=home.world.coverage.rule)
        self._successor = successor
        self._replica = home.replica

    def start(self) -> None:
        """Begin."""
        self.home.tell(f"brings t{self._successor} up to date at chain {self.chain.version}")
        self._carry(self.machine.start())

    def _alive(self) -> bool:
        return not self.ended and self.home.replica is self._replica

    def _handle(self, event: recovery.Event) -> None:
        if self._alive():
            self._carry(self.machine.handle(event))

    def _carry(self, wanted: list[recovery.Effect]) -> None:
        for effect in wanted:
            self.home.node.step()
            if self._alive():
                _CARRY[type(effect)](self, effect)

    def _call(
        self, method: str, body: Any, answered: Callable[[Any], recovery.Event | None]
    ) -> None:
        """Ask the successor; ``answered`` makes the event of its answer, if it is the last."""
        node = self.home.node

        def reply(value: Any) -> None:
            if isinstance(value, Error):
                self._handle(recovery.StepFailed(value.code, str(value.strerror)))
                return
            event = answered(value)
            if event is not None:
                self._handle(event)

        try:
            peer = self.home.world.node_of(node.routing.node_of(self._successor).id)
        except Error as error:
            node.after(0.0, partial(reply, error))
            return
        head = self.chain.id, self.chain.version
        node.network.call(node, peer, method, (*head, *body), CALL_TIMEOUT_S, reply)

    # ------------------------------------------------------------------ effects

    def _list(self, effect: recovery.List) -> None:
        limit = min(effect.limit, PAGE)
        self._call("list", (effect.after, limit), lambda page: recovery.Listed(*page))

    def _scan(self, effect: recovery.Scan) -> None:
        store = self.home.store
        assert store is not None

        assert self._replica is not None
        held = frozenset(self._replica.holders)

        def job() -> Any:
            after = ChunkId(effect.after) if effect.after else None
            found = store.scan(after, 1 << 20)
            last = effect.last
            return {chunk: meta for chunk, meta in found if last is None or chunk <= last}

        def done(result: Any) -> None:
            if isinstance(result, Error):
                self._handle(recovery.StepFailed(result.code, str(result.strerror)))
            else:
                self._handle(recovery.Scanned(result, held))

        self.home.work(job, done, inline=False)

    def _send(self, effect: recovery.SendBatch) -> None:
        number = self.home.request(
            len(effect.chunks),
            lambda outcomes: self._handle(
                recovery.BatchDone(effect.number, [each.code for each in outcomes])
            ),
        )
        self.home.handle(events.SyncArrived(number, self.chain.version, effect.chunks))

    def _complete(self, effect: recovery.Complete) -> None:
        number = self.home.request(
            1, lambda outcomes: self._handle(recovery.Completed(outcomes[0].code))
        )
        self.home.handle(events.SyncCompleting(number, self.chain.version))

    def _tell(self, effect: recovery.TellTags) -> None:
        store = self.home.store
        assert store is not None
        tags = list(store.tags())
        pages = [tags[start : start + PAGE] for start in range(0, max(1, len(tags)), PAGE)]

        def tell(page: int) -> None:
            last = page + 1 == len(pages)

            def told(reply: Any) -> recovery.Event | None:
                if last:
                    return recovery.Told()
                if self._alive():
                    tell(page + 1)
                return None

            self._call("sync_done", (pages[page], not last), told)

        tell(0)

    def _refuse(self, effect: recovery.Refuse) -> None:
        self._call("refuse", (effect.reason,), lambda _: recovery.Told())

    def _wait(self, effect: recovery.Wait) -> None:
        delay_s = min(RETRY_MAX_S, RETRY_MIN_S * 2 ** min(effect.attempt - 1, 10))
        self.home.node.after(delay_s, lambda: self._handle(recovery.RetryDue()))

    def _finished(self, effect: recovery.Finished) -> None:
        self.ended = True
        how = "is equal" if effect.equal else "was refused"
        self.home.tell(f"sync of t{self._successor}: it {how}")
        if effect.equal:
            self.home.world.coverage.count("resync")


_CARRY: dict[type, Callable[[Syncing, Any], None]] = {
    recovery.List: Syncing._list,
    recovery.Scan: Syncing._scan,
    recovery.SendBatch: Syncing._send,
    recovery.Complete: Syncing._complete,
    recovery.TellTags: Syncing._tell,
    recovery.Refuse: Syncing._refuse,
    recovery.Wait: Syncing._wait,
    recovery.Finished: Syncing._finished,
}
