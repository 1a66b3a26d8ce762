"""``hillfire profile``: py-spy on running processes, all into one flame graph.

py-spy reads another process's stacks from outside: what is profiled runs on, unchanged and hardly
slower, and needs no preparation.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hillfire.cli import flame
from hillfire.cli.connect import last_local
from hillfire.errors import Code, Error
from hillfire.local.control import ask
from hillfire.local.directory import ClusterDirectory

CONTROL_TIMEOUT_S = 5.0
GRACE_S = 20.0
"""How much longer than asked for py-spy may take: reading symbols needs some."""
POLL_S = 0.02
SHOWN = 12
MAX_PROCESSES = 64


class How(NamedTuple):
    """How to look."""

    rate: int
    """samples a second"""
    native: bool
    """C functions, too: stops the process for each sample"""
    idle: bool
    """threads that wait, too"""
    lines: bool
    """lines and not functions"""


def run_profile(
    who: Sequence[str],
    directory: Path | None,
    seconds: float,
    output: Path,
    how: How,
    *,
    as_json: bool,
) -> None:
    """Profile processes for a while and write the picture."""
    pids = find(who, directory)
    if not as_json:
        names = ", ".join(pids)
        print(f"looking at {names} for {seconds:g} s, {how.rate} times a second", file=sys.stderr)
    with recording(pids, how) as recorder:
        with contextlib.suppress(KeyboardInterrupt):  # what was seen so far is shown
            time.sleep(seconds)
        stacks = recorder.stop()
    write(stacks, output, f"{', '.join(pids)}: {seconds:g} s")
    tell(stacks, output, as_json=as_json)


def find(who: Sequence[str], directory: Path | None) -> dict[str, int]:
    """Return pids by name: of processes of the local cluster, all of them if none is named.

    Raises:
        Error: NOT_FOUND with the names that there are; NOT_SUPPORTED without py-spy.
    """
    spy()
    named = [each for each in who if not each.isdigit()]
    known: dict[str, int] = {}
    if named or not who:
        local = ClusterDirectory(directory) if directory is not None else last_local(None)
        if local is None:
            raise Error(
                Code.NOT_FOUND,
                "no cluster runs on this machine: name one with --dir, or a process by its pid",
            )
        told = ask(local.control_path, {"do": "status"}, CONTROL_TIMEOUT_S)
        known = {each["name"]: each["pid"] for each in told["services"] if each["pid"]}
    for name in named:
        if name not in known:
            there = ", ".join(known)
            raise Error(Code.NOT_FOUND, f"no process {name!r} runs here: there are {there}")
    chosen = {name: known[name] for name in named} if named else dict(known) if not who else {}
    for each in who:
        if each.isdigit():
            chosen[_name_of(int(each))] = int(each)
    if len(chosen) > MAX_PROCESSES:
        raise Error(Code.INVALID, f"at most {MAX_PROCESSES} processes at once: name some")
    return chosen


def _name_of(pid: int) -> str:
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text().strip()}-{pid}"
    except OSError:
        raise Error(Code.NOT_FOUND, f"there is no process {pid}") from None


def spy() -> str:
    """Return the path of py-spy.

    Raises:
        Error: NOT_SUPPORTED with how to get it.
    """
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise Error(
            Code.NOT_SUPPORTED, "flame graphs need py-spy: `pip install 'hillfire[profile]'`"
        )
    return found


class Recorder:
    """py-spy on several processes."""

    def __init__(self, pids: Mapping[str, int], how: How, directory: Path) -> None:
        """Begin."""
        self._started: dict[str, tuple[subprocess.Popen[bytes], Path, Path]] = {}
        for name, pid in pids.items():
            output, log = directory / f"{pid}.raw", directory / f"{pid}.log"
            command = [spy(), "record", "--pid", str(pid), "--format", "raw", "--threads"]
            command += ["--rate", str(how.rate), "--output", str(output)]
            command += [] if how.lines else ["--function"]
            command += ["--idle"] if how.idle else []
            command += ["--native"] if how.native else ["--nonblocking"]
            with open(log, "wb") as told:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=told, stderr=told
                )
            self._started[name] = process, output, log

    def wait_begun(self) -> None:
        """Wait until all are being looked at, or have failed: reading symbols takes a moment."""
        until = time.monotonic() + GRACE_S
        for process, _, log in self._started.values():
            while b"Sampling" not in log.read_bytes() and process.poll() is None:
                if time.monotonic() > until:
                    return
                time.sleep(POLL_S)

    def stop(self) -> dict[tuple[str, ...], int]:
        """End it and return what was seen.

        Raises:
            Error: UNAUTHENTICATED where this user may not look, UNAVAILABLE if it failed.
        """
        for process, _, _ in self._started.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # it writes what it has
        seen = []
        for name, (process, output, log) in self._started.items():
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            text = log.read_text(errors="replace")
            if process.returncode and "ermission" in text:
                raise Error(
                    Code.NOT_PERMITTED,
                    f"this user may not look into {name}: run as root (sudo), or let users look "
                    "into their own processes with `sysctl kernel.yama.ptrace_scope=0`",
                )
            if not output.exists():
                if process.returncode:
                    last = (text.strip().splitlines() or ["no word"])[-1]
                    raise Error(Code.UNAVAILABLE, f"py-spy on {name} failed: {last}")
                continue
            seen.append(flame.parse(output.read_text(errors="replace"), name))
        return flame.merge(seen)

    def close(self) -> None:
        """End what still runs."""
        for process, _, _ in self._started.values():
            if process.poll() is None:
                process.kill()
                process.wait()


@contextlib.contextmanager
def recording(pids: Mapping[str, int], how: How) -> Iterator[Recorder]:
    """Look at processes until the block ends."""
    with tempfile.TemporaryDirectory(prefix="hillfire-profile-") as name:
        recorder = Recorder(pids, how, Path(name))
        try:
            recorder.wait_begun()
            yield recorder
        finally:
            recorder.close()


def write(stacks: flame.Stacks, output: Path, title: str) -> None:
    """Write the picture, or the stacks themselves if the name ends in ``.txt``."""
    if output.suffix == ".txt":
        text = "".join(f"{';'.join(stack)} {count}\n" for stack, count in sorted(stacks.items()))
    else:
        text = flame.render(stacks, f"{title}, {sum(stacks.values())} samples")
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(output)


def tell(stacks: flame.Stacks, output: Path, *, as_json: bool) -> None:
    """Print where most of the time went."""
    hot, parts = flame.hottest(stacks, SHOWN), flame.by_root(stacks)
    if as_json:
        told = {
            "output": str(output),
            "samples": sum(stacks.values()),
            "processes": dict(parts),
            "hottest": [each._asdict() for each in hot],
        }
        print(json.dumps(told, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, side in (
        ("itself", "right"),
        ("with what it calls", "right"),
        ("function", "left"),
    ):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for each in hot:
        table.add_row(f"{each.own:.1%}", f"{each.whole:.1%}", each.name)
    console = Console()
    console.print(table, markup=False)
    shares = ", ".join(f"{name} {part:.0%}" for name, part in parts)
    console.print(f"of {sum(stacks.values())} samples: {shares or 'nothing ran'}", highlight=False)
    console.print(f"{output}: open it in a browser", highlight=False)
