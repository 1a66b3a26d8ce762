"""The commands that measure: names, options and help. What they do is in the modules they import.

Nothing but typer is imported here, so that ``--help`` and completion answer at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from hillfire.cli.operate_app import Address, Json, Where

PANEL = "Measuring"


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
    [bold]server queue[/bold]  until work on it began · [bold]memory[/bold]  the head's copy ·
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


def add_to(app: typer.Typer) -> None:
    """Hang these commands into the command line."""
    app.command("metrics", rich_help_panel=PANEL)(metrics)
