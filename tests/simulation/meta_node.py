"""MetaNode: what clients need of a metadata service: a file's epoch, and cuts by epoch.

A stand-in, not the production service: it never fails, has no names, and keeps of an inode the
epoch and a length for appends. A cut is carried out on every chain, again and again until it is
done, and only then does anyone learn the new epoch (``meta/truncates.py``).
"""

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from hillfire.cluster import NodeKind, PublicState
from hillfire.errors import Code, Error
from hillfire.proto import meta_pb2
from hillfire.types import ChainId, NodeId
from tests.simulation.member import Member
from tests.simulation.process import Reply
from tests.simulation.stamps import CELLS, CHUNK_BYTES

if TYPE_CHECKING:
    from tests.simulation.world import World

CALL_TIMEOUT_S = 3.0
FIRST_BACKOFF_S = 0.005
MAX_BACKOFF_S = 0.5


class Cut(NamedTuple):
    """What a head is asked to do to an inode's chunks; the fields of ``TruncateChunksRequest``."""

    chain: int
    chain_version: int
    inode: int
    epoch: int
    length: int
    chunk_bytes: int
    remove: bool
    sequence: int


@dataclass(slots=True)
class Inode:
    """A file."""

    epoch: int = 1
    """the last that a cut was given"""
    published: int = 1
    """the last that all chains have acknowledged"""
    cell: int = 0
    """where the next append goes, counted in cells of the whole file"""
    cutting: bool = False
    line: deque[tuple[Cut, Reply]] = field(default_factory=deque)


class MetaNode(Member):
    """The metadata service of a world."""

    def __init__(self, world: "World", node: NodeId) -> None:
        super().__init__(world, node, NodeKind.META)
        self.inodes = {number: Inode() for number in world.plan.inodes}
        self._done: dict[tuple[int, int], int] = {}
        """epochs of cuts that were answered, by client and request"""
        self._asked: dict[tuple[int, int], list[Reply]] = {}
        self._sequence = 0

    def published(self, inode: int) -> int:
        """Return the epoch that a client would be told now."""
        return self.inodes[inode].published

    def reserve(self, inode: int) -> tuple[int, int, int]:
        """Return the chunk and the cells that an append gets."""
        file = self.inodes[inode]
        chunk, cell = divmod(file.cell, CELLS)
        file.cell = (file.cell + 1) % (self.world.plan.chunks * CELLS)
        return chunk, cell, cell + 1

    # ------------------------------------------------------------------ requests

    def serve(self, method: str, body: Any, reply: Reply) -> None:
        if method == "stat":
            reply(self._inode(body.inode))
        elif method == "truncate":
            self._truncate(body, reply)
        else:
            raise AssertionError(method)

    def _inode(self, number: int) -> meta_pb2.Inode:
        return meta_pb2.Inode(id=number, epoch=self.inodes[number].published)

    def _truncate(self, request: Any, reply: Reply) -> None:
        key = request.caller.client, request.caller.request
        if key in self._done:
            reply(meta_pb2.Inode(id=request.inode, epoch=self._done[key]))
            return
        waiting = self._asked.get(key)
        if waiting is not None:
            waiting.append(reply)
            return
        self._asked[key] = [reply]
        file = self.inodes[request.inode]
        file.epoch += 1
        self._sequence += 1
        cut = Cut(
            0, 0, request.inode, file.epoch, request.length, CHUNK_BYTES, not request.length,
            self._sequence,
        )  # fmt: skip

        def done(_: Any) -> None:
            self._done[key] = cut.epoch
            for each in self._asked.pop(key):
                each(meta_pb2.Inode(id=cut.inode, epoch=cut.epoch))

        file.line.append((cut, done))
        self._next_cut(file)

    # ------------------------------------------------------------------ carrying a cut out

    def _next_cut(self, file: Inode) -> None:
        """Begin an inode's next cut, when the last one is done."""
        if file.cutting or not file.line:
            return
        file.cutting = True
        cut, done = file.line.popleft()
        left = set(self.world.layout.chains)

        def one(chain: ChainId) -> None:
            left.discard(chain)
            if not left:
                file.published, file.cutting = cut.epoch, False
                done(None)
                self._next_cut(file)

        for chain in self.world.layout.chains:
            self._on_chain(chain, cut, FIRST_BACKOFF_S, partial(one, chain))

    def _on_chain(self, chain: ChainId, cut: Cut, backoff_s: float, done: Any) -> None:
        def again() -> None:
            self._on_chain(chain, cut, min(MAX_BACKOFF_S, 2 * backoff_s), done)

        def answered(value: Any) -> None:
            if not isinstance(value, Error) or value.code is Code.STALE_EPOCH:
                done()
                return
            self.world.checks.cut_failed(self, value)
            if self.story.verbose:
                self.story.tell(self.name, f"cut of {cut.inode} on chain {chain}: {value!r}")
            self.after(backoff_s, again)

        try:
            found = self.routing.chain(chain)
            head, state = found.targets[0]
            if state is not PublicState.SERVING:
                raise Error(Code.UNAVAILABLE, f"nobody serves chain {chain}")
            node = self.world.node_of(self.routing.node_of(head).id)
        except Error as error:
            self.after(0.0, partial(answered, error))
            return
        body = cut._replace(chain=chain, chain_version=found.version)
        self.network.call(self, node, "truncate", body, CALL_TIMEOUT_S, answered)
