"""Lifecycle: one target's place on a disk through all its lives, and its local state. Pure.

A *life* is one replica on the open store: it begins when the store was opened, or when an earlier
one has let go of it, and ends when the replica stops. The shell (``storage/targets.py``, and the
simulator) carries effects out and hands in what happened; events that arise while effects are
carried out are handed in afterwards, in their order.

The rules of design.md section 5, Leases and States: a target that was opened again is *online* and
takes up nothing until the routing shows it as not serving; one whose replica stopped comes back as
online through a sync; a syncing one is *up to date* once its predecessor said so under the present
chain version; one whose disk failed stays offline until the disk is found good.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from hillfire.cluster import Chain, LocalState, PublicState
from hillfire.errors import Code
from hillfire.types import TargetId

NEW_CHAIN_VERSION = 1
"""Of a chain that never served: only then may a target without a store count as up to date."""
MAX_DEFECTS = 3
"""Lives of one process that may end by a defect of the program; after that the target stays out."""

_ORDERED = "withdrawn by order"
_SERVES = (PublicState.SERVING, PublicState.LAST_SERVING)


# ---------------------------------------------------------------------- events


class Found(NamedTuple):
    """The node looked for the target's store; ``new`` if there is none yet."""

    new: bool
    chain: Chain
    withdrawn: bool = False


class Opened(NamedTuple):
    """An ``Open`` was done."""


class OpenFailed(NamedTuple):
    """An ``Open`` was not possible."""

    code: int
    reason: str


class Routed(NamedTuple):
    """A view of the chain, and whether an order withdraws this target from it."""

    chain: Chain
    withdrawn: bool = False


class Synced(NamedTuple):
    """The predecessor says that this target is equal, under that chain version."""

    chain_version: int


class Refused(NamedTuple):
    """The predecessor says that no resync may decide what differs between the two."""

    chain_version: int
    reason: str


class Stopped(NamedTuple):
    """The replica stopped (``effects.Stop``), or the shell stopped it."""

    code: int
    reason: str


class Drained(NamedTuple):
    """A ``Drain`` was done."""


class LookDue(NamedTuple):
    """The time that a ``LookLater`` asked for has passed."""


class Healed(NamedTuple):
    """The disk was tried and found good: it can be written, and has room."""


Event = (
    Found | Opened | OpenFailed | Routed | Synced | Refused | Stopped | Drained | LookDue | Healed
)


# ---------------------------------------------------------------------- effects


class Look(NamedTuple):
    """Look for the target's store; then ``Found``."""


class Open(NamedTuple):
    """Open the store, anew if it is open; then ``Opened`` or ``OpenFailed``."""


class Begin(NamedTuple):
    """Make a replica on the open store, which starts with its pending updates and tags."""


class Route(NamedTuple):
    """Give the replica this view of the chain."""

    chain: Chain


class Sync(NamedTuple):
    """Bring the successor up to date (``recovery.Sync``), ending an earlier sync."""

    chain: Chain
    successor: TargetId


class EndSync(NamedTuple):
    """End the sync under way, if there is one."""


class StopReplica(NamedTuple):
    """Hand the replica a ``StoreFailed``."""

    code: int
    reason: str


class Drain(NamedTuple):
    """Wait until nothing works for the last life any more; then ``Drained``."""


class LookLater(NamedTuple):
    """Say ``LookDue`` after a while."""


class Report(NamedTuple):
    """The local state is worth a heartbeat at once."""


class Alarm(NamedTuple):
    """An operator must see this: log it as critical."""

    code: int
    reason: str


Effect = (
    Look | Open | Begin | Route | Sync | EndSync | StopReplica | Drain | LookLater | Report | Alarm
)


class Lifecycle:
    """What one target says of itself, and when its lives begin and end."""

    def __init__(self, target: TargetId, *, on_rule: Callable[[int], None] | None = None) -> None:
        """Begin offline, with a store that was not looked for yet."""
        self.target = target
        self._on_rule = on_rule
        self.local = LocalState.OFFLINE
        self.reason = "its store is not open yet"
        """why it is offline; empty while it is not"""
        self.code = Code.OK
        """of the failure that keeps it offline until something is done about it; else OK"""
        self.settled = False
        """whether it is known if its store opens; before, nothing is reported of it"""
        self.living = False
        self.version = 0
        """chain version that the present replica acts on, 0 without one"""
        self.state = PublicState.OFFLINE
        """as the present replica acts on it"""
        self._open = False
        """whether the store is open: a full disk may keep it from that"""
        self._looking = False
        """whether it is being looked for again"""
        self._chain: Chain | None = None
        self._new = False
        self._fresh = False
        """whether its empty store is as good as any: the chain never served"""
        self._taken_up = False
        self._draining = False
        self._defects = 0
        self._refusal = ""
        self._withdrawn = False
        self._out: list[Effect] = []

    def __repr__(self) -> str:
        """Tell both states."""
        state = f"{self.state.name} at {self.version}" if self.living else "closed"
        return f"<Lifecycle {self.target} {self.local.name} {state} {self.reason}>"

    @property
    def said_at(self) -> int:
        """Return the chain version that belongs to ``local`` in a report.

        The one acted on; of a target that is offline, the one it knows: only so can the manager
        tell that word from one of an earlier life, which came late or crossed its own decision.
        """
        if self.local is not LocalState.OFFLINE:
            return self.version
        return self._chain.version if self._chain is not None else 0

    def handle(self, event: Event) -> list[Effect]:
        """Take one event and return what must be done about it."""
        out = self._out = []
        _HANDLERS[type(event)](self, event)
        return out

    def _rule(self, number: int) -> None:
        if self._on_rule is not None:
            self._on_rule(number)

    # ------------------------------------------------------------------ the store

    def _found(self, event: Found) -> None:
        self._chain, self._withdrawn = event.chain, event.withdrawn
        self._looking = False
        if event.new and event.chain.state_of(self.target) in _SERVES:
            # R43: an empty directory in its place would be believed to hold everything.
            self._rule(43)
            self._hold(Code.IO, "its store is missing; mount its disk, then start the node again")
            self.settled = True
            self._out.append(Report())
            return
        self._new, self._looking = event.new, True
        self._out.append(Open())

    def _opened(self, event: Opened) -> None:
        chain = self._chain
        assert chain is not None
        self.code = Code.OK
        self._open, self._looking = True, False
        if self.settled:
            self._return()
            return
        self._fresh = self._new and chain.version == NEW_CHAIN_VERSION
        self._taken_up = self._fresh
        self.settled = True
        if self._withdrawn:
            self._withdraw()
        else:
            self._begin()

    def _open_failed(self, event: OpenFailed) -> None:
        self._hold(Code(event.code), event.reason)
        self._open = self._looking = False
        self.settled = True
        self._out.append(Report())

    # ------------------------------------------------------------------ a life

    def _begin(self) -> None:
        assert self._chain is not None
        self.local = LocalState.UP_TO_DATE if self._fresh else LocalState.ONLINE
        self.reason = ""
        self.living = True
        self.version, self.state = 0, PublicState.OFFLINE
        self._out.append(Begin())
        self._route(self._chain)
        self._out.append(Report())

    def _routed(self, event: Routed) -> None:
        if self._chain is None or event.chain.version < self._chain.version:
            return
        self._chain, self._withdrawn = event.chain, event.withdrawn
        if self._withdrawn:
            self._withdraw()
        elif self.living:
            self._route(event.chain)
        else:
            if event.chain.state_of(self.target) is PublicState.SERVING:
                self._out.append(Report())
            self._return()

    def _withdraw(self) -> None:
        """Act on nothing while an order stands (R45).

        Otherwise a target that is removed while it is alive could show what was before a write
        that the others have acknowledged without it.
        """
        if self.living:
            self._rule(45)
            self._out.append(StopReplica(Code.NOT_SERVING, _ORDERED))
        elif self.code is Code.OK and self.reason != _ORDERED:
            self.local, self.reason = LocalState.OFFLINE, _ORDERED
            self._out.append(Report())

    def _route(self, chain: Chain) -> None:
        state = chain.state_of(self.target)
        if not self._taken_up:
            # R40. Source: design.md 5, Leases: a new incarnation counts as a death.
            if state is PublicState.SERVING:
                self._rule(40)
                # An earlier process's service: said to be over, so that the manager ends it.
                self.local = LocalState.OFFLINE
                self.reason = "it served before the node was started again"
                self._out.append(Report())
                return
            self._taken_up = True
            self.local, self.reason = LocalState.ONLINE, ""
        if chain.version <= self.version:
            return
        # R42: "up to date" is said of one chain version: a sync begins anew with the next.
        if state is PublicState.SERVING:
            self.local = LocalState.UP_TO_DATE
        elif not (self._fresh and chain.version == NEW_CHAIN_VERSION):
            self.local = LocalState.ONLINE
        self.version, self.state = chain.version, state
        self._out += (Route(chain), EndSync())
        successor = chain.successor(self.target)
        if successor is not None and chain.state_of(successor) is PublicState.SYNCING:
            self._out.append(Sync(chain, successor))
        self._out.append(Report())

    def _synced(self, event: Synced) -> None:
        if (
            self.living
            and event.chain_version == self.version
            and self.state is PublicState.SYNCING
        ):
            self._rule(42)
            self.local = LocalState.UP_TO_DATE
            self._out.append(Report())

    def _refused(self, event: Refused) -> None:
        # R35. Source: 3FS, the fatal rows of its sync worker's comparison.
        if (
            self.living
            and event.chain_version == self.version
            and self.state is PublicState.SYNCING
        ):
            self._refusal = event.reason
            self._out.append(StopReplica(Code.CONFLICT, event.reason))

    # ------------------------------------------------------------------ its end, and the return

    def _stopped(self, event: Stopped) -> None:
        """Go offline, or straight back online if it was the routing that ended this life."""
        if not self.living:
            return
        self.living = False
        self.version, self.state = 0, PublicState.OFFLINE
        self._fresh = False
        self.local, self.reason = LocalState.OFFLINE, event.reason
        self._draining = True
        code = Code(event.code)
        if self._refusal:
            self._hold(Code.CONFLICT, self._refusal)
        elif code in (Code.IO, Code.NO_SPACE):
            self._rule(44)  # R44
            self._hold(code, event.reason)
        elif code is Code.INTERNAL:
            self._rule(46)  # R46
            self._defects += 1
            if self._defects >= MAX_DEFECTS:
                self._hold(code, event.reason)
        self._out += (EndSync(), Drain(), Report())

    def _hold(self, code: Code, reason: str) -> None:
        """Stay offline until something is done about it."""
        self.local, self.code, self.reason = LocalState.OFFLINE, code, reason
        self._out.append(Alarm(code, reason))

    def _drained(self, event: Drained) -> None:
        self._draining = False
        self._return()

    def _look_due(self, event: LookDue) -> None:
        self._return()

    def _healed(self, event: Healed) -> None:
        """Come back with a disk that works again; the sync will compare what it holds."""
        if self.living or self._draining or not self.settled or self._looking:
            return
        if self.code is Code.NO_SPACE and self._open:
            self.code = Code.OK
            self._return()
        elif self.code in (Code.IO, Code.NO_SPACE):
            self._looking = True
            self._out.append(Look())

    def _return(self) -> None:
        """Begin the next life once the last has let go and the routing has taken note."""
        if self.living or self._draining or not self.settled or self.code is not Code.OK:
            return
        if self._withdrawn:
            return
        assert self._chain is not None
        if self._chain.state_of(self.target) is PublicState.SERVING:
            self._out += (Report(), LookLater())
            return
        self._taken_up = True
        self._begin()


_HANDLERS: dict[type, Callable[[Lifecycle, Any], None]] = {
    Found: Lifecycle._found,
    Opened: Lifecycle._opened,
    OpenFailed: Lifecycle._open_failed,
    Routed: Lifecycle._routed,
    Synced: Lifecycle._synced,
    Refused: Lifecycle._refused,
    Stopped: Lifecycle._stopped,
    Drained: Lifecycle._drained,
    LookDue: Lifecycle._look_due,
    Healed: Lifecycle._healed,
}
