"""``hillfire bench io``: over which cluster, with a profile or without, and how it is told."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hillfire.cli import profile
from hillfire.cli.bench import LIMIT_PART, Plan, take
from hillfire.cli.connect import last_cluster
from hillfire.cli.figures import WIDTH, console
from hillfire.cli.flame import Stacks, merge
from hillfire.cli.workload import DEFAULT, parse
from hillfire.config import format_size, parse_size
from hillfire.errors import Code, Error
from hillfire.local.directory import ClusterDirectory

CHANGES_WIDTH = 26
"""What the columns of ``--compare`` take besides."""


def start(
    words: Sequence[str],
    directory: Path | None,
    address: str | None,
    fresh: tuple[int, int] | None,
    settings: Sequence[str],
    *,
    transports: Sequence[str | None],
    seconds: float,
    size: str,
    clients: int,
    path: str,
    limits: bool,
    limit_directory: Path | None,
    stages: bool,
    flame: Path | None,
    compare: Path | None,
    as_json: bool,
) -> None:
    """Measure and print. ``fresh``: nodes and replicas of a cluster of its own.

    ``settings``: NAME=VALUE for the storage nodes of that one.
    """
    if settings and fresh is None:
        raise Error(Code.INVALID, "--set is for --fresh: other clusters keep their configuration")
    if wrong := [each for each in settings if "=" not in each]:
        raise Error(Code.INVALID, f"--set {wrong[0]}: say NAME=VALUE, such as direct_io=false")
    before = _earlier(compare) if compare is not None else []
    workloads = [parse(word) for word in words or DEFAULT]
    try:
        n_bytes = parse_size(size)
    except ValueError as exc:
        raise Error(Code.INVALID, f"--size {size!r} is no size: {exc}") from exc
    largest = max(workloads, key=lambda each: each.block)
    if n_bytes < largest.block:
        text = f"--size {format_size(n_bytes)} is less than one block of {largest.name}"
        raise Error(Code.INVALID, text)
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(_progress())
        if fresh is not None:
            told("starting a cluster")
            directory = stack.enter_context(_fresh_cluster(*fresh, settings))
        if directory is not None:
            address = ClusterDirectory(directory).shape().address
        plan = Plan(
            address or last_cluster(), workloads, transports, n_bytes, seconds, clients, path,
            limit_directory, limits,
        )  # fmt: skip
        rows = len(workloads) * len(transports)
        left_s = rows * (seconds * (1 + LIMIT_PART * limits) + 1)
        until = time.monotonic() + left_s
        flames = stack.enter_context(_Flames(flame, directory)) if flame is not None else None
        found = {"settings": list(settings)} | take(
            plan,
            lambda text: told(f"{text}  about {max(0, until - time.monotonic()):.0f} s left"),
            flames.watch if flames is not None else lambda name: contextlib.nullcontext(),
        )
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from hillfire.cli.bench_view import described, legend, stage_table, table_of

    out = console(WIDTH + CHANGES_WIDTH * bool(before))
    out.print(described(found))
    out.print(table_of(found["rows"], before), crop=False)
    out.print(legend(found["rows"]))
    if stages:
        out.print(stage_table(found["rows"]), crop=False)


def _earlier(path: Path) -> list[dict[str, Any]]:
    """Return the rows that ``--json`` told of an earlier run.

    Raises:
        Error: INVALID if the file holds none.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
        return rows
    except (ValueError, KeyError, TypeError) as exc:
        text = f"{path} holds no figures: `hillfire bench io --json > {path}` makes some"
        raise Error(Code.INVALID, text) from exc


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Say on a terminal's standard error what is being done; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("...") as status:
        yield status.update


class _Flames:
    """Looks at this process and the local cluster's while rows are taken; one picture of all."""

    def __init__(self, output: Path, directory: Path | None) -> None:
        """Find out whom to look at."""
        self._output = output
        self._pids = {**profile.find((), directory), "client": os.getpid()}
        self._seen: list[Stacks] = []

    def __enter__(self) -> "_Flames":
        """Return itself."""
        return self

    @contextlib.contextmanager
    def watch(self, row: str) -> Iterator[None]:
        """Look until the block ends; the row is the outermost frame."""
        how = profile.How(100, native=False, idle=False, lines=False)
        with profile.recording(self._pids, how) as seen:
            yield
            stacks = seen.stop()
        self._seen.append({(row, *stack): count for stack, count in stacks.items()})

    def __exit__(self, kind: object, *exc: object) -> None:
        """Draw what was seen."""
        if kind is None:
            profile.write(merge(self._seen), self._output, "hillfire bench io")
            print(f"{self._output}: a flame graph of {', '.join(self._pids)}", file=sys.stderr)


@contextlib.contextmanager
def _fresh_cluster(nodes: int, replicas: int, settings: Sequence[str]) -> Iterator[Path]:
    """Run a cluster of one's own on this machine for a while, in a temporary directory.

    ``settings``: ``NAME=VALUE`` for its storage nodes, as in their TOML files.
    """
    with tempfile.TemporaryDirectory(prefix="hillfire-bench-") as name:
        state = {**os.environ, "XDG_STATE_HOME": f"{name}/state"}
        directory = Path(name, "cluster")

        def run(*arguments: str) -> None:
            command = [sys.executable, "-m", "hillfire.cli", *arguments, "--dir", str(directory)]
            done = subprocess.run(command, env=state, capture_output=True, text=True)
            if done.returncode:
                why, log = done.stderr.strip(), directory / "supervisor.log"
                if str(log) in why and log.exists():  # it is about to go
                    why = log.read_text().strip().rpartition("\n")[2]
                raise Error(Code.UNAVAILABLE, f"no cluster could be started: {why}")

        shape = ["--nodes", str(nodes), "--replicas", str(replicas)]
        run("up", "--port", "0", "--detach", *shape)
        try:
            if settings:
                run("down")
                for path in directory.glob("storage-*.toml"):
                    _set(path, settings)
                run("up", "--detach")
            yield directory
        finally:
            with contextlib.suppress(Error):
                run("down")


def _set(path: Path, settings: Sequence[str]) -> None:
    """Give options of a configuration other values."""
    chosen = dict(each.split("=", 1) for each in settings)
    kept = [
        line
        for line in path.read_text().splitlines()
        if line.partition("=")[0].strip() not in chosen
    ]
    path.write_text("\n".join([*(f"{k} = {v}" for k, v in chosen.items()), *kept]) + "\n")
