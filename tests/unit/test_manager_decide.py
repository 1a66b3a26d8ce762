"""From one routing to the next: versions, creation, deaths, the use of space; and its storage."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from hillfire.cluster import (
    ChainTable,
    Endpoint,
    LocalState,
    Node,
    NodeKind,
    PublicState,
    Routing,
)
from hillfire.errors import Code, Error
from hillfire.meta.manager.chains import Report, check
from hillfire.meta.manager.decide import (
    Status,
    Wish,
    evaluate,
    first_routing,
    with_chains,
    with_manager,
    with_node,
)
from hillfire.meta.manager.state import Store
from hillfire.types import NodeId, TargetId

HERE = Endpoint("g:1", "t:1", "", "host")


def cluster_of(count: int) -> Routing:
    routing = first_routing("c")
    for i in range(count):
        node = Node(NodeId(101 + i), NodeKind.STORAGE, HERE, 1, True)
        routing = with_node(routing, node) or routing
    return routing


def serving_cluster() -> tuple[Routing, dict[TargetId, Status]]:
    routing = with_chains(cluster_of(3), Wish(3, 4, 3))
    assert routing is not None
    said = {t: Status(Report(LocalState.UP_TO_DATE, 2), 0, 1 << 40) for t in routing.targets}
    serving = evaluate(routing, set(routing.nodes), said)
    assert serving is not None
    return serving, said


def test_chains_are_placed_once() -> None:
    routing = with_chains(cluster_of(3), Wish(3, 4, 3))
    assert routing is not None and routing.version == 4
    assert len(routing.chains) == 4 and len(routing.targets) == 12
    assert routing.tables == {1: ChainTable(1, tuple(routing.chains))}
    for chain in routing.chains.values():
        check(chain)
        assert all(routing.targets[t].chain == chain.id for t, _ in chain.targets)
    assert with_chains(routing, Wish(3, 4, 3)) is None
    with pytest.raises(Error) as caught:
        with_chains(routing, Wish(3, 4, 2))
    assert caught.value.code is Code.EXISTS


def test_chains_wait_for_nodes_but_not_for_impossible_numbers() -> None:
    with pytest.raises(Error, match="2 of 3 storage nodes are up") as caught:
        with_chains(cluster_of(2), Wish(3, 4, 3))
    assert caught.value.code is Code.UNAVAILABLE
    with pytest.raises(Error, match="3 replicas need 3") as caught:
        with_chains(cluster_of(2), Wish(2, 4, 3))
    assert caught.value.code is Code.CONFIGURATION


def test_a_node_keeps_its_kind() -> None:
    routing = cluster_of(1)
    node = routing.nodes[NodeId(101)]
    assert with_node(routing, node) is None
    with pytest.raises(Error, match="another number"):
        with_node(routing, replace(node, kind=NodeKind.META))


def test_evaluation_publishes_what_changed_and_nothing_else() -> None:
    routing, said = serving_cluster()
    assert all(len(c.serving) == 3 for c in routing.chains.values())
    assert all(t.state is PublicState.SERVING for t in routing.targets.values())
    alive = set(routing.nodes)
    assert evaluate(routing, alive, said) is None

    first = next(iter(said))
    opened = {**said, first: said[first]._replace(report=Report(LocalState.ONLINE, 2))}
    told = evaluate(routing, alive, opened)
    assert told is not None and told.targets[first].local is LocalState.ONLINE
    assert told.chains == routing.chains

    without = evaluate(routing, alive - {101}, said)
    assert without is not None and without.version == routing.version + 1
    assert not without.nodes[NodeId(101)].alive
    for target in without.targets.values():
        lost = target.node == 101
        assert target.state is (PublicState.OFFLINE if lost else PublicState.SERVING)
        assert target.local is (LocalState.OFFLINE if lost else LocalState.UP_TO_DATE)
    for chain in without.chains.values():
        check(chain)
        assert chain.version == routing.chains[chain.id].version + 1

    all_at_once = evaluate(routing, set(), said)
    assert all_at_once is not None
    assert all(t.state is PublicState.LAST_SERVING for t in all_at_once.targets.values())


def test_the_use_of_space_is_published_when_it_is_notable() -> None:
    routing, said = serving_cluster()
    first = next(iter(said))
    for used, notable in ((1 << 20, False), (1 << 38, True)):
        now = {**said, first: said[first]._replace(used_bytes=used)}
        assert evaluate(routing, set(routing.nodes), now) is None
        published = evaluate(routing, set(routing.nodes), now, space=True)
        assert (published is not None) is notable
    assert published is not None and published.targets[first].used_bytes == 1 << 38


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    async def test() -> None:
        store = Store(tmp_path)
        cluster = store.routing.cluster
        assert store.routing.version == 0 and len(cluster) == 32
        routing, said = serving_cluster()
        routing = with_manager(replace(routing, cluster=cluster), HERE)
        await store.save(routing)
        changed = evaluate(routing, {NodeId(101)}, said)
        assert changed is not None
        await store.save(changed)
        with pytest.raises(Error, match="another manager runs in") as caught:
            Store(tmp_path)
        assert caught.value.code is Code.BUSY
        store.close()

        again = Store(tmp_path)
        assert again.routing == changed
        again.close()

        (tmp_path / "cluster").write_text("x" * 32)
        with pytest.raises(Error) as caught:
            Store(tmp_path)
        assert caught.value.code is Code.WRONG_CLUSTER

    asyncio.run(test())


def test_an_unfinished_save_leaves_nothing_behind(tmp_path: Path) -> None:
    """A save that is cancelled may be on the disk or not: the next one replaces all of it."""

    async def test() -> None:
        store = Store(tmp_path)
        few = replace(cluster_of(2), cluster=store.routing.cluster)
        await store.save(few)
        many = replace(cluster_of(5), cluster=store.routing.cluster)
        saving = asyncio.create_task(store.save(many))
        await asyncio.sleep(0)
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        await store.save(replace(few, version=9))
        store.close()
        again = Store(tmp_path)
        assert again.routing == replace(few, version=9)
        again.close()

    asyncio.run(test())
