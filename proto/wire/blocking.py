"""The blocking face of the wire's client: one thread at a time, one system call each way.

The socket stays in blocking mode and the kernel watches the time (SO_RCVTIMEO, in slices, so
that the option need not be set for each request): a round trip is one send and one receive.
Sending never waits with answers unread, or two peers that both send could wait for ever.
"""

import os
import select
import socket
import threading
import time
from struct import Struct

from hillfire.errors import Code, Error
from hillfire.proto.wire import base, forks
from hillfire.proto.wire.calls import Call
from hillfire.proto.wire.frame import Kind, Role, check_hello, hello
from hillfire.proto.wire.lingering import linger
from hillfire.proto.wire.outgoing import Outgoing
from hillfire.proto.wire.parser import Parser
from hillfire.proto.wire.stream import Stream
from hillfire.proto.wire.transports import calls_for

SLICE_S = 0.25
"""A receive returns at least this often to look at the deadline."""
SCRAP_BYTES = 4096
"""Received at once, and thrown away, while the end of a connection is waited for."""
_NOW = int(socket.MSG_DONTWAIT)
_TIMEVAL = Struct("ll")


class BlockingConnection(base.BlockingConnection):
    """A connection over a connected, blocking socket."""

    def __init__(self, sock: socket.socket | Stream, timeout_s: float) -> None:
        """Say hello and wait for the server's.

        Raises:
            Error: CONNECTION, TIMED_OUT, WRONG_PEER_VERSION, UNAUTHENTICATED.
        """
        sock.settimeout(None)
        self._sock = sock
        self._calls = calls_for(sock)
        self.kind = self._calls.kind
        self._parser = Parser(self._calls.place)
        self._out = Outgoing(sock)
        self._done: dict[int, Call] = {}
        self._lock = threading.Lock()
        self._generation = forks.generation
        self._scrap = memoryview(bytearray(SCRAP_BYTES))
        self._slice_s = 0.0
        self._greeted = False
        self._cause: Error | None = None
        self._closed = False  # the socket, that is: nothing can arrive any more
        self._losing = False
        self._poller: select.poll | None = None
        self.server_pid = 0
        deadline = time.monotonic() + timeout_s
        try:
            self._out.put([hello(Role.CLIENT, os.getpid())])
            self._send(deadline)
            while not self._greeted:
                self._wait(deadline, "hello")
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        """Tell kind, state and how much is outstanding."""
        state = "open" if self._cause is None else self._cause.strerror
        return f"<BlockingConnection {self.kind} {state}, {len(self._calls.pending)} outstanding>"

    @property
    def usable(self) -> bool:
        """Whether requests can be sent on it."""
        return self._cause is None and self._generation == forks.generation

    def start(self, request: base.Request, timeout_s: float) -> int:
        """See ``base.BlockingConnection``."""
        with self._lock:
            if self._cause is not None:
                raise self._again()
            if self._generation != forks.generation:
                raise Error(Code.CONNECTION, "made before this process was forked: connect again")
            number = self._calls.start(request, timeout_s, self._out, self._renew)
            try:
                if not self._flush():
                    self._send(time.monotonic() + timeout_s)
            except BaseException:
                self._calls.give_up(number, self.drain)
                raise
            return number

    def finish(self, ticket: int, timeout_s: float) -> base.Reply:
        """See ``base.BlockingConnection``."""
        with self._lock:
            call = self._done.pop(ticket, None)
            if call is None:
                deadline = time.monotonic() + timeout_s
                while True:
                    outstanding = self._calls.pending.get(ticket)
                    if outstanding is None or outstanding.given_up:
                        raise self._again()
                    if self._generation != forks.generation:
                        raise Error(Code.CONNECTION, "asked before this process was forked")
                    try:
                        self._wait(deadline, "answer")
                    except BaseException:  # a signal's too: nobody will ask for this answer
                        self._calls.give_up(ticket, self.drain)
                        raise
                    call = self._done.pop(ticket, None)
                    if call is not None:
                        break
        reply = call.reply
        if isinstance(reply, Error):
            raise reply
        assert reply is not None
        return reply

    # --- for a caller with several requests outstanding, who waits for this and other connections

    def fileno(self) -> int:
        """Return the descriptor that is readable when something may have arrived; -1 at the end."""
        return self._sock.fileno()

    def readable(self, wait_ms: int) -> bool:
        """Wait a while for something to arrive; tell whether to ``collect``: it may find none."""
        if self._poller is None:
            self._poller = select.poll()
            self._poller.register(self._sock, select.POLLIN)
        return self._closed or bool(self._poller.poll(wait_ms))

    @property
    def arrived(self) -> bool:
        """Whether answers are here already, of which the descriptor tells nothing any more."""
        return bool(self._done)

    def collect(self) -> list[tuple[int, base.Reply | Error]]:
        """Return the answers that have arrived, with their tickets, without waiting.

        Raises:
            Error: why the connection ended; nothing that is outstanding will be answered.
        """
        with self._lock:
            if not self._done:
                if self._cause is not None:
                    raise self._again()
                self._receive(_NOW)
            done, self._done = self._done, {}
        return [(ticket, call.reply) for ticket, call in done.items() if call.reply is not None]

    def forget(self, ticket: int) -> None:
        """Want an answer no more: its parts are in quarantine until it arrives after all."""
        with self._lock:
            if self._done.pop(ticket, None) is None:
                self._calls.give_up(ticket, self.drain)

    def _again(self) -> Error:
        """Return why the connection ended, as a new exception."""
        if self._cause is None:
            return Error(Code.INVALID, "no such request is outstanding")
        return Error(self._cause.code, self._cause.strerror or "")

    def _wait(self, deadline: float, what: str) -> None:
        """Receive once; send first what could not be sent before.

        Raises:
            Error: TIMED_OUT, or why the connection ended.
        """
        if self._out.waiting:
            self._send(deadline)
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            if not self._receive(_NOW):
                raise Error(Code.TIMED_OUT, f"no {what} from the server in time")
            return
        slice_s = min(remaining, SLICE_S)
        if slice_s != self._slice_s:
            whole = int(slice_s)
            timeval = _TIMEVAL.pack(whole, max(1, int((slice_s - whole) * 1e6)))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self._slice_s = slice_s
        self._receive(0)

    def _receive(self, flags: int) -> bool:
        """Receive once and take answers in; tell whether anything came.

        Raises:
            Error: why the connection ended.
        """
        parser = self._parser
        try:
            views = parser.wanted() if self._cause is None else [self._scrap]
            if len(views) == 1:
                count = self._sock.recv_into(views[0], 0, flags)
            else:
                count = self._sock.recvmsg_into(views, 0, flags)[0]
        except BlockingIOError:
            return False
        except OSError as exc:
            raise self._lost(exc) from exc
        if count == 0:
            raise self._lost(None)
        if self._cause is not None:
            return True  # only the end is waited for
        parser.received(count)
        try:
            while (frame := parser.next()) is not None:
                if not self._greeted:
                    if frame.kind == Kind.RESPONSE:
                        self._calls.answered(frame)  # raises why it refused us
                    self.server_pid = check_hello(frame, Role.SERVER)
                    self._greeted = True
                    continue
                call = self._calls.answered(frame)
                if call is not None and not call.given_up:
                    self._done[frame.request] = call
        except Error as exc:
            self._end(exc)
            raise
        return True

    def _flush(self) -> bool:
        """Send what the socket takes; tell whether that was all.

        Raises:
            Error: why the connection ended.
        """
        try:
            return self._out.flush()
        except OSError as exc:
            raise self._lost(exc) from exc

    def _send(self, deadline: float) -> None:
        """Send everything queued, receiving meanwhile.

        Raises:
            Error: TIMED_OUT, or why the connection ended.
        """
        poll = None
        while True:
            if self._flush():
                return
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise Error(Code.TIMED_OUT, "the server took no request in time")
            if poll is None:
                poll = select.poll()
                poll.register(self._sock, select.POLLIN | select.POLLOUT)
            for _, events in poll.poll(remaining * 1000):
                if events & ~select.POLLOUT:
                    self._receive(_NOW)

    def _look(self) -> None:
        """Take in what has arrived; the caller holds the lock."""
        try:
            while not self._closed and self._receive(_NOW):
                pass
        except Error:
            return

    def _renew(self) -> None:
        """Take in what has arrived.

        Raises:
            Error: the connection has ended.
        """
        self._look()
        if self._cause is not None:
            raise self._again()

    def drain(self) -> None:
        """Look whether given-up requests have ended. Any thread may call it."""
        if self._generation == forks.generation and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()

    def _lost(self, exc: OSError | None) -> Error:
        """Take note that the server's side has ended and return the error to raise."""
        if exc is not None and not self._losing:
            self._losing = True
            self._look()  # it may have said why
        if self._cause is None:
            why = exc.strerror if exc is not None else "it closed the connection"
            self._cause = Error(Code.CONNECTION, f"the server is gone: {why}")
        if not self._closed:
            self._closed = True
            self._out.drop()
            self._sock.close()  # first: from here on nothing lands
            self._calls.ended()
        return self._again()

    def _end(self, cause: Error) -> None:
        """Use the connection no more; what is outstanding is given up."""
        if self._cause is None:
            self._cause = cause
        if self._closed:
            return
        self._out.drop()
        if self._calls.give_up_all(self.drain) and self.kind == "shm":
            try:
                self._sock.shutdown(socket.SHUT_WR)
                self._sock = linger(self._sock)
                return
            except OSError:
                pass
        self._lost(None)

    def __del__(self) -> None:
        """Close the socket that waited for the server's end, if nobody can ask for it now."""
        if getattr(self, "_cause", None) is not None:
            self._sock.close()

    def close(self) -> None:
        """See ``base.BlockingConnection``."""
        if self._generation != forks.generation:  # the parent goes on using it
            self._cause = Error(Code.CONNECTION, "the connection was closed")
            self._sock.close()
            return
        with self._lock:
            self._end(Error(Code.CONNECTION, "the connection was closed"))
            self._look()

    def abandon(self) -> None:
        """Drop what a fork inherited: the descriptor is closed, nothing is said over the socket."""
        self._cause = Error(Code.CONNECTION, "the connection belongs to the parent process")
        self._closed = True
        self._sock.close()
