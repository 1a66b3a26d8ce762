"""``hillfire meta``: the copies of the metadata on storage nodes, and a restore from them."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hillfire.cli.connect import connect_manager
from hillfire.cluster import Endpoint, NodeKind, Routing
from hillfire.errors import Code, Error
from hillfire.meta.restore import Restored, copies_in, restore
from hillfire.meta.ship import LOUD_BEHIND_MS
from hillfire.proto import metalog_pb2 as pb
from hillfire.proto.cluster_pb2 import Empty
from hillfire.proto.convert import routing_from_message
from hillfire.proto.manager_pb2 import GetRoutingRequest
from hillfire.proto.service import Method, decode, encode, method
from hillfire.proto.wire.base import BlockingConnection
from hillfire.proto.wire.pick import connect_blocking

CALL_TIMEOUT_S = 5.0
PIECE_BYTES = 1 << 20
STARTING_MS = 5000

_GET_ROUTING = method("Manager", "GetRouting")
_COPIES = method("MetaCopies", "Copies")
_FILES = method("MetaLog", "Files")
_READ = method("MetaLog", "Read")


def fetch_copies(routing: Routing) -> dict[str, Any]:
    """Return how far each copy of the metadata goes, for ``hillfire status``.

    ``behind_ms`` is of the best copy: how much a loss of the metadata's disk would cost now.
    """
    service = next((n for n in routing.nodes.values() if n.kind is NodeKind.META and n.alive), None)
    if service is None:
        return _described(pb.CopiesReply(), [])  # that it is dead is told elsewhere
    try:
        with _connected(service.endpoint) as connection:
            reply = _ask(connection, _COPIES, Empty())
    except Error as error:
        if error.code is Code.NOT_SUPPORTED:  # the service was told to make none
            return _described(pb.CopiesReply(), [])
        text = f"the copies of the metadata are not known: {error.strerror}"
        return _described(pb.CopiesReply(), [text])
    return _described(reply, problems_of(reply))


def problems_of(reply: pb.CopiesReply) -> list[str]:
    """Return what is wrong with the copies of the metadata; they get a while to begin."""
    if reply.age_ms < STARTING_MS or not reply.wanted:
        return []
    whole = [copy.behind_ms for copy in reply.copies if copy.complete]
    best = min(whole, default=None)
    recent = sum(each <= LOUD_BEHIND_MS for each in whole)
    if best is None:
        return ["no copy of the metadata is whole: its disk is all there is"]
    if best > LOUD_BEHIND_MS:
        return [f"the best copy of the metadata is {best / 1000:.1f} s behind"]
    if recent < reply.wanted:
        return [f"{recent} of {reply.wanted} copies of the metadata are up to date"]
    return []


def _described(reply: pb.CopiesReply, problems: list[str]) -> dict[str, Any]:
    copies = [
        {
            "node": copy.node,
            "complete": copy.complete,
            "behind_ms": copy.behind_ms,
            "problem": copy.problem or None,
        }
        for copy in reply.copies
    ]
    best = min((copy.behind_ms for copy in reply.copies if copy.complete), default=None)
    return {"wanted": reply.wanted, "behind_ms": best, "copies": copies, "problems": problems}


def run_restore(sources: list[str], address: str | None, directory: Path, *, force: bool) -> None:
    """Rebuild a metadata service's database in ``directory``."""
    with tempfile.TemporaryDirectory(prefix="hillfire-restore-", dir=_made(directory)) as scratch:
        found: list[tuple[str, Path]] = []
        for source in sources:
            path = Path(source)
            if path.is_dir():
                found += [(str(copy), copy) for copy in copies_in(path.absolute())]
            else:
                endpoint = Endpoint(grpc="", tcp=source, shm="", host="")
                found.append(_fetch(source, endpoint, "", Path(scratch)))
        if address is not None:
            found += _fetch_all(address, Path(scratch))
        done = restore(found, directory, force=force)
    _tell(done, directory)


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(Code.IO, f"cannot make {directory}: {error.strerror}") from error
    return directory


def _tell(done: Restored, directory: Path) -> None:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(done.time_ns / 1e9))
    age_s = max(0.0, time.time() - done.time_ns / 1e9)
    print(f"restored {done.inodes} inodes of cluster {done.cluster} into {directory}")
    print(f"  from   {done.source}")
    print(f"  up to  transaction {done.sequence} of epoch {done.epoch}, committed {when}")
    print(f"         ({age_s:.0f} s ago: what was committed later is lost, at most a second of it")
    print("         if the copies kept up until the service died)")
    print(
        f"  note   chunks of inodes {done.first_lost_inode} to {done.next_inode - 1} on storage "
        "belong to files that are lost"
    )
    for problem in done.problems:
        print(f"  !      {problem}")
    print("  next   start the metadata service on this directory; then `hillfire status`")


def _fetch_all(address: str, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Fetch the copies of every living storage node of a cluster."""
    connection = connect_manager(address)
    try:
        routing = routing_from_message(_ask(connection, _GET_ROUTING, GetRoutingRequest()))
    finally:
        connection.close()
    for node in routing.nodes.values():
        if node.kind is not NodeKind.STORAGE or not node.alive:
            continue
        try:
            yield _fetch(f"storage-{node.id}", node.endpoint, routing.cluster, scratch)
        except Error as error:
            print(f"! storage-{node.id} was not asked: {error.strerror}")


def _fetch(source: str, endpoint: Endpoint, cluster: str, scratch: Path) -> tuple[str, Path]:
    """Fetch a node's copy into a directory of its own, called as its cluster."""
    with _connected(endpoint) as connection:
        request = pb.LogRequest(cluster=cluster)
        listing = _ask(connection, _FILES, request)
        directory = scratch / source.replace("/", "_") / "meta-log" / listing.cluster
        directory.mkdir(parents=True)
        for file in listing.files:
            with (directory / file.name).open("wb") as out:
                while out.tell() < file.length:
                    read = pb.LogRead(
                        cluster=listing.cluster,
                        name=file.name,
                        offset=out.tell(),
                        length=PIECE_BYTES,
                    )
                    piece = _ask(connection, _READ, read).piece
                    if not piece:
                        break
                    out.write(piece)
    return source, directory


@contextmanager
def _connected(endpoint: Endpoint) -> Iterator[BlockingConnection]:
    connection = connect_blocking(endpoint, CALL_TIMEOUT_S, transport="tcp")
    try:
        yield connection
    finally:
        connection.close()


def _ask(connection: BlockingConnection, called: Method, message: Any) -> Any:
    ticket = connection.start(encode(called, message), CALL_TIMEOUT_S)
    return decode(called, connection.finish(ticket, CALL_TIMEOUT_S))
