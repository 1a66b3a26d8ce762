"""The checker of histories: against known ones, a brute-force oracle, and the clock."""

import random
import subprocess
import sys
import time
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.history import (
    Kind,
    Operation,
    Recorder,
    check_versions,
    decode,
    dump,
    judge,
    labelled,
    load,
    pattern,
    raw,
)


def write(at: int, until: int | None, offset: int, data: bytes, **more: object) -> Operation:
    return _operation(Kind.WRITE, at, until, offset=offset, data=data, **more)


def read(at: int, until: int | None, offset: int, data: bytes, **more: object) -> Operation:
    return _operation(Kind.READ, at, until, offset=offset, data=data, **more)


def _operation(
    kind: Kind, at: int, until: int | None, offset: int = 0, data: bytes = b"", **more: object
) -> Operation:
    more.setdefault("length", len(data))
    content = raw(max(offset, 0), data)
    key = str(more.pop("key", "c"))
    client = str(more.pop("client", f"c{at}"))
    return Operation(client, key, kind, at, until, offset=offset, content=content, **more)  # type: ignore[arg-type]


def good(*operations: Operation) -> None:
    verdict = judge(operations)
    assert verdict.ok, str(verdict)


def bad(*operations: Operation) -> str:
    for versions in (True, False):
        verdict = judge(operations, versions=versions)
        assert verdict.violations and not verdict.undecided
    return str(verdict)


# ---------------------------------------------------------------------- known histories


def test_one_after_the_other() -> None:
    good(write(0, 1, 0, b"ab"), read(2, 3, 0, b"ab"), write(4, 5, 1, b"c"), read(6, 7, 0, b"ac"))


def test_what_was_never_written_is_zeros() -> None:
    good(read(0, 1, 0, b"\0\0\0"), write(2, 3, 1, b"x"), read(4, 5, 0, b"\0x\0"))
    bad(write(2, 3, 1, b"x"), read(4, 5, 0, b"ax"))


def test_a_short_answer_means_zeros() -> None:
    good(write(0, 1, 0, b"ab"), read(2, 3, 0, b"ab", length=10))
    bad(write(0, 1, 0, b"abc"), read(2, 3, 0, b"ab", length=10))


def test_concurrent_writes_take_either_order_but_the_same_for_all() -> None:
    both = write(0, 9, 0, b"a"), write(1, 8, 0, b"b")
    good(*both, read(10, 11, 0, b"a"))
    good(*both, read(10, 11, 0, b"b"))
    good(*both, read(2, 3, 0, b"b"), read(4, 5, 0, b"a"), read(10, 11, 0, b"a"))
    bad(*both, read(10, 11, 0, b"a"), read(12, 13, 0, b"b"))
    bad(*both, read(2, 3, 0, b"b"), read(4, 5, 0, b"a"), read(6, 7, 0, b"b"))


def test_a_stale_read_is_found() -> None:
    text = bad(
        write(0, 1, 0, b"old!"),
        write(2, 3, 0, b"new!"),
        read(4, 5, 0, b"old!"),
        read(6, 7, 0, b"new!"),
    )
    assert "write [0, 4) = 6e657721" in text and "saw 6f6c6421" in text
    assert "6..7" not in text, "the read after it plays no part"


def test_a_lost_write_is_found() -> None:
    bad(write(0, 1, 0, b"a"), read(2, 3, 0, b"\0"))
    bad(write(0, 1, 0, b"a"), write(2, 3, 0, b"b"), read(4, 5, 0, b"b"), read(6, 7, 0, b"a"))


def test_a_write_of_unknown_outcome_may_come_late_or_never() -> None:
    lost = write(0, None, 0, b"u")
    good(lost, read(1, 2, 0, b"\0"), read(3, 4, 0, b"\0"))
    good(lost, read(1, 2, 0, b"\0"), read(3, 4, 0, b"u"))
    good(lost, write(1, 2, 0, b"a"), read(3, 4, 0, b"a"), read(5, 6, 0, b"u"))


def test_what_was_seen_of_a_failed_write_does_not_disappear() -> None:
    bad(write(0, None, 0, b"u"), read(1, 2, 0, b"u"), read(3, 4, 0, b"\0"))


def test_a_write_of_unknown_outcome_happens_once() -> None:
    bad(
        write(0, None, 0, b"u"),
        read(1, 2, 0, b"u"),
        write(3, 4, 0, b"a"),
        read(5, 6, 0, b"a"),
        read(7, 8, 0, b"u"),
    )


def test_a_partial_write_applied_twice_is_found() -> None:
    bad(
        write(0, 9, 0, b"xx"),
        read(1, 2, 0, b"xx\0\0"),
        write(3, 4, 1, b"yy"),
        read(5, 6, 0, b"xyy\0"),
        read(7, 8, 0, b"xxy\0"),
    )


def test_mixed_bytes_are_found() -> None:
    bad(write(0, 9, 0, b"aaaa"), write(1, 8, 0, b"bbbb"), read(10, 11, 0, b"aabb"))
    good(write(0, 9, 0, b"aa"), write(1, 8, 2, b"bb"), read(2, 7, 0, b"aabb"))
    bad(write(0, 1, 0, b"aaaa"), read(2, 3, 0, b"aaab"))


def test_part_of_a_write_is_found() -> None:
    bad(write(0, 9, 0, b"aaaa"), read(1, 2, 0, b"aa\0\0"))


def test_truncate_and_remove() -> None:
    cut = _operation(Kind.TRUNCATE, 4, 5, length=1)
    good(write(0, 1, 0, b"abc"), cut, read(6, 7, 0, b"a\0\0", size=1))
    bad(write(0, 1, 0, b"abc"), cut, read(6, 7, 0, b"abc"))
    bad(write(0, 1, 0, b"abc"), cut, read(6, 7, 0, b"a", size=3))
    gone = _operation(Kind.REMOVE, 4, 5)
    good(write(0, 1, 0, b"abc"), gone, read(6, 7, 0, b"", length=3, size=0))
    good(write(0, 1, 0, b"a"), gone, write(6, 7, 1, b"b"), read(8, 9, 0, b"\0b"))
    bad(write(0, 1, 0, b"a"), gone, write(6, 7, 1, b"b"), read(8, 9, 0, b"ab"))


def test_epochs_decide_what_a_cut_touches() -> None:
    cut = _operation(Kind.TRUNCATE, 4, 5, length=0, epoch=2)
    good(write(0, 1, 0, b"a", epoch=1), cut, read(6, 7, 0, b"\0"))
    good(write(0, 1, 0, b"a", epoch=2), cut, read(6, 7, 0, b"a"))
    bad(write(0, 1, 0, b"a", epoch=1), cut, read(6, 7, 0, b"a"))
    bad(write(0, 1, 0, b"a", epoch=1), cut, write(6, 7, 0, b"b", epoch=1), read(8, 9, 0, b"b"))
    good(write(0, 1, 0, b"a", epoch=1), cut, write(2, None, 0, b"b", epoch=1), read(8, 9, 0, b"\0"))


def test_an_append_applied_twice_is_found() -> None:
    first = _operation(Kind.APPEND, 0, 1, offset=0, data=b"aa")
    second = _operation(Kind.APPEND, 2, 3, offset=2, data=b"bb")
    good(first, second, read(4, 5, 0, b"aabb", size=4))
    bad(first, second, read(4, 5, 0, b"aaaabb"))
    bad(first, second, read(4, 5, 0, b"aabb", size=6))
    bad(first, _operation(Kind.APPEND, 2, 3, offset=0, data=b"bb"))
    lost = _operation(Kind.APPEND, 2, None, offset=-1, data=b"uu")
    good(first, lost, read(4, 5, 0, b"aauu", size=4), read(6, 7, 0, b"aauu", size=4))
    bad(first, lost, read(4, 5, 0, b"aauu", size=4), read(6, 7, 0, b"aauuuu", length=6))


def test_a_clone_takes_what_its_source_was_at_that_instant() -> None:
    clone = _operation(Kind.CLONE, 2, 3, key="d", source="c")
    good(write(0, 1, 0, b"ab"), clone, read(4, 5, 0, b"ab", key="d"))
    good(write(0, 1, 0, b"ab"), clone, write(4, 5, 0, b"x"), read(6, 7, 0, b"ab", key="d"))
    bad(write(0, 1, 0, b"ab"), clone, write(4, 5, 0, b"x"), read(6, 7, 0, b"xb", key="d"))


def test_chunks_are_judged_apart() -> None:
    good(write(0, 1, 0, b"a"), read(2, 3, 0, b"\0", key="d"))
    verdict = judge([write(0, 1, 0, b"a"), read(2, 3, 0, b"b"), read(2, 3, 0, b"\0", key="d")])
    assert [violation.keys for violation in verdict.violations] == [["c"]]


def test_a_refused_operation_has_no_effect() -> None:
    refused = write(0, 1, 0, b"a", refused=True)
    good(refused, read(2, 3, 0, b"\0"))
    bad(refused, read(2, 3, 0, b"a"))


def test_the_counterexample_is_small() -> None:
    """Of 200 operations, those that contradict each other are shown."""
    source = random.Random(3)
    operations = _run(source, 200, clients=4, size=64)
    assert judge(operations).ok
    reads = [each for each in operations if each.kind is Kind.READ and each.invoked > 300]
    wrong = reads[0]
    seen = bytearray(64)
    for extent in wrong.content:
        assert isinstance(extent.value, bytes)
        seen[extent.offset : extent.offset + extent.length] = extent.value
    seen[wrong.offset] ^= 1
    wrong.content = raw(wrong.offset, bytes(seen[wrong.offset : wrong.end]))
    verdict = judge(operations, versions=False)
    assert len(verdict.violations) == 1
    assert len(verdict.violations[0].core) <= 2, str(verdict)


# ---------------------------------------------------------------------- versions


def test_versions_are_proposed_and_never_believed() -> None:
    history = [
        write(0, 9, 0, b"a", version=2),
        write(1, 8, 0, b"b", version=1),
        read(10, 11, 0, b"a", version=2),
    ]
    verdict = judge(history)
    assert verdict.ok and verdict.by_versions == 1 and verdict.steps == 0
    history[0].version, history[1].version = 1, 2  # a lie: the search must find the order itself
    verdict = judge(history)
    assert verdict.ok and verdict.by_versions == 0 and verdict.steps > 0


def test_versions_guide_the_search_through_chunks_that_a_clone_connects() -> None:
    def history(last: int) -> list[Operation]:
        """Writes to each of two chunks, all at once, in an order that only versions tell."""
        run = [_operation(Kind.CLONE, 0, 1, key="d", source="c", version=1)]
        for key, first in (("c", 1), ("d", 2)):
            order = random.Random(first).sample(range(12), 12)
            for place, number in enumerate(order):
                data, version = bytes([number + 1]), place + first
                run.append(write(2 + number, 100, 0, data, key=key, version=version))
            data = bytes([order[-1 if key == "c" else last] + 1])
            run.append(read(201, 202, 0, data, key=key, version=11 + first))
        return run

    guided, unguided = judge(history(-1)), judge(history(-1), versions=False)
    assert (guided.by_versions, unguided.by_versions) == (1, 0) and unguided.ok
    assert guided.steps <= 2 * len(history(-1)) < unguided.steps
    wrong = judge(history(3))
    assert wrong.ok and not wrong.by_versions, "versions are not believed: another order holds"


def test_versions_that_go_back_are_told() -> None:
    assert not check_versions([write(0, 1, 0, b"a", version=1), read(2, 3, 0, b"a", version=1)])
    assert check_versions([write(0, 1, 0, b"a", version=2), read(2, 3, 0, b"a", version=1)])
    assert check_versions([write(0, 5, 0, b"a", version=1), write(0, 6, 0, b"b", version=1)])
    overlapping = [write(0, 5, 0, b"a", version=2), read(2, 9, 0, b"a", version=1)]
    assert not check_versions(overlapping)


# ---------------------------------------------------------------------- the oracle


def brute_force(operations: list[Operation]) -> bool:
    """Try every subset of the unknown and every order, on plain bytearrays."""
    unknown = [each for each in operations if each.unknown]
    known = [each for each in operations if not each.unknown]
    for mask in range(1 << len(unknown)):
        chosen = known + [each for i, each in enumerate(unknown) if mask >> i & 1]
        if any(_explains(order) for order in permutations(chosen)):
            return True
    return False


def _explains(order: tuple[Operation, ...]) -> bool:
    for i, late in enumerate(order):
        for early in order[:i]:
            if late.returned is not None and late.returned < early.invoked:
                return False
    state, epoch, present = bytearray(8), 0, False
    for each in order:
        data = bytearray(each.length)
        for extent in each.content:
            assert isinstance(extent.value, bytes)
            data[extent.offset - each.offset :][: extent.length] = b""  # (made below)
            start = extent.offset - each.offset
            data[start : start + extent.length] = extent.value
        if each.kind is Kind.READ:
            if state[each.offset : each.end] != data[: each.length]:
                return False
            continue
        assert each.epoch is not None
        if epoch > each.epoch:
            if not each.unknown:
                return False
        elif each.kind is Kind.WRITE:
            state[each.offset : each.end] = data[: each.length]
            epoch, present = each.epoch, True
        elif present and epoch < each.epoch:
            cut = each.length if each.kind is Kind.TRUNCATE else 0
            state[cut:] = bytes(8 - cut)
            epoch, present = each.epoch, each.kind is Kind.TRUNCATE
    return True


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """A few operations over four bytes, with few values, so that many histories are nearly right.

    Some are runs of a real register with one thing changed, some are noise.
    """
    count = draw(st.integers(1, 6))
    operations = []
    for number in range(count):
        kind = draw(
            st.sampled_from(
                [Kind.READ, Kind.READ, Kind.WRITE, Kind.WRITE, Kind.TRUNCATE, Kind.REMOVE]
            )
        )
        began = draw(st.integers(0, 12))
        returned = began + draw(st.integers(1, 8))
        unknown = kind is not Kind.READ and draw(st.integers(0, 3)) == 0
        offset = draw(st.integers(0, 2))
        length = draw(st.integers(1, 3))
        data = bytes(draw(st.lists(st.integers(0, 2), min_size=length, max_size=length)))
        if kind in (Kind.TRUNCATE, Kind.REMOVE):
            offset, data = 0, b""
            length = length if kind is Kind.TRUNCATE else 0
        epoch = None if kind is Kind.READ else draw(st.integers(1, 2))
        operations.append(
            Operation(
                f"c{number}", "c", kind, began, None if unknown else returned, offset=offset,
                length=length, content=raw(offset, data), epoch=epoch,
            )
        )  # fmt: skip
    return operations


@settings(max_examples=300, deadline=None)
@given(histories())
def test_it_agrees_with_brute_force(operations: list[Operation]) -> None:
    assert judge(operations).ok == brute_force(operations)


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_runs_of_a_real_register_are_accepted_and_their_lies_judged(
    source: random.Random, count: int
) -> None:
    operations = _run(source, count, clients=3, size=4)
    assert judge(operations).ok and judge(operations, versions=False).ok
    for each in operations:  # versions are then no witness
        each.version = None if source.random() < 0.5 else 1
    reads = [each for each in operations if each.kind is Kind.READ]
    if reads:
        lie = source.choice(reads)
        lie.content = raw(lie.offset, bytes(source.randrange(3) for _ in range(lie.length)))
        assert judge(operations).ok == brute_force(operations)


def _run(
    source: random.Random, count: int, clients: int, size: int, unknown: float = 0.1
) -> list[Operation]:
    """Run a real register: each operation takes effect at an instant within its interval."""
    busy = [0] * clients
    operations: list[tuple[int, Operation]] = []
    for _ in range(count):
        client = min(range(clients), key=lambda i: busy[i])
        began = busy[client] + source.randrange(1, 5)
        until = began + source.randrange(2, 12)
        busy[client] = until
        kind = source.choice((Kind.READ, Kind.WRITE))
        offset = source.randrange(size)
        length = source.randrange(1, size - offset + 1)
        each = Operation(
            f"c{client}", "c", kind, began, until, offset=offset, length=length, epoch=1,
            content=raw(offset, source.randbytes(length)) if kind is Kind.WRITE else (),
        )  # fmt: skip
        instant = source.randrange(began, until + 1)
        if kind is Kind.WRITE and source.random() < unknown:
            each.returned = None
            instant += source.randrange(40)
        operations.append((instant, each))
    state = bytearray(size)
    version = 0
    for _, each in sorted(operations, key=lambda pair: pair[0]):
        if each.kind is Kind.WRITE:
            if each.unknown and source.random() < 0.5:
                continue
            for extent in each.content:
                assert isinstance(extent.value, bytes)
                state[extent.offset : extent.offset + extent.length] = extent.value
            version += 1
        else:
            each.content = raw(each.offset, bytes(state[each.offset : each.end]))
            each.epoch = None
        each.version = None if each.unknown else version
    return [each for _, each in operations]


# ---------------------------------------------------------------------- labels


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False))
def test_labels_tell_what_bytes_would(source: random.Random) -> None:
    size = 300
    state, parts = bytearray(size), []
    for label in range(1, 6):
        offset = source.randrange(size)
        length = source.randrange(1, size - offset + 1)
        state[offset : offset + length] = pattern(label, offset, length)
        parts.append((offset, length, label))
    offset = source.randrange(size)
    seen = bytes(state[offset:])
    content = decode(seen, offset)
    assert sum(extent.length for extent in content) == len(seen)
    for extent in content:
        again = (
            extent.value
            if isinstance(extent.value, bytes)
            else pattern(extent.value, extent.offset, extent.length)
        )
        assert again == seen[extent.offset - offset :][: extent.length]
    history = [
        Operation(
            "w", "c", Kind.WRITE, 10 * i, 10 * i + 1, offset=at, length=n,
            content=labelled(label, at, n),
        )
        for i, (at, n, label) in enumerate(parts)
    ]  # fmt: skip
    seen_at = 1000, 1001
    history.append(
        Operation("r", "c", Kind.READ, *seen_at, offset=offset, length=len(seen), content=content)
    )
    good(*history)
    flipped = bytearray(seen)
    flipped[source.randrange(len(flipped))] ^= 1 << source.randrange(8)
    history[-1] = history[-1].but(content=decode(bytes(flipped), offset))
    bad(*history)


# ---------------------------------------------------------------------- files and the command


def test_a_kept_history_is_judged_again(tmp_path: Path) -> None:
    recorder = Recorder(time.monotonic_ns)
    ticket = recorder.invoke("a", "c", Kind.WRITE, offset=3, content=b"abc", epoch=1)
    recorder.returned(ticket, version=1)
    ticket = recorder.invoke("a", "c", Kind.READ, offset=0, length=6)
    recorder.returned(ticket, content=b"\0\0\0abc", version=1, size=6)
    recorder.refused(recorder.invoke("b", "c", Kind.REMOVE, epoch=0))
    recorder.invoke("b", "c", Kind.WRITE, length=90, content=labelled(5, 0, 90))
    for name in ("h.jsonl", "h.jsonl.gz"):
        path = tmp_path / name
        dump(path, recorder.operations)
        assert [repr(each) for each in load(path)] == [repr(each) for each in recorder.operations]
    wrong = tmp_path / "wrong.jsonl"
    dump(wrong, [write(0, 1, 0, b"a"), read(2, 3, 0, b"b")])
    (tmp_path / "other").write_text('{"history": 99}\n')
    with pytest.raises(ValueError, match="no history of format"):
        load(tmp_path / "other")
    for judged, status, said in ((path, 0, "0 not linear"), (wrong, 1, "cannot be explained")):
        ended = subprocess.run(
            [sys.executable, "-m", "tests.history", str(judged)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=Path(__file__).parents[2],
        )
        assert ended.returncode == status and said in ended.stdout, ended


# ---------------------------------------------------------------------- how long it takes


@pytest.mark.parametrize("clients", [3, 10])
def test_hundreds_of_operations_take_seconds(clients: int) -> None:
    operations = _run(random.Random(clients), 600, clients=clients, size=1024, unknown=0.03)
    began = time.process_time()
    verdict = judge(operations, versions=False)
    took = time.process_time() - began
    assert verdict.ok, str(verdict)
    print(f"{clients} clients, 600 operations: {took:.2f} s, {verdict.steps} steps")
    assert took < 20
    began = time.process_time()
    assert judge(operations).by_versions == 1
    print(f"by versions: {time.process_time() - began:.2f} s")


def test_too_much_work_is_undecided_and_no_success() -> None:
    operations = _run(random.Random(1), 300, clients=10, size=16)
    verdict = judge(operations, limit=5, versions=False)
    assert not verdict.ok and verdict.undecided and not verdict.violations
