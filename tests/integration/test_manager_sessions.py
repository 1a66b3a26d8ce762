"""Real storage nodes keep what they know of a client's updates until its session is over.

Time budget: 20 s on two idle cores; what passes is time itself.
"""

import time
from pathlib import Path

from hillfire.proto import manager_pb2 as pb
from hillfire.proto import service
from hillfire.types import InodeId, chunk_id
from tests.integration.chain import Client, Cluster

SESSION_MS = 1000
SESSION = service.method("Manager", "Session")
DESCRIBE = service.method("Manager", "Describe")
CHUNK = chunk_id(InodeId(7), 0)


def keep_session(cluster: Cluster, client: int, lengths: int) -> None:
    """Say that a client lives for so many sessions' lengths."""
    for _ in range(4 * lengths):
        reply = cluster.call(SESSION, pb.ClientSessionRequest(client=client))
        assert reply.session_ms == SESSION_MS
        time.sleep(SESSION_MS / 4000)


def version_of_retry(client: Client) -> int:
    """Send the client's first update again, by the same tag; return the version it led to."""
    client.sequence = 0
    (result,) = client.write([(CHUNK, 0, b"once")])
    return int(result.version)


def test_tags_are_kept_as_long_as_the_session(tmp_path: Path) -> None:
    with Cluster(tmp_path, manager=f"client_session_ms = {SESSION_MS}\n") as cluster:
        cluster.wait()
        alive, gone = Client(cluster), Client(cluster)
        try:
            for client in (alive, gone):
                (first,) = client.write([(CHUNK, 0, b"once")])
                assert version_of_retry(client) == first.version
            last = int(first.version)
            description = cluster.call(DESCRIBE, pb.DescribeRequest())
            assert description.clients == 0  # these two never said that they live
            keep_session(cluster, alive.number, 4)
            assert version_of_retry(alive) == last - 1  # done long ago, and known
            assert version_of_retry(gone) == last + 1  # forgotten: done anew
            assert cluster.call(DESCRIBE, pb.DescribeRequest()).clients == 1
            # It says goodbye: its tags go once it was idle for a session's length.
            cluster.call(SESSION, pb.ClientSessionRequest(client=alive.number, end=True))
            keep_session(cluster, gone.number, 4)
            assert version_of_retry(gone) == last + 1
            assert version_of_retry(alive) == last + 2
        finally:
            alive.close()
            gone.close()


def test_a_new_manager_ends_no_session_that_it_has_not_heard_of(tmp_path: Path) -> None:
    with Cluster(tmp_path, manager="client_session_ms = 6000\n") as cluster:
        cluster.wait()
        client = Client(cluster)
        try:
            (first,) = client.write([(CHUNK, 0, b"once")])
            cluster.kill("manager")
            cluster.start_manager()
            cluster.wait()
            assert version_of_retry(client) == first.version
        finally:
            client.close()
