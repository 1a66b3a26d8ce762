"""The operator's commands against real storage nodes, by the command line, while a client writes.

Time budget: 60 s on two idle cores.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from hillfire.cli.app import app
from hillfire.cli.operate import complete
from hillfire.cluster import Order, PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.types import ChunkId, InodeId, TargetId, chunk_id
from tests.integration.chain import Client, Cluster

SERVING, LAST, OFFLINE = PublicState.SERVING, PublicState.LAST_SERVING, PublicState.OFFLINE


def hillfire(cluster: Cluster, *words: str, status: int = 0) -> Any:
    """Run a command; return what it says as --json, or its error."""
    result = CliRunner().invoke(app, [*words, "--address", cluster.address, "--json"])
    if isinstance(result.exception, Error):
        assert status, result.exception
        return result.exception
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def said(cluster: Cluster, *words: str) -> str:
    """Run a command; return what a person reads."""
    result = CliRunner().invoke(app, [*words, "--address", cluster.address])
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.stdout.split())


def head_of(routing: Routing) -> TargetId:
    return next(iter(routing.chains.values())).serving[0]


@contextmanager
def load(cluster: Cluster) -> Iterator[list[ChunkId]]:
    """A client that writes and reads all the while: nothing that it is told may be untrue."""
    client, stop, failed = Client(cluster), threading.Event(), list[BaseException]()
    written: list[ChunkId] = []

    def work() -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                chunk = chunk_id(InodeId(9), number % 8)
                body = number.to_bytes(8, "big") * 512
                client.write([(chunk, 0, body)])
                assert client.read(chunk, len(body)) == body
                written.append(chunk)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield written
    finally:
        stop.set()
        thread.join(60)
        client.close()
    assert not failed, failed
    assert written


def test_a_target_leaves_and_comes_back_under_load(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        head = head_of(cluster.wait())
        with load(cluster) as written:
            answer = hillfire(cluster, "target", "offline", str(head), "--why", "noises")
            assert answer["done"] and answer["now"][0]["state"] == "offline"
            routing = cluster.routing()
            chain = next(iter(routing.chains.values()))
            assert head not in chain.serving and len(chain.serving) == 2
            assert routing.targets[head].order is Order.OFFLINE
            assert "already" in hillfire(cluster, "target", "offline", str(head))["said"]
            # Its node is started again: the order stands.
            node = int(routing.targets[head].node)
            cluster.kill(node)
            cluster.start(node)
            before = len(written)
            while len(written) < before + 20:
                assert cluster.routing().targets[head].state is OFFLINE
            answer = hillfire(cluster, "target", "online", str(head))
            assert answer["done"] and answer["now"][0]["state"] == "serving"
            # It was head, it prefers to be, and three serve: it comes back to its place by itself.
            known = 0
            while head_of(routing := cluster.routing(known, 1000)) != head:
                known = routing.version
            cluster.wait()
        decisions = hillfire(cluster, "chain", "log")
        assert [d["what"] for d in decisions] == [
            "chains created: 1 chains of 3 targets on 3 nodes",
            f"target {head} offline",
            f"target {head} online",
        ]
        assert decisions[1]["why"] == "noises" and "@" in decisions[1]["who"]


def test_the_last_targets_stay(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        chain = next(iter(cluster.wait().chains.values()))
        first, second, third = chain.serving
        hillfire(cluster, "chain", "min-serving", str(chain.id), "2")
        hillfire(cluster, "target", "offline", str(first))
        error = hillfire(cluster, "target", "offline", str(second), "--yes", status=1)
        assert error.code is Code.CONFIGURATION and "needs 2 serving and has 2" in str(error)
        hillfire(cluster, "chain", "min-serving", str(chain.id), "1")
        # Nobody is there to be asked whether one replica will do.
        error = hillfire(cluster, "target", "offline", str(second), status=1)
        assert "--yes" in str(error)
        hillfire(cluster, "target", "offline", str(second), "--yes")
        error = hillfire(cluster, "target", "offline", str(third), status=1)
        assert "would serve no more" in str(error)
        # The last one's node dies: what was ordered of the others does not bring old data back.
        node = int(cluster.routing().targets[third].node)
        cluster.kill(node)
        known = 0
        while (routing := cluster.routing(known, 1000)).targets[third].state is not LAST:
            known = routing.version
        error = hillfire(cluster, "target", "offline", str(third), status=1)
        assert "accept-loss" in str(error)
        hillfire(cluster, "target", "online", str(second), "--wait", "0.5", status=2)
        assert cluster.routing().targets[second].state is not SERVING


def test_a_node_is_drained_and_comes_back(tmp_path: Path) -> None:
    with Cluster(tmp_path, targets_per_node=3) as cluster:
        cluster.wait()
        with load(cluster):
            answer = hillfire(cluster, "node", "drain", "storage-102", "--why", "new kernel")
            assert answer["done"] and len(answer["now"]) == 3
            assert {t["state"] for t in answer["now"]} == {"offline"}
            assert {t["ordered"] for t in answer["now"]} == {"drain"}
            cluster.wait(serving=2)
            cluster.stop(102)  # nothing is lost by it, nobody waits for it
            # Now nobody else can be spared for long: each chain has two left, then one.
            error = hillfire(cluster, "target", "online", str(answer["now"][0]["id"]), status=1)
            assert "undrain" in str(error)
            cluster.start(102)
            answer = hillfire(cluster, "node", "undrain", "102")
            assert answer["done"] and {t["state"] for t in answer["now"]} == {"serving"}
        cluster.wait()
        assert "101001@101 serving" in said(cluster, "chain", "list")
        shown = said(cluster, "chain", "show", "1")
        assert "writes need 1 serving" in shown and "(new kernel)" in said(cluster, "chain", "log")
        assert complete(None, cluster.address, "targets", "1020") == ["102001", "102002", "102003"]
        assert complete(None, cluster.address, "nodes", "storage-101") == ["storage-101"]
        assert complete(None, cluster.address, "chains", "") == ["1", "2", "3"]
        assert complete(None, "127.0.0.1:1", "chains", "") == []
        listed = hillfire(cluster, "chain", "list")
        assert [c["id"] for c in listed] == [1, 2, 3]
        assert all(t["state"] == "serving" for c in listed for t in c["targets"])


def test_a_drain_waits_where_it_would_stop_writes(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        chain = next(iter(cluster.wait().chains.values()))
        hillfire(cluster, "chain", "min-serving", str(chain.id), "3")
        answer = hillfire(cluster, "node", "drain", "101", "--wait", "1.5", status=2)
        assert not answer["done"] and answer["now"][0]["state"] == "serving"
        hillfire(cluster, "chain", "min-serving", str(chain.id), "2")
        known = 0
        while cluster.routing(known, 1000).targets[TargetId(101001)].state is not OFFLINE:
            known = cluster.routing().version
        answer = hillfire(cluster, "node", "undrain", "101")
        assert answer["done"]
        assert "no storage node" in str(hillfire(cluster, "node", "drain", "7", status=1))


def test_loss_is_accepted_on_record_only(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        chain = next(iter(cluster.wait().chains.values()))
        client = Client(cluster)
        try:
            chunk = chunk_id(InodeId(3), 0)
            client.write([(chunk, 0, b"old")])
            first, second, last = chain.serving
            nodes = {t: int(cluster.routing().targets[t].node) for t in chain.serving}
            hillfire(cluster, "target", "offline", str(first))
            cluster.kill(nodes[second])
            cluster.wait(serving=1)
            client.write([(chunk, 0, b"new")])
            words = ("chain", "accept-loss", str(chain.id), "--target", str(last))
            assert "nothing to give up" in str(hillfire(cluster, *words, "--yes", status=1))
            cluster.kill(nodes[last])
            known = 0
            while (routing := cluster.routing(known, 1000)).targets[last].state is not LAST:
                known = routing.version
            assert "--yes" in str(hillfire(cluster, *words, status=1))
            hillfire(cluster, "target", "online", str(first), "--wait", "0.3", status=2)
            answer = hillfire(cluster, *words, "--yes", "--why", "disk shredded")
            assert str(first) in answer["said"]
            cluster.wait(serving=1)
            assert client.read(chunk, 3) == b"old"
            decision = hillfire(cluster, "chain", "show", str(chain.id))["decisions"][-1]
            assert decision["loss"] and decision["why"] == "disk shredded"
            status = CliRunner().invoke(app, ["status", "--address", cluster.address])
            assert "DATA GIVEN UP" in status.stdout.replace("\n", " ")
            # What was given up stays given up: the record outlives the manager too.
            cluster.kill("manager")
            cluster.start_manager()
            assert hillfire(cluster, "chain", "log")[-1] == decision
        finally:
            client.close()


def test_a_preferred_head_is_chosen(tmp_path: Path) -> None:
    with Cluster(tmp_path, manager="rotate = false") as cluster:
        chain = next(iter(cluster.wait().chains.values()))
        wanted = chain.serving[1]
        order = [str(t) for t in (wanted, chain.serving[2], chain.serving[0])]
        few = hillfire(cluster, "chain", "prefer", str(chain.id), *order[:2], status=1)
        assert "name each target" in str(few)
        hillfire(cluster, "chain", "prefer", str(chain.id), *order)
        with load(cluster):
            answer = hillfire(cluster, "chain", "rotate", str(chain.id))
            assert answer["done"] and answer["now"][0]["preferred"] == [int(t) for t in order]
            routing = cluster.wait()
            assert [str(t) for t in routing.chains[chain.id].serving] == order
        assert "prefers" in hillfire(cluster, "chain", "rotate", str(chain.id))["said"]
