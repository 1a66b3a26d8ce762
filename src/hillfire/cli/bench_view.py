"""What ``hillfire bench io`` prints for people."""

from typing import Any

from hillfire import metrics
from hillfire.cli.figures import bandwidth, digits, duration, rate
from hillfire.config import MIB, format_size


def described(head: dict[str, Any]) -> str:
    """Return under what circumstances the figures hold."""
    settings = f"storage nodes with {', '.join(head['settings'])}\n" if head["settings"] else ""
    return settings + (
        f"{head['storage_nodes']} storage nodes, {head['replicas']} replicas, durability "
        f"{head['durability']}, {head['clients']} client{'s' * (head['clients'] > 1)}, file of "
        f"{format_size(head['file_bytes'])}; medians of {head['seconds']:g} s in slices\n"
        f"hillfire {head['hillfire']}, Python {head['python']}, Linux {head['linux']}, "
        f"{head['cpus']} CPUs, load before {head['load_before']:.1f}"
    )


def table_of(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> Any:
    """Return the figures beside their limits, a row a workload; ``before``: of an earlier run."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = (
        "workload,wire,throughput,items/s,call p50,p99,limit,reached,cpu/item,x limit's,copied"
    )
    for place, column in enumerate(columns.split(",")):
        table.add_column(column, justify="left" if place < 2 else "right", no_wrap=True)
    earlier = {(row["workload"], row["transport"]): row for row in before}
    for name in ("speed", "p50", "cpu") if before else ():
        table.add_column(f"Δ {name}", justify="right", no_wrap=True)
    for row in rows:
        limits, then = row.get("limits", []), earlier.get((row["workload"], row["transport"]))
        table.add_row(
            row["workload"],
            row["transport"],
            bandwidth(row["bytes_per_s"]),
            rate(row["items_per_s"]),
            *(duration(row["call"][f"{name}_s"] * 1e9) for name in ("p50", "p99")),
            *_limit(row, limits[0] if limits else None),
            *(_changes(row, then) if before else ()),
        )
        for limit in limits[1:]:
            table.add_row(f"  {limit['what']}", *[""] * 5, *_limit(row, limit)[:2])
    return table


def _changes(row: dict[str, Any], then: dict[str, Any] | None) -> tuple[str, ...]:
    """Return how speed, latency and processor time changed since an earlier run."""
    if then is None:
        return "", "", ""
    pairs = (
        (row["bytes_per_s"], then["bytes_per_s"]),
        (row["call"]["p50_s"], then["call"]["p50_s"]),
        (row["cpu"]["us_per_item"], then["cpu"]["us_per_item"]),
    )
    return tuple(f"{now / old - 1:+.0%}" if old else "" for now, old in pairs)


def legend(rows: list[dict[str, Any]]) -> str:
    """Return what the limits are, a line each."""
    found = {limit["what"]: None for row in rows for limit in row.get("limits", [])}
    if not found:
        return ""
    return (
        f"limits: {'; '.join(found)}: of the same blocks, by one process of this host\n"
        "cpu/item: processor time of one block, of all processes; copied: how often each byte was, "
        "in user space\n"
    )


def _limit(row: dict[str, Any], limit: dict[str, Any] | None) -> tuple[str, ...]:
    """Return the columns of a limit, and what an item costs beside it."""
    cpu = duration(row["cpu"]["us_per_item"] * 1e3)
    copied = f"{sum(row['copied_per_byte'].values()):.2f}"
    if limit is None:
        return "", "", cpu, "", copied
    small = row["block_bytes"] < MIB // 16
    speed = rate(limit["items_per_s"]) + "/s" if small else bandwidth(limit["bytes_per_s"])
    times = digits(limit["cpu_times"]) if limit["cpu_times"] else ""
    return speed, f"{limit['reached']:.0%}", cpu, times, copied


def stage_table(rows: list[dict[str, Any]]) -> Any:
    """Return where a request's time went: the median and the 99th percentile of each stage."""
    from rich import box
    from rich.table import Table

    seen = {each["stage"] for row in rows for each in row["stages"]}
    columns = [stage for stage in metrics.STAGES if stage in seen]
    if not columns:
        return "no stage was timed"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="requests, by stage")
    for name in ("workload", "wire", "operation", ""):
        table.add_column(name, no_wrap=True)
    for stage in columns:
        table.add_column(stage.replace("_", " "), justify="right", min_width=7)
    for row in rows:
        found: dict[str, dict[str, Any]] = {}
        for each in row["stages"]:
            found.setdefault(each["operation"], {})[each["stage"]] = each
        name, wire = row["workload"], row["transport"]
        for operation, by in found.items():
            for part, style in (("p50", None), ("p99", "dim")):
                cells = (duration(by[s][f"{part}_s"] * 1e9) if s in by else "" for s in columns)
                table.add_row(name, wire, operation, part, *cells, style=style)
                name = wire = operation = ""
    return table
