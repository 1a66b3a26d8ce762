"""One resync as a machine: pages, batches, back-off, the end; what is equal is never sent."""

# mypy: ignore-errors

from hillfire.errors import Code
from hillfire.storage import recovery
from hillfire.storage.comparison import Remote
from hillfire.storage.recovery import BATCH_BYTES, BATCH_CHUNKS, IN_FLIGHT, LOW_CHUNKS, Sync
from hillfire.storage.store.base import ChunkMeta, Tag
from hillfire.types import chunk_id


def local(version, chain=5, length=4):
    return ChunkMeta(version, length, version, Tag(1, 0, 1), chain, 1, False)


def remote(version, chain=5, pending=0, length=4):
    return Remote(version, pending, length, version, chain, 1, False)


def chunks(count, first=0):
    return [chunk_id(7, index) for index in range(first, first + count)]


def paged(sync, ours, theirs, last=None):
    sync.handle(recovery.Listed(theirs, last))
    return sync.handle(recovery.Scanned(ours))


def finish(sync):
    assert sync.handle(recovery.Completed(Code.OK)) == [recovery.TellTags()]
    assert sync.handle(recovery.Told()) == [recovery.Finished(True)]
    assert sync.finished


def test_what_is_equal_costs_a_comparison_only():
    sync = Sync(6)
    assert sync.start() == [recovery.List(b"", recovery.PAGE)]
    names = chunks(3)
    assert sync.handle(recovery.Listed({n: remote(2) for n in names}, names[-1])) == [
        recovery.Scan(b"", names[-1])
    ]
    effects = sync.handle(recovery.Scanned({n: local(2) for n in names}))
    assert effects == [recovery.List(names[-1], recovery.PAGE)]
    assert paged(sync, {}, {}) == [recovery.Complete()]
    finish(sync)
    assert sync.progress.compared_chunks == 3 and sync.progress.to_send_chunks == 0


def test_batches_are_bounded_by_chunks_bytes_and_those_in_flight():
    sync = Sync(6)
    sync.start()
    names = chunks(BATCH_CHUNKS * 3)
    effects = paged(sync, {n: local(2) for n in names}, {})
    assert [len(e.chunks) for e in effects] == [BATCH_CHUNKS] * IN_FLIGHT
    effects = sync.handle(recovery.BatchDone(1, [Code.OK] * BATCH_CHUNKS))
    assert [e.number for e in effects] == [3]
    big = Sync(6)
    big.start()
    half = {n: local(2, length=BATCH_BYTES // 2 + 1) for n in chunks(3)}
    assert [len(e.chunks) for e in paged(big, half, {})] == [1, 1]


def test_the_next_page_is_asked_for_while_batches_are_on_their_way_but_not_too_early():
    sync = Sync(6)
    sync.start()
    names = chunks(LOW_CHUNKS + BATCH_CHUNKS * IN_FLIGHT)
    effects = paged(sync, {n: local(2) for n in names}, {}, names[-1])
    assert not any(isinstance(e, recovery.List) for e in effects)
    effects = sync.handle(recovery.BatchDone(1, [Code.OK] * BATCH_CHUNKS))
    assert [type(e).__name__ for e in effects] == ["SendBatch", "List"]


def test_a_chunk_that_was_not_taken_is_sent_again_alone_after_a_back_off():
    sync = Sync(6)
    sync.start()
    names = chunks(3)
    (batch,) = paged(sync, {n: local(2) for n in names}, {})
    codes = [Code.OK, Code.CONNECTION, Code.OK]
    assert sync.handle(recovery.BatchDone(batch.number, codes)) == [
        recovery.Wait(1, "a chunk was not taken: CONNECTION")
    ]
    (again,) = sync.handle(recovery.RetryDue())
    assert list(again.chunks) == [names[1]]
    assert sync.handle(recovery.BatchDone(again.number, [Code.OK])) == [recovery.Complete()]
    finish(sync)
    assert sync.progress.sent_chunks == 3 and sync.progress.failed_chunks == 1


def test_a_failed_step_is_made_again_with_a_growing_back_off():
    sync = Sync(6)
    sync.start()
    for attempt in (1, 2):
        (wait,) = sync.handle(recovery.StepFailed(Code.CONNECTION, "gone"))
        assert wait.attempt == attempt
        assert sync.handle(recovery.RetryDue()) == [recovery.List(b"", recovery.PAGE)]
    sync.handle(recovery.Listed({}, None))
    sync.handle(recovery.StepFailed(Code.IO, "disk"))
    assert sync.handle(recovery.RetryDue()) == [recovery.Scan(b"", None)]
    assert sync.handle(recovery.Scanned({})) == [recovery.Complete()]
    (wait,) = sync.handle(recovery.Completed(Code.WRONG_CHAIN_VERSION))
    assert wait.attempt == 1
    assert sync.handle(recovery.RetryDue()) == [recovery.Complete()]
    sync.handle(recovery.Completed(Code.OK))
    sync.handle(recovery.StepFailed(Code.TIMED_OUT, ""))
    assert sync.handle(recovery.RetryDue()) == [recovery.TellTags()]
    assert sync.handle(recovery.Told()) == [recovery.Finished(True)]


def test_completing_waits_for_every_batch():
    sync = Sync(6)
    sync.start()
    (batch,) = paged(sync, {n: local(2) for n in chunks(2)}, {})
    assert sync.handle(recovery.BatchDone(batch.number, [Code.OK] * 2)) == [recovery.Complete()]


def test_a_conflict_is_told_to_the_successor_and_ends_the_sync():
    sync = Sync(6)
    sync.start()
    a, b = chunks(2)
    (refusal,) = paged(sync, {a: local(2), b: local(2)}, {a: remote(3, 6), b: remote(1)})
    assert isinstance(refusal, recovery.Refuse) and list(refusal.chunks) == [a]
    assert "version 3 of chain version 6 there" in refusal.reason
    assert len(sync.handle(recovery.StepFailed(Code.CONNECTION, ""))) == 1
    assert sync.handle(recovery.RetryDue()) == [refusal]
    assert sync.handle(recovery.Told()) == [recovery.Finished(False)]
    assert sync.handle(recovery.RetryDue()) == []


def test_progress_estimates_the_whole_from_what_was_seen():
    names = chunks(40)
    sync = Sync(6, total_chunks=400, total_bytes=4000)
    sync.start()
    ours = {n: local(2, length=10) for n in names}
    theirs = {n: remote(2, length=10) for n in names[20:]}
    (first, *_) = paged(sync, ours, theirs, names[-1])
    progress = sync.progress
    assert (progress.compared_bytes, progress.to_send_bytes) == (400, 200)
    assert progress.left_bytes() == 200 + (4000 - 400) // 2
    sync.handle(recovery.BatchDone(first.number, [Code.OK] * len(first.chunks)))
    assert progress.left_bytes() == 40 + 1800
    paged(sync, {}, {})
    assert progress.left_bytes() == 40


def test_rules_are_told():
    told = []
    sync = Sync(6, on_rule=told.append)
    sync.start()
    a, b = chunks(2)
    paged(sync, {a: local(2), b: local(2)}, {a: remote(2)})
    assert told == [34, 33]


def test_what_is_newer_there_only_because_it_is_under_way_here_is_no_conflict():
    """The successor committed it in an earlier life, before us (simulator, seed 2289)."""
    a, b = chunks(2)
    sync = Sync(6)
    sync.start()
    sync.handle(recovery.Listed({a: remote(3, chain=5), b: remote(2, chain=5)}, None))
    effects = sync.handle(recovery.Scanned({a: local(2), b: local(2)}, held=frozenset([a])))
    assert [e.chunks for e in effects] == [[a]]
