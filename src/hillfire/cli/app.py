"""The commands' names, options and help. What they do is in the modules that they import.

Nothing but typer is imported here, so that ``--help`` and completion answer at once.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hillfire.cli import measure_app, operate_app

app = typer.Typer(
    name="hillfire",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""hillfire: a distributed file system for AI training and inference.

A whole cluster on this machine, mounted, in one command:

    hillfire up --dir ~/hf --mount ~/hf-files --detach

    hillfire status --dir ~/hf

    hillfire down --dir ~/hf

The data stays in the directory; the next `up` serves it again. From Python:
`import hillfire; fs = hillfire.connect()`.""",
)
node_app = typer.Typer(
    no_args_is_help=True,
    help="""Take one process of a local cluster down and up again; drain a storage node of any.

    hillfire node kill storage-102 --dir ~/hf

    hillfire node start storage-102 --dir ~/hf

    hillfire node drain storage-102""",
)
app.add_typer(node_app, name="node", rich_help_panel="A cluster on this machine")

meta_app = typer.Typer(
    no_args_is_help=True,
    help="""The metadata's copies on storage nodes, and what to do when its disk is lost.

    hillfire meta restore --address 10.0.0.1:9700 --dir /var/lib/hillfire/meta""",
)
app.add_typer(meta_app, name="meta", rich_help_panel="Any cluster")

LOCAL = "A cluster on this machine"
ANY = "Any cluster"
SERVICES = "Services, one by one"

Directory = Annotated[
    Path,
    typer.Option(
        "--dir", envvar="HILLFIRE_DIR", help="The cluster's directory: its data and settings."
    ),
]
Running = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        envvar="HILLFIRE_DIR",
        help="The cluster's directory.  \\[default: of the cluster you started last]",
        show_default=False,
    ),
]
ReadyFd = Annotated[int | None, typer.Option(hidden=True)]
Parent = Annotated[int | None, typer.Option(hidden=True)]


class Kind(StrEnum):
    """What a configuration is of."""

    manager = "manager"
    meta = "meta"
    storage = "storage"
    mount = "mount"


class Service(StrEnum):
    """What `hillfire serve` runs."""

    manager = "manager"
    meta = "meta"
    storage = "storage"


class Level(StrEnum):
    """What may fail as a whole."""

    node = "node"
    host = "host"
    rack = "rack"


Apart = Annotated[
    Level | None,
    typer.Option(
        help="What two replicas of a chain never share, even where targets then stay unused.  "
        "\\[default: the widest that leaves none unused]",
        show_default=False,
    ),
]


class Transport(StrEnum):
    """How bytes may move."""

    shm = "shm"
    rdma = "rdma"
    tcp = "tcp"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"hillfire {version('hillfire')}")
        raise typer.Exit


operate_app.add_to(app, node_app, ANY)


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=LOCAL)
def up(
    directory: Directory,
    mount: Annotated[
        Path | None,
        typer.Option(help="A directory to mount the files on: empty, or made if missing."),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Storage nodes.  \\[default: 3]", show_default=False)
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Copies of each chunk.  \\[default: 3]", show_default=False)
    ] = None,
    targets_per_node: Annotated[
        int | None,
        typer.Option(help="Chain members on each node.  \\[default: 4]", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="First of the consecutive ports; 0: anywhere free.  \\[default: 9700 if free]",
            show_default=False,
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once all is serving.")
    ] = False,
    ready_fd: ReadyFd = None,
    parent: Parent = None,
) -> None:
    """Start a cluster of real processes on this machine and keep it up. Ctrl-C stops it cleanly.

    Sizes and ports are chosen at the first start and remembered in the directory.

    [bold]Examples[/bold]

    hillfire up --dir ~/hf      (in the foreground, no mount)

    hillfire up --dir ~/hf --mount ~/hf-files --detach

    hillfire up --dir /tmp/one --nodes 1 --replicas 1
    """
    from hillfire.cli.cluster import run_up

    asked = {"nodes": nodes, "replicas": replicas, "targets_per_node": targets_per_node}
    given = {name: value for name, value in asked.items() if value is not None}
    run_up(directory, mount, given, port, detach=detach, ready_fd=ready_fd, parent=parent)


@app.command(rich_help_panel=LOCAL)
def down(directory: Running = None) -> None:
    """Stop a cluster that `hillfire up` started; its data stays.

    [bold]Example[/bold]   hillfire down --dir ~/hf
    """
    from hillfire.cli.cluster import run_down

    run_down(directory)


@app.command(rich_help_panel=ANY)
def status(
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir", envvar="HILLFIRE_DIR", help="Of a cluster on this machine: shows pids too."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(envvar="HILLFIRE_ADDRESS", help="host:port of the cluster's manager."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show each change.")] = False,
    wait: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="First wait until every chain serves with all its replicas."
        ),
    ] = 0,
) -> None:
    """Show nodes, chains, targets with their states, and space.

    Without options: the cluster that you started last.

    Exit status 0 when every chain serves with all its replicas, 2 when something is missing.

    [bold]Examples[/bold]

    hillfire status --dir ~/hf

    hillfire status --address 127.0.0.1:9700 --json | jq .space

    hillfire status --wait 60 && echo all replicas are there
    """
    from hillfire.cli.status import run_status

    run_status(directory, address, as_json=json, watch=watch, wait_s=wait)


@app.command(rich_help_panel=ANY)
def scrub(
    directory: Running = None,
    address: Annotated[
        str | None,
        typer.Option(envvar="HILLFIRE_ADDRESS", help="host:port of the cluster's manager."),
    ] = None,
    chain: Annotated[int, typer.Option(help="Only this one; 0: all.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    only_show: Annotated[
        bool, typer.Option("--show", help="Start nothing; show what was found so far.")
    ] = False,
) -> None:
    """Check every stored byte now, compare the replicas, and repair what is found wrong.

    Storage nodes do so slowly all the time (`scrub_days` in their configuration). This one goes as
    fast as others leave room for. Interrupted, it goes on by itself.

    Exit status 2 when chunks were found of which no replica has a good copy.

    [bold]Examples[/bold]

    hillfire scrub --address 127.0.0.1:9700 --chain 3

    hillfire scrub --show
    """
    from hillfire.cli.scrub import run_scrub

    run_scrub(directory, address, chain, as_json=json, start=not only_show)


@app.command(rich_help_panel=ANY)
def mount(
    mountpoint: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory.")],
    address: Annotated[
        str | None,
        typer.Option(
            envvar="HILLFIRE_ADDRESS",
            help="host:port of the cluster's manager.  \\[default: the cluster started last]",
            show_default=False,
        ),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Stay, and unmount at Ctrl-C.")
    ] = False,
    transport: Annotated[
        Transport | None, typer.Option(help="Force one way for bytes to move.")
    ] = None,
    allow_other: Annotated[bool, typer.Option(help="Let other users in.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file; see `hillfire config mount`.")
    ] = None,
    ready_fd: ReadyFd = None,
    parent: Parent = None,
) -> None:
    """Mount a cluster's files on a directory.

    [bold]Examples[/bold]

    hillfire mount --address 127.0.0.1:9700 ~/files

    hillfire umount ~/files
    """
    from hillfire.cli.mount import run_mount

    run_mount(
        mountpoint,
        address,
        config,
        transport=transport.value if transport else None,
        allow_other=allow_other,
        foreground=foreground,
        ready_fd=ready_fd,
        parent=parent,
    )


@app.command(rich_help_panel=ANY)
def umount(
    mountpoint: Annotated[Path, typer.Argument(metavar="DIR")],
    lazy: Annotated[
        bool, typer.Option("--lazy", "-z", help="Now for new users, for others when done.")
    ] = False,
) -> None:
    """Take a mount off. Everything written is stored when it returns.

    [bold]Example[/bold]   hillfire umount ~/files
    """
    from hillfire.local import mounts

    mounts.unmount(mountpoint.absolute(), lazy=lazy)


@app.command(rich_help_panel=SERVICES)
def serve(
    kind: Annotated[Service, typer.Argument(help="manager, meta or storage.")],
    config: Annotated[Path, typer.Option(help="Its TOML file; see `hillfire config`.")],
    ready_fd: ReadyFd = None,
    parent: Parent = None,
) -> None:
    """Run one service in the foreground until SIGTERM or Ctrl-C.

    [bold]Example[/bold]

    hillfire config storage > storage-101.toml    (then edit it)

    hillfire serve storage --config storage-101.toml
    """
    from hillfire.cli.serve import run_serve

    run_serve(kind.value, config, ready_fd=ready_fd, parent=parent)


@app.command(rich_help_panel=SERVICES)
def config(kind: Annotated[Kind, typer.Argument(help="manager, meta, storage or mount.")]) -> None:
    """Print the full default configuration with comments.

    [bold]Example[/bold]   hillfire config meta > meta.toml
    """
    from hillfire.config import default_toml

    typer.echo(default_toml(kind.value), nl=False)


@app.command("create-chains", rich_help_panel=SERVICES)
def create_chains(
    address: Annotated[
        str | None,
        typer.Option(envvar="HILLFIRE_ADDRESS", help="host:port of the cluster's manager."),
    ] = None,
    nodes: Annotated[int, typer.Option(help="Storage nodes that must be up.")] = 3,
    replicas: Annotated[int, typer.Option(help="Copies of each chunk.")] = 3,
    targets_per_node: Annotated[int, typer.Option(help="Chain members on each node.")] = 4,
    min_serving: Annotated[
        int, typer.Option(help="Replicas that must serve for a write to be taken.")
    ] = 1,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for the nodes.")
    ] = 30,
    apart: Apart = None,
    table: Annotated[
        Path | None,
        typer.Option(help="Take this table, from `hillfire placement --json`, as it is."),
    ] = None,
) -> None:
    """Place the chains of a new cluster over its storage nodes, once. `hillfire up` does it itself.

    The same numbers again change nothing; other numbers are refused.

    [bold]Example[/bold]   hillfire create-chains --address 10.0.0.1:9700 --nodes 3
    """
    from hillfire.cli.chains import run_create_chains

    level = apart.value if apart else None
    run_create_chains(
        address, nodes, replicas, targets_per_node, wait,
        min_serving=min_serving, apart=level, table=table,
    )  # fmt: skip


@app.command(rich_help_panel=SERVICES)
def placement(
    nodes: Annotated[int, typer.Option(help="Storage nodes.")] = 3,
    disks: Annotated[int, typer.Option(help="Disks of each node.")] = 1,
    targets_per_disk: Annotated[int, typer.Option(help="Chain members on each disk.")] = 4,
    replicas: Annotated[int, typer.Option(help="Copies of each chunk.")] = 3,
    racks: Annotated[int, typer.Option(help="Racks; 0: not known.")] = 0,
    nodes_per_host: Annotated[int, typer.Option(help="Nodes on each host.")] = 1,
    apart: Apart = None,
    solver: Annotated[
        bool, typer.Option(help="Ask OR-Tools, if installed, where search is not sure.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="For machines; has all chains.")] = False,
    address: Annotated[
        str | None,
        typer.Option(help="Of a cluster, whose chains are judged instead; numbers are ignored."),
    ] = None,
) -> None:
    """Show which chains a cluster would get, and how evenly a dead node's reads would spread.

    Nothing is started or changed. 180 nodes take seconds.

    [bold]Examples[/bold]

    hillfire placement --nodes 7 --targets-per-disk 3

    hillfire placement --nodes 180 --disks 16 --targets-per-disk 4 --replicas 3 --racks 12

    hillfire placement --address 10.0.0.1:9700      (the chains that a cluster has)
    """
    from hillfire.cli.placement import run_placement

    level = apart.value if apart else None
    run_placement(
        nodes, disks, targets_per_disk, replicas, racks, nodes_per_host, level,
        address=address, solver=solver, as_json=json,
    )  # fmt: skip


measure_app.add_to(app)


def _node_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a process of the cluster that the rest of the line names."""
    from hillfire.cli.cluster import node_names

    return [name for name in node_names(ctx.params.get("directory")) if name.startswith(incomplete)]


NodeName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="manager, meta, storage-101, ... or mount.",
        autocompletion=_node_names,
    ),
]


@node_app.command("list")
def node_list(directory: Running = None) -> None:
    """Show the processes of a running cluster, one a line: name, state, pid, log."""
    from hillfire.cli.cluster import run_node_list

    run_node_list(directory)


@node_app.command("kill")
def node_kill(name: NodeName, directory: Running = None) -> None:
    """SIGKILL a process and leave it down: what a crash looks like."""
    _node(name, directory, "kill")


@node_app.command("stop")
def node_stop(name: NodeName, directory: Running = None) -> None:
    """End a process cleanly and leave it down: for maintenance."""
    _node(name, directory, "stop")


@node_app.command("start")
def node_start(name: NodeName, directory: Running = None) -> None:
    """Start a process that is down."""
    _node(name, directory, "start")


@node_app.command("crash")
def node_crash(name: NodeName, directory: Running = None) -> None:
    """SIGKILL a process; the supervisor starts it again."""
    _node(name, directory, "crash")


@meta_app.command("restore")
def meta_restore(
    directory: Annotated[
        Path, typer.Option("--dir", help="The metadata service's directory, to be rebuilt.")
    ],
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="NODE",
            help="A storage node's directory or wire address (or a directory of such "
            "directories); as often as there are copies.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="host:port of the cluster's manager: asks every storage node."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Put aside a database that is there.")
    ] = False,
) -> None:
    """Rebuild a lost metadata database from the newest copy of its log on storage nodes.

    The metadata service must be stopped. What was committed in the last second before its end may
    be lost; the command says up to when the copy goes.

    [bold]Examples[/bold]

    hillfire meta restore --address 10.0.0.1:9700 --dir /var/lib/hillfire/meta

    hillfire meta restore --from ~/hf/storage-101 --from ~/hf/storage-102 --dir ~/hf/meta
    """
    if not sources and address is None:
        raise typer.BadParameter("where are copies? Name them with --from or --address")
    from hillfire.cli.meta import run_restore

    run_restore(sources or [], address, directory, force=force)


@meta_app.command("orphans")
def meta_orphans(
    address: Annotated[
        str | None,
        typer.Option(envvar="HILLFIRE_ADDRESS", help="host:port of the cluster's manager."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take them away, for good.")] = False,
) -> None:
    """List chunks on storage that belong to no file, as a restore of the metadata may leave them.

    [bold]Example[/bold]   hillfire meta orphans --address 10.0.0.1:9700
    """
    from hillfire.cli.orphans import run_orphans

    run_orphans(address, remove=remove)


def _node(name: str, directory: Path | None, action: str) -> None:
    from hillfire.cli.cluster import run_node

    run_node(name, directory, action)
