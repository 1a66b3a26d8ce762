"""What the metadata service asks of storage, always the head of a chain, until it is done.

Chains change while one asks: a call that fails in a way that may pass is sent again, with the
same tag, to whoever is the head by then.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from hillfire.cluster import PublicState, Routing
from hillfire.errors import Code, Error
from hillfire.meta.intents import Intent
from hillfire.proto.service import GrpcClient, Method, method
from hillfire.proto.storage_pb2 import LastByteRequest, TruncateChunksRequest
from hillfire.types import ChainId

CALL_TIMEOUT_S = 10.0
"""Of one try."""
FIRST_BACKOFF_S = 0.005
MAX_BACKOFF_S = 0.5
MIN_TRY_S = 0.001
MAX_CALLS = 64
"""Outstanding at once, over all chains."""

T = TypeVar("T")

_TRUNCATE = method("Storage", "Truncate")
_LAST_BYTE = method("Storage", "LastByte")


class StorageClient:
    """Calls to the heads of chains."""

    def __init__(self, routing: Callable[[], Routing], tag: int) -> None:
        """``routing`` returns the newest; ``tag`` names this service in what it asks for."""
        self._routing = routing
        self._tag = tag
        self._clients: dict[str, GrpcClient] = {}
        self._slots = asyncio.Semaphore(MAX_CALLS)

    async def truncate(self, intent: Intent, timeout_s: float) -> None:
        """Carry an intent out on all of its chains.

        Raises:
            Error: what the last try failed with, once the time is over.
        """
        await _all(
            (self._cut(chain, intent, False, timeout_s) for chain in intent.chains),
        )

    async def remove(self, intent: Intent, timeout_s: float) -> None:
        """Remove every chunk of the intent's inode on its chains; as :meth:`truncate`."""
        await _all(self._cut(chain, intent, True, timeout_s) for chain in intent.chains)

    async def last_byte(
        self, inode: int, chunk_bytes: int, chains: Iterable[int], timeout_s: float
    ) -> int:
        """Return the end of the last chunk of a file, from all of its chains.

        Raises:
            Error: as :meth:`truncate`.
        """

        async def ask(chain: int) -> int:
            reply = await self._call(
                _LAST_BYTE,
                chain,
                lambda version: LastByteRequest(
                    chain=chain, chain_version=version, inode=inode, chunk_bytes=chunk_bytes
                ),
                timeout_s,
            )
            return int(reply.length)

        return max(await _all(ask(chain) for chain in chains), default=0)

    async def close(self) -> None:
        """Close the connections."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.close()

    async def _cut(self, chain: int, intent: Intent, remove: bool, timeout_s: float) -> None:
        def request(version: int) -> Message:
            return TruncateChunksRequest(
                chain=chain,
                chain_version=version,
                inode=intent.inode,
                epoch=intent.epoch,
                length=intent.length,
                chunk_bytes=intent.chunk_bytes,
                remove=remove,
                client=self._tag,
                sequence=intent.sequence,
            )

        try:
            await self._call(_TRUNCATE, chain, request, timeout_s)
        except Error as error:
            if error.code is not Code.STALE_EPOCH:  # a later truncate did it
                raise

    async def _call(
        self,
        called: Method,
        chain: int,
        request: Callable[[int], Message],
        timeout_s: float,
    ) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        backoff_s = FIRST_BACKOFF_S
        while True:
            remaining_s = deadline - loop.time()
            try:
                version, address = self._head(chain)
                async with self._slots:
                    client = await self._client(address)
                    try_s = max(MIN_TRY_S, min(CALL_TIMEOUT_S, remaining_s))
                    return await client.call(called, request(version), try_s)
            except Error as error:
                if not error.retry or remaining_s <= backoff_s:
                    raise
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _head(self, chain: int) -> tuple[int, str]:
        """Return the chain's version and the gRPC address of its head."""
        routing = self._routing()
        found = routing.chain(ChainId(chain))
        first, state = found.targets[0]
        if state is not PublicState.SERVING:
            raise Error(Code.UNAVAILABLE, f"no target of chain {chain} serves")
        return found.version, routing.node_of(first).endpoint.grpc

    async def _client(self, address: str) -> GrpcClient:
        """Return the connection to an address; those to addresses of the past are closed."""
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = GrpcClient(address)
            present = {node.endpoint.grpc for node in self._routing().nodes.values()}
            for past in self._clients.keys() - present - {address}:
                await self._clients.pop(past).close()
        return client


async def _all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Wait for all; the first failure is raised when none is under way any more."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[T], results)
