"""Who leads by the files of a directory: claims, leases, fences, and what a new leader copies.

Several candidates live in one process here; a lock is held by who has it open, as between
processes. Time is the test's. Budget: 10 s.
"""

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from hillfire.cluster import Decision, Endpoint
from hillfire.errors import Code, Error
from hillfire.meta.manager.decide import with_manager
from hillfire.meta.manager.leadership import Candidate, Epoch
from hillfire.meta.manager.state import Store

L = 2_000_000_000


class Host:
    """A directory and a clock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now_ns = 5 * L

    def candidate(self) -> Candidate:
        return Candidate(self.directory, L, lambda: self.now_ns)

    def leader(self) -> Epoch:
        epoch = self.candidate().try_claim()
        assert epoch is not None
        return epoch

    def successor(self) -> Epoch:
        """Lead although the last leader holds its lock: it was silent for a lease."""
        candidate = self.candidate()
        assert candidate.try_claim() is None
        self.now_ns += L
        epoch = candidate.try_claim()
        assert epoch is not None
        return epoch


def refused(epoch: Epoch) -> None:
    for work in (epoch.check, epoch.renew):
        with pytest.raises(Error) as caught:
            work()
        assert caught.value.code is Code.NOT_LEADER


def test_the_first_leads_and_the_next_waits_until_it_is_gone(tmp_path: Path) -> None:
    host = Host(tmp_path)
    first, second = host.leader(), host.candidate()
    assert first.number == 1 and first.led_until_ns == host.now_ns + L // 2
    for _ in range(20):
        host.now_ns += L // 4
        first.renew()
        assert second.try_claim() is None and second.leader == 1
    first.close()  # as the end of its process does
    epoch = second.try_claim()
    assert epoch is not None and epoch.number == 2
    refused(first)
    epoch.close()


def test_a_silent_leader_is_waited_for_a_full_lease_on_the_waiters_clock(tmp_path: Path) -> None:
    host = Host(tmp_path)
    first, second = host.leader(), host.candidate()
    host.now_ns += 100 * L  # silent long before anybody looked: nobody knows for how long
    assert second.try_claim() is None
    host.now_ns += L - 1
    assert second.try_claim() is None
    first.renew()
    host.now_ns += 1
    assert second.try_claim() is None  # it was heard of
    host.now_ns += L
    epoch = second.try_claim()
    assert epoch is not None and epoch.number == 2
    refused(first)
    first.close()
    epoch.close()


def test_a_leaders_own_lease_ends_half_a_lease_after_it_began_to_renew(tmp_path: Path) -> None:
    host = Host(tmp_path)
    times = [host.now_ns]

    def clock() -> int:
        times.append(times[-1] + L // 8)  # each look takes its time
        return times[-1]

    epoch = Candidate(tmp_path, L, clock).try_claim()
    assert epoch is not None
    began = times[-1] + L // 8
    assert epoch.renew() == began + L // 2
    epoch.close()


def test_of_many_candidates_one_leads(tmp_path: Path) -> None:
    host = Host(tmp_path)
    for turn in range(5):
        found: list[Epoch] = []
        begin = threading.Barrier(8)

        def claim(begin: threading.Barrier = begin, found: list[Epoch] = found) -> None:
            candidate = host.candidate()
            begin.wait()
            epoch = candidate.try_claim()
            if epoch is not None:
                found.append(epoch)

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        leading = []
        for epoch in found:
            try:
                epoch.check()
                leading.append(epoch)
            except Error as error:
                assert error.code is Code.NOT_LEADER
        assert len(leading) == 1, f"turn {turn}: {found}"
        assert not [name for name in os.listdir(tmp_path) if name.startswith("claim-")]
        for epoch in found:
            epoch.close()


def test_what_a_paused_leader_stores_too_late_is_not_published(tmp_path: Path) -> None:
    async def test() -> None:
        host = Host(tmp_path)
        old = Store(tmp_path, durable=False, epoch=host.leader())
        first = with_manager(old.routing, Endpoint("a:1", "a:2", "", "h"))
        decision = Decision(1, 5, "me", "did it", "", first.version)
        await old.save(first, (decision,))
        new = Store(tmp_path, durable=False, epoch=host.successor())
        assert new.routing == first and new.decisions == (decision,)
        assert (old.epoch, new.epoch) == (1, 2)
        late = replace(first, version=first.version + 1)
        with pytest.raises(Error) as caught:
            await old.save(late)
        assert caught.value.code is Code.NOT_LEADER
        mine = with_manager(first, Endpoint("b:1", "b:2", "", "h"))
        await new.save(mine)
        old.close()
        new.close()
        again = Store(tmp_path, durable=False)
        assert again.routing == mine and again.epoch == 3
        again.close()

    asyncio.run(test())


def test_what_was_stored_before_the_claim_is_taken_over(tmp_path: Path) -> None:
    """The old leader is stopped between its write and its look: the write may be told later."""

    async def test() -> None:
        host = Host(tmp_path)
        epoch = host.leader()
        old = Store(tmp_path, durable=False, epoch=epoch)
        written = with_manager(old.routing, Endpoint("a:1", "a:2", "", "h"))
        check, looks = epoch.check, list[Store]()

        def look() -> None:
            """Before the second look, when all is written, a new leader claims and copies."""
            if len(looks) == 1:
                looks.append(Store(tmp_path, durable=False, epoch=host.successor()))
            elif not looks:
                looks.append(old)
            check()

        epoch.check = look  # type: ignore[method-assign]
        with pytest.raises(Error) as caught:
            await old.save(written)
        assert caught.value.code is Code.NOT_LEADER
        assert looks[1].routing == written  # so that it could not matter
        old.close()
        looks[1].close()

    asyncio.run(test())


def test_a_claim_that_came_to_nothing_is_passed_over(tmp_path: Path) -> None:
    async def test() -> None:
        host = Host(tmp_path)
        store = Store(tmp_path, durable=False, epoch=host.leader())
        routing = with_manager(store.routing, Endpoint("a:1", "a:2", "", "h"))
        await store.save(routing)
        store.close()
        died = host.leader()  # it claims, and dies while it copies
        (died.path / "database").mkdir()
        (died.path / "database" / "CURRENT").write_text("MANIFEST-0000")
        died.close()
        again = Store(tmp_path, durable=False, epoch=host.leader())
        assert again.routing == routing and again.epoch == 3
        again.close()

    asyncio.run(test())


def test_two_who_claimed_in_turn_do_not_both_begin(tmp_path: Path) -> None:
    """The first of them is overtaken while it copies: it must not publish."""
    host = Host(tmp_path)
    slow = host.leader()
    fast = Store(tmp_path, durable=False, epoch=host.successor())
    with pytest.raises(Error) as caught:
        Store(tmp_path, durable=False, epoch=slow)
    assert caught.value.code is Code.NOT_LEADER
    fast.close()


def failing() -> None:
    raise Error(Code.IO, "the test's disk fails here")


def test_a_first_leader_that_died_half_way_names_no_cluster(tmp_path: Path) -> None:
    host = Host(tmp_path)
    died = host.leader()
    died.ready = failing  # type: ignore[method-assign]
    with pytest.raises(Error):
        Store(tmp_path, durable=False, epoch=died)
    assert not (tmp_path / "cluster").exists()
    half = host.leader()
    half.check = failing  # type: ignore[method-assign]
    with pytest.raises(Error):  # ready, but not sure that it leads
        Store(tmp_path, durable=False, epoch=half)
    again = Store(tmp_path, durable=False)
    assert (tmp_path / "cluster").read_text().strip() == again.routing.cluster
    again.close()


def test_old_epochs_are_removed_but_for_the_one_before(tmp_path: Path) -> None:
    for number in range(1, 6):
        store = Store(tmp_path, durable=False)
        assert store.epoch == number
        cluster = store.routing.cluster
        store.close()
    found = sorted(name for name in os.listdir(tmp_path) if name.startswith("epoch-"))
    assert found == ["epoch-00000004", "epoch-00000005"]
    assert (tmp_path / "cluster").read_text().strip() == cluster


def test_a_directory_of_the_first_format_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "database").mkdir()
    with pytest.raises(Error, match="format 1") as caught:
        Store(tmp_path)
    assert caught.value.code is Code.CORRUPT


def test_a_directory_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    host = Host(tmp_path / "gone")
    with pytest.raises(Error) as caught:
        host.candidate().try_claim()
    assert caught.value.code is Code.IO
