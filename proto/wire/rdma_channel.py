"""What happens on one RDMA connection: completions taken in, messages and transfers handed out.

Between the link, which posts and polls, and the stream, which looks like a socket. There are two
ways to wait for completions. On an event loop (``attach``) they have a reader of their own, so
that transfers go on while the connection above reads nothing. Else whoever receives waits, on an
epoll descriptor over all that may happen.

The tcp connection of the rendezvous stays open: its end is the peer's, at once when its process
dies. A host that dies without a word is noticed by the next operation (half a second of retries)
or by tcp's keep-alive.
"""

import asyncio
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from hillfire.errors import Code, Error
from hillfire.proto.wire import forks
from hillfire.proto.wire.rdma_flow import GRANT, READY, Flow, Kind
from hillfire.proto.wire.rdma_link import MESSAGE_BYTES, RECEIVES, Done, Link
from hillfire.proto.wire.rdma_offer import Offer
from hillfire.proto.wire.rdma_runs import Run

HOLD_BYTES = 1024 * 1024
"""Waiting to leave, beyond which one that holds back posts no receives of data again."""
_NOW = int(socket.MSG_DONTWAIT)


class _Writes(NamedTuple):
    """RDMA WRITEs that keep their place among the frames."""

    runs: deque[Run]
    key: int
    done: Done


class Channel:
    """One end of a connection."""

    def __init__(
        self, link: Link, peer: Offer, sock: socket.socket, *, poll_us: int = 0, hold_back: bool
    ) -> None:
        """Stand on a connected link; ``sock`` is the rendezvous's.

        ``poll_us``: how long to poll before sleeping. ``hold_back``: let the peer's credit run
        out while too much waits to leave here; only one end of a connection may.
        """
        sock.setblocking(False)
        self.on_ready: Callable[[int, int], object] | None = None
        self.on_grant: Callable[[int], object] | None = None
        self.stalled: Callable[[], object] | None = None
        self.progressed: Callable[[], object] | None = None
        """called after somebody else made room"""
        self.waits_for_room = False
        """whether an answer waits for this end's grant"""
        self.lost: list[Callable[[], object]] = []
        """called once, when the connection is over"""
        self._link = link
        self._sock = sock
        self._flow: Flow[_Writes] = Flow(
            RECEIVES, peer.receives, min(peer.message_bytes, MESSAGE_BYTES)
        )
        self._reads: deque[tuple[Run, int, Done | None]] = deque()
        self._arrived: deque[tuple[int, memoryview]] = deque()  # slot, what of it is left
        self._held: list[int] = []
        self._hold_back = hold_back
        self._poll_s = poll_us / 1e6
        self._cause: Error | None = None
        self._generation = forks.generation
        self._loop: asyncio.AbstractEventLoop | None = None
        self._until = 0.0
        self._spinning = False
        self._told = False  # whether ``_more`` is set
        self._more = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events = select.epoll()
        self._events.register(link.descriptor, select.EPOLLIN)
        self._events.register(sock, select.EPOLLIN | select.EPOLLRDHUP)
        self._descriptor = self._events.fileno()
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events.register(self._woken, select.EPOLLIN)
        self._events.register(self._more, select.EPOLLIN)

    def __repr__(self) -> str:
        """Tell state and what waits."""
        state = "open" if self._cause is None else self._cause.strerror
        return f"<{type(self).__name__} {state}, {self._flow.waiting_bytes} B to leave>"

    @property
    def alive(self) -> bool:
        """Whether the connection is there."""
        return self._cause is None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Handle completions in callbacks of a loop from now on."""
        self._loop = loop
        self._events.unregister(self._more)
        self._descriptor = self._more
        loop.add_reader(self._events.fileno(), self._on_loop)

    def _on_loop(self) -> None:
        self.progress()
        if self._poll_s and self._cause is None and self._loop is not None:
            self._until = time.monotonic() + self._poll_s
            if not self._spinning:
                self._spinning = True
                self._loop.call_soon(self._spin)

    def _spin(self) -> None:
        """Poll instead of sleeping, for as long as something keeps coming."""
        assert self._loop is not None
        if self._take():
            self._until = time.monotonic() + self._poll_s
        self._spinning = self._cause is None and time.monotonic() < self._until
        if self._spinning:
            self._loop.call_soon(self._spin)

    # ------------------------------------------------------------------ progress

    def progress(self) -> None:
        """Take in what has happened, and go on with what that lets go on. Never waits."""
        if self._cause is not None:
            return
        try:
            rearm = False
            for descriptor, _ in self._events.poll(0):
                if descriptor == self._link.descriptor:
                    rearm = self._link.take_event() or rearm
                elif descriptor == self._sock.fileno():
                    self._look()
                elif descriptor == self._woken:
                    os.eventfd_read(self._woken)
                    if self.progressed is not None:
                        self.progressed()
            self._take()
            if rearm and self._cause is None:
                self._link.arm()
                self._take()
        except Error as exc:
            self._lose(exc)

    def _look(self) -> None:
        """See what the rendezvous's connection says: it carries nothing any more, but its end."""
        try:
            said = self._sock.recv(1, _NOW)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._take()
            raise Error(Code.CONNECTION, exc.strerror or str(exc)) from exc
        if said:
            raise Error(Code.PROTOCOL, "bytes after the rendezvous")
        self._take()  # what it said before it went
        raise Error(Code.CONNECTION, "it closed the connection")

    def _take(self) -> bool:
        """Take completions in and send what can be sent; tell whether anything was there."""
        if self._cause is not None:
            return False
        try:
            found = False
            while received := self._link.poll():
                found = True
                for slot, message in received:
                    kind, payload = self._flow.arrived(message)
                    if kind == Kind.DATA:
                        self._arrived.append((slot, payload))
                        continue
                    if kind == Kind.READY and self.on_ready is not None:
                        self.on_ready(*READY.unpack(payload))
                    elif kind == Kind.GRANT and self.on_grant is not None:
                        self.on_grant(*GRANT.unpack(payload))
                    elif kind != Kind.CREDIT:
                        raise Error(Code.PROTOCOL, f"a message of kind {kind} at this end")
                    self._post_again(slot)
            self._push()
        except Error as exc:
            self._lose(exc)
            return True
        self._tell()
        return found

    def _post_again(self, slot: int) -> None:
        """Post a slot's receive again: the peer gets its credit back."""
        self._link.receive_again(slot)
        self._flow.received_again()

    def _consumed(self, slot: int) -> None:
        """Post the receive of data again, unless the peer is to be held back.

        Never that of other messages: the peer needs credit to let this end send what waits.
        """
        if self._hold_back and self._flow.waiting_bytes > HOLD_BYTES:
            self._held.append(slot)
        else:
            self._post_again(slot)

    def _push(self) -> None:
        """Hand to the device what it takes now."""
        link, flow = self._link, self._flow
        while self._reads and link.room:
            run, key, done = self._reads.popleft()
            link.transfer(False, run.local, key, run.remote, run.key, run.length, done)
        while True:
            writes = flow.transfer
            if writes is not None:
                runs = writes.runs
                while runs and link.room:
                    run = runs.popleft()
                    done = None if runs else writes.done
                    link.transfer(
                        True, run.local, writes.key, run.remote, run.key, run.length, done
                    )
                if runs:
                    break
                flow.transferred()
                continue
            if not flow.sendable:
                break
            slot = link.slot()
            if slot < 0:
                break
            link.send(slot, flow.fill(link.view(slot)))
        if self._held and flow.waiting_bytes <= HOLD_BYTES:
            held, self._held = self._held, []
            for slot in held:
                self._post_again(slot)

    def _tell(self) -> None:
        """Let the descriptor say whether there is something to receive."""
        wanted = bool(self._arrived) or self._cause is not None
        if wanted == self._told:
            return
        self._told = wanted
        if wanted:
            os.eventfd_write(self._more, 1)
        else:
            os.eventfd_read(self._more)

    def wake(self) -> None:
        """Have whoever waits look again. Any thread may call it."""
        os.eventfd_write(self._woken, 1)

    def _lose(self, cause: Error) -> None:
        """Take note that the connection is over. Nothing lands from here on."""
        if self._cause is not None:
            return
        self._cause = cause
        self._link.close()
        reads, self._reads = self._reads, deque()
        for _, _, done in reads:
            if done is not None:
                done()
        for writes in self._flow.drop():
            writes.done()
        lost, self.lost = self.lost, []
        for call in lost:
            call()
        self._tell()

    # ------------------------------------------------------------------ one-sided operations

    def read(self, runs: list[Run], key: int, done: Done) -> None:
        """Fetch from the peer's memory; ``done`` is called once it ended, well or with the link."""
        if self._cause is not None or not runs:
            done()
            return
        last = len(runs) - 1
        for position, run in enumerate(runs):
            self._reads.append((run, key, done if position == last else None))
        self._kick()

    def write(self, runs: list[Run], key: int, done: Done) -> None:
        """Deliver to the peer's memory, before whatever is sent from now on."""
        if self._cause is not None or not runs:
            done()
            return
        self._flow.queue_transfer(_Writes(deque(runs), key, done))
        self._kick()

    def say(self, kind: Kind, payload: bytes) -> None:
        """Send READY or GRANT."""
        if self._cause is None:
            self._flow.queue_urgent(kind, payload)
            self._kick()

    def _kick(self) -> None:
        try:
            self._push()
        except Error as exc:
            self._lose(exc)

    def close(self) -> None:
        """End; nothing lands from here on. What could not leave is dropped."""
        if self._descriptor < 0:
            return
        if self._generation == forks.generation:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._events.fileno())
            self._lose(Error(Code.CONNECTION, "the connection was closed"))
        else:  # the parent goes on using it
            self._cause = Error(Code.CONNECTION, "the connection was closed")
            self._link.abandon()
        self._descriptor = -1
        self.on_ready = self.on_grant = self.stalled = self.progressed = None
        self._events.close()
        self._sock.close()
        os.close(self._more)
        os.close(self._woken)

    def __del__(self) -> None:
        """Close what was forgotten."""
        if getattr(self, "_woken", None) is not None:
            self.close()
