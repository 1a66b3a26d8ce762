"""One accepted connection: frames in, the handler asked, answers out.

It reads and writes a non-blocking socket by the event loop's readiness callbacks, because a
stream or a task a request costs more than the request. A handler that answers at once is
answered in the same callback.

Back-pressure: beyond ``Limits`` of requests or bytes in flight nothing more is read. The socket
is closed only after every handler has ended, since a client takes its end as the promise that
nothing touches its memory any more.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence

from hillfire.errors import Code, Error
from hillfire.proto.wire.base import MAX_BODY_BYTES, Answer, Incoming
from hillfire.proto.wire.chunks import operation_of
from hillfire.proto.wire.eager import start
from hillfire.proto.wire.frame import (
    REQUEST,
    Frame,
    Kind,
    Role,
    check_hello,
    encode,
    hello,
    response,
)
from hillfire.proto.wire.outgoing import Outgoing
from hillfire.proto.wire.parser import Parser
from hillfire.proto.wire.serving import Job, Owner, error_answer
from hillfire.proto.wire.stream import Buffer, Opened, Side, Stream

log = logging.getLogger(__name__)

MAX_WAITING = 8192
"""Buffers of answers that a client does not take."""
_NOTHING = Opened((), (), None, 0)
JOIN_BYTES = 16 * 1024
"""Data up to here leaves as one buffer with its frame: the copy costs less than two buffers do."""
FLUSH_NS = 100_000
"""An answer waits no longer for those of its neighbours, so that its client can go on."""


class Connection:
    """A client's connection at the server."""

    def __init__(
        self, owner: Owner, sock: socket.socket | Stream, side: Side, peer: str, pid: int
    ) -> None:
        """Begin to read; the hello must follow within ``limits.hello_s``."""
        self._owner = owner
        self._sock = sock
        self._side = side
        self._peer = peer
        self._pid = pid
        self._parser = Parser(side.place)
        self._out = Outgoing(sock)
        self._receive: Callable[[list[memoryview]], int] = side.receive
        self._carry = getattr(side, "carry", None)
        self._requests = 0
        self._bytes = 0
        self._reading = True
        self._writing = False
        self._greeted = False
        self._taking = False
        self._ending = False
        self._arrived_ns = 0
        self._loop = owner.loop
        self._loop.add_reader(sock, self._readable)
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(
            owner.limits.hello_s, self.end, "no hello"
        )

    @property
    def kind(self) -> str:
        """The transport; empty until the client has said hello."""
        return self._side.kind if self._greeted else ""

    def _readable(self) -> None:
        """Receive what is there and serve it."""
        parser = self._parser
        try:
            count = self._receive(parser.wanted())
        except (BlockingIOError, InterruptedError):
            return
        except Error as exc:
            self.refuse(exc)
            return
        except OSError as exc:
            self.end(str(exc))
            return
        if count == 0:
            self.end("")
            return
        self._arrived_ns = time.monotonic_ns()
        parser.received(count)
        self._serve()

    def _serve(self) -> None:
        """Handle the frames that have arrived, as far as the limits allow, and send the answers.

        Answers leave together. Those that were sent may have made room for more requests.
        """
        more = True
        while more and not self._ending:
            self._taking = True
            try:
                more = self._take()
            except Error as exc:
                self._taking = False
                self.refuse(exc)
                return
            self._taking = False
            if self._out.waiting and not self._ending:
                self._flush()
            more = more and not self._full()
        if not self._reading and not self._ending and not self._full():
            self._reading = True
            self._loop.add_reader(self._sock, self._readable)

    def _full(self) -> bool:
        """Tell whether the client has as much in flight as it may."""
        limits = self._owner.limits
        return (
            self._requests >= limits.requests
            or len(self._out.waiting) >= MAX_WAITING
            or self._out.bytes >= limits.unsent_bytes
            or self._bytes + self._out.bytes >= limits.in_flight_bytes
            or (self._bytes > 0 and self._owner.bytes >= limits.total_bytes)
        )

    def _take(self) -> bool:
        """Handle frames; tell whether more may be there than the limits allow.

        Raises:
            Error: the peer broke the protocol.
        """
        parser = self._parser
        while not self._ending:
            if (self._requests or self._bytes or self._out.bytes) and self._full():
                self._pause()
                return True
            frame = parser.next()
            if frame is None:
                return False
            if frame[0] == REQUEST and self._greeted:
                self._request(frame)
                if self._out.bytes and time.monotonic_ns() - self._arrived_ns > FLUSH_NS:
                    self._flush()
            else:
                self._control(frame)
        return False

    def _pause(self) -> None:
        """Stop reading until a request has ended."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock)

    def _control(self, frame: Frame) -> None:
        """Handle anything but a request."""
        if not self._greeted:
            pid = check_hello(frame, Role.CLIENT)
            self._greeted = True
            if self._side.kind != "shm":
                self._peer += f" pid={pid}"
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._out.put([hello(Role.SERVER, self._pid)])
        else:
            self._side.control(frame)

    def _request(self, frame: Frame) -> None:
        """Ask the handler; answer at once if it does."""
        _, method, number, timeout_ms, _, _, table, body, _ = frame
        answer: Answer | Awaitable[Answer]
        try:
            opened = self._side.open(frame) if table else _NOTHING
        except Error as exc:
            answer = error_answer(exc.code, exc.strerror or "")
            self._answer(Job(number, method, (), None, 0, self._arrived_ns), answer)
            return
        sources, destinations, kept, cost = opened
        incoming = Incoming(method, body, sources, destinations, timeout_ms / 1000, self._peer)
        job = Job(number, method, destinations, kept, cost + len(body), self._arrived_ns)
        times = operation_of(method)
        times.server_queue.observe(time.monotonic_ns() - self._arrived_ns)
        try:
            if self._carry is None or kept is None:
                answer = self._owner.handler(incoming)
            else:
                answer = self._carry(self._owner.handler, incoming, kept)
        except Exception as exc:
            answer = self._failure(method, exc)
        if isinstance(answer, Answer):
            if kept is not None:
                self._admit(job)
            self._answer(job, answer)
            return
        self._requests += 1
        self._admit(job)
        task = start(self._loop, self._wait(job, answer))
        if not task.done():
            self._owner.tasks.add(task)
            task.add_done_callback(self._owner.tasks.discard)

    def _admit(self, job: Job) -> None:
        """Count a request's bytes, until its answer has left."""
        self._bytes += job.cost
        self._owner.bytes += job.cost

    async def _wait(self, job: Job, awaitable: Awaitable[Answer]) -> None:
        """Answer once the handler has."""
        try:
            answer = await awaitable
        except asyncio.CancelledError:
            answer = error_answer(Code.CANCELLED, "the server is stopping")
        except Exception as exc:
            answer = self._failure(job.method, exc)
        self._requests -= 1
        self._answer(job, answer)
        if job.kept is None:
            self._sent(job)
        if self._taking:
            return  # it never waited: the answer leaves with those of its neighbours
        if self._ending:
            if not self._requests:
                self._close()
        elif not self._reading:
            self._loop.call_soon(
                self._serve
            )  # there is room again; it may not start tasks from one
        else:
            self._flush()

    def _failure(self, method: int, exc: Exception) -> Answer:
        """Return the answer for what a handler raised."""
        if isinstance(exc, Error):
            return error_answer(exc.code, exc.strerror or "")
        log.error("handler failed method=%d peer=%s", method, self._peer, exc_info=exc)
        return error_answer(Code.INTERNAL, f"{type(exc).__name__} in the server; see its log")

    def _answer(self, job: Job, answer: Answer) -> None:
        """Queue an answer; its memory goes back to the pool when it has left."""
        data: Sequence[Buffer] = ()
        table = b""
        if answer.filled and not answer.code:
            try:
                table, data = self._side.reply(job.kept, job.destinations, answer)
            except ValueError as exc:
                answer = self._failure(job.method, exc)
        if len(answer.body) > MAX_BODY_BYTES:
            answer = error_answer(Code.TOO_LARGE, f"an answer of {len(answer.body)} bytes")
            table, data = b"", ()
        served_ns = time.monotonic_ns() - job.arrived_ns
        operation = operation_of(job.method)
        operation.server.observe(served_ns)
        if answer.code:
            operation.errors.value += 1
        n_bytes = sum(map(len, data)) if data else 0
        head = response(answer.code, job.number, served_ns // 1000, answer.body, table, n_bytes)
        if job.kept is None:
            self._out.put_one(head)
        elif n_bytes <= JOIN_BYTES:
            self._out.put_one(b"".join((head, *data)))
            self._sent(job)
        else:
            self._out.put([head, *data], sent=lambda: self._sent(job))

    def _sent(self, job: Job) -> None:
        """Take note that an answer has left."""
        self._bytes -= job.cost
        self._owner.bytes -= job.cost
        self._side.give_back(job.kept)

    def _flush(self) -> None:
        """Send; wait for room if there is too little."""
        try:
            empty = self._out.flush()
        except OSError as exc:
            self.end(str(exc))
            return
        if empty:
            if self._writing:
                self._writing = False
                self._loop.remove_writer(self._sock)
        elif not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        """Send more, and read again if that made room."""
        self._flush()
        if not self._reading and not self._ending:
            self._serve()

    def refuse(self, exc: Error) -> None:
        """Say what is wrong with the peer, as far as it listens, and end."""
        log.warning("refused peer=%s code=%s cause=%s", self._peer, exc.code.name, exc.strerror)
        answer = error_answer(exc.code, exc.strerror or "")
        self._out.put([encode(Kind.RESPONSE, answer.code, 0, body=answer.body)])
        try:
            self._out.flush()
        except OSError as gone:
            log.debug("peer gone peer=%s cause=%s", self._peer, gone)
        self.end("")

    def end(self, cause: str) -> None:
        """Read and send no more; close as soon as the last handler has ended."""
        if self._ending:
            return
        self._ending = True
        if cause:
            log.info("connection ended peer=%s cause=%s", self._peer, cause)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._out.drop()
        if not self._requests:
            self._close()

    def _close(self) -> None:
        """Close socket and memory."""
        self._out.drop()
        self._sock.close()
        self._side.close()
        self._owner.ended(self)
