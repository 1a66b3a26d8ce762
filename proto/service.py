"""Services: methods, the dispatcher, and its two bindings.

The wire's binding is ``Dispatcher.handle``; gRPC's is ``serve_grpc`` and ``GrpcClient``. Those
are imported at their first use only: grpc is slow to import and does not survive a fork, and
clients never need it.
"""

from typing import TYPE_CHECKING

from hillfire.proto.dispatch import CallContext, Dispatcher, Method, decode, encode, method

if TYPE_CHECKING:
    from hillfire.proto.service_grpc import GrpcClient, GrpcServer, serve_grpc

__all__ = [
    "CallContext",
    "Dispatcher",
    "GrpcClient",
    "GrpcServer",
    "Method",
    "decode",
    "encode",
    "method",
    "serve_grpc",
]


def __getattr__(name: str) -> object:
    """Import the gRPC binding when it is asked for."""
    if name in ("GrpcClient", "GrpcServer", "serve_grpc"):
        from hillfire.proto import service_grpc

        return getattr(service_grpc, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
