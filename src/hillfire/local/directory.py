"""A cluster's directory: its shape, its ports and its services' configuration files.

``cluster.json`` remembers what was chosen at the first start, so that the same cluster, at the
same addresses, comes up again; it is the mark by which a directory is known as a cluster's.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

from hillfire import config
from hillfire.errors import Code, Error
from hillfire.local import ports

FORMAT = 1
FIRST_STORAGE_NODE = 101
META_NODE = 1
FREE_BYTES_NEEDED = 256 << 20
"""Below this the first start would end half-way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a cluster was made of at its first start."""

    format: int = FORMAT
    nodes: int = 3
    replicas: int = 3
    targets_per_node: int = 4
    host: str = "127.0.0.1"
    port: int = 0
    """The first of its consecutive ports: two for each service, wire and gRPC."""

    @property
    def address(self) -> str:
        """The cluster's one address: the manager's wire."""
        return f"{self.host}:{self.port}"

    @property
    def manager_grpc(self) -> str:
        """Where the manager answers over gRPC."""
        return f"{self.host}:{self.port + 1}"

    @property
    def storage_nodes(self) -> range:
        """The numbers of the storage nodes."""
        return range(FIRST_STORAGE_NODE, FIRST_STORAGE_NODE + self.nodes)

    @property
    def services(self) -> list["Service"]:
        """Every service, in the order that they start in."""
        made = [Service("manager", "manager", None, self.port)]
        made.append(Service("meta", "meta", META_NODE, self.port + 2))
        for i, node in enumerate(self.storage_nodes):
            made.append(Service(f"storage-{node}", "storage", node, self.port + 4 + 2 * i))
        return made


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the cluster. It listens on ``port`` (wire) and the next one (gRPC)."""

    name: str
    kind: str
    node: int | None
    port: int


class ClusterDirectory:
    """Reads and writes what belongs to the supervisor in a cluster's directory."""

    def __init__(self, path: Path) -> None:
        """Take the directory at ``path``, which need not exist yet."""
        self.path = path.expanduser().absolute()

    @property
    def control_path(self) -> Path:
        """The UNIX socket on which the supervisor listens."""
        return self.path / "control.sock"

    @property
    def log_path(self) -> Path:
        """The log of a supervisor in the background."""
        return self.path / "supervisor.log"

    def service_log(self, name: str) -> Path:
        """Return where a service's standard error goes."""
        return self.path / "logs" / f"{name}.log"

    def service_config(self, name: str) -> Path:
        """Return where a service's configuration is."""
        return self.path / f"{name}.toml"

    def shape(self) -> Shape:
        """Read what the cluster was made of.

        Raises:
            Error: NOT_FOUND if this is no cluster's directory, CORRUPT if it cannot be understood.
        """
        path = self.path / "cluster.json"
        try:
            shape = Shape(**json.loads(path.read_text()))
        except FileNotFoundError:
            raise Error(
                Code.NOT_FOUND,
                f"{self.path} holds no cluster: start one with `hillfire up --dir {self.path}`",
            ) from None
        except (ValueError, TypeError) as error:
            raise Error(Code.CORRUPT, f"{path} cannot be understood: {error}") from error
        if shape.format != FORMAT:
            raise Error(
                Code.WRONG_PEER_VERSION,
                f"{path} is of format {shape.format}, this hillfire writes {FORMAT}",
            )
        return shape

    def create(self, asked: Mapping[str, int], port: int | None = None) -> Shape:
        """Make the directory of a new cluster, or check that the one that is there is alike.

        ``asked`` holds those of nodes, replicas and targets_per_node that somebody named; ``port``
        is as for :func:`ports.choose`.

        Raises:
            Error: CONFIGURATION if the cluster there is another or the wanted one impossible,
                BUSY for a port, NO_SPACE, EXISTS if the directory holds something else.
        """
        if (self.path / "cluster.json").exists():
            shape = self.shape()
            self._check_alike(shape, {**asked, **({"port": port} if port else {})})
            return shape
        wanted = Shape(**{**asdict(Shape()), **asked})
        _check_shape(wanted)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            foreign = sorted(p.name for p in self.path.iterdir() if p.name not in _OURS)
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise Error(
                Code.CONFIGURATION, f"{self.path} cannot be used: {error.strerror}"
            ) from error
        if foreign:
            raise Error(
                Code.EXISTS,
                f"{self.path} is not empty ({foreign[0]}) and holds no cluster: name an empty or "
                "new directory",
            )
        if free < FREE_BYTES_NEEDED:
            raise Error(
                Code.NO_SPACE,
                f"the disk of {self.path} is full ({config.format_size(free)} free, a new cluster "
                f"needs {config.format_size(FREE_BYTES_NEEDED)}): free some or name another --dir",
            )
        first = ports.choose(2 * (2 + wanted.nodes), port, wanted.host)
        shape = Shape(**{**asdict(wanted), "port": first})
        self._write(self.path / "cluster.json", json.dumps(asdict(shape), indent=2) + "\n")
        return shape

    def write_configs(self, shape: Shape) -> None:
        """Write the configuration of each service that has none: what a user changed stays."""
        for service in shape.services:
            path = self.service_config(service.name)
            if not path.exists():
                text = "# Written at the first start; yours to change. All keys: "
                text += f"`hillfire config {service.kind}`\n"
                self._write(path, text + config.to_toml(self._config(shape, service)))
        (self.path / "logs").mkdir(exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory: one supervisor at a time.

        Raises:
            Error: BUSY if a supervisor runs, CONFIGURATION if the directory is not for this user.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Error(
                Code.CONFIGURATION,
                f"{self.path} cannot be used ({error.strerror}): name a directory of yours, --dir",
            ) from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Error(
                    Code.BUSY,
                    f"the cluster in {self.path} is running already: see `hillfire status --dir "
                    f"{self.path}`, stop it with `hillfire down --dir {self.path}`",
                ) from None
            yield
        finally:
            os.close(fd)

    def _config(self, shape: Shape, service: Service) -> config.Config:
        directory = self.path / service.name
        listen, grpc = f"{shape.host}:{service.port}", f"{shape.host}:{service.port + 1}"
        if service.kind == "manager":
            return config.ManagerConfig(directory=directory, listen=listen, grpc_listen=grpc)
        assert service.node is not None
        cls = config.MetaConfig if service.kind == "meta" else config.StorageConfig
        return cls(
            node=service.node,
            directory=directory,
            manager=shape.address,
            listen=listen,
            grpc_listen=grpc,
        )

    def _check_alike(self, shape: Shape, asked: Mapping[str, int]) -> None:
        """Raise CONFIGURATION if the cluster in the directory is not the one asked for."""
        for name, want in asked.items():
            has = getattr(shape, name)
            if has != want:
                option = "--" + name.replace("_", "-")
                raise Error(
                    Code.CONFIGURATION,
                    f"the cluster in {self.path} was made with {option} {has}, not {want}: leave "
                    "the option out, or name another --dir for a new cluster",
                )

    def _write(self, path: Path, text: str) -> None:
        """Replace a file as a whole: after a crash it is the old one or the new one."""
        beside = path.with_name(path.name + ".new")
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)


_OURS = {"lock", "supervisor.log", "cluster.json.new", "control.sock", "lost+found"}


def _check_shape(wanted: Shape) -> None:
    if wanted.nodes < 1 or wanted.replicas < 1 or wanted.targets_per_node < 1:
        raise Error(Code.CONFIGURATION, "--nodes, --replicas and --targets-per-node are at least 1")
    if wanted.nodes < wanted.replicas:
        raise Error(
            Code.CONFIGURATION,
            f"too few nodes: {wanted.replicas} replicas need as many storage nodes, there are "
            f"{wanted.nodes}; use --nodes {wanted.replicas} or --replicas {wanted.nodes}",
        )


def is_locked(path: Path) -> bool:
    """Tell whether a process holds the lock file of its data directory."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def last_cluster_path() -> Path:
    """Return the file with the address that ``hillfire.connect()`` takes without one."""
    return platformdirs.user_state_path("hillfire") / "last-cluster"


def last_directory() -> Path:
    """Return the directory of the cluster that this user started last.

    Raises:
        Error: CONFIGURATION if there was none.
    """
    try:
        return Path(_last_directory_path().read_text(encoding="utf-8").rstrip("\n"))
    except OSError:
        raise Error(
            Code.CONFIGURATION,
            "which cluster? Name its directory with --dir, or start one with `hillfire up`",
        ) from None


def remember_last_cluster(address: str, directory: Path) -> None:
    """Make a cluster the one that this user's clients and commands find by themselves."""
    pairs = ((last_cluster_path(), address), (_last_directory_path(), str(directory)))
    for path, text in pairs:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(text + "\n", encoding="utf-8")
        os.replace(beside, path)


def _last_directory_path() -> Path:
    return last_cluster_path().with_name("last-directory")
