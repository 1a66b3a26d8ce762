"""`hillfire status` for a person: nothing is cut off where there is no terminal."""

import pytest

from hillfire.cli import status
from hillfire.cli.report import report
from hillfire.cluster import Endpoint, Node, NodeKind, Routing
from hillfire.meta.manager.decide import Wish, first_routing, with_chains, with_node
from hillfire.types import NodeId

MOUNT = "/home/somebody/.local/share/hillfire/quickstart/a/rather/long/place/to/mount/files/on"


def cluster() -> Routing:
    routing = first_routing("c" * 32)
    for i in range(3):
        here = Endpoint(f"127.0.0.1:{9705 + 2 * i}", f"127.0.0.1:{9704 + 2 * i}", "", "host")
        node = Node(NodeId(101 + i), NodeKind.STORAGE, here, 1, True)
        routing = with_node(routing, node) or routing
    made = with_chains(routing, Wish(3, 4, 3))
    assert made is not None
    return made


def test_eighty_columns_are_enough_wherever_it_is_mounted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["manager", "storage-101", "storage-102", "storage-103", "mount"]
    services = [
        {"name": name, "state": "running", "pid": 4_194_000 + i, "restarts": 12}
        for i, name in enumerate(names)
    ]
    local = {"pid": 7, "mount": MOUNT, "services": services}
    current = report("127.0.0.1:9700", cluster(), (1 << 45, 1 << 44), local)
    status._print({**current, "losses": []})
    text = capsys.readouterr().out
    assert "…" not in text
    for i, name in enumerate(names):
        line = next(line for line in text.splitlines() if line.strip().startswith(name))
        assert str(4_194_000 + i) in line
    assert text.count("12x") == len(names)
    assert f": {MOUNT}\n" in text, "in one piece, to be copied"


def test_transports_are_told_and_what_is_out_of_line_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(shm: int, tcp: int, **peers: str) -> dict[str, object]:
        reached = {peer.replace("_", "-"): {kind: 1} for peer, kind in peers.items()}
        return {"clients": {"shm": shm, "tcp": tcp}, "peers": reached}

    connections = {
        101: told(5, 2, storage_102="shm", storage_103="shm", manager="tcp"),
        102: told(2, 0, storage_101="shm", storage_103="tcp", manager="tcp"),
    }
    current = report("127.0.0.1:9700", cluster(), (1 << 45, 1 << 44), connections=connections)
    status._print({**current, "losses": []})
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "clients' connections: 4 by shm, 1 by tcp; storage nodes reach each other by shm; "
        "storage-102 to storage-103 by tcp"
    ) in text
    assert [node["connections"] for node in current["nodes"]] == [*connections.values(), None]
