"""What docs/ says is so: tables, files, and the snippets that are marked as runnable. Budget: 60 s.

``<!-- runnable -->`` before a fence: python runs as a program, of console the lines that begin with
"$ " run in bash, one after another, in the clone, with HILLFIRE_DIR naming the cluster.
``<!-- file: NAME -->`` before a toml fence: a service's configuration.
"""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_type_hints

import pytest

from hillfire import config
from hillfire.errors import TABLE, Code, Error
from hillfire.local import ports
from tests.cluster import LocalCluster, cluster

ROOT = Path(__file__).resolve().parents[2]
DOCS = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
MARKED = re.compile(r"^<!-- (\w+)(?:: (.+?))? -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
UNITS = ROOT / "deploy" / "systemd"


def marked(kind: str) -> list[tuple[str, str, str, str]]:
    """Return (where, argument, language, text) of each fence that is marked as ``kind``."""
    return [
        (
            f"{name}.md:{text[: found.start()].count(chr(10)) + 1}",
            found[2] or "",
            found[3],
            found[4],
        )
        for name, text in DOCS.items()
        for found in MARKED.finditer(text)
        if found[1] == kind
    ]


RUNNABLE = marked("runnable")
FILES = {name: text for _, name, _, text in marked("file")}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with cluster(tmp_path_factory.mktemp("docs")) as local:
        yield local


def run(language: str, text: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Run a snippet as a reader would, with this Python's programs before others."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if language == "python":
        script = tmp_path / "snippet.py"
        script.write_text(text)
        command = [sys.executable, str(script)]
    else:
        assert language == "console"
        lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        assert lines
        command = ["bash", "-euxo", "pipefail", "-c", "set +e\n" + "\n".join(map(_checked, lines))]
    done = subprocess.run(
        command,
        env={**environment, "PATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _checked(line: str) -> str:
    return f"{line.partition('  #')[0]}\n[ $? = 0 ] || exit 1"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        pytest.param(language, text, id=where)
        for where, argument, language, text in RUNNABLE
        if argument != "stopped"
    ],
)
def test_a_snippet_runs(running: LocalCluster, language: str, text: str, tmp_path: Path) -> None:
    directory = str(running.directory.path)
    run(language, text, {**running.environment, "HILLFIRE_DIR": directory}, tmp_path)


def test_a_cluster_is_stopped_copied_and_started(tmp_path: Path) -> None:
    """The snippets that begin with ``hillfire down``."""
    snippets = [(text, where) for where, kind, _, text in RUNNABLE if kind == "stopped"]
    assert snippets
    directory = tmp_path / "cluster"
    environment = {
        **os.environ,
        "HILLFIRE_DIR": str(directory),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }
    start = "$ hillfire up --nodes 1 --replicas 1 --port 0 --detach\n"
    try:
        for text, _ in snippets:
            run("console", start + text, environment, tmp_path)
    finally:
        run("console", "$ hillfire down\n", environment, tmp_path)


def test_three_hosts_as_written(tmp_path: Path) -> None:
    """The worked example, with three loopback addresses for its hosts."""
    first = ports.choose(40)
    kinds = {name: name.removesuffix(".toml").partition("-")[0] for name in FILES}
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    hillfire = [sys.executable, "-m", "hillfire.cli"]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, text in FILES.items():
            text = text.replace("10.0.0.1", "127.0.0.1").replace("/var/lib/hillfire", str(tmp_path))
            text = re.sub(r":97(\d\d)\"", lambda found: f':{first + int(found[1])}"', text)
            (tmp_path / name).write_text(text)
            settings = config.load(kinds[name], tmp_path / name)
            if kinds[name] == "mount":
                continue
            command = [*hillfire, "serve", kinds[name], "--config", str(tmp_path / name)]
            with open(tmp_path / f"{name}.log", "wb") as log:
                processes.append(subprocess.Popen(command, env=environment, stderr=log))
            if isinstance(settings, config.ManagerConfig):
                _wait_listening(settings.listen)
        where = ["--address", f"127.0.0.11:{first}"]
        numbers = ["--nodes", "3", "--replicas", "3", "--targets-per-node", "4"]
        for command in (["create-chains", *where, *numbers], ["status", *where, "--wait", "60"]):
            done = subprocess.run([*hillfire, *command], env=environment, timeout=90)
            assert done.returncode == 0, command
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        ends = [process.wait(20) for process in processes]
    assert ends == [0] * len(processes)


def _wait_listening(address: str) -> None:
    from hillfire.cli.connect import connect_manager

    deadline = time.monotonic() + 30
    while True:
        try:
            return connect_manager(address).close()
        except Error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def options_table(kind: str) -> str:
    """Return the table of a service's options as docs/operating.md has to have it."""
    cls = config.KINDS[kind]
    hints = get_type_hints(cls, include_extras=True)
    printed = dict(re.findall(r"^(?:# )?(\w+) = (.*)$", config.default_toml(kind), re.MULTILINE))
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for field in fields(cls):
        default = f"`{printed[field.name]}`"
        if field.default is MISSING:
            default = f"required, e.g. {default}"
        elif field.default is None:
            default = "by itself"
        says = " ".join(mark for mark in hints[field.name].__metadata__ if isinstance(mark, str))
        for mark in hints[field.name].__metadata__:
            if isinstance(mark, config.Choice):
                says += f" One of {', '.join(f'`{value}`' for value in mark.values)}."
            elif isinstance(mark, config.Bounds):
                says += f" {mark.least} to {mark.greatest}."
        rows.append(f"| `{field.name}` | {default} | {says} |")
    return "\n".join(rows)


def errors_table() -> str:
    """Return the table of codes as docs/api.md has to have it."""
    rows = ["| code | number | errno | is also a | `retry` |", "|---|---|---|---|---|"]
    for code, meaning in TABLE.items():
        if code is Code.OK:
            continue
        name = errno.errorcode[meaning.errno]
        name = {"ENOTSUP": "EOPNOTSUPP"}.get(name, name)
        also = type(OSError(meaning.errno, "")).__name__
        shown = "" if also == "OSError" else f"`{also}`"
        retry = "yes" if meaning.retry else ""
        rows.append(f"| `{code.name}` | {int(code)} | {name} | {shown} | {retry} |")
    return "\n".join(rows)


@pytest.mark.parametrize("kind", config.KINDS)
def test_every_option_is_in_the_docs(kind: str) -> None:
    wanted = f"### {kind}\n"
    assert wanted in DOCS["operating"]
    assert options_table(kind) in DOCS["operating"].partition(wanted)[2], options_table(kind)


def test_every_error_is_in_the_docs() -> None:
    assert errors_table() in DOCS["api"], errors_table()


def test_every_method_is_in_the_docs() -> None:
    from hillfire import File, FileSystem, Queue, Results, Transfer

    for cls in (FileSystem, File, Queue, Transfer, Results):
        for name in vars(cls):
            if not name.startswith("_") and name not in (
                *("readable", "writable", "seekable", "readinto1", "fileno", "stream"),
                *("close", "register", "read_batch", "write_batch", "open_as"),
            ):
                assert re.search(rf"\b{name}\b", DOCS["api"]), f"{cls.__name__}.{name}"


def test_links_lead_somewhere() -> None:
    for name, text in DOCS.items():
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (ROOT / "docs" / target).exists(), f"{name}.md: {target}"
        anchors = {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        }
        assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_the_unit_in_the_docs_is_the_file() -> None:
    for _, name, _, text in marked("unit"):
        assert text == (UNITS / name).read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("hillfire"))
    names = []
    for path in sorted(UNITS.glob("*.service")):
        text = path.read_text().replace("/opt/hillfire/bin/hillfire", program)
        names.append(tmp_path / path.name.replace("@", "@101"))
        names[-1].write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, names)], capture_output=True, text=True
    )
    ours = [line for line in done.stderr.splitlines() if "hillfire" in line]
    assert done.returncode == 0 and not ours, json.dumps(done.stderr)
