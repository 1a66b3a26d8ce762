"""The asyncio face of the wire's client: any number of tasks over one connection.

It waits by the loop's readiness callbacks; a request costs a future and a timer, no task.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable
from functools import partial

from hillfire.errors import Code, Error
from hillfire.proto.wire import base, forks
from hillfire.proto.wire.frame import Kind, Role, check_hello, hello
from hillfire.proto.wire.lingering import linger
from hillfire.proto.wire.outgoing import Outgoing
from hillfire.proto.wire.parser import Parser
from hillfire.proto.wire.stream import Stream
from hillfire.proto.wire.transports import calls_for

log = logging.getLogger(__name__)

MAX_LOOKS = 1024
"""Receives in one look for given-up requests."""
SCRAP_BYTES = 4096


class _Waiter:
    """Who is called with a request's outcome; once."""

    __slots__ = ("done", "timer")

    def __init__(self, done: Callable[[base.Reply | Error], None]) -> None:
        self.done: Callable[[base.Reply | Error], None] | None = done
        self.timer: asyncio.TimerHandle | None = None

    def end(self, outcome: base.Reply | Error) -> None:
        """Hand the outcome over, unless that was done."""
        done, self.done = self.done, None
        if self.timer is not None:
            self.timer.cancel()
        if done is None:
            return
        try:
            done(outcome)
        except Exception:
            # Whoever shares the connection must not suffer from it.
            log.exception("an answer's receiver failed")


class AsyncConnection(base.AsyncConnection):
    """A connection over a connected, non-blocking socket, of the running event loop."""

    def __init__(self, sock: socket.socket | Stream) -> None:
        """Say hello; ``greet`` waits for the server's."""
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._calls = calls_for(sock)
        self.kind = self._calls.kind
        self._parser = Parser(self._calls.place)
        self._out = Outgoing(sock)
        self._writing = False
        self._greeting: asyncio.Future[None] | None = self._loop.create_future()
        self._cause: Error | None = None
        self._closed = False  # the socket, that is: nothing can arrive any more
        self._losing = False
        self._generation = forks.generation
        self._lock = threading.Lock()  # of ``drain``, once several threads may look
        self.server_pid = 0
        self._loop.add_reader(sock, self._readable)
        self._out.put([hello(Role.CLIENT, os.getpid())])
        self._flush()

    def __repr__(self) -> str:
        """Tell kind, state and how much is outstanding."""
        state = "open" if self._cause is None else self._cause.strerror
        return f"<AsyncConnection {self.kind} {state}, {len(self._calls.pending)} outstanding>"

    @property
    def usable(self) -> bool:
        """Whether requests can be sent on it."""
        return self._cause is None and self._generation == forks.generation

    @property
    def outstanding(self) -> int:
        """How many requests have no answer yet, those given up included."""
        return len(self._calls.pending)

    async def greet(self, timeout_s: float) -> None:
        """Wait for the server's hello.

        Raises:
            Error: CONNECTION, TIMED_OUT, WRONG_PEER_VERSION, UNAUTHENTICATED.
        """
        try:
            if self._cause is not None:
                raise self._again()
            if self._greeting is not None:
                async with asyncio.timeout(timeout_s):
                    await self._greeting
        except TimeoutError as exc:
            self.close()
            raise Error(Code.TIMED_OUT, "no hello from the server in time") from exc
        except BaseException:
            self.close()
            raise

    def submit(
        self,
        request: base.Request,
        timeout_s: float,
        done: Callable[[base.Reply | Error], None],
    ) -> Callable[[], None]:
        """See ``base.AsyncConnection``: ``request`` without its future and its caller's task.

        ``done`` may be called before this returns.
        """
        waiter = _Waiter(done)
        number = self._start(request, timeout_s, waiter)
        if waiter.done is not None:
            waiter.timer = self._loop.call_later(timeout_s, self._overdue, number, waiter)
        return partial(self._forget, number, waiter)

    def _forget(self, number: int, waiter: _Waiter) -> None:
        """Give a submitted request up that nobody waits for any more."""
        if waiter.done is not None:
            waiter.done = None
            if waiter.timer is not None:
                waiter.timer.cancel()
            self._calls.give_up(number, self.drain)

    def _overdue(self, number: int, waiter: _Waiter) -> None:
        """Give a submitted request up that took too long."""
        if waiter.done is not None:
            self._calls.give_up(number, self.drain)
            waiter.end(Error(Code.TIMED_OUT, "no answer from the server in time"))

    def _start(self, request: base.Request, timeout_s: float, waiter: object) -> int:
        """Send a request as far as there is room; ``waiter`` is told what comes of it.

        Raises:
            Error: CONNECTION, and what ``Calls.start`` raises.
        """
        if self._cause is not None:
            raise self._again()
        if self._generation != forks.generation:
            raise Error(Code.CONNECTION, "made before this process was forked: connect again")
        number = self._calls.start(request, timeout_s, self._out, self._renew)
        self._calls.pending[number].waiter = waiter
        if not self._writing:
            self._flush()
        return number

    async def request(self, request: base.Request, timeout_s: float) -> base.Reply:
        """See ``base.AsyncConnection``."""
        calls = self._calls
        future: asyncio.Future[base.Reply] = self._loop.create_future()
        number = self._start(request, timeout_s, future)
        timer = self._loop.call_later(timeout_s, self._expire, number, future)
        try:
            return await future
        except asyncio.CancelledError:
            calls.give_up(number, self.drain)
            raise
        finally:
            timer.cancel()

    def _expire(self, number: int, future: "asyncio.Future[base.Reply]") -> None:
        """Give a request up that took too long."""
        if not future.done():
            self._calls.give_up(number, self.drain)
            future.set_exception(Error(Code.TIMED_OUT, "no answer from the server in time"))

    def _readable(self) -> None:
        """Take in what has arrived."""
        self._receive()

    def _receive(self) -> bool:
        """Receive once and take answers in; tell whether anything came."""
        parser = self._parser
        try:
            if self._cause is not None:
                views = [memoryview(bytearray(SCRAP_BYTES))]
            else:
                views = parser.wanted()
            if len(views) == 1:
                count = self._sock.recv_into(views[0])
            else:
                count = self._sock.recvmsg_into(views)[0]
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            self._lost(exc)
            return False
        if count == 0:
            self._lost(None)
            return False
        if self._cause is not None:
            return True  # only the end is waited for
        parser.received(count)
        try:
            while (frame := parser.next()) is not None:
                if self._greeting is not None:
                    if frame.kind == Kind.RESPONSE:
                        self._calls.answered(frame)  # raises why it refused us
                    self.server_pid = check_hello(frame, Role.SERVER)
                    greeting, self._greeting = self._greeting, None
                    if not greeting.done():
                        greeting.set_result(None)
                    continue
                call = self._calls.answered(frame)
                if call is not None:
                    self._wake(call.waiter, call.reply)
                    if self._closed:
                        return False
        except Error as exc:
            self._end(exc)
            return False
        return True

    @staticmethod
    def _wake(waiter: object, reply: base.Reply | Error | None) -> None:
        """Hand a reply to who waits for it, if it still does."""
        if isinstance(waiter, _Waiter):
            if reply is not None:
                waiter.end(reply)
            return
        if not isinstance(waiter, asyncio.Future) or waiter.done():
            return
        if isinstance(reply, Error):
            waiter.set_exception(reply)
        else:
            waiter.set_result(reply)

    def _flush(self) -> None:
        """Send; wait for room if there is too little."""
        try:
            empty = self._out.flush()
        except OSError as exc:
            self._lost(exc)
            return
        if empty:
            if self._writing:
                self._writing = False
                self._loop.remove_writer(self._sock)
        elif not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock, self._flush)

    def _look(self) -> None:
        """Take in what has arrived."""
        for _ in range(MAX_LOOKS):
            if self._closed or not self._receive():
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
        """Look whether given-up requests have ended, from the loop's own thread or once closed."""
        if self._cause is None and asyncio._get_running_loop() is not self._loop:
            return
        if self._generation != forks.generation:
            return
        if self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()

    def _again(self) -> Error:
        """Return why the connection ended, as a new exception."""
        assert self._cause is not None
        return Error(self._cause.code, self._cause.strerror or "")

    def _lost(self, exc: OSError | None) -> None:
        """Take note that the server's side has ended."""
        if exc is not None and not self._losing:
            self._losing = True
            self._look()  # it may have said why
        if self._cause is None:
            why = exc.strerror if exc is not None else "it closed the connection"
            self._cause = Error(Code.CONNECTION, f"the server is gone: {why}")
        if self._closed:
            return
        self._closed = True
        self._quiet()
        self._out.drop()
        self._sock.close()  # first: from here on nothing lands
        waiters = [call.waiter for call in self._calls.ended()]
        self._fail(waiters)

    def _quiet(self) -> None:
        """Have the event loop forget the socket."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)

    def _fail(self, waiters: list[object]) -> None:
        """Tell all who wait that the connection has ended."""
        if self._loop.is_closed():
            return
        for waiter in waiters:
            self._wake(waiter, self._again())
        greeting, self._greeting = self._greeting, None
        if greeting is not None and not greeting.done():
            greeting.set_exception(self._again())
            greeting.exception()  # nobody may be waiting

    def _end(self, cause: Error) -> None:
        """Use the connection no more; what is outstanding is given up."""
        if self._cause is None:
            self._cause = cause
        if self._closed:
            return
        self._out.drop()
        if self._calls.give_up_all(self.drain) and self.kind == "shm":
            waiters = [call.waiter for call in self._calls.pending.values()]
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            else:
                # From here on a quarantined range's ``drain`` waits for the server's end.
                self._quiet()
                self._sock = linger(self._sock)
                self._fail(waiters)
                return
        self._lost(None)

    def __del__(self) -> None:
        """Close the socket that waited for the server's end, if nobody can ask for it now."""
        if getattr(self, "_cause", None) is not None:
            self._sock.close()

    def close(self) -> None:
        """See ``base.AsyncConnection``."""
        if self._generation != forks.generation:
            # The parent goes on using it: the loop's selector, which we share, must not forget it.
            self._cause = Error(Code.CONNECTION, "the connection was closed")
            self._sock.close()
            return
        self._end(Error(Code.CONNECTION, "the connection was closed"))
