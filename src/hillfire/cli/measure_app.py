"""The commands that measure: names, options and help. What they do is in the modules they import.

Nothing but typer is imported here, so that ``--help`` and completion answer at once.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hillfire.cli.operate_app import Address, Json, Where

PANEL = "Measuring"

bench_app = typer.Typer(
    no_args_is_help=True,
    help="""Measure what a client reaches, beside the machine's own limits.

    hillfire bench io --fresh

    hillfire bench io --dir ~/hf read-4kx256 --transport shm --transport tcp""",
)


class Wire(StrEnum):
    """How bytes may move."""

    auto = "auto"
    shm = "shm"
    tcp = "tcp"
    rdma = "rdma"


def metrics(
    mounts: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[MOUNT]...",
            help="Mounts on this host to ask as well.  \\[default: the local cluster's own]",
            show_default=False,
        ),
    ] = None,
    directory: Where = None,
    address: Address = None,
    over: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0, help="What is done in so long; 0: since each process's start."
        ),
    ] = 0,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again and again, every --over (2) seconds.")
    ] = False,
    each: Annotated[bool, typer.Option("--each", "-e", help="Stages process by process.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Every counter and gauge, too.")
    ] = False,
    json: Json = False,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print once what Prometheus would scrape.")
    ] = False,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve it to Prometheus until Ctrl-C."),
    ] = None,
) -> None:
    """Show what every process counted and timed, and in which stage requests spend their time.

    Stages of a read or write, in the order of its way:

    [bold]client queue[/bold]  until its request was sent · [bold]wire[/bold]  there and back ·
    [bold]server queue[/bold]  until work on it began · [bold]memory[/bold]  waiting for a pool ·
    [bold]disk[/bold]  page cache included · [bold]checksum[/bold] · [bold]forward[/bold]  the
    successor, and the way there · [bold]sync[/bold]  fsync.

    [bold]client[/bold] and [bold]server[/bold] are the whole, there. [bold]busy[/bold] is how many
    were in a stage at a time, on average: the largest is where to look.

    Exit status 2 when a process did not answer.

    [bold]Examples[/bold]

    hillfire metrics --over 5                     (what happens now)

    hillfire metrics --watch --each ~/hf-files    (by process, and a mount)

    hillfire metrics --json | jq '.stages[] | {operation, stage, p99_s}'

    hillfire metrics --listen :9464               (scrape_configs: targets host:9464)
    """
    from hillfire.cli.metrics import run_metrics

    run_metrics(
        directory, address, mounts or [],
        over_s=over, watch=watch, each=each, everything=everything,
        as_json=json, prometheus=prometheus, listen=listen,
    )  # fmt: skip


@bench_app.command("io")
def bench_io(
    workloads: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WORKLOAD]...",
            help="What to do; see above.  \\[default: six rows, as in docs/performance.md]",
            show_default=False,
        ),
    ] = None,
    directory: Where = None,
    address: Address = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Over a cluster of its own, started here and removed.")
    ] = False,
    nodes: Annotated[int, typer.Option(help="Storage nodes of --fresh.")] = 3,
    replicas: Annotated[int, typer.Option(help="Copies of each chunk, of --fresh.")] = 3,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="For the storage nodes of --fresh: direct_io=false."
        ),
    ] = None,
    transport: Annotated[
        list[Wire] | None,
        typer.Option(
            help="How bytes move; several: one after another.  \\[default: auto]",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.05, help="How long each row is timed.")] = 3,
    size: Annotated[str, typer.Option(help="Of the file that is read and written.")] = "256 MiB",
    clients: Annotated[
        int, typer.Option(min=1, max=256, help="Client processes on this host, side by side.")
    ] = 1,
    path: Annotated[str, typer.Option(help="Directory in the cluster for the file.")] = "/",
    limits: Annotated[
        bool, typer.Option(help="Take this machine's own limits beside each row.")
    ] = True,
    limit_dir: Annotated[
        Path | None,
        typer.Option(help="Where the limits' file lies.  \\[default: TMPDIR]", show_default=False),
    ] = None,
    stages: Annotated[
        bool, typer.Option(help="Show in which stage requests spent their time.")
    ] = True,
    flame: Annotated[
        Path | None,
        typer.Option(
            help="Also draw flame graphs of all processes on this host, into this "
            "directory (needs py-spy)."
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Show what changed since --json told this."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure reads and writes through the library, beside this machine's limits in the same run.

    A workload is [bold]read-BLOCK[/bold] or [bold]write-BLOCK[/bold], and what you add:
    [bold]x256[/bold]      so many blocks a call
    [bold]-q4[/bold]       so many calls on their way at once, through a queue
    [bold]-seq[/bold]      in order, else anywhere
    [bold]-foreign[/bold]  memory that is not registered
    [bold]-fsync[/bold]    after each call
    A lone read returns bytes; batches fill registered memory.

    The limits: for a read one process that preadvs the same blocks of
    a local file from the page cache and takes their CRC32C; over tcp also
    sendfile to recv_into over loopback; for a write one that pwrites them
    once for each replica. [bold]reached[/bold] is the part of it.

    [bold]cpu/item[/bold] is the processor time of one block in all of the
    cluster's processes and the client: it hardly depends on what else the
    machine does.

    [bold]Examples[/bold]

    hillfire bench io --fresh --transport shm --transport tcp

    hillfire bench io read-64kx64-q4 write-1mx8-fsync --clients 4 --seconds 10

    hillfire bench io read-4kx256 --flame io.svg    (and see where the time goes)

    hillfire bench io --json > before.json; ...; hillfire bench io --compare before.json
    """
    from hillfire.cli.bench_io import start

    wires = [None if each is Wire.auto else each.value for each in transport or [Wire.auto]]
    start(
        workloads or [], directory, address, (nodes, replicas) if fresh else None, settings or [],
        transports=wires, seconds=seconds, size=size, clients=clients, path=path,
        limits=limits, limit_directory=limit_dir, stages=stages, flame=flame, compare=compare,
        as_json=json,
    )  # fmt: skip


def _processes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a process of the cluster that the rest of the line names."""
    from hillfire.cli.cluster import node_names

    return [name for name in node_names(ctx.params.get("directory")) if name.startswith(incomplete)]


def profile(
    who: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROCESS]...",
            help="storage-101, meta, manager, mount, ... or a pid.  \\[default: all]",
            show_default=False,
            autocompletion=_processes,
        ),
    ] = None,
    directory: Where = None,
    seconds: Annotated[float, typer.Option("--seconds", "-s", min=0.1, help="How long.")] = 10,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The picture; NAME.txt: stacks, for other tools."),
    ] = Path("hillfire.svg"),
    rate: Annotated[int, typer.Option(min=1, max=2000, help="Samples a second.")] = 100,
    native: Annotated[
        bool, typer.Option("--native", "-n", help="C functions, too; stops processes meanwhile.")
    ] = False,
    idle: Annotated[bool, typer.Option("--idle", help="Threads that wait, too.")] = False,
    lines: Annotated[bool, typer.Option("--lines", help="Lines, not functions.")] = False,
    json: Json = False,
) -> None:
    """Draw a flame graph of a local cluster's processes, or of any Python process on this host.

    The processes go on as they are. A frame is as wide as the part of the
    samples it was in; what called it is below. Open the picture in a
    browser: a click widens, Ctrl-F searches.

    Needs py-spy (hillfire's extra `profile`), and root or the right to ptrace.

    [bold]Examples[/bold]

    hillfire profile                      (the whole local cluster, 10 s)

    hillfire profile storage-101 mount --seconds 30 -o slow.svg

    hillfire profile 4711 --native        (a training job that uses the library)
    """
    from hillfire.cli.profile import How, run_profile

    how = How(rate, native, idle, lines)
    run_profile(who or [], directory, seconds, output, how, as_json=json)


def add_to(app: typer.Typer) -> None:
    """Hang these commands into the command line."""
    app.command("metrics", rich_help_panel=PANEL)(metrics)
    app.add_typer(bench_app, name="bench", rich_help_panel=PANEL)
    app.command("profile", rich_help_panel=PANEL)(profile)
