"""``hillfire up``, ``down`` and ``node``: a cluster on this machine."""

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from hillfire.errors import Error
from hillfire.local.control import ask
from hillfire.local.directory import ClusterDirectory, Shape, last_directory

UP_TIMEOUT_S = 240.0
DOWN_TIMEOUT_S = 120.0
NODE_TIMEOUT_S = 90.0


def run_up(
    path: Path,
    mount: Path | None,
    asked: Mapping[str, int],
    port: int | None,
    *,
    detach: bool,
    ready_fd: int | None,
    parent: int | None,
) -> None:
    """Start a cluster and keep it up, here or (``detach``) in the background."""
    if parent is not None:
        from hillfire.local.process import die_with_parent

        die_with_parent(parent)
    directory = ClusterDirectory(path)
    if ready_fd is not None:
        _keep_up_quietly(directory, mount, asked, port, ready_fd)
    elif detach:
        _up_in_background(directory, mount, asked, port)
    else:
        from hillfire import observe

        observe.setup("supervisor", "warning")
        with _Steps() as steps:
            _keep_up(directory, mount, asked, port, steps, _Hint(directory, mount, steps))


def _up_in_background(
    directory: ClusterDirectory, mount: Path | None, asked: Mapping[str, int], port: int | None
) -> None:
    from hillfire.local.daemon import run_in_background

    with directory.lock():  # what can be refused is refused before anything is started
        directory.create(asked, port)
    arguments = ["up", "--dir", str(directory.path)]
    if mount is not None:
        arguments += ["--mount", str(mount.absolute())]
    with _Steps() as steps:
        run_in_background(
            arguments,
            directory.log_path,
            UP_TIMEOUT_S,
            lambda said: steps(said["text"], done=said["done"]),
        )
        steps.hint(directory, mount, directory.shape(), foreground=False)


def _keep_up(
    directory: ClusterDirectory,
    mount: Path | None,
    asked: Mapping[str, int],
    port: int | None,
    progress: Any,
    on_serving: Any,
) -> None:
    from hillfire import observe
    from hillfire.local.supervisor import Supervisor

    observe.name_process("supervisor")
    with directory.lock():
        shape = directory.create(asked, port)
        mountpoint = mount.absolute() if mount else None

        async def run() -> None:
            await Supervisor(directory, shape, mountpoint, progress).run(on_serving)

        asyncio.run(run())


def _keep_up_quietly(
    directory: ClusterDirectory,
    mount: Path | None,
    asked: Mapping[str, int],
    port: int | None,
    ready_fd: int,
) -> None:
    """Keep a cluster up as a background process that reports its steps on a pipe."""
    from hillfire import observe
    from hillfire.local.process import say_failed, say_ready

    observe.setup("supervisor")
    serving = False

    def progress(text: str, *, done: bool = False, bad: bool = False) -> None:
        if not serving:
            with contextlib.suppress(OSError):
                os.write(ready_fd, json.dumps({"text": text, "done": done}).encode() + b"\n")

    def on_serving() -> None:
        nonlocal serving
        serving = True
        say_ready(ready_fd)

    try:
        _keep_up(directory, mount, asked, port, progress, on_serving)
    except Error as error:
        if not serving:
            say_failed(ready_fd, error)
        raise


def run_down(path: Path | None) -> None:
    """Stop a cluster: without a path the one started last, as in what follows."""
    directory = _directory(path)
    console = Console()
    with console.status("stopping"):
        answer = ask(directory.control_path, {"do": "stop"}, DOWN_TIMEOUT_S)
    for warning in answer.get("warnings", ()):
        console.print(f"[yellow]![/yellow] {escape(warning)}", soft_wrap=True, highlight=False)
    console.print(f"stopped; the data stays in {directory.path}", soft_wrap=True)


def run_node(name: str, path: Path | None, action: str) -> None:
    """Take one process of a cluster down or up."""
    request = {"do": "node", "name": name, "action": action}
    answer = ask(_directory(path).control_path, request, NODE_TIMEOUT_S)
    if action == "crash" and answer["was"]:
        print(f"{name} was killed (pid {answer['was']}); the supervisor starts it again")
        return
    before = f" (was pid {answer['was']})" if answer.get("was") else ""
    now = f" with pid {answer['pid']}" if answer.get("pid") else before
    print(f"{name} is {answer['state']}{now}")


def _directory(path: Path | None) -> ClusterDirectory:
    return ClusterDirectory(path if path is not None else last_directory())


def node_names(path: Path | None) -> list[str]:
    """Return the names of a cluster's processes, none if there is no such cluster."""
    try:
        services = _directory(path).shape().services
    except Error:
        return []
    return [*(service.name for service in services), "mount"]


def run_node_list(path: Path | None) -> None:
    """Print the processes of a cluster."""
    answer = ask(_directory(path).control_path, {"do": "status"}, NODE_TIMEOUT_S)
    for service in answer["services"]:
        pid = service["pid"] or "-"
        print(f"{service['name']:<12} {service['state']:<9} {pid:<8} {service['log']}")


class _Steps:
    """Shows what a start is doing: a line that moves, and one that stays for each finished step."""

    def __init__(self) -> None:
        self._console = Console()
        self._status = self._console.status("starting")
        self._started = False

    def __enter__(self) -> "_Steps":
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self, text: str, *, done: bool = False, bad: bool = False) -> None:
        if bad:
            self._console.print("[yellow]![/yellow]", escape(text), soft_wrap=True, highlight=False)
        elif done:
            self._console.print("[green]✓[/green]", text, soft_wrap=True, highlight=False)
        else:
            self._status.update(text)

    def hint(
        self, directory: ClusterDirectory, mount: Path | None, shape: Shape, *, foreground: bool
    ) -> None:
        """Say what can be done now."""
        self._status.stop()
        where = f"--dir {directory.path}"
        say = self._console.print
        say(f"\nServing at [bold]{shape.address}[/bold].", highlight=False)
        rows = [] if mount else [("mount", f"hillfire mount --address {shape.address} DIR")]
        rows += [("status", f"hillfire status {where}")]
        rows += [("stop", "Ctrl-C" if foreground else f"hillfire down {where}")]
        for what, command in rows:
            say(f"  {what:<8}{command}", soft_wrap=True, highlight=False)


class _Hint:
    """Called when a cluster in the foreground serves."""

    def __init__(self, directory: ClusterDirectory, mount: Path | None, steps: _Steps) -> None:
        self._directory, self._mount, self._steps = directory, mount, steps

    def __call__(self) -> None:
        self._steps.hint(self._directory, self._mount, self._directory.shape(), foreground=True)
