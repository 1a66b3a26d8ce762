"""One end of a reliable RDMA connection: queue pair, completion queue, rings of message slots.

It posts and polls, and knows no order and no credit (``rdma_flow.py``) and no waiting
(``rdma_stream.py``). Completions of what one end posts come in order, so most operations ask for
none: the next one that does speaks for those before it.

pyverbs never frees what ``SGE`` and the work requests allocate unless they are closed, and nothing
may be closed twice: each link makes a few once, and changes them from post to post.
"""

import atexit
import os
import weakref
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.proto.wire import forks
from hillfire.proto.wire.rdma_device import (
    Device,
    close_descriptor,
    discover_descriptor,
    enums,
    immortal,
)
from hillfire.proto.wire.rdma_offer import Offer

try:
    from pyverbs.addr import GID, AHAttr, GlobalRoute
    from pyverbs.cq import CQ, CompChannel
    from pyverbs.pyverbs_error import PyverbsError
    from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
    from pyverbs.wr import SGE, RecvWR, SendWR
except ImportError:
    pass  # rdma_device says that there is no device

RECEIVES = 64
"""Messages that a peer may send before we have taken one: a thread that starts more requests than
this, and finishes none, keeps the others back."""
SENDS = 32
"""Slots for messages on their way."""
MESSAGE_BYTES = 8192
MAX_POSTED = 256
"""Operations in the send queue."""
SIGNAL_EVERY = 4
"""Of the sends; with slots left for those that were not asked about yet."""
RETRIES = 6
"""7 would mean for ever to some devices."""
TIMEOUT = 14
"""As verbs count: 4.096 µs x 2^14 = 67 ms without an acknowledgement, each time."""
_RECEIVED = 1 << 32  # work request ids of receives begin here
_POLLED = 16  # completions taken at once


class Received(NamedTuple):
    """A message that arrived in a slot."""

    slot: int
    message: memoryview


Done = Callable[[], object]


class Link:
    """A queue pair with all that belongs to it."""

    def __init__(self, device: Device) -> None:
        """Make it; ``connect`` brings it to life.

        Raises:
            Error: NOT_SUPPORTED if the device has no room for it.
        """
        self.device = device
        self.alive = True
        self.posted = 0
        """operations in the send queue"""
        self._generation = forks.generation
        self._ring = device.buffer((RECEIVES + SENDS) * MESSAGE_BYTES)
        self._posted: deque[tuple[int, int, Done | None]] = deque()  # number, slot or -1, done
        self._number = 0
        self._unasked = 0
        self._free = list(range(RECEIVES, RECEIVES + SENDS))
        try:
            self._channel, self.descriptor = discover_descriptor(
                lambda: CompChannel(device.context)
            )
            os.set_blocking(self.descriptor, False)
            self._queue = CQ(device.context, RECEIVES + MAX_POSTED, None, self._channel, 0)
            room = QPCap(
                max_send_wr=min(MAX_POSTED, device.max_requests),
                max_recv_wr=RECEIVES,
                max_send_sge=1,
                max_recv_sge=1,
            )
            self._pair = QP(
                device.domain,
                QPInitAttr(
                    qp_type=enums.IBV_QPT_RC,
                    scq=self._queue,
                    rcq=self._queue,
                    cap=room,
                    sq_sig_all=0,
                ),
            )
        except PyverbsError as exc:
            device.give(self._ring)
            raise Error(Code.NOT_SUPPORTED, f"{device.place.device} has no room: {exc}") from exc
        local = self._ring.keys.local
        self._piece = SGE(self._ring.keys.address, MESSAGE_BYTES, local)
        self._request = SendWR(num_sge=1, sg=[self._piece])
        self._request.sg_list = self._piece  # from here on a change of the piece is the request's
        self._receives = []
        for slot in range(RECEIVES):
            piece = SGE(self._ring.keys.address + slot * MESSAGE_BYTES, MESSAGE_BYTES, local)
            self._receives.append(RecvWR(wr_id=_RECEIVED + slot, num_sge=1, sg=[piece]))
            piece.close()  # its content was copied
        self._pieces = self._ring.keys.address
        _links.add(self)

    def offer(self) -> Offer:
        """Return what the peer has to know."""
        place = self.device.place
        return Offer(
            int(self._pair.qp_num),
            self._first_packet(),
            self.device.lid,
            self.device.mtu,
            self.device.reads,
            RECEIVES,
            MESSAGE_BYTES,
            place.gid,
        )

    def _first_packet(self) -> int:
        """Return the number of the first packet: any, but the same each time it is asked."""
        if not hasattr(self, "_packet"):
            self._packet = int.from_bytes(os.urandom(3))
        return self._packet

    def connect(self, peer: Offer, access: int) -> None:
        """Connect to the peer and post every receive. ``access``: what the peer may do here.

        Raises:
            Error: CONNECTION.
        """
        place = self.device.place
        attributes = QPAttr(port_num=place.port)
        attributes.qp_access_flags = enums.IBV_ACCESS_LOCAL_WRITE | access
        attributes.pkey_index = 0
        attributes.path_mtu = min(peer.mtu, self.device.mtu)
        attributes.dest_qp_num = peer.queue_pair
        attributes.rq_psn = peer.packet_number
        attributes.sq_psn = self._first_packet()
        attributes.max_rd_atomic = min(self.device.reads, peer.reads)
        attributes.max_dest_rd_atomic = self.device.reads
        attributes.min_rnr_timer = 12
        attributes.timeout = TIMEOUT
        attributes.retry_cnt = RETRIES
        attributes.rnr_retry = RETRIES
        try:
            route = GlobalRoute(dgid=GID(_text(peer.gid)), sgid_index=place.gid_index)
            attributes.ah_attr = AHAttr(dlid=peer.lid, gr=route, is_global=1, port_num=place.port)
            self._pair.to_rts(attributes)
            for slot in range(RECEIVES):
                self._pair.post_recv(self._receives[slot])
            self.arm()
        except PyverbsError as exc:
            raise Error(Code.CONNECTION, f"no RDMA connection: {exc}") from exc

    # ------------------------------------------------------------------ posting

    @property
    def room(self) -> int:
        """How many more operations the send queue takes; one is kept for a message."""
        return MAX_POSTED - 1 - len(self._posted)

    def slot(self) -> int:
        """Return a free slot for a message, -1 if there is none now."""
        if len(self._posted) >= MAX_POSTED:
            return -1
        return self._free[-1] if self._free else -1

    def view(self, slot: int) -> memoryview:
        """Return a slot's memory."""
        return self._ring.view[slot * MESSAGE_BYTES : (slot + 1) * MESSAGE_BYTES]

    def send(self, slot: int, length: int) -> None:
        """Send the message in a slot that ``slot`` gave.

        Raises:
            Error: CONNECTION.
        """
        self._free.remove(slot)
        self._unasked += 1
        asked = self._unasked >= SIGNAL_EVERY
        piece = self._piece
        piece.addr = self._pieces + slot * MESSAGE_BYTES
        piece.length = length
        piece.lkey = self._ring.keys.local
        self._post(enums.IBV_WR_SEND, asked, slot, None)

    def transfer(
        self, write: bool, local: int, key: int, remote: int, remote_key: int, length: int,
        done: Done | None,
    ) -> None:  # fmt: skip
        """Write to, or read from, the peer's memory; ``done`` is called once it has ended.

        Raises:
            Error: CONNECTION.
        """
        piece = self._piece
        piece.addr = local
        piece.length = length
        piece.lkey = key
        self._request.set_wr_rdma(remote_key, remote)
        opcode = enums.IBV_WR_RDMA_WRITE if write else enums.IBV_WR_RDMA_READ
        self._unasked += 1
        asked = done is not None or self._unasked >= MAX_POSTED // 4
        self._post(opcode, asked, -1, done)

    def _post(self, opcode: int, asked: bool, slot: int, done: Done | None) -> None:
        self._check()
        self._number += 1
        request = self._request
        request.wr_id = self._number
        request.opcode = opcode
        request.send_flags = enums.IBV_SEND_SIGNALED if asked else 0
        if asked:
            self._unasked = 0
        self._posted.append((self._number, slot, done))
        try:
            self._pair.post_send(request)
        except PyverbsError as exc:
            raise Error(Code.CONNECTION, f"the RDMA device takes no more: {exc}") from exc

    def receive_again(self, slot: int) -> None:
        """Post the receive of a slot whose message has been taken.

        Raises:
            Error: CONNECTION.
        """
        self._check()
        try:
            self._pair.post_recv(self._receives[slot])
        except PyverbsError as exc:
            raise Error(Code.CONNECTION, f"the RDMA device takes no more: {exc}") from exc

    def _check(self) -> None:
        """Refuse to touch what is destroyed: verbs would not.

        Raises:
            Error: CONNECTION.
        """
        if not self.alive:
            raise Error(Code.CONNECTION, "the connection is over")

    # ------------------------------------------------------------------ completions

    def poll(self) -> list[Received]:
        """Return the messages that have arrived, calling ``done`` of what has ended.

        Raises:
            Error: CONNECTION once anything went wrong: the link is of no more use.
        """
        received: list[Received] = []
        while self.alive:
            try:
                count, completions = self._queue.poll(_POLLED)
            except PyverbsError as exc:
                raise Error(Code.CONNECTION, f"the completion queue is gone: {exc}") from exc
            for completion in completions:
                number = completion.wr_id
                if completion.status != enums.IBV_WC_SUCCESS:
                    raise Error(Code.CONNECTION, _meaning(completion.status))
                if number >= _RECEIVED:
                    slot = number - _RECEIVED
                    received.append(Received(slot, self.view(slot)[: completion.byte_len]))
                else:
                    self._ended(number)
            if count < _POLLED:
                break
        return received

    def _ended(self, number: int) -> None:
        """Take note that an operation, and all before it, have ended."""
        posted = self._posted
        while posted and posted[0][0] <= number:
            _, slot, done = posted.popleft()
            if slot >= 0:
                self._free.append(slot)
            elif done is not None:
                done()

    def arm(self) -> None:
        """Have the next completion make ``descriptor`` readable; poll once more afterwards."""
        self._check()
        try:
            self._queue.req_notify()
        except PyverbsError as exc:
            raise Error(Code.CONNECTION, f"the completion queue is gone: {exc}") from exc

    def take_event(self) -> bool:
        """Take one event, ``descriptor`` being readable; tell whether there was one."""
        self._check()
        try:
            self._channel.get_cq_event(self._queue)
        except PyverbsError:
            return False  # somebody else was faster
        self._queue.ack_events(1)
        return True

    def close(self) -> None:
        """Destroy the queue pair: from here on nothing lands here, nothing is read from here."""
        if not self.alive:
            return
        self.alive = False
        if self._generation != forks.generation:
            self.abandon()
            return
        _links.discard(self)
        self._pair.close()
        self._queue.close()
        close_descriptor(self._channel)
        self._piece.close()
        for receive in self._receives:
            receive.close()
        self.device.give(self._ring)
        posted, self._posted = self._posted, deque()
        for _, _, done in posted:
            if done is not None:
                done()

    def abandon(self) -> None:
        """Leave everything to the parent of this fork."""
        self.alive = False
        for thing in (self._pair, self._queue, self._channel, self._ring.memory):
            immortal(thing)


def _text(gid: bytes) -> str:
    return ":".join(gid[at : at + 2].hex() for at in range(0, 16, 2))


def _meaning(status: int) -> str:
    """Return what a failed completion says."""
    names = {
        enums.IBV_WC_RETRY_EXC_ERR: "the peer does not acknowledge any more",
        enums.IBV_WC_REM_ACCESS_ERR: "the peer's memory may not be used so (wrong key or bounds)",
        enums.IBV_WC_WR_FLUSH_ERR: "the connection is over",
        enums.IBV_WC_RNR_RETRY_EXC_ERR: "the peer takes no messages",
    }
    return f"RDMA failed: {names.get(status, 'see ibv_wc_status')} (status {status})"


_links: "weakref.WeakSet[Link]" = weakref.WeakSet()


def _abandon_all() -> None:
    for link in list(_links):
        link.abandon()


os.register_at_fork(after_in_child=_abandon_all)
atexit.register(_abandon_all)
