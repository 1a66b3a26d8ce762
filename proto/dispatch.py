"""Service methods and the dispatcher that calls their implementations, whatever carries them.

Built from the protobuf descriptors, so that a method exists once: as a line of a .proto file.
"""

import asyncio
import hashlib
import inspect
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from hillfire import metrics
from hillfire.errors import Code, Error
from hillfire.proto import manager_pb2, meta_pb2, metalog_pb2, process_pb2, storage_pb2
from hillfire.proto.wire.base import FIRST_SERVICE_METHOD, Answer, Incoming, Reply, Request


class Method(NamedTuple):
    """One rpc of one service."""

    id: int
    """its number on the wire: a hash of its path, the same in every version"""
    path: str
    """``/hillfire.Meta/Lookup``, its name in gRPC"""
    request_type: type[Message]
    reply_type: type[Message]
    function: str
    """``lookup``, the name of its implementation"""


class CallContext(NamedTuple):
    """What an implementation knows of its caller."""

    peer: str
    timeout_s: float


def _number(path: str) -> int:
    """Return a method's number: a hash of its path, above those of the data plane."""
    number = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big")
    return number | FIRST_SERVICE_METHOD


def _methods() -> Iterator[tuple[tuple[str, str], Method]]:
    """List every method of every .proto."""
    for module in (manager_pb2, meta_pb2, metalog_pb2, process_pb2, storage_pb2):
        services: dict[str, ServiceDescriptor] = dict(module.DESCRIPTOR.services_by_name)
        for name, service in services.items():
            for rpc in service.methods:
                path = f"/{service.full_name}/{rpc.name}"
                function = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", rpc.name).lower()
                request, reply = GetMessageClass(rpc.input_type), GetMessageClass(rpc.output_type)
                yield (name, rpc.name), Method(_number(path), path, request, reply, function)


_METHODS = dict(_methods())
assert len({method.id for method in _METHODS.values()}) == len(_METHODS), "method ids collide"


def method(service: str, name: str) -> Method:
    """Return a method by its names in the .proto: ``method("Meta", "Lookup")``."""
    return _METHODS[service, name]


def methods(service: str) -> list[Method]:
    """Return all methods of a service."""
    return [found for (owner, _), found in _METHODS.items() if owner == service]


def encode(called: Method, message: Message) -> Request:
    """Return the wire's request for a call."""
    return Request(called.id, message.SerializeToString())


def decode(called: Method, reply: Reply) -> Any:
    """Return the message that a reply carries, of ``called.reply_type``.

    Raises:
        Error: PROTOCOL if it is none.
    """
    return parse(called.reply_type, reply.body)


def parse(kind: type[Message], body: bytes | memoryview) -> Message:
    """Return a message from its bytes.

    Raises:
        Error: PROTOCOL if they are none.
    """
    message = kind()
    try:
        message.ParseFromString(body)  # type: ignore[arg-type]  # it takes any buffer
    except DecodeError as exc:
        raise Error(Code.PROTOCOL, f"not a {kind.__name__}: {exc}") from exc
    return message


Implementation = Callable[[Any, CallContext], Any]


class Dispatcher:
    """Calls the implementations of services.

    An implementation has one function an rpc, by its name in snake case, taking the request and a
    ``CallContext``: a coroutine function, or a plain function where the answer needs no waiting;
    that saves the cost of a task.
    """

    def __init__(self) -> None:
        """Begin with no service."""
        self._functions: dict[int, tuple[Method, Implementation, metrics.Histogram]] = {}

    def add(self, service: str, implementation: object) -> None:
        """Serve a service. An rpc without its function is a programmer's error."""
        for found in methods(service):
            function: Implementation = getattr(implementation, found.function)
            _, _, path = found.path.rpartition("hillfire.")
            times = metrics.histogram(
                "hillfire_call_seconds",
                "Calls of services, until they were answered.",
                method=path,
            )
            self._functions[found.id] = found, function, times

    def served(self) -> list[tuple[Method, Implementation, metrics.Histogram]]:
        """Return what is served and where its times go, for other bindings than the wire."""
        return list(self._functions.values())

    def handle(self, incoming: Incoming) -> Answer | Awaitable[Answer]:
        """Answer a request of the wire; this is a ``base.Handler``.

        Raises:
            Error: NOT_SUPPORTED for an unknown method, PROTOCOL for a malformed request, and what
                the implementation raises.
        """
        found = self._functions.get(incoming.method)
        if found is None:
            raise Error(Code.NOT_SUPPORTED, f"method {incoming.method} is not served here")
        called, function, times = found
        began_ns = time.monotonic_ns()
        request = parse(called.request_type, incoming.body)
        result = function(request, CallContext(incoming.peer, incoming.timeout_s))
        if inspect.isawaitable(result):
            return _finish(result, incoming.timeout_s, times, began_ns)
        answer = Answer(Code.OK, result.SerializeToString())
        times.observe(time.monotonic_ns() - began_ns)
        return answer


async def _finish(
    result: Awaitable[Message], timeout_s: float, times: metrics.Histogram, began_ns: int
) -> Answer:
    """Wait for an implementation no longer than its caller does.

    Raises:
        Error: TIMED_OUT, and what the implementation raises.
    """
    try:
        message = await within(result, timeout_s)
        return Answer(Code.OK, message.SerializeToString())
    finally:
        times.observe(time.monotonic_ns() - began_ns)


async def within(result: Awaitable[Message], timeout_s: float) -> Message:
    """Wait for an implementation, at most ``timeout_s``.

    Raises:
        Error: TIMED_OUT, and what the implementation raises.
    """
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            return await result
    except TimeoutError as exc:
        if isinstance(exc, Error) or not deadline.expired():
            raise
        raise Error(Code.TIMED_OUT, f"not done within {timeout_s:.3f} s") from exc
