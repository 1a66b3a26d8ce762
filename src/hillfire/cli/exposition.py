"""A cluster's metrics for Prometheus: one endpoint tells of all processes, asked at each scrape.

So no service opens a port for it, and one line of Prometheus' configuration is enough; the label
``process`` says which it is. Buckets are told by powers of two, a quarter as many as are kept.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hillfire import metrics
from hillfire.cli.gather import Gatherer, Look, Looks
from hillfire.errors import Code, Error

STEP = 4
"""Buckets of a histogram that make a power of two."""
FIRST, LAST = 9 * STEP, 36 * STEP
"""Told are bounds from 1 µs to 137 s; what is beyond counts as infinite."""


def expose(looks: Looks) -> str:
    """Return the text that Prometheus scrapes."""
    registry = CollectorRegistry()
    registry.register(_Looks(lambda: looks))
    return generate_latest(registry).decode()


def serve(gatherer: Gatherer, listen: str) -> None:
    """Answer scrapes at ``host:port``, or ``:port`` for any host, until Ctrl-C.

    Raises:
        Error: CONFIGURATION if the address is taken or none.
    """
    host, _, port = listen.rpartition(":")
    registry, lock = CollectorRegistry(), threading.Lock()

    def look() -> Looks:
        with lock:  # connections are for one scrape at a time
            return gatherer.look()

    try:
        server, thread = start_http_server(int(port), host or "0.0.0.0", registry)
    except (OSError, ValueError) as exc:
        raise Error(Code.CONFIGURATION, f"cannot listen on {listen!r}: {exc}") from exc
    registry.register(_Looks(look))
    print(f"metrics at http://{host or 'localhost'}:{server.server_port}/metrics", flush=True)
    try:
        while thread.is_alive():
            time.sleep(1)
    except KeyboardInterrupt:
        server.shutdown()
        thread.join()


class _Looks(Collector):
    """What prometheus_client asks at each scrape."""

    def __init__(self, look: Any) -> None:
        self._look = look

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before somebody looks."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Ask the cluster."""
        looks: Looks = self._look()
        up = GaugeMetricFamily("hillfire_up", "Whether a process answers.", labels=["process"])
        for name in looks.found:
            up.add_metric([name], 1)
        for name in looks.missing:
            up.add_metric([name], 0)
        yield up
        yield from _families(looks.found.values())


def _families(looks: Iterable[Look]) -> Iterable[Metric]:
    """Return all metrics by name; samples of one may have different labels."""
    families: dict[str, Metric] = {}
    for look in looks:
        for sample in look.samples:
            labels = {"process": look.name, **dict(sample.labels)}
            name = sample.name.removesuffix("_total")  # which the format adds for counters
            family = families.get(name)
            if family is None:
                family = families[name] = Metric(name, sample.help, sample.kind.name.lower())
            if sample.kind is not metrics.Kind.HISTOGRAM:
                family.add_sample(sample.name, labels, sample.value)
                continue
            for bound, below in _bounds(sample.times):
                family.add_sample(f"{name}_bucket", {**labels, "le": bound}, below)
            family.add_sample(f"{name}_count", labels, sample.times.observed)
            family.add_sample(f"{name}_sum", labels, sample.times.total_ns / 1e9)
    return families.values()


def _bounds(times: metrics.Times) -> Iterator[tuple[str, float]]:
    """Yield upper bounds in seconds with how many times stayed below, as Prometheus adds them."""
    for bucket in range(FIRST, LAST + 1, STEP):
        below = sum(count for each, count in times.counts.items() if each < bucket)
        yield f"{metrics.lower_ns(bucket) / 1e9:.9g}", below
    yield "+Inf", times.observed
