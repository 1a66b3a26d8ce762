"""``hillfire metrics``: what every process has counted and timed, and where requests wait."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from hillfire import metrics
from hillfire.cli.connect import last_cluster, last_local
from hillfire.cli.figures import (
    PERCENTILES,
    bandwidth,
    calls,
    console,
    digits,
    duration,
    plain_sample,
    plain_times,
    rate,
    stages,
)
from hillfire.cli.gather import Gatherer, Looks
from hillfire.config import format_size
from hillfire.errors import Error
from hillfire.local.control import ask
from hillfire.local.directory import ClusterDirectory

WATCH_S = 2.0
SHOWN_CALLS = 8
CONTROL_TIMEOUT_S = 5.0


def run_metrics(
    directory: Path | None,
    address: str | None,
    mounts: list[Path],
    *,
    over_s: float,
    watch: bool,
    each: bool,
    everything: bool,
    as_json: bool,
    prometheus: bool,
    listen: str | None,
) -> None:
    """Print what a cluster's processes have measured. Exit status 2 if one did not answer."""
    where, mounted = find(directory, address)
    with Gatherer(where, mounts or mounted) as gatherer:
        if listen is not None or prometheus:
            from hillfire.cli.exposition import expose, serve

            if listen is not None:
                serve(gatherer, listen)
            else:
                print(expose(gatherer.look()), end="")
            return
        try:
            shown = _show(
                gatherer, where, over_s, watch, as_json=as_json, each=each, everything=everything
            )
        except KeyboardInterrupt:
            return
    sys.exit(2 if shown.missing else 0)


def find(directory: Path | None, address: str | None) -> tuple[str, list[Path]]:
    """Return a cluster's address, and its mount if it is one of this machine that has one."""
    local = ClusterDirectory(directory) if directory is not None else last_local(address)
    if local is None:
        return address or last_cluster(), []
    try:
        told = ask(local.control_path, {"do": "status"}, CONTROL_TIMEOUT_S)
    except Error:
        if directory is not None:
            raise
        return local.shape().address, []
    running = [s["name"] for s in told["services"] if s["state"] == "running"]
    return local.shape().address, [Path(told["mount"])] if "mount" in running else []


def _show(
    gatherer: Gatherer,
    where: str,
    over_s: float,
    watch: bool,
    *,
    as_json: bool,
    each: bool,
    everything: bool,
) -> Looks:
    """Print once, or again and again."""
    looks = gatherer.look()
    if not watch and not over_s:
        _print(looks, where, None, as_json=as_json, each=each, everything=everything)
        return looks
    interval_s = over_s or WATCH_S
    from rich.live import Live

    live = Live(console=console(), auto_refresh=False) if watch and not as_json else None
    with live if live is not None else _Nothing():
        while True:
            time.sleep(interval_s)
            before, looks = looks, gatherer.look()
            done, taken_s = looks.since(before), looks.at_s - before.at_s
            if live is not None:
                live.update(render(done, where, taken_s, each, everything), refresh=True)
            else:
                _print(done, where, taken_s, as_json=as_json, each=each, everything=everything)
            if not watch:
                return looks


class _Nothing:
    """A context that does nothing."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, *exc: object) -> None:
        """End."""


def _print(
    looks: Looks, where: str, over_s: float | None, *, as_json: bool, each: bool, everything: bool
) -> None:
    if as_json:
        print(json.dumps(plain(looks, where, over_s)), flush=True)
    else:
        console().print(render(looks, where, over_s, each, everything), crop=False)


def plain(looks: Looks, where: str, over_s: float | None) -> dict[str, Any]:
    """Return everything for machines. The keys are an interface: they may grow."""
    merged = [sample for look in looks.found.values() for sample in look.samples]
    return {
        "address": where,
        "over_s": over_s,
        "stages": [
            {"operation": operation, "stage": stage, **plain_times(times)}
            for operation, stage, times in stages(merged)
        ],
        "calls": [{"method": method, **plain_times(times)} for method, times in calls(merged)],
        "processes": [
            {
                "name": look.name,
                "pid": look.pid,
                "over_s": look.age_s,
                "metrics": list(map(plain_sample, look.samples)),
            }
            for look in looks.found.values()
        ],
        "missing": dict(looks.missing),
    }


def render(looks: Looks, where: str, over_s: float | None, each: bool, everything: bool) -> Any:
    """Return what rich prints: processes, stages, and with ``everything`` all other metrics."""
    from rich.console import Group

    when = f"of {over_s:.1f} s" if over_s else "since each process was started"
    parts: list[Any] = [f"cluster at {where}, {when}", _processes(looks)]
    if each:
        for look in looks.found.values():
            if table := stage_table(list(look.samples), look.age_s):
                parts += [f"[bold]{look.name}[/bold]", table]
    else:
        merged = [sample for look in looks.found.values() for sample in look.samples]
        over = over_s or max((look.age_s for look in looks.found.values()), default=1.0)
        parts.append(stage_table(merged, over) or "no request was timed\n")
        parts += _calls(merged, over)
    if everything:
        parts.append(_others(looks))
    parts += [f"[yellow]! {name}: {why}[/yellow]" for name, why in looks.missing.items()]
    if not over_s:
        parts.append("[dim]what happens now: --over 5, or --watch; by process: --each[/dim]")
    return Group(*parts)


def _table(columns: str, left: int = 1) -> Any:
    """Return an empty table; all but the first columns hold numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns.split(",")):
        table.add_column(column, justify="left" if place < left else "right", no_wrap=True)
    return table


def _processes(looks: Looks) -> Any:
    table = _table("process,up,cpu,memory,requests/s,read,written,errors,loop lag p99,gc")
    for look in looks.found.values():
        samples, over_s = look.samples, max(look.age_s, 1e-9)
        total = metrics.total
        # A process serves (stage "server") or is a client itself (stage "client").
        stage = "client" if look.name.startswith("mount") else "server"
        requests = metrics.together(samples, "hillfire_stage_seconds", stage=stage).observed
        started = total(samples, "process_start_time_seconds")
        written = sum(
            total(samples, "hillfire_bytes_total", operation=each) for each in ("write", "forward")
        )
        lag = metrics.together(samples, "hillfire_loop_lag_seconds")
        pauses = metrics.together(samples, "hillfire_gc_pause_seconds").total_ns / 1e9
        table.add_row(
            look.name,
            _age(time.time() - started) if started else "",
            f"{total(samples, 'process_cpu_seconds_total') / over_s:.0%}",
            format_size(int(total(samples, "process_resident_memory_bytes"))),
            rate(requests / over_s),
            bandwidth(total(samples, "hillfire_bytes_total", operation="read") / over_s),
            bandwidth(written / over_s),
            _text(total(samples, "hillfire_errors_total")),
            duration(lag.percentile_ns(0.99)),
            f"{pauses / over_s:.1%}",
        )
    return table


def _text(count: float) -> str:
    return f"{count:,.0f}" if count else ""


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def stage_table(samples: list[metrics.Sample], over_s: float) -> Any:
    """Return a table of where requests spent their time; None if none was timed."""
    found = stages(samples)
    if not found:
        return None
    table = _table("operation,stage,requests/s,p50,p90,p99,p999,max,mean,busy", left=2)
    last = ""
    for operation, stage, times in found:
        table.add_row(
            operation if operation != last else "",
            stage.replace("_", " "),
            rate(times.observed / over_s),
            *(duration(times.percentile_ns(part)) for _, part in PERCENTILES),
            duration(times.most_ns),
            duration(times.mean_ns),
            digits(times.total_ns / 1e9 / over_s),
            end_section=False,
        )
        last = operation
    return table


_SHOWN_ELSEWHERE = (
    "hillfire_stage_seconds",
    "hillfire_call_seconds",
    "process_start_time_seconds",
)


def _calls(samples: list[metrics.Sample], over_s: float) -> list[Any]:
    """Return a table of the calls that took most of the services' time."""
    found = calls(samples)[:SHOWN_CALLS]
    table = _table("call,calls/s,p50,p99,max,mean,busy")
    for method, times in found:
        table.add_row(
            method,
            rate(times.observed / over_s),
            *(duration(times.percentile_ns(part)) for part in (0.5, 0.99)),
            duration(times.most_ns),
            duration(times.mean_ns),
            digits(times.total_ns / 1e9 / over_s),
        )
    return [table] if found else []


def _others(looks: Looks) -> Any:
    """Return a table of every metric that has no column of its own."""
    table = _table("metric,process,value", left=2)
    rows = []
    for look in looks.found.values():
        for sample in look.samples:
            if sample.name in _SHOWN_ELSEWHERE:
                continue
            labels = ",".join(f"{name}={value}" for name, value in sample.labels)
            if sample.kind is metrics.Kind.HISTOGRAM:
                times = sample.times
                value = f"{times.observed:,} x, p50 {duration(times.percentile_ns(0.5))}"
                value += f", p99 {duration(times.percentile_ns(0.99))}"
            elif sample.name.endswith("_bytes") or sample.name.endswith("_bytes_total"):
                value = format_size(int(sample.value))
            else:
                value = f"{sample.value:,.10g}"
            rows.append((f"{sample.name}{{{labels}}}" if labels else sample.name, look.name, value))
    for row in sorted(rows):
        table.add_row(*row)
    return table
