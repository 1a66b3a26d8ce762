"""The public states: each row of the design's table, and what no sequence of events may break."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hillfire.cluster import Chain, LocalState, PublicState
from hillfire.meta.manager.chains import (
    LOST,
    NEW_CHAIN_VERSION,
    TABLE,
    Report,
    check,
    new_chain,
    next_chain,
    next_state,
)
from hillfire.types import ChainId, TargetId

SERVING, LAST, SYNCING = PublicState.SERVING, PublicState.LAST_SERVING, PublicState.SYNCING
WAITING, OFFLINE = PublicState.WAITING, PublicState.OFFLINE
FRESH, ONLINE, DEAD = LocalState.UP_TO_DATE, LocalState.ONLINE, LocalState.OFFLINE

# local, public now, another target serves, another is syncing -> next; written from design.md §5
# by hand and not from the code's table.
ROWS = [
    (alive, SERVING, served, syncing, SERVING)
    for alive, served, syncing in product((FRESH, ONLINE), (False, True), (False, True))
]
for alive, syncing in product((FRESH, ONLINE), (False, True)):
    ROWS.append((alive, LAST, False, syncing, SERVING))
    ROWS.append((alive, LAST, True, syncing, OFFLINE))
for served, syncing in product((False, True), (False, True)):
    ROWS.append((FRESH, SYNCING, served, syncing, SERVING))
    for public in (WAITING, OFFLINE):
        ROWS.append((FRESH, public, served, syncing, WAITING))
    for public in (SYNCING, WAITING, OFFLINE):
        ROWS.append((DEAD, public, served, syncing, OFFLINE))
for syncing in (False, True):
    ROWS.append((ONLINE, SYNCING, True, syncing, SYNCING))
    ROWS.append((ONLINE, SYNCING, False, syncing, WAITING))
    for public in (WAITING, OFFLINE):
        ROWS.append((ONLINE, public, False, syncing, WAITING))
        ROWS.append((ONLINE, public, True, syncing, WAITING if syncing else SYNCING))
    for public in (SERVING, LAST):
        ROWS.append((DEAD, public, True, syncing, OFFLINE))
        ROWS.append((DEAD, public, False, syncing, LAST))


@pytest.mark.parametrize(("local", "public", "served", "syncing", "then"), ROWS)
def test_row(
    local: LocalState, public: PublicState, served: bool, syncing: bool, then: PublicState
) -> None:
    assert next_state(local, public, served, syncing) is then


def test_every_situation_has_one_row() -> None:
    situations = {row[:4] for row in ROWS}
    assert len(situations) == len(ROWS) == 3 * 5 * 4
    pairs = [(local, public) for row in TABLE for local in row.local for public in row.public]
    assert len(pairs) == len(set(pairs)) == 15


def chain_of(*states: PublicState, version: int = 7) -> Chain:
    return Chain(ChainId(1), version, tuple((TargetId(i), s) for i, s in enumerate(states, 1)))


def after(chain: Chain, *locals_: LocalState | Report) -> Chain | None:
    said = {
        target: local if isinstance(local, Report) else Report(local, chain.version)
        for (target, _), local in zip(chain.targets, locals_, strict=True)
    }
    return next_chain(chain, said)


def states(chain: Chain | None) -> list[tuple[int, PublicState]]:
    assert chain is not None
    return list(chain.targets)


def test_a_chain_in_order_stays_as_it_is() -> None:
    assert after(chain_of(SERVING, SERVING, SERVING), FRESH, FRESH, FRESH) is None


def test_a_dead_head_goes_last() -> None:
    chain = after(chain_of(SERVING, SERVING, SERVING), DEAD, FRESH, FRESH)
    assert states(chain) == [(2, SERVING), (3, SERVING), (1, OFFLINE)]
    assert chain is not None and chain.version == 8


def test_all_that_die_together_are_candidates() -> None:
    chain = after(chain_of(SERVING, SERVING, OFFLINE), DEAD, DEAD, DEAD)
    assert states(chain) == [(1, LAST), (2, LAST), (3, OFFLINE)]


def test_one_candidate_serves_and_the_others_resync() -> None:
    chain = chain_of(LAST, LAST, LAST)
    chain = after(chain, DEAD, ONLINE, ONLINE) or chain
    assert states(chain) == [(2, SERVING), (1, OFFLINE), (3, OFFLINE)]
    chain = after(chain, FRESH, DEAD, ONLINE) or chain
    assert states(chain) == [(2, SERVING), (3, SYNCING), (1, OFFLINE)]
    chain = after(chain, FRESH, FRESH, ONLINE) or chain
    assert states(chain) == [(2, SERVING), (3, SERVING), (1, SYNCING)]
    chain = after(chain, FRESH, FRESH, FRESH) or chain
    assert states(chain) == [(2, SERVING), (3, SERVING), (1, SERVING)]
    assert chain.version == 11


def test_who_died_before_the_last_one_may_not_serve_again() -> None:
    chain = chain_of(SERVING, SERVING)
    chain = after(chain, DEAD, FRESH) or chain
    chain = after(chain, DEAD, DEAD) or chain
    assert states(chain) == [(2, LAST), (1, OFFLINE)]
    chain = after(chain, DEAD, ONLINE) or chain
    assert states(chain) == [(2, LAST), (1, WAITING)]


def test_a_sync_without_a_source_waits() -> None:
    assert states(after(chain_of(SERVING, SYNCING), DEAD, ONLINE)) == [(1, LAST), (2, WAITING)]


def test_an_old_claim_to_be_up_to_date_ends_no_sync() -> None:
    chain = chain_of(SERVING, SYNCING)
    assert after(chain, FRESH, Report(FRESH, chain.version - 1)) is None
    assert states(after(chain, FRESH, FRESH)) == [(1, SERVING), (2, SERVING)]


def test_only_one_of_several_waiting_begins_to_sync() -> None:
    chain = after(chain_of(SERVING, WAITING, WAITING), FRESH, ONLINE, ONLINE)
    assert states(chain) == [(1, SERVING), (2, SYNCING), (3, WAITING)]


def test_a_new_chain_serves_once_all_its_targets_were_heard_of() -> None:
    chain = new_chain(ChainId(1), (TargetId(3), TargetId(1), TargetId(2)))
    online = Report(ONLINE, 1)
    assert next_chain(chain, {}) is None
    assert next_chain(chain, {TargetId(1): online, TargetId(2): online}) is None
    assert next_chain(chain, dict.fromkeys((TargetId(1), TargetId(2), TargetId(3)), LOST)) is None
    all_up = dict.fromkeys((TargetId(1), TargetId(2), TargetId(3)), online)
    assert states(next_chain(chain, all_up)) == [(3, SERVING), (1, SERVING), (2, SERVING)]
    one_dead = {**all_up, TargetId(3): LOST}
    assert states(next_chain(chain, one_dead)) == [(1, SERVING), (2, SERVING), (3, OFFLINE)]


def every_chain(members: int) -> list[Chain]:
    """All chains of so many members that may ever be published."""
    found = []
    for states_ in product(PublicState, repeat=members):
        chain = chain_of(*states_)
        try:
            check(chain)
        except AssertionError:
            continue
        found.append(chain)
    return found


@pytest.mark.parametrize("members", [1, 2, 3, 4])
def test_every_chain_under_every_report(members: int) -> None:
    """Exhaustive: what one evaluation may do, and that every row decides somewhere."""
    used: set[int] = set()
    for chain in every_chain(members):
        for locals_ in product(LocalState, repeat=members):
            reports = {
                t: Report(local, chain.version)
                for (t, _), local in zip(chain.targets, locals_, strict=True)
            }
            after_ = next_chain(chain, reports, used.add) or chain
            check(after_)
            alive = {t for t, report in reports.items() if report.local is not DEAD}
            before, now = dict(chain.targets), dict(after_.targets)
            serving = set(after_.serving)
            assert serving <= alive  # nobody dead serves
            for target in serving:  # who serves has everything that was acknowledged
                equal = before[target] is SYNCING and reports[target].local is FRESH
                assert before[target] in (SERVING, LAST) or equal
            # Whoever serves and lives goes on; the order among those who go on is never changed,
            # since each has everything that its successors have.
            going_on = [t for t in chain.serving if t in alive]
            assert [t for t in after_.serving if t in going_on] == going_on
            assert list(after_.serving[: len(going_on)]) == going_on
            # Nothing acknowledged is out of sight: one that has it serves, or is remembered.
            if chain.serving or LAST in before.values():
                holders = {t for t, s in before.items() if s in (SERVING, LAST)}
                if not holders & alive and not serving:
                    assert {t for t, s in now.items() if s is LAST} == holders
                elif holders & alive:
                    assert serving & holders
            # At most one of the candidates of a chain that did not serve begins again.
            if not chain.serving:
                begun = [t for t in serving if before[t] is LAST]
                assert len(begun) <= 1
            # A sync begins only from someone who serves.
            if SYNCING in now.values():
                assert serving
            assert after_.version - chain.version == (after_.targets != chain.targets)
            assert (after_.min_serving, after_.preferred) == (chain.min_serving, chain.preferred)
    if members > 1:
        assert used == set(range(len(TABLE)))


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[list[Report | None]]]:
    """A chain's length, and at each evaluation what is known of each target, by its number."""
    count = draw(st.integers(1, 5))
    said = st.one_of(
        st.none(),
        st.builds(Report, st.sampled_from(LocalState), st.integers(0, 30)),
        st.builds(Report, st.sampled_from(LocalState), st.just(-1)),  # -1: the version of now
    )
    steps = st.lists(st.lists(said, min_size=count, max_size=count), min_size=1, max_size=30)
    return count, draw(steps)


@settings(max_examples=300, deadline=None)
@given(histories())
def test_whatever_happens(history: tuple[int, list[list[Report | None]]]) -> None:
    """Invariants over any sequence of reports, late and forged ones included."""
    count, steps = history
    chain = new_chain(ChainId(1), tuple(TargetId(i) for i in range(count)))
    check(chain)
    for step in steps:
        reports = {
            TargetId(i): report._replace(chain_version=chain.version)
            if report.chain_version < 0
            else report
            for i, report in enumerate(step)
            if report is not None
        }
        following = next_chain(chain, reports)
        if following is None:
            continue
        check(following)
        assert following.version == chain.version + 1 and following.targets != chain.targets
        assert {t for t, _ in following.targets} == {t for t, _ in chain.targets}
        for target, state in following.targets:
            if state is SERVING and chain.version != NEW_CHAIN_VERSION:
                report, before = reports.get(target, LOST), chain.state_of(target)
                late = report != LOST and report.chain_version != chain.version
                assert report.local is not DEAD or (before is SERVING and late)
                assert before in (SERVING, LAST) or (
                    before is SYNCING and report == Report(FRESH, chain.version)
                )
            if state is LAST:  # it held everything when the chain stopped
                assert chain.state_of(target) in (SERVING, LAST)
        chain = following


@settings(max_examples=300, deadline=None)
@given(histories())
def test_evaluation_comes_to_rest(history: tuple[int, list[list[Report | None]]]) -> None:
    """The same reports, evaluated again and again, change a chain a bounded number of times."""
    count, steps = history
    chain = new_chain(ChainId(1), tuple(TargetId(i) for i in range(count)))
    for step in steps:
        reports = {TargetId(i): report for i, report in enumerate(step) if report is not None}
        for _ in range(4):
            following = next_chain(chain, reports)
            if following is None:
                break
            chain = following
        assert next_chain(chain, reports) is None


def test_a_target_that_serves_is_not_taken_out_by_its_word_of_an_earlier_life() -> None:
    """It crossed the decision that it serves again, and goes on to (simulator, seed 1222)."""
    one, two = TargetId(1), TargetId(2)
    chain = Chain(ChainId(1), 12, ((one, SERVING), (two, SERVING)))
    up = Report(FRESH, 12)
    assert next_chain(chain, {one: Report(DEAD, 11), two: up}) is None
    after = next_chain(chain, {one: Report(DEAD, 12), two: up})
    assert after is not None and after.serving == (two,)
    after = next_chain(chain, {one: LOST, two: up})
    assert after is not None and after.serving == (two,)
