"""The operator's commands: names, options and help. What they do is in ``operate.py``.

Nothing but typer is imported here, so that ``--help`` and completion answer at once.
"""

from pathlib import Path
from typing import Annotated

import typer

target_app = typer.Typer(
    no_args_is_help=True,
    help="""Take a replica out of service, and back, while the cluster runs.

    hillfire target offline 102003 --why "disk makes noises"

    hillfire target online 102003

A target is one replica's place on a disk; `hillfire chain list` names them all.""",
)
chain_app = typer.Typer(
    no_args_is_help=True,
    help="""Look at chains, choose their heads, and give up what is lost.

    hillfire chain list

    hillfire chain show 7

    hillfire chain prefer 7 101003 103003 102003

    hillfire chain log

A chain is the list of targets that hold the same chunks, head first.""",
)

Where = Annotated[
    Path | None,
    typer.Option("--dir", envvar="HILLFIRE_DIR", help="Of a cluster on this machine."),
]
Address = Annotated[
    str | None,
    typer.Option(
        envvar="HILLFIRE_ADDRESS",
        help="host:port of the cluster's manager.  \\[default: the cluster started last]",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]
Why = Annotated[str, typer.Option(help="Your reason: `hillfire chain log` shows it.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Wait = Annotated[
    float,
    typer.Option(metavar="SECONDS", help="How long to wait for it; 0: only order it."),
]


def _targets(ctx: typer.Context, incomplete: str) -> list[str]:
    from hillfire.cli.operate import complete

    return complete(ctx.params.get("directory"), ctx.params.get("address"), "targets", incomplete)


def _chains(ctx: typer.Context, incomplete: str) -> list[str]:
    from hillfire.cli.operate import complete

    return complete(ctx.params.get("directory"), ctx.params.get("address"), "chains", incomplete)


def _nodes(ctx: typer.Context, incomplete: str) -> list[str]:
    from hillfire.cli.operate import complete

    return complete(ctx.params.get("directory"), ctx.params.get("address"), "nodes", incomplete)


TargetId = Annotated[
    int, typer.Argument(metavar="TARGET", help="Its number.", autocompletion=_targets)
]
ChainId = Annotated[
    int, typer.Argument(metavar="CHAIN", help="Its number.", autocompletion=_chains)
]
NodeId = Annotated[
    str,
    typer.Argument(
        metavar="NODE", help="Its number, or its name: storage-102.", autocompletion=_nodes
    ),
]


@target_app.command("offline")
def target_offline(
    target: TargetId,
    why: Why = "",
    yes: Yes = False,
    wait: Wait = 30,
    directory: Where = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Take a target out of service; its data stays on its disk.

    Its chain goes on with the others; refused where none would serve, or writes would stop.

    It stays out until `hillfire target online`, whatever is started again.

    [bold]Example[/bold]   hillfire target offline 102003 --why "replace disk"
    """
    from hillfire.cli.operate import Place, run_target

    run_target(Place(directory, address, json), target, False, why, yes=yes, wait_s=wait)


@target_app.command("online")
def target_online(
    target: TargetId,
    why: Why = "",
    wait: Wait = 60,
    directory: Where = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Bring a target back that a command took out; it is brought up to date, then it serves.

    [bold]Example[/bold]   hillfire target online 102003
    """
    from hillfire.cli.operate import Place, run_target

    run_target(Place(directory, address, json), target, True, why, yes=True, wait_s=wait)


def drain(
    node: NodeId,
    why: Why = "",
    wait: Wait = 300,
    directory: Where = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Take all targets of a storage node out of service, one chain at a time: before maintenance.

    A target leaves only where enough others of its chain serve; the rest waits for those.

    When it is done the node may be stopped for as long as you like: its data stays.

    `hillfire node undrain` brings it up to date again.

    [bold]Example[/bold]   hillfire node drain storage-102 --why "new kernel"
    """
    from hillfire.cli.operate import Place, run_drain

    run_drain(Place(directory, address, json), node, why, wait_s=wait)


def undrain(
    node: NodeId,
    why: Why = "",
    wait: Wait = 300,
    directory: Where = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Bring a drained node's targets back into service.

    [bold]Example[/bold]   hillfire node undrain storage-102
    """
    from hillfire.cli.operate import Place, run_undrain

    run_undrain(Place(directory, address, json), node, why, wait_s=wait)


@chain_app.command("list")
def chain_list(directory: Where = None, address: Address = None, json: Json = False) -> None:
    """Show every chain: its version, and its targets with their nodes and states, head first."""
    from hillfire.cli.operate import Place, run_chain_list

    run_chain_list(Place(directory, address, json), None)


@chain_app.command("show")
def chain_show(
    chain: ChainId, directory: Where = None, address: Address = None, json: Json = False
) -> None:
    """Show one chain: states and reasons, preferred order, what writes need, what was decided.

    [bold]Example[/bold]   hillfire chain show 7
    """
    from hillfire.cli.operate import Place, run_chain_list

    run_chain_list(Place(directory, address, json), chain)


@chain_app.command("prefer")
def chain_prefer(
    chain: ChainId,
    targets: Annotated[
        list[int],
        typer.Argument(
            metavar="TARGET...", help="All of its targets, head first.", autocompletion=_targets
        ),
    ],
    why: Why = "",
    directory: Where = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Choose the order that a chain comes back to. The head takes writes from clients.

    With three replicas it comes back by itself, once all serve and all is calm.

    With two, `hillfire chain rotate` says when.

    [bold]Example[/bold]   hillfire chain prefer 7 101003 103003 102003
    """
    from hillfire.cli.operate import Place, run_prefer

    run_prefer(Place(directory, address, json), chain, targets, why)


@chain_app.command("rotate")
def chain_rotate(
    chain: ChainId,
    why: Why = "",
    wait: Wait = 60,
    directory: Where = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Send a chain's head to its tail, through a sync, if it prefers another head.

    [bold]Example[/bold]   hillfire chain rotate 7
    """
    from hillfire.cli.operate import Place, run_rotate

    run_rotate(Place(directory, address, json), chain, why, wait_s=wait)


@chain_app.command("min-serving")
def chain_min_serving(
    chain: ChainId,
    replicas: Annotated[int, typer.Argument(metavar="N", help="1: as long as any serves.")],
    why: Why = "",
    directory: Where = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Choose how many replicas must serve for a chain to take writes.

    With 2, no write is acknowledged that only one disk has, and writes wait while fewer serve.

    [bold]Example[/bold]   hillfire chain min-serving 7 2
    """
    from hillfire.cli.operate import Place, run_min_serving

    run_min_serving(Place(directory, address, json), chain, replicas, why)


@chain_app.command("accept-loss")
def chain_accept_loss(
    chain: ChainId,
    target: Annotated[
        int,
        typer.Option(help="The last-serving target to give up.", autocompletion=_targets),
    ],
    serve: Annotated[
        int,
        typer.Option(
            help="Who serves instead.  \\[default: who was nearest to up to date]",
            show_default=False,
            autocompletion=_targets,
        ),
    ] = 0,
    why: Why = "",
    yes: Yes = False,
    directory: Where = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Give up the only target that has a chain's newest data: acknowledged writes are lost.

    For when its disk will never come back.

    Another target then serves what it has: it may be older, or only part.

    It is recorded who did it, when and why: `hillfire chain log`.

    Should the lost target come back after all: empty its directory, then start its node.

    [bold]Example[/bold]

    hillfire chain accept-loss 7 --target 102003 --why "disk shredded"
    """
    from hillfire.cli.operate import Place, run_accept_loss

    run_accept_loss(Place(directory, address, json), chain, target, serve, why, yes=yes)


@chain_app.command("log")
def chain_log(
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1000, help="The latest.")] = 20,
    directory: Where = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Show what operators have ordered: who, when, what, why."""
    from hillfire.cli.operate import Place, run_log

    run_log(Place(directory, address, json), count)


def add_to(app: typer.Typer, node_app: typer.Typer, panel: str) -> None:
    """Hang these commands into the command line."""
    app.add_typer(target_app, name="target", rich_help_panel=panel)
    app.add_typer(chain_app, name="chain", rich_help_panel=panel)
    node_app.command("drain", rich_help_panel=panel)(drain)
    node_app.command("undrain", rich_help_panel=panel)(undrain)
