"""What status says of syncs, of targets that are out, and of chunks that were found wrong."""

from typing import Any

from hillfire.cli.report import report
from hillfire.cluster import (
    Chain,
    Endpoint,
    LocalState,
    Node,
    NodeKind,
    Order,
    Progress,
    PublicState,
    Routing,
    Target,
)
from hillfire.types import ChainId, NodeId, TargetId

MIB = 1 << 20
CHAIN = ChainId(1)


def cluster(
    *states: PublicState, reason: str = "", order: Order = Order.NONE, local: int = 3
) -> Routing:
    """One chain; ``reason``, ``order`` and ``local`` are of its last target."""
    nodes, targets = {}, {}
    for number, state in enumerate(states, 1):
        last = number == len(states)
        endpoint = Endpoint("g", "t", "", "host")
        nodes[NodeId(number)] = Node(NodeId(number), NodeKind.STORAGE, endpoint, 1, True)
        targets[TargetId(number)] = Target(
            TargetId(number), NodeId(number), CHAIN, 0, state,
            LocalState(local) if last else LocalState.UP_TO_DATE, 0, 0, 0,
            reason if last else "", order if last else Order.NONE,
        )  # fmt: skip
    line = tuple((TargetId(n), state) for n, state in enumerate(states, 1))
    return Routing("c", 9, None, nodes, targets, {CHAIN: Chain(CHAIN, 3, line)})


def described(routing: Routing, **more: Any) -> dict[str, Any]:
    return report("a:1", routing, (0, 0), **more)


S, Y, O = PublicState.SERVING, PublicState.SYNCING, PublicState.OFFLINE  # noqa: E741


def test_a_syncs_progress_is_its_predecessors_and_comes_with_an_estimate() -> None:
    routing = cluster(S, S, Y)
    other = Progress(1, 2, 3, 4, 5)
    mine = Progress(30 * MIB, 90 * MIB, 30, 90, 10 * MIB)
    (chain,) = described(routing, progress={1: other, 2: mine})["chains"]
    assert [target["progress"] is None for target in chain["targets"]] == [True, True, False]
    told = chain["targets"][2]["progress"]
    assert told["seconds_left"] == 6
    assert (told["bytes_done"], told["chunks_total"]) == (30 * MIB, 90)
    (chain,) = described(routing, progress={2: Progress(0, 5)})["chains"]
    assert chain["targets"][2]["progress"]["seconds_left"] is None
    (chain,) = described(routing)["chains"]
    assert chain["targets"][2]["progress"] is None


def test_a_target_that_is_out_is_named_with_its_reason() -> None:
    found = described(cluster(S, S, O, reason="its disk fails: see dmesg"))
    assert "target 3 on storage-3 is out: its disk fails: see dmesg" in found["problems"]
    ordered = described(cluster(S, S, O, reason="any", order=Order.DRAIN))
    assert "target 3 on storage-3 is out by order (drain)" in ordered["problems"]
    full = described(cluster(S, S, S, reason="its disk is nearly full", local=1))
    assert full["problems"] == ["target 3 on storage-3: its disk is nearly full"]
    assert described(cluster(S, S, S, local=1))["healthy"]


def test_chunks_without_a_good_copy_are_a_problem_and_repaired_ones_are_none() -> None:
    routing = cluster(S, S, S, local=1)
    repaired = {2: {"damaged": 4, "repaired": 4, "lost": 0}}
    assert described(routing, checks=repaired)["healthy"]
    lost = described(routing, checks={2: {"damaged": 4, "repaired": 3, "lost": 1}})
    assert "storage-2 has lost 1 chunks" in lost["problems"][0]


def test_what_the_metadatas_copies_lack_is_a_problem() -> None:
    found = described(cluster(S, S, S, local=1), metadata={"problems": ["no copy"], "wanted": 2})
    assert found["problems"] == ["no copy"]
    assert found["metadata"]["wanted"] == 2
