"""``hillfire bench io``: what a client reaches, beside the machine's limits, in one run."""

import contextlib
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import hillfire
from hillfire import metrics
from hillfire.cli.figures import PERCENTILES, plain_times, stages
from hillfire.cli.gather import Gatherer, Looks
from hillfire.cli.limits import Limits
from hillfire.cli.load import Caller, Taken, client, fill, run_for, warm
from hillfire.cli.workload import Workload
from hillfire.client.filesystem import FileSystem
from hillfire.cluster import NodeKind
from hillfire.config import format_size
from hillfire.errors import Code, Error

Watch: TypeAlias = Callable[[str], contextlib.AbstractContextManager[None]]
"""What looks on while a row is taken: given its name, a context."""

LIMIT_PART = 0.25
"""Of a workload's time is spent on its limit, half before and half after it."""
START_S = 60.0


class Plan(NamedTuple):
    """What was asked for."""

    address: str
    workloads: Sequence[Workload]
    transports: Sequence[str | None]
    size: int
    seconds: float
    clients: int
    directory: str
    """in the cluster"""
    limit_directory: Path | None
    limits: bool


def take(plan: Plan, told: Callable[[str], None], watch: Watch) -> dict[str, Any]:
    """Take every row; ``told`` hears what is being done, ``watch`` is entered around each.

    The keys are an interface.
    """
    rows: list[dict[str, Any]] = []
    with Gatherer(plan.address) as gatherer:
        head = _head(plan, gatherer)
        limits = Limits(plan.limit_directory, plan.size, head["replicas"])
        with contextlib.closing(limits):
            for transport in plan.transports:
                with hillfire.connect(plan.address, transport=transport) as fs:
                    rows += _rows(plan, fs, transport, gatherer, limits, told, watch)
    return {**head, "rows": rows}


def _head(plan: Plan, gatherer: Gatherer) -> dict[str, Any]:
    """Return under what circumstances the figures hold."""
    routing = gatherer.routing()
    replicas = [len(chain.serving) for chain in routing.chains.values()]
    if not replicas:
        raise Error(Code.UNAVAILABLE, "the cluster has no chains yet: `hillfire status`")
    from importlib.metadata import version

    return {
        "hillfire": version("hillfire"),
        "address": plan.address,
        "storage_nodes": len({routing.node_of(t).id for t in routing.targets}),
        "replicas": min(replicas),
        "durability": "page cache (disk where a row says fsync)",
        "file_bytes": plan.size,
        "clients": plan.clients,
        "seconds": plan.seconds,
        "python": platform.python_version(),
        "linux": platform.release(),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }


def _rows(
    plan: Plan,
    fs: FileSystem,
    transport: str | None,
    gatherer: Gatherer,
    limits: Limits,
    told: Callable[[str], None],
    watch: Watch,
) -> Iterator[dict[str, Any]]:
    """Take the rows of one transport, over a file that is gone afterwards."""
    path = f"{plan.directory.rstrip('/')}/hillfire-bench-{os.getpid()}"
    try:
        told("writing the file")
        fill(fs, path, plan.size, lambda place: told(f"writing the file: {format_size(place)}"))
        for workload in plan.workloads:
            told(f"{workload.name} over {transport or 'what connect() takes'}")
            yield _row(plan, fs, path, workload, transport, gatherer, limits, watch)
    finally:
        with contextlib.suppress(Error):
            fs.unlink(path)


def _row(
    plan: Plan,
    fs: FileSystem,
    path: str,
    workload: Workload,
    transport: str | None,
    gatherer: Gatherer,
    limits: Limits,
    watch: Watch,
) -> dict[str, Any]:
    limit_s = plan.seconds * LIMIT_PART / 2
    over_tcp = transport == "tcp" and not workload.write

    def limit() -> list[Taken]:
        if not plan.limits:
            return []
        taken = [limits.take(workload, limit_s)]
        return [*taken, limits.take_tcp(workload, limit_s)] if over_tcp else taken

    first = limit()
    with watch(f"{workload.name} {transport or ''}".strip()):
        takens, done = _take(plan, fs, path, workload, transport, gatherer)
    around = list(zip(first, limit(), strict=True))
    calls = [ns for taken in takens for ns in taken.calls_ns]
    rates = [sum(slices) for slices in zip(*(taken.rates for taken in takens), strict=True)]
    row: dict[str, Any] = {
        "workload": workload.name,
        "transport": transport or _transports(gatherer, takens),
        "block_bytes": workload.block,
        "batch": workload.batch,
        "calls": len(calls),
        **_speed(statistics.median(rates), workload),
        "call": _percentiles(calls),
        "copied_per_byte": _copied(takens, done, len(calls) * workload.call_bytes),
        "cpu": _cpu(takens, done, len(calls) * workload.batch, workload),
        "stages": _stages(takens, done, workload),
    }
    names = ("preadv + CRC32C", "sendfile -> recv_into")
    if workload.write:
        names = (f"pwrite x {limits.replicas}", "")
    for name, pair in zip(names, around, strict=False):
        calls_per_s = statistics.median([rate for each in pair for rate in each.rates])
        n_items = sum(len(each.calls_ns) for each in pair) * workload.batch
        cpu_us = sum(each.cpu_ns for each in pair) / n_items / 1e3
        row.setdefault("limits", []).append(
            {
                "what": name,
                **_speed(calls_per_s, workload),
                "reached": statistics.median(rates) / calls_per_s,
                "cpu_us_per_item": cpu_us,
                "cpu_times": row["cpu"]["us_per_item"] / cpu_us if cpu_us else None,
            }
        )
    return row


def _take(
    plan: Plan,
    fs: FileSystem,
    path: str,
    workload: Workload,
    transport: str | None,
    gatherer: Gatherer,
) -> tuple[list[Taken], Looks]:
    """Run a workload; return what clients measured, and what all processes did meanwhile."""
    if plan.clients == 1:
        with Caller(workload, fs, path, plan.size, 1) as call:
            warm(call, plan.seconds)
            before = gatherer.look()
            taken = run_for(plan.seconds, call)
            return [taken], gatherer.look().since(before)
    context = get_context("spawn")
    with context.Manager() as manager:
        barrier = manager.Barrier(plan.clients + 1)
        with ProcessPoolExecutor(plan.clients, context) as pool:
            futures = [
                pool.submit(
                    client,
                    plan.address,
                    transport,
                    workload,
                    path,
                    plan.size,
                    plan.seconds,
                    seed,
                    barrier.wait,
                )
                for seed in range(plan.clients)
            ]
            barrier.wait(START_S)
            before = gatherer.look()
            takens = [future.result() for future in futures]
            return takens, gatherer.look().since(before)


def _speed(calls_per_s: float, workload: Workload) -> dict[str, float]:
    return {
        "items_per_s": calls_per_s * workload.batch,
        "bytes_per_s": calls_per_s * workload.call_bytes,
    }


def _percentiles(calls_ns: list[int]) -> dict[str, float]:
    """Return exact percentiles of calls, in seconds."""
    ordered = sorted(calls_ns)
    last = len(ordered) - 1
    found = {f"{name}_s": ordered[round(part * last)] / 1e9 for name, part in PERCENTILES}
    return {**found, "max_s": ordered[-1] / 1e9}


def _cpu(takens: list[Taken], done: Looks, items: int, workload: Workload) -> dict[str, Any]:
    """Return the processor time of an item, over all processes and by process."""
    name = "process_cpu_seconds_total"
    spent = {look.name: metrics.total(look.samples, name) for look in done.found.values()}
    spent["client"] = sum(taken.cpu_ns for taken in takens) / 1e9
    total_s = sum(spent.values())
    return {
        "us_per_item": total_s / items * 1e6,
        "s_per_gib": total_s / (items * workload.block) * 2**30,
        "by_process_us": {name: seconds / items * 1e6 for name, seconds in spent.items()},
    }


def _transports(gatherer: Gatherer, takens: list[Taken]) -> str:
    """Return by what bytes moved between the clients and the storage nodes."""
    storage = {
        node.endpoint.tcp
        for node in gatherer.routing().nodes.values()
        if node.kind is NodeKind.STORAGE
    }
    used = {
        sample.label("transport")
        for taken in takens
        for sample in taken.samples
        if sample.name == "hillfire_connections" and sample.label("peer") in storage
    }
    return "+".join(sorted(used)) or "auto"


def _copied(takens: list[Taken], done: Looks, n_bytes: int) -> dict[str, float]:
    """Return how often each byte was copied in user space, by where, over all processes."""
    copied: dict[str, float] = {}
    looks = [taken.samples for taken in takens]
    for samples in (*looks, *(look.samples for look in done.found.values())):
        for sample in samples:
            if sample.name == "hillfire_copied_bytes_total":
                where = sample.label("where")
                copied[where] = copied.get(where, 0.0) + sample.value / n_bytes
    return copied


def _stages(takens: list[Taken], done: Looks, workload: Workload) -> list[dict[str, Any]]:
    samples = [sample for taken in takens for sample in taken.samples]
    samples += [sample for look in done.found.values() for sample in look.samples]
    wanted = ("write", "forward") if workload.write else ("read",)
    return [
        {"operation": operation, "stage": stage, **plain_times(times)}
        for operation, stage, times in stages(samples)
        if operation in wanted
    ]
