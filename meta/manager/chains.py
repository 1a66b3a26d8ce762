"""Which targets of a chain serve: the public states' next-state table, and a chain's next form.

Pure, because every promise of replication hangs on it: the simulator, the tests and the manager
run this one module. The manager calls :func:`next_chain` with everything it knows at one moment;
deaths that are known together are treated together, since none of their targets can have
acknowledged a write without the others.

Source: 3FS design notes, "Failure detection"; Terrace & Freedman, USENIX ATC 2009, §5.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

from hillfire.cluster import Chain, LocalState, PublicState
from hillfire.types import ChainId, TargetId

SERVING = PublicState.SERVING
LAST_SERVING = PublicState.LAST_SERVING
SYNCING = PublicState.SYNCING
WAITING = PublicState.WAITING
OFFLINE = PublicState.OFFLINE

UP_TO_DATE = LocalState.UP_TO_DATE
ONLINE = LocalState.ONLINE
DEAD = LocalState.OFFLINE
"""Reported offline, or its node's lease is over."""

NEW_CHAIN_VERSION = 1
"""Of a chain that has never served: it holds no data, so that all of its targets may serve."""


class Report(NamedTuple):
    """What a live node last said of one of its targets."""

    local: LocalState
    chain_version: int
    """that the target acted on when it said so; of one that is offline, the one it knew"""


LOST = Report(DEAD, -1)
"""What stands for the report of a target whose node is dead, whatever the chain's version."""


class If(Enum):
    """What a row of the table asks of the rest of the chain."""

    ALWAYS = "always"
    SERVED = "another target serves"
    UNSERVED = "no other target serves"
    MAY_SYNC = "another target serves and none is syncing"


class Row(NamedTuple):
    """One row: a target that is ``local`` and was ``public`` becomes ``then`` or ``otherwise``."""

    local: frozenset[LocalState]
    public: frozenset[PublicState]
    condition: If
    then: PublicState
    otherwise: PublicState


_ALIVE = frozenset((UP_TO_DATE, ONLINE))
_UP_TO_DATE = frozenset((UP_TO_DATE,))
_ONLINE = frozenset((ONLINE,))
_DEAD = frozenset((DEAD,))

TABLE = (
    Row(_ALIVE, frozenset((SERVING,)), If.ALWAYS, SERVING, SERVING),
    Row(_ALIVE, frozenset((LAST_SERVING,)), If.UNSERVED, SERVING, OFFLINE),
    Row(_UP_TO_DATE, frozenset((SYNCING,)), If.ALWAYS, SERVING, SERVING),
    Row(_ONLINE, frozenset((SYNCING,)), If.SERVED, SYNCING, WAITING),
    Row(_ONLINE, frozenset((WAITING, OFFLINE)), If.MAY_SYNC, SYNCING, WAITING),
    Row(_UP_TO_DATE, frozenset((WAITING, OFFLINE)), If.ALWAYS, WAITING, WAITING),
    Row(_DEAD, frozenset((SERVING,)), If.SERVED, OFFLINE, LAST_SERVING),
    Row(_DEAD, frozenset((LAST_SERVING,)), If.SERVED, OFFLINE, LAST_SERVING),
    Row(_DEAD, frozenset((SYNCING, WAITING, OFFLINE)), If.ALWAYS, OFFLINE, OFFLINE),
)
"""The next-state function. Each pair of local and public state is in exactly one row.

An up-to-date target that waits stays waiting: its claim is from before it was removed, so it must
come back as online, through a sync.
"""

_ROW = {
    (local, public): (number, row)
    for number, row in enumerate(TABLE)
    for local in row.local
    for public in row.public
}

_TURNS = (
    frozenset(((UP_TO_DATE, SERVING), (ONLINE, SERVING), (UP_TO_DATE, SYNCING))),
    frozenset(((UP_TO_DATE, LAST_SERVING), (ONLINE, LAST_SERVING))),
    frozenset(((DEAD, SERVING), (DEAD, LAST_SERVING))),
    frozenset(((ONLINE, SYNCING),)),
)
"""Who is decided first: whoever serves anyhow, then who may serve if nobody does, then who must
keep the chain's data in mind, then the sync under way, at last all others in chain order."""


OnRow = Callable[[int], None] | None
"""Told the number of each row of ``TABLE`` that decided a state: for coverage, else None."""


def next_state(
    local: LocalState, public: PublicState, served: bool, syncing: bool, on_row: OnRow = None
) -> PublicState:
    """Return a target's next public state.

    ``served``: another target will serve; ``syncing``: another target will be syncing.
    """
    number, row = _ROW[local, public]
    if on_row is not None:
        on_row(number)
    holds = {
        If.ALWAYS: True,
        If.SERVED: served,
        If.UNSERVED: not served,
        If.MAY_SYNC: served and not syncing,
    }
    return row.then if holds[row.condition] else row.otherwise


def next_chain(
    chain: Chain, reports: Mapping[TargetId, Report], on_row: OnRow = None
) -> Chain | None:
    """Return the chain as it has to be, one version on, or None if it is right as it is.

    ``reports`` holds what is known at this moment; a target that is not in it has not been heard
    of since its node registered, and counts as dead.
    """
    if chain.version == NEW_CHAIN_VERSION:
        return _first_life(chain, reports)
    local = {
        target: _local(chain, target, reports.get(target, LOST)) for target, _ in chain.targets
    }
    decided: dict[TargetId, PublicState] = {}
    for target, public in _in_turn(chain, local):
        others = decided.values()
        served, syncing = SERVING in others, SYNCING in others
        decided[target] = next_state(local[target], public, served, syncing, on_row)
    return _changed(chain, decided)


def new_chain(chain: ChainId, targets: tuple[TargetId, ...], min_serving: int = 1) -> Chain:
    """Return a chain that has never served, in the order that it prefers, head first."""
    members = tuple((target, OFFLINE) for target in targets)
    return Chain(chain, NEW_CHAIN_VERSION, members, min_serving, targets)


def check(chain: Chain) -> None:
    """Assert what holds for every chain that the manager ever publishes.

    1. no target is a member twice; 2. at most one is syncing; 3. none is last-serving beside a
    serving one; 4. once it has served, one serves or is last-serving; 5. the members stand in the
    order of their states; 6. a sync has a source: none is syncing unless one serves.
    """
    states = [state for _, state in chain.targets]
    assert len({target for target, _ in chain.targets}) == len(states), chain
    assert states.count(SYNCING) <= 1, chain
    assert not (SERVING in states and LAST_SERVING in states), chain
    assert chain.version == NEW_CHAIN_VERSION or SERVING in states or LAST_SERVING in states, chain
    assert states == sorted(states), chain
    assert SYNCING not in states or SERVING in states, chain


def _local(chain: Chain, target: TargetId, report: Report) -> LocalState:
    """Return a target's local state, no claim of the past being believed.

    A heartbeat may arrive late, or cross the chain's change: "up to date" from when the target
    served would otherwise end a sync that has hardly begun; and "offline" from an earlier life
    would take a target out that serves, and goes on to (found by the simulator, seed 1222).
    """
    if report.chain_version in (chain.version, LOST.chain_version):
        return report.local
    state = chain.state_of(target)
    outdated = (UP_TO_DATE, SYNCING), (DEAD, SERVING)
    return ONLINE if (report.local, state) in outdated else report.local


def _in_turn(
    chain: Chain, local: Mapping[TargetId, LocalState]
) -> list[tuple[TargetId, PublicState]]:
    """List the members in the order in which their next states depend on each other."""

    def turn(member: tuple[TargetId, PublicState]) -> int:
        pair = (local[member[0]], member[1])
        return next((i for i, pairs in enumerate(_TURNS) if pair in pairs), len(_TURNS))

    return sorted(chain.targets, key=turn)


def _first_life(chain: Chain, reports: Mapping[TargetId, Report]) -> Chain | None:
    """Let all live targets of a chain without data serve, once every member was heard of."""
    if any(target not in reports for target, _ in chain.targets):
        return None
    decided = {t: OFFLINE if reports[t].local is DEAD else SERVING for t, _ in chain.targets}
    return _changed(chain, decided) if SERVING in decided.values() else None


def _changed(chain: Chain, decided: Mapping[TargetId, PublicState]) -> Chain | None:
    """Put the members in order of their new states, each state's in the order they had."""
    members = tuple(sorted(((t, decided[t]) for t, _ in chain.targets), key=lambda m: m[1]))
    if members == chain.targets:
        return None
    return replace(chain, version=chain.version + 1, targets=members)
