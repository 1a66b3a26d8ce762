"""The comparison of two chunk lists, each row of its order, and that equal means nothing to do."""

# mypy: ignore-errors

import pytest

from hillfire.storage.comparison import Remote, Verdict, compare, judge
from hillfire.storage.store.base import ChunkMeta, Tag
from hillfire.types import chunk_id


def local(version, chain=5, *, checksum=1, length=4, epoch=1, removed=False):
    return ChunkMeta(version, length, checksum, Tag(1, 0, 1), chain, epoch, removed)


def remote(version, chain=5, *, pending=0, checksum=1, length=4, epoch=1, removed=False):
    return Remote(version, pending, length, checksum, chain, epoch, removed)


@pytest.mark.parametrize(
    ("here", "there", "verdict", "reason"),
    [
        (None, remote(3), Verdict.DROP, "only remote"),
        (None, remote(0, removed=True), Verdict.EQUAL, "on neither side"),
        (local(3), None, Verdict.SEND, "only local"),
        (local(3), remote(3, pending=4), Verdict.SEND, "remote uncommitted"),
        (local(3), remote(3), Verdict.EQUAL, "same"),
        (local(3, 6), remote(3, 4), Verdict.EQUAL, "same"),
        (local(3, 6), remote(4, 5), Verdict.SEND, "local chain version newer"),
        (local(3, 5), remote(4, 6), Verdict.CONFLICT, "version 4 of chain version 6 there, 3 of"),
        (local(4, 5), remote(3, 5), Verdict.SEND, "versions differ"),
        (local(3), remote(3, checksum=2), Verdict.SEND, "checksums differ"),
        (local(3, epoch=2), remote(3), Verdict.SEND, "checksums differ"),
    ],
)
def test_each_row(here, there, verdict, reason):
    found, said = judge(here, there)
    assert found is verdict
    assert said.startswith(reason)


def test_lists_are_compared_in_the_order_of_ids_and_equal_ones_left_out():
    a, b, c, d = (chunk_id(7, index) for index in range(4))
    found = list(compare({d: local(1), a: local(1), b: local(2)}, {a: remote(1), c: remote(1)}))
    assert [(each.chunk, each.verdict) for each in found] == [
        (b, Verdict.SEND),
        (c, Verdict.DROP),
        (d, Verdict.SEND),
    ]
