"""The gRPC binding of the dispatcher, and the client of it. The only module that imports grpc.

The error code itself travels in the trailing metadata, since gRPC has fewer codes than we do.
"""

import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from hillfire import metrics
from hillfire.errors import TABLE, Code, Error
from hillfire.proto.dispatch import (
    CallContext,
    Dispatcher,
    Implementation,
    Method,
    parse,
    within,
)
from hillfire.proto.wire.base import MAX_BODY_BYTES

log = logging.getLogger(__name__)

CODE_KEY = "hillfire-code"
DEFAULT_TIMEOUT_S = 60.0
"""Of a call whose caller named none."""
GRACE_S = 2.0
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_BODY_BYTES),
    ("grpc.max_send_message_length", MAX_BODY_BYTES),
    ("grpc.enable_http_proxy", 0),
]
SERVER_OPTIONS = [*OPTIONS, ("grpc.so_reuseport", 0)]
CLIENT_OPTIONS = [
    *OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]
_UNTYPED = {
    grpc.StatusCode.UNAVAILABLE: Code.CONNECTION,
    grpc.StatusCode.DEADLINE_EXCEEDED: Code.TIMED_OUT,
    grpc.StatusCode.UNIMPLEMENTED: Code.NOT_SUPPORTED,
    grpc.StatusCode.CANCELLED: Code.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Code.TOO_LARGE,
}
"""What gRPC's own errors mean, which carry no code of ours."""


class GrpcServer:
    """A running gRPC server."""

    def __init__(self, server: Any, address: str) -> None:
        """Use ``serve_grpc``."""
        self._server = server
        self.address = address
        """``host:port`` with the real port"""

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Take no more calls, and cancel those that do not end within ``grace_s``."""
        await self._server.stop(grace_s)


async def serve_grpc(dispatcher: Dispatcher, address: str) -> GrpcServer:
    """Serve everything that a dispatcher has, at ``host:port``.

    Raises:
        Error: CONFIGURATION if the address is taken or of no use.
    """
    server = grpc.aio.server(options=SERVER_OPTIONS)
    services: dict[str, dict[str, Any]] = {}
    for called, function, times in dispatcher.served():
        _, service, name = called.path.split("/")
        services.setdefault(service, {})[name] = grpc.unary_unary_rpc_method_handler(
            _behaviour(called, function, times)
        )
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(*each) for each in services.items())
    )
    host = address.rpartition(":")[0]
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as exc:
        port = 0
        cause: Exception | None = exc
    else:
        cause = None
    if port == 0:
        text = f"cannot listen on {address}; choose another address or port"
        raise Error(Code.CONFIGURATION, text) from cause
    await server.start()
    return GrpcServer(server, f"{host}:{port}")


def _behaviour(
    called: Method, function: Implementation, times: metrics.Histogram
) -> Callable[[bytes, Any], Any]:
    """Return gRPC's handler of one method: bytes in, bytes out."""

    async def behave(body: bytes, context: Any) -> bytes:
        began_ns = time.monotonic_ns()
        try:
            remaining = context.time_remaining()
            timeout_s = DEFAULT_TIMEOUT_S if remaining is None else max(0.0, remaining)
            request = parse(called.request_type, body)
            result = function(request, CallContext(f"grpc:{context.peer()}", timeout_s))
            if inspect.isawaitable(result):
                result = await within(result, timeout_s)
            answer: bytes = result.SerializeToString()
            return answer
        except Error as exc:
            error = exc
        except Exception as exc:
            log.exception("handler failed method=%s peer=%s", called.path, context.peer())
            text = f"{type(exc).__name__} in the server; see its log"
            error = Error(Code.INTERNAL, text)
        finally:
            times.observe(time.monotonic_ns() - began_ns)
        status = grpc.StatusCode[TABLE[error.code].grpc]
        trailer = ((CODE_KEY, str(int(error.code))),)
        await context.abort(status, error.strerror or "", trailer)
        raise AssertionError("abort() does not return")

    return behave


class GrpcClient:
    """Calls one server. Connects by itself, again and again."""

    def __init__(self, address: str) -> None:
        """Call the server at ``host:port``."""
        self._address = address
        self._channel = grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS)
        self._calls: dict[str, Any] = {}

    async def call(self, called: Method, message: Message, timeout_s: float) -> Any:
        """Call a method and return its reply, of ``called.reply_type``.

        Raises:
            Error: the server's; CONNECTION, TIMED_OUT.
        """
        call = self._calls.get(called.path)
        if call is None:
            call = self._calls[called.path] = self._channel.unary_unary(called.path)
        try:
            body = await call(message.SerializeToString(), timeout=timeout_s)
        except grpc.aio.AioRpcError as exc:
            raise self._error(exc) from exc
        except grpc.aio.UsageError as exc:
            raise Error(Code.CONNECTION, f"the channel to {self._address} is closed") from exc
        return parse(called.reply_type, body)

    def _error(self, exc: grpc.aio.AioRpcError) -> Error:
        """Translate gRPC's error into the one that the server raised."""
        details = exc.details() or exc.code().name
        for key, value in exc.trailing_metadata() or ():
            if key == CODE_KEY:
                try:
                    return Error(Code(int(value)), details)
                except ValueError:
                    return Error(Code.INTERNAL, f"error {value!r} of a newer server: {details}")
        code = _UNTYPED.get(exc.code(), Code.INTERNAL)
        return Error(code, f"{self._address}: {details}")

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self._channel.close()
