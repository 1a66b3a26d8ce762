"""What an fsspec file system of hillfire's is: which cluster, which options, equal to which."""

from typing import Any, TypeVar

import fsspec
import fsspec.asyn
from fsspec.utils import stringify_path

from hillfire.client.actions import Operation
from hillfire.client.adapters.clients import shared_client
from hillfire.client.adapters.urls import PROTOCOL, split_url
from hillfire.client.core import Core
from hillfire.client.filesystem import FileSystem, default_address

T = TypeVar("T")

LISTING_OPTIONS = {"use_listings_cache", "listings_expiry_time", "max_paths"}


class Base(fsspec.asyn.AsyncFileSystem):  # type: ignore[misc]
    """A cluster, named; it is connected to when it is first needed."""

    protocol = PROTOCOL
    root_marker = "/"
    async_impl = True
    mirror_sync_methods = False  # both faces are native: neither waits for the other's thread

    def __init__(
        self,
        address: str | None = None,
        *,
        auto_mkdir: bool = True,
        durable: bool = False,
        transport: str | None = None,
        io_timeout_s: float | None = None,
        staging_bytes: int | None = None,
        asynchronous: bool = False,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        """Name a cluster; it is connected to when it is first needed.

        ``address``, ``transport``, ``io_timeout_s`` and ``staging_bytes`` are ``connect``'s;
        ``auto_mkdir``: a file that is created makes the directories above it, as an object store
        would seem to. ``durable``: a file that was written is on the disks of all replicas when
        ``close`` returns. The rest is fsspec's.

        Raises:
            Error: CONFIGURATION if there is no address.
        """
        if unknown := options.keys() - LISTING_OPTIONS:
            raise TypeError(f"hillfire:// has no option {', '.join(sorted(unknown))}")
        fsspec.AbstractFileSystem.__init__(self)
        self.address = address or default_address()
        self.auto_mkdir = auto_mkdir
        self.durable = durable
        self.asynchronous = asynchronous
        self.batch_size = batch_size
        self._named = address is not None
        given = {
            "transport": transport,
            "io_timeout_s": io_timeout_s,
            "staging_bytes": staging_bytes,
        }
        self._options = {name: value for name, value in given.items() if value is not None}
        self._client: FileSystem | None = None

    def __repr__(self) -> str:
        """Name the cluster."""
        return f"<hillfire:// at {self.address}>"

    @property
    def client(self) -> FileSystem:
        """Hillfire's own file system: regions, batches, ``fsync`` and the rest of it."""
        client = self._client
        if client is None:
            client = self._client = shared_client(self.address, **self._options)
        return client

    # --- which one it is

    @property
    def fsid(self) -> str:
        """The cluster, by the address it was found at."""
        return f"{PROTOCOL}-{self.address}"

    def _identity(self) -> tuple[Any, ...]:
        return (
            self.address,
            self.auto_mkdir,
            self.durable,
            self.asynchronous,
            tuple(sorted(self._options.items())),
        )

    def __eq__(self, other: object) -> bool:
        """Tell whether it is the same cluster with the same options."""
        return isinstance(other, Base) and self._identity() == other._identity()

    def __hash__(self) -> int:
        """Agree with equality."""
        return hash(self._identity())

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Name the cluster for dask, the same in every process."""
        return PROTOCOL, *self._identity()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the address that was found, which another process may not find by itself."""
        options: dict[str, Any] = {
            "auto_mkdir": self.auto_mkdir,
            "durable": self.durable,
            "asynchronous": self.asynchronous,
            "batch_size": self.batch_size,
            **self._options,
        }
        return _again, (type(self), self.address, options)

    # --- paths

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return split_url(stringify_path(path))[1]

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        address = split_url(path)[0]
        return {"address": address} if address else {}

    def unstrip_protocol(self, name: str) -> str:
        """Return a path as a URL, with the cluster's address if it was given."""
        path = self._strip_protocol(name)
        return f"{PROTOCOL}://{self.address if self._named else ''}{path}"

    # --- operations

    @property
    def _core(self) -> Core:
        return self.client._core

    def _run(self, operation: Operation[T]) -> T:
        return self.client._run(operation)


def _again(kind: type[Base], address: str, options: dict[str, Any]) -> Any:
    return kind(address, **options)
