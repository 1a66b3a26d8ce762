"""The parts of ``hillfire bench io`` and ``hillfire profile`` that need no cluster."""

import io
import itertools
import random
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hillfire.cli import flame
from hillfire.cli.bench_io import _set
from hillfire.cli.bench_view import legend, stage_table, table_of
from hillfire.cli.limits import Limits
from hillfire.cli.load import offsets, run_for
from hillfire.cli.workload import DEFAULT, parse
from hillfire.config import default_toml
from hillfire.errors import Error

MIB = 1 << 20
HEAD = (
    "_run_module_as_main (<frozen runpy>:173);main (hillfire/cli/__init__.py:11);"
    "run (hillfire/eventloop.py:27);Handle._run (asyncio/events.py:80)"
)
RAW = f"""\
thread (12): MainThread;{HEAD};read (hillfire/storage/reads.py:9) 30
thread (12): MainThread;{HEAD};send <&> (hillfire/proto/x.py:1) 10
thread (15): store-keeper;Thread.run (threading.py:971);sync (hillfire/storage/store/y.py:2) 20
nonsense
"""


def test_a_workload_is_taken_apart() -> None:
    found = parse("read-4kx256")
    assert (found.write, found.block, found.batch) == (False, 4096, 256)
    assert not (found.sequential or found.foreign or found.fsync)
    found = parse("WRITE-1mx8-q4-seq-fsync-foreign")
    assert found.queue == 4
    assert (found.write, found.block, found.batch, found.call_bytes) == (True, MIB, 8, 8 * MIB)
    assert found.sequential and found.foreign and found.fsync
    assert parse("read-512").block == 512
    assert len({parse(word) for word in DEFAULT}) == len(DEFAULT)


@pytest.mark.parametrize(
    "word",
    ["", "read", "erase-4k", "read-4kx", "read-0", "read-4kx0", "read-128m", "read-64mx4096",
     "read-4k-fsync", "read-4k-fast", "read-4kx5000", "read--4k", "read-4k-q9999", "read-64mx8-q4"],
)  # fmt: skip
def test_what_is_no_workload_is_an_error_that_teaches(word: str) -> None:
    with pytest.raises(Error) as caught:
        parse(word)
    assert word in str(caught.value)


def test_offsets_stay_within_the_file() -> None:
    some = list(itertools.islice(offsets(parse("read-4kx8"), 10_000, 1), 20))
    assert {int(each) for call in some for each in call} == {0, 4096}
    assert {len(call) for call in some} == {8}
    in_order = [c.tolist() for c in itertools.islice(offsets(parse("read-4kx3-seq"), 16384, 1), 2)]
    assert in_order == [[0, 4096, 8192], [12288, 0, 4096]]


def test_a_run_counts_every_call() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    taken = run_for(0.02, call)
    queued = run_for(0.02, lambda: [5, 7])  # two of several ended
    assert set(queued.calls_ns) == {5, 7}
    assert len(taken.calls_ns) == calls > 10
    assert len(taken.rates) == 10
    assert all(taken.rates)


def children() -> str:
    return "".join(each.read_text() for each in Path("/proc/self/task").glob("*/children"))


def test_limits_are_taken_and_leave_nothing(tmp_path: Path) -> None:
    before, limits = children(), Limits(tmp_path, 2 * MIB, 3)
    try:
        for word in ("read-4kx4", "write-64kx2-fsync"):
            assert limits.take(parse(word), 0.02).calls_ns
        assert limits.take_tcp(parse("read-64kx4"), 0.02).calls_ns
        assert children() == before  # its sender is gone
    finally:
        limits.close()
    assert not list(tmp_path.iterdir())


def test_stacks_are_read_without_what_all_begin_with() -> None:
    found = flame.parse(RAW, "storage-101")
    assert found == {
        ("storage-101", "Handle._run (asyncio/events.py:80)",
         "read (hillfire/storage/reads.py:9)"): 30,
        ("storage-101", "Handle._run (asyncio/events.py:80)",
         "send <&> (hillfire/proto/x.py:1)"): 10,
        ("storage-101", "store-keeper", "sync (hillfire/storage/store/y.py:2)"): 20,
    }  # fmt: skip
    both = flame.merge([found, flame.parse("a (b.py:1) 60\n", "client")])
    assert flame.by_root(both) == [("client", 0.5), ("storage-101", 0.5)]
    hot = flame.hottest(both, 2)
    assert hot[0] == ("a (b.py:1)", 0.5, 0.5)
    assert hot[1] == ("read (hillfire/storage/reads.py:9)", 0.25, 0.25)
    # Called by itself: seen in the whole, counted once.
    (twice,) = flame.hottest({("p", "f", "f"): 4}, 9)
    assert twice == ("f", 1.0, 1.0)


def test_a_picture_is_well_formed_and_to_scale() -> None:
    svg = ET.fromstring(flame.render(flame.parse(RAW, "storage-101"), "a <title>"))
    space = "{http://www.w3.org/2000/svg}"
    frames = {g.get("data-n"): g for g in svg.iter(f"{space}g") if g.get("class") == "f"}
    assert set(frames) == {
        "storage-101", "store-keeper", "Handle._run (asyncio/events.py:80)",
        "read (hillfire/storage/reads.py:9)", "send <&> (hillfire/proto/x.py:1)",
        "sync (hillfire/storage/store/y.py:2)",
    }  # fmt: skip
    width = {name: float(g.get("data-w") or 0) for name, g in frames.items()}
    assert width["storage-101"] == flame.WIDTH
    assert width["read (hillfire/storage/reads.py:9)"] == pytest.approx(flame.WIDTH / 2, abs=0.01)
    title = frames["send <&> (hillfire/proto/x.py:1)"].find(f"{space}title")
    assert title is not None
    assert title.text == "send <&> (hillfire/proto/x.py:1): 16.7%, 16.7% itself"
    assert flame.colour("read (hillfire/storage/reads.py:9)").startswith("hsl(25 ")


def test_a_large_profile_is_a_small_picture() -> None:
    """Frames too narrow to be seen are left out; a deep recursion is no error."""
    chance = random.Random(0)
    deep = tuple(f"f{i} (x.py:{i})" for i in range(150))
    stacks: dict[tuple[str, ...], int] = {
        ("p", f"g{i} (y.py:1)", f"h{chance.random()} (z.py:1)"): 1 for i in range(20_000)
    }
    text = flame.render({**stacks, ("p", *deep): 20_000}, "large")
    assert len(text) < 300_000
    assert "f149 (x.py:149)" in text


def shown(table: object) -> str:
    console = Console(width=170, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text()


def row(name: str, per_s: float, p50_s: float, cpu_us: float) -> dict[str, Any]:
    limit = {"items_per_s": 2 * per_s, "bytes_per_s": 2 * per_s * 4096, "reached": 0.5}
    return {
        "workload": name, "transport": "tcp", "block_bytes": 4096, "batch": 1,
        "items_per_s": per_s, "bytes_per_s": per_s * 4096,
        "call": {"p50_s": p50_s, "p99_s": 3 * p50_s}, "copied_per_byte": {"client": 1.0},
        "cpu": {"us_per_item": cpu_us},
        "limits": [
            {**limit, "what": "preadv + CRC32C", "cpu_times": 2.5},
            {**limit, "what": "sendfile -> recv_into", "cpu_times": None},
        ],
        "stages": [
            {"operation": "read", "stage": "wire", "p50_s": 5e-5, "p99_s": 2e-3},
            {"operation": "read", "stage": "disk", "p50_s": 3e-6, "p99_s": 1e-5},
        ],
    }  # fmt: skip


def test_figures_stand_beside_their_limits_and_what_was_before() -> None:
    rows = [row("read-4k", 20_000, 1e-4, 60), row("read-8k", 1, 1e-3, 1)]
    before = [row("read-4k", 10_000, 2e-4, 80)]
    lines = shown(table_of(rows, before)).splitlines()
    first = next(line for line in lines if "read-4k" in line)
    for each in ("tcp", "78.1 MiB/s", "20.0 k", "100 µs", "300 µs", "40.0 k/s", "50%", "60.0 µs",
                 "2.50", "1.00", "+100%", "-50%", "-25%"):  # fmt: skip
        assert each in first, each
    second = next(line for line in lines if "sendfile" in line)
    assert "40.0 k/s" in second and "read" not in second
    assert "%" not in next(line for line in lines if "read-8k" in line).partition("50%")[2]
    assert "Δ" not in shown(table_of(rows, []))
    assert "preadv + CRC32C; sendfile -> recv_into" in legend(rows)
    stages = shown(stage_table(rows))
    assert stages.index("wire") < stages.index("disk")
    assert "50.0 µs" in stages and "2.00 ms" in stages
    assert stage_table([{**rows[0], "stages": []}]) == "no stage was timed"


def test_a_setting_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "storage-101.toml"
    path.write_text(default_toml("storage"))
    _set(path, ["direct_io=false", "io_threads=8"])
    told = tomllib.loads(path.read_text())
    assert (told["direct_io"], told["io_threads"]) == (False, 8)
