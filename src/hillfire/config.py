"""Configuration: TOML files to frozen dataclasses, one a service, and back to a commented default.

A field's type, default, bounds and comment are written once, in its annotation; checking and the
text that ``hillfire config`` prints both read it there, so that they cannot drift apart. Nothing
here is global: a service is given its configuration through its constructor.
"""

import difflib
import json
import re
import textwrap
import tomllib
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from hillfire.errors import Code, Error

MIB = 1 << 20


class Bounds(NamedTuple):
    """The least and the greatest value of a number, both allowed."""

    least: int | float
    greatest: int | float


class Choice(NamedTuple):
    """The only values that a text may take."""

    values: tuple[str, ...]


class Example(NamedTuple):
    """What the printed default shows for a field that has none."""

    value: str | int


class _Size(NamedTuple):
    """The number counts bytes: text such as "64 MiB" is understood."""


Bytes = Annotated[int, _Size()]
LogLevel = Annotated[
    str,
    Choice(("debug", "info", "warning", "error")),
    "What is logged. HILLFIRE_LOG in the environment overrides it.",
]


def _check_reachable(listen: str, grpc_listen: str, manager: str | None = None) -> None:
    """Refuse what other hosts could not use: a service publishes the addresses it listens on.

    ``manager``: of the service; None if it is the manager itself, whose host others know.
    """
    others = listen if manager is None else manager
    for name, value in (("listen", listen), ("grpc_listen", grpc_listen)):
        host = _host(value)
        if manager is not None and host in _ANYWHERE:
            raise Error(
                Code.CONFIGURATION,
                f"{name} = {_toml(value)} cannot be published: name the address at which other "
                "hosts reach this one",
            )
        if _is_loopback(host) and not all(_is_loopback(_host(o)) for o in others.split(",")):
            raise Error(
                Code.CONFIGURATION,
                f"{name} = {_toml(value)} is reached from this host only, but the manager's "
                f"address {others} is for others as well: name this host's own address",
            )


_ANYWHERE = ("", "0.0.0.0", "[::]", "::")


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "[::1]", "::1") or host.startswith("127.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerConfig:
    """The cluster manager: who is alive, which targets serve."""

    directory: Annotated[
        Path,
        Example("/var/lib/hillfire/manager"),
        "Where it keeps its database. Created if missing; belongs to one cluster for good. Others "
        "that are started over the same directory stand by and take over.",
    ]
    listen: Annotated[
        str,
        "Address of the wire, host:port. This is the cluster's one address: what "
        "`hillfire.connect` and `hillfire mount` are given. Port 0: any free one.",
    ] = "127.0.0.1:9700"
    grpc_listen: Annotated[str, "Address of gRPC, host:port. Port 0: any free one."] = "127.0.0.1:0"
    lease_ms: Annotated[
        int,
        Bounds(100, 600_000),
        "A node that was not heard of for so long is dead. Writes wait that long when a host fails "
        "without a word; a killed process of `hillfire up` is replaced at once.",
    ] = 2000
    heartbeat_interval_ms: Annotated[
        int, Bounds(10, 60_000), "How often nodes report. At most a quarter of the lease."
    ] = 250
    client_session_ms: Annotated[
        int,
        Bounds(1_000, 86_400_000),
        "A client that was not heard of for so long retries nothing any more: storage nodes may "
        "forget what they know of its updates.",
    ] = 600_000
    rotate: Annotated[
        bool,
        "Bring each chain's preferred head back by itself, once all is calm after a restart.",
    ] = True
    durable: Annotated[
        bool,
        "Sync every decision to the disk before it is published. Only tests turn it off.",
    ] = True
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        """Check the two times against each other, and the addresses."""
        _check_reachable(self.listen, self.grpc_listen)
        if self.heartbeat_interval_ms * 4 > self.lease_ms:
            raise Error(
                Code.CONFIGURATION,
                f"heartbeat_interval_ms = {self.heartbeat_interval_ms} is too long for lease_ms = "
                f"{self.lease_ms}: use at most {self.lease_ms // 4}, so that one lost heartbeat "
                "does not cost a lease",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaConfig:
    """A metadata service: the name space."""

    node: Annotated[int, Bounds(1, 2**32 - 1), "Its number, unique in the cluster."] = 1
    directory: Annotated[
        Path,
        Example("/var/lib/hillfire/meta"),
        "Where it keeps its database. Created if missing; belongs to one cluster for good.",
    ]
    manager: Annotated[
        str,
        Example("127.0.0.1:9700"),
        "The manager's address: its `listen`; of several, all with commas.",
    ]
    listen: Annotated[str, "Address of the wire, host:port. Port 0: any free one."] = "127.0.0.1:0"
    grpc_listen: Annotated[str, "Address of gRPC, host:port. Port 0: any free one."] = "127.0.0.1:0"
    engine: Annotated[
        str,
        Choice(("rocksdb", "memory")),
        'Where inodes live: "rocksdb", or "memory" for tests (gone when the process ends).',
    ] = "rocksdb"
    chunk_bytes: Annotated[
        Bytes, Bounds(1 << 16, 1 << 26), "Chunk size of new files: a power of two."
    ] = MIB
    stripe: Annotated[
        int, Bounds(1, 1024), "Over how many chains a new file is spread, if there are as many."
    ] = 16
    session_lease_ms: Annotated[
        int,
        Bounds(100, 3_600_000),
        "A client that was not heard of for so long has closed all its files.",
    ] = 10_000
    copies: Annotated[
        int,
        Bounds(0, 16),
        "On how many storage nodes a copy of the database is kept, at most a second behind, from "
        "which `hillfire meta restore` rebuilds it. 0: its disk is all there is.",
    ] = 2
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        """Check that the chunk size is a power of two, and the addresses."""
        _check_reachable(self.listen, self.grpc_listen, self.manager)
        if self.chunk_bytes & (self.chunk_bytes - 1):
            raise Error(
                Code.CONFIGURATION,
                f"chunk_bytes = {self.chunk_bytes} is no power of two: use for example "
                f"{1 << self.chunk_bytes.bit_length() - 1}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """A storage node: targets on its disks, each a member of one chain."""

    node: Annotated[int, Bounds(1, 2**32 - 1), Example(101), "Its number, unique in the cluster."]
    directory: Annotated[
        Path,
        Example("/var/lib/hillfire/storage-101"),
        "Where it keeps its targets. Created if missing; belongs to one cluster for good.",
    ]
    manager: Annotated[
        str,
        Example("127.0.0.1:9700"),
        "The manager's address: its `listen`; of several, all with commas.",
    ]
    listen: Annotated[str, "Address of the wire, host:port. Port 0: any free one."] = "127.0.0.1:0"
    grpc_listen: Annotated[str, "Address of gRPC, host:port. Port 0: any free one."] = "127.0.0.1:0"
    rdma: Annotated[
        str,
        'The RDMA device that data goes over: "auto", the one that has the address in `listen`; '
        '"off"; or its name, as device[:port[:GID index]] (InfiniBand needs all three). Clients '
        "without one come over tcp.",
    ] = "auto"
    rdma_listen: Annotated[
        str,
        "Where connections over RDMA are agreed upon, host:port. Empty: the host of `listen`, any "
        "free port.",
    ] = ""
    rdma_poll_us: Annotated[
        int,
        Bounds(0, 1_000_000),
        "How long to poll for RDMA's next completion before sleeping. 0: sleep at once. More saves "
        "a wake-up for each request and keeps a core busy meanwhile.",
    ] = 0
    pool_bytes: Annotated[
        Bytes,
        Bounds(1 << 22, 1 << 40),
        "Memory for writes on their way, for each position in a chain (head, second, ...).",
    ] = 64 * MIB
    io_threads: Annotated[int, Bounds(1, 256), "Threads that read and write the disk."] = 4
    direct_io: Annotated[
        bool, "Write whole chunks past the page cache (O_DIRECT), where the file system can."
    ] = True
    direct_reads: Annotated[
        bool, "Read 256 KiB and more past the page cache, too: for data read once, off fast disks."
    ] = False
    disks: Annotated[
        tuple[Path, ...],
        "Directories, one on each disk, over which its targets are spread; a disk that fails takes "
        "its own targets offline and no others. Empty: `directory` is the only one.",
    ] = ()
    rack: Annotated[
        str, "Where it stands: two replicas of a chunk are never in one rack if there are enough."
    ] = ""
    durability: Annotated[
        str,
        Choice(("default", "always")),
        "When a write is acknowledged: once it survives the death of every process (fsync makes it "
        'survive the loss of power), or with "always" once it survives that, too.',
    ] = "default"
    no_new_chunks_percent: Annotated[
        float, Bounds(1, 100), "A disk that is so full takes no new chunks."
    ] = 98.0
    no_writes_percent: Annotated[
        float,
        Bounds(1, 100),
        "A disk that is so full takes no writes at all; deleting always works.",
    ] = 99.0
    recovery_share: Annotated[
        float,
        Bounds(0.01, 1),
        "Part of the time that bringing replicas up to date and checking them may take while "
        "others want the node; whoever else wants it keeps the rest. 1: they are never held back. "
        "An idle node gives recovery all it has.",
    ] = 0.2
    recovery_bytes_per_s: Annotated[
        Bytes, Bounds(0, 1 << 40), "At most so much a second for it in any case; 0: no limit."
    ] = 0
    recovery_chains: Annotated[
        int, Bounds(1, 1024), "How many chains a node brings up to date at once."
    ] = 4
    scrub_days: Annotated[
        float,
        Bounds(0, 3650),
        "In so many days every stored byte is read and checked once, and compared with the other "
        "replicas' records; 0: only by `hillfire scrub`.",
    ] = 14.0
    scrub_bytes_per_s: Annotated[
        Bytes, Bounds(1 << 16, 1 << 40), "At most so much a second, for each disk."
    ] = 32 * MIB
    probe_interval_ms: Annotated[
        int, Bounds(10, 3_600_000), "How often each disk is tried with a small write."
    ] = 3000
    probe_timeout_ms: Annotated[
        int,
        Bounds(50, 3_600_000),
        "A disk that has not done a small write in so long counts as failed.",
    ] = 10_000
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        """Check the addresses, and the thresholds against each other."""
        _check_reachable(self.listen, self.grpc_listen, self.manager)
        if self.no_new_chunks_percent > self.no_writes_percent:
            raise Error(
                Code.CONFIGURATION,
                f"no_new_chunks_percent = {self.no_new_chunks_percent:g} is above "
                f"no_writes_percent = {self.no_writes_percent:g}: the first must come first",
            )
        if len(set(self.disks)) != len(self.disks):
            raise Error(Code.CONFIGURATION, "disks names a directory twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountConfig:
    """A mount of the file system."""

    address: Annotated[
        str,
        Example("127.0.0.1:9700"),
        "The cluster's address: its manager's; of several, all with commas.",
    ]
    mountpoint: Annotated[Path, Example("/mnt/hillfire"), "An existing, empty directory."]
    transport: Annotated[
        str | None,
        Choice(("shm", "rdma", "tcp")),
        "How bytes move. By default shared memory to services on this host, RDMA to others where "
        "both have a device, else tcp.",
    ] = None
    write_behind_bytes: Annotated[
        Bytes,
        Bounds(0, 1 << 40),
        "How much written data may wait in the mount; 0: every write goes through at once.",
    ] = 64 * MIB
    attribute_timeout_s: Annotated[
        float, Bounds(0, 3600), "How long attributes may be remembered."
    ] = 1.0
    entry_timeout_s: Annotated[float, Bounds(0, 3600), "How long names may be remembered."] = 1.0
    io_timeout_s: Annotated[
        float, Bounds(0.1, 86_400), "After so long a read or write that goes nowhere is an error."
    ] = 60.0
    allow_other: Annotated[
        bool, "Let other users in (needs user_allow_other in /etc/fuse.conf unless root mounts)."
    ] = False
    log_level: LogLevel = "info"


Config = ManagerConfig | MetaConfig | StorageConfig | MountConfig

KINDS: dict[str, type[Config]] = {
    "manager": ManagerConfig,
    "meta": MetaConfig,
    "storage": StorageConfig,
    "mount": MountConfig,
}


def load(kind: str, path: Path) -> Config:
    """Read the configuration of one kind of service from a TOML file.

    Raises:
        Error: CONFIGURATION, naming the file, the key and what is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Error(
            Code.CONFIGURATION,
            f"{path}: cannot be read ({error.strerror}); `hillfire config {kind}` prints a "
            "commented default to start from",
        ) from error
    except UnicodeDecodeError as error:
        raise Error(Code.CONFIGURATION, f"{path}: is not UTF-8 text ({error})") from error
    return parse(kind, text, str(path))


def parse(kind: str, text: str, source: str = "configuration") -> Config:
    """Check TOML text against one kind of service; ``source`` is what errors call it.

    Raises:
        Error: CONFIGURATION, naming the source, the key and what is wrong with it.
    """
    cls = KINDS.get(kind)
    if cls is None:
        raise Error(Code.CONFIGURATION, f"no service {kind!r}{_nearest(kind, KINDS)}")
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Error(Code.CONFIGURATION, f"{source}: is not TOML: {error}") from error
    known = {field.name: field for field in fields(cls)}
    hints = get_type_hints(cls, include_extras=True)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise Error(Code.CONFIGURATION, f"{source}: unknown key {key!r}{_nearest(key, known)}")
        values[key] = _checked(value, hints[key], f"{source}: {key} = {_toml(value)}")
    for name, field in known.items():
        if field.default is MISSING and name not in values:
            shown = _toml(_example(hints[name]))
            raise Error(
                Code.CONFIGURATION,
                f"{source}: {name!r} is missing: add for example {name} = {shown}",
            )
    try:
        return cls(**values)
    except Error as error:
        raise Error(Code.CONFIGURATION, f"{source}: {error.strerror}") from error


def default_toml(kind: str) -> str:
    """Return every key of a service with its comment and its default, as TOML."""
    cls = KINDS[kind]
    hints = get_type_hints(cls, include_extras=True)
    lines = [f"# hillfire {kind}: {(cls.__doc__ or '').strip()}"]
    for field in fields(cls):
        lines += ["", *_described(field, hints[field.name])]
    return "\n".join(lines) + "\n"


def to_toml(config: Config) -> str:
    """Return a configuration as TOML that :func:`parse` reads back as the same."""
    pairs = ((field.name, getattr(config, field.name)) for field in fields(config))
    return "".join(f"{name} = {_toml(value)}\n" for name, value in pairs if value is not None)


def parse_size(text: str) -> int:
    """Return the bytes that text such as "64 MiB", "1.5 GiB" or "4096" stands for.

    Raises:
        ValueError: if it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGTP]i?)?B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is no size")
    unit = (match[2] or "").lower()
    base = 1024 if unit.endswith("i") else 1000
    size = float(match[1]) * base ** (" kmgtp".index(unit[0]) if unit else 0)
    if size != int(size):
        raise ValueError(f"{text!r} is no whole number of bytes")
    return int(size)


def format_size(n_bytes: int) -> str:
    """Return a number of bytes as people read it; exact where that is short."""
    for exponent, unit in ((5, "PiB"), (4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if n_bytes >= 1024**exponent:
            return f"{round(n_bytes / 1024**exponent, 1):g} {unit}"
    return f"{n_bytes} B"


def _described(field: "Field[Any]", hint: Any) -> list[str]:
    marks = _marks(hint)
    lines: list[str] = []
    for text in (mark for mark in marks if isinstance(mark, str)):
        lines += textwrap.wrap(text, 92)
    for mark in marks:
        if isinstance(mark, Choice):
            lines.append("one of: " + ", ".join(_toml(value) for value in mark.values))
        elif isinstance(mark, Bounds):
            lines.append(f"{mark.least} to {mark.greatest}")
    if field.default is MISSING:
        return [f"# {line}" for line in [*lines, "required"]] + [
            f"{field.name} = {_toml(_example(hint))}"
        ]
    if field.default is None:
        return [f"# {line}" for line in lines] + [f"# {field.name} = {_toml(_example(hint))}"]
    default = field.default
    sized = any(isinstance(mark, _Size) for mark in marks)
    exact = sized and default and parse_size(format_size(default)) == default
    return [f"# {line}" for line in lines] + [
        f"{field.name} = {_toml(format_size(default) if exact else default)}"
    ]


def _checked(value: Any, hint: Any, shown: str) -> Any:
    """Return ``value`` as its field's type; ``shown`` opens the message if it is none."""
    marks = _marks(hint)
    if get_origin(get_args(hint)[0]) is tuple:
        return _checked_list(value, get_args(get_args(hint)[0])[0], shown)
    kind = _plain(hint)
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if any(isinstance(mark, _Size) for mark in marks) and isinstance(value, str):
        try:
            value = parse_size(value)
        except ValueError:
            message = f'{shown} is no size: write bytes or text such as "64 MiB"'
            raise Error(Code.CONFIGURATION, message) from None
    right: bool = type(value) is kind
    if not right:
        raise Error(Code.CONFIGURATION, f"{shown} is no {_WORDS[kind]}")
    for mark in marks:
        if isinstance(mark, Choice) and value not in mark.values:
            known = ", ".join(_toml(choice) for choice in mark.values)
            message = f"{shown} is none of {known}{_nearest(value, mark.values)}"
            raise Error(Code.CONFIGURATION, message)
        if isinstance(mark, Bounds) and not mark.least <= value <= mark.greatest:
            message = f"{shown} is not between {mark.least} and {mark.greatest}"
            raise Error(Code.CONFIGURATION, message)
    return value


def _checked_list(value: Any, hint: Any, shown: str) -> tuple[Any, ...]:
    """Return a list's values as their type."""
    if not isinstance(value, list):
        raise Error(Code.CONFIGURATION, f'{shown} is no list: write for example ["/mnt/disk-1"]')
    return tuple(
        _checked(each, Annotated[hint, ""], f"{shown}: its {place}. value {_toml(each)}")
        for place, each in enumerate(value, 1)
    )


_WORDS: dict[type, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text in quotes",
    Path: "path in quotes",
}


def _marks(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def _plain(hint: Any) -> type:
    """Return the bare type of a field: ``str`` of ``Annotated[str | None, ...]``."""
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if isinstance(bare, UnionType):
        bare = next(arm for arm in get_args(bare) if arm is not NoneType)
    assert isinstance(bare, type)
    return bare


def _example(hint: Any) -> str | int:
    for mark in _marks(hint):
        if isinstance(mark, Example):
            return mark.value
        if isinstance(mark, Choice):
            return mark.values[0]
    return ""


def _toml(value: object) -> str:
    """Write one value: for what configurations hold, JSON is TOML."""
    return json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}"
