"""How measurements are written: units that a person reads at a glance, plain data for machines."""

from typing import Any

from hillfire import metrics

PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999))


WIDTH = 138
"""What tables of figures take: on a narrower terminal lines wrap, and no figure is cut off."""


def console(width: int = WIDTH) -> Any:
    """Return a console that is wide enough for a table of figures."""
    from rich.console import Console

    found = Console(highlight=False)
    return found if found.width >= width else Console(width=width, highlight=False)


def duration(ns: float) -> str:
    """Return a time with its unit: three digits that count."""
    if ns <= 0:
        return "0"
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size * 0.9995:
            return f"{digits(ns / size)} {unit}"
    return f"{ns:.0f} ns"


def digits(value: float) -> str:
    """Return a number with three digits that count, or all before the point."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def rate(per_s: float) -> str:
    """Return a number per second, short: ``85.3 k``."""
    if per_s >= 1e6:
        return f"{digits(per_s / 1e6)} M"
    return f"{digits(per_s / 1e3)} k" if per_s >= 1e4 else digits(per_s) if per_s else ""


def bandwidth(bytes_per_s: float) -> str:
    """Return bytes per second with a unit."""
    for unit, size in (("GiB/s", 1 << 30), ("MiB/s", 1 << 20), ("KiB/s", 1 << 10)):
        if bytes_per_s >= size:
            return f"{digits(bytes_per_s / size)} {unit}"
    return f"{bytes_per_s:.0f} B/s" if bytes_per_s else ""


def plain_times(times: metrics.Times) -> dict[str, Any]:
    """Return a histogram for machines: seconds, and the buckets by their upper ends."""
    return {
        "count": times.observed,
        "sum_s": times.total_ns / 1e9,
        "mean_s": times.mean_ns / 1e9,
        **{f"{name}_s": times.percentile_ns(part) / 1e9 for name, part in PERCENTILES},
        "max_s": times.most_ns / 1e9,
        "buckets": [
            [metrics.lower_ns(bucket + 1) / 1e9, count]
            for bucket, count in sorted(times.counts.items())
        ],
    }


def plain_sample(sample: metrics.Sample) -> dict[str, Any]:
    """Return a metric for machines."""
    told: dict[str, Any] = {
        "name": sample.name,
        "kind": sample.kind.name.lower(),
        "labels": dict(sample.labels),
    }
    if sample.kind is metrics.Kind.HISTOGRAM:
        return told | plain_times(sample.times)
    return told | {"value": sample.value}


def stages(samples: list[metrics.Sample]) -> list[tuple[str, str, metrics.Times]]:
    """Return operation, stage and times of each stage seen, in the order of a request's way."""
    found: dict[tuple[str, str], metrics.Times] = {}
    for sample in samples:
        if sample.name == "hillfire_stage_seconds":
            key = sample.label("operation"), sample.label("stage")
            found[key] = found.get(key, metrics.NOTHING).plus(sample.times)
    order = {"read": 0, "write": 1, "forward": 2, "call": 3}
    way = {stage: place for place, stage in enumerate(metrics.STAGES)}
    return [
        (*key, found[key])
        for key in sorted(found, key=lambda key: (order.get(key[0], 9), way.get(key[1], 99), key))
    ]


def calls(samples: list[metrics.Sample]) -> list[tuple[str, metrics.Times]]:
    """Return the services' methods that were called, those that took most time first.

    A ``GetRouting`` waits for something new to tell: its time says nothing.
    """
    found: dict[str, metrics.Times] = {}
    for sample in samples:
        method = sample.label("method")
        if sample.name == "hillfire_call_seconds" and not method.endswith("/GetRouting"):
            found[method] = found.get(method, metrics.NOTHING).plus(sample.times)
    return sorted(found.items(), key=lambda each: -each[1].total_ns)
